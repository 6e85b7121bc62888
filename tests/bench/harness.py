"""What the measurements of ``make bench`` share: the row they return, and two speeds taken in turns."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def sampled(look: Callable[[], object], *, every_s: float) -> Iterator[None]:
    """Calls ``look`` in a thread, again and again until the block ends."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
