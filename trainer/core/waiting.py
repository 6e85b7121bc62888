"""How long this process has waited for its device and for the other ranks, where it waits for a result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """``seconds`` that were spent inside ``running``, of all calls together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


device_wait = Stopwatch()
"""Runs wherever the steps read a number from the device: host time is what is left of a step."""
