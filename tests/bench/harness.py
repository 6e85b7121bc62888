"""What the measurements of ``make bench`` share: the row they return, and two speeds taken in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    name: str
    ours: float
    reference: float
    ratio: float
    unit: str
    target: str
    reference_is: str


def rate(amount: float, ours: Callable[[], object], reference: Callable[[], object]) -> tuple[float, float]:
    """(ours, reference) in amount a second: medians of five runs in turns, after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(6):
        for function, into in zip((ours, reference), seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                into.append(time.perf_counter() - start)
    return amount / statistics.median(seconds[0]), amount / statistics.median(seconds[1])
