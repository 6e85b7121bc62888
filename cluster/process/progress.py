"""How far a command is: a bar on a terminal, a line a minute elsewhere.

Work reports through an ``OnProgress`` function, most easily through a ``Stage``; ``Progress`` shows it.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from configs import redact

LINE_S = 60.0  # seconds between lines where there is no terminal

OnProgress = Callable[[str, int, int], object]  # (stage, units done, units in all or 0 if that is unknown)


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing: for work whose progress nobody watches."""


class Stage:
    """One part of a work, of ``total`` units (0: unknown), which reports to ``on_progress``."""

    def __init__(self, on_progress: OnProgress, name: str, total: int = 0) -> None:
        self._on_progress, self._name, self._total = on_progress, name, total
        self.done = 0

    def advance(self, units: int) -> None:
        """``units`` more are done."""
        self.done += units
        self._on_progress(self._name, self.done, self._total)


class Progress:
    """Shows how much of each stage is done, how fast, and how long the rest will take: a bar on a terminal,
    with a clock that runs from the start, else a line a minute. It is an ``OnProgress``, and a context."""

    def __init__(self, *, unit: str = "bp") -> None:
        self._unit = unit
        self._stage = ""
        self._stage_began = self._last_call = time.monotonic()
        self._lines = Lines(self._last_call)
        self._bar: tqdm | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        if on_terminal():
            self._bar = open_bar(desc="starting", bar_format="{desc} [{elapsed}]", leave=False)
            self._clock = threading.Thread(target=self._run_clock, daemon=True)
            self._clock.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_new = stage != self._stage
        if is_new:  # what is done by its first call was done since the call before
            self._stage, self._stage_began = stage, self._last_call if done else now
        self._last_call = now
        if self._bar is not None:
            self._draw(stage, done, total, age=now - self._stage_began if is_new else None)
        elif self._lines.is_due(now):
            say(self._line(stage, done, total, seconds=now - self._stage_began))

    def close(self) -> None:
        """Removes the bar."""
        self._closed.set()
        if self._bar is not None:
            self._clock.join()
            self._bar.close()
            self._bar = None

    def _line(self, stage: str, done: int, total: int, *, seconds: float) -> str:
        speed = done / (seconds or 1.0)
        rate = f"{speed:,.1f} {self._unit}/s"
        if self._unit == "bp":
            rate = f"{speed / 1e3:.1f} kbp/s" if 0 < speed < 1e6 else f"{speed / 1e6:.1f} Mbp/s"
        if not total:
            return f"{stage}: {done:,} {self._unit} so far, {rate}"
        left = tqdm.format_interval((total - done) / speed) if speed else "?"
        return f"{stage}: {done:,} of {total:,} {self._unit}, {rate}, {left} left"

    def _draw(self, stage: str, done: int, total: int, *, age: float | None) -> None:
        """Moves the bar; a new stage, begun ``age`` seconds ago, gets a bar of its own."""
        with self._lock:
            assert self._bar is not None
            if age is not None:
                self._bar.close()
                self._bar = open_bar(
                    total=total or None, unit=self._unit, unit_scale=True, desc=stage, leave=False
                )
                self._bar.start_t -= age
                self._bar.last_print_t = self._bar.start_t
            self._bar.total = total or None
            self._bar.update(done - self._bar.n)

    def _run_clock(self) -> None:
        while not self._closed.wait(1):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()


class Lines:
    """When a line is due: LINE_S after the start, then LINE_S after the line before."""

    def __init__(self, now: float) -> None:
        self._next = now + LINE_S

    def is_due(self, now: float, *, last: bool = False) -> bool:
        """Whether a line is due ``now``, as the ``last`` one always is; if so, it counts as written."""
        if now < self._next and not last:
            return False
        self._next = now + LINE_S
        return True


def on_terminal() -> bool:
    """Whether somebody may watch a bar."""
    return sys.stderr.isatty()


def open_bar(**options: Any) -> tqdm:
    """A bar as wide as the terminal, or of 80 columns where the terminal has no known width: tqdm would draw
    nothing there."""
    return tqdm(**options, ncols=shutil.get_terminal_size().columns)


_listeners: list[Callable[[str], None]] = []


def say(text: str) -> None:
    """Writes a line to stderr, past any bar, without passwords of URIs."""
    line = redact(text)
    tqdm.write(line, file=sys.stderr)
    for listener in tuple(_listeners):
        listener(line)


def listen(listener: Callable[[str], None]) -> Callable[[], None]:
    """From now on ``listener`` gets every line that ``say`` writes, in the thread that says it. Returns what
    ends that; it may be called twice."""
    _listeners.append(listener)

    def end() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return end
