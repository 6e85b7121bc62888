"""Signals that tell a process to stop, and what they wait for."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextlib.contextmanager
def wait() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C that come in the block are heard at its end, by the handlers that were there
    before.

    For what must not be left half-done: a run that was made at a server and is not yet known here. A second
    Ctrl-C is heard at once. Only the main thread hears signals: in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    old: dict[int, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in noted:
            old[number](number, frame)
        noted.append(number)

    for stop in _STOPS:
        if callable(
            signal.getsignal(stop)
        ):  # what is ignored stays so; by default it ends the process at once
            old[stop] = signal.signal(stop, hear)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])
