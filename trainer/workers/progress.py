"""How far the units are: a bar on a terminal, otherwise a line a minute."""

import time

from tqdm import tqdm

from cluster.process.progress import Lines, on_terminal, open_bar, say

_BAR = "{desc} |{bar}| [{elapsed}{postfix}]"


class UnitProgress:
    """Shows what is done, by weight, and how long the rest will take at the rate since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lines = Lines(self._began)
        self._first: float | None = None  # what was there at the start
        self._bar = (
            open_bar(total=1.0, bar_format=_BAR, desc="starting", leave=False) if on_terminal() else None
        )

    def __enter__(self) -> "UnitProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: float, total: float, running: int, left: int) -> None:
        """``done`` of the weight ``total``; ``running`` units are with Ray, ``left`` are missing in all."""
        now = time.monotonic()
        if self._first is None or done < self._first:  # a new version makes the share smaller
            self._first, self._began = done, now
        note = f"{left} units left, {running} with Ray{self._time_left(done, total, now)}"
        if self._bar is not None:
            self._bar.set_description_str(note, refresh=False)
            self._bar.n = done / (total or 1.0)
            self._bar.refresh()
        elif left and self._lines.is_due(now):
            say(note)

    def _time_left(self, done: float, total: float, now: float) -> str:
        gained, elapsed = done - (self._first or 0.0), now - self._began
        if gained <= 0 or elapsed <= 0:
            return ""
        return f", {tqdm.format_interval((total - done) * elapsed / gained)} left"
