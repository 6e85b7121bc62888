"""What training writes to the terminal while it runs: lines, and its progress in steps."""

import time
from collections import deque

from tqdm import tqdm

from cluster.process.progress import Lines, listen, on_terminal, open_bar, say

__all__ = ["Progress", "listen", "say"]

_RECENT_S = 60.0
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # tqdm's own rate counts validation as steps


class Progress:
    """Steps done: a bar on a terminal, otherwise a line a minute; each with speed and time left.

    The speed is that of this process's steps in the last minute, without the pauses between them (validation,
    saving). The time left includes pauses, at the rate so far, and is a share of the bp that are still to be
    read, since windows may grow during the run. Both leave out the first step, which is slower than all
    others.
    """

    def __init__(self, total: int, *, visible: bool, done: int = 0, bp_left: int) -> None:
        """``done`` of ``total`` steps are behind the run, ``bp_left`` in those that are left."""
        terminal = on_terminal()
        self._lines = Lines(time.monotonic()) if visible and not terminal else None
        self._bar = open_bar(
            total=total, initial=done, unit="step", disable=not (visible and terminal), bar_format=_BAR
        )
        self._total, self._done = total, done
        self._bp_left = bp_left
        self._began: float | None = None  # when the first step was over
        self._since = self._worked = 0.0
        self._bp = 0  # read since then
        self._recent: deque[tuple[float, int]] = deque()  # seconds worked, bp read: at most a minute of steps

    def advance(self, note: str, *, bp: int) -> None:
        """Count a step that read ``bp``; ``note`` is printed with it."""
        now = time.monotonic()
        self._done += 1
        self._bp_left -= bp
        if self._began is None:
            self._began = now
        else:
            self._bp += bp
            self._worked += now - self._since
        self._since = now
        self._recent.append((self._worked, self._bp))
        while len(self._recent) > 2 and self._worked - self._recent[1][0] >= _RECENT_S:
            self._recent.popleft()
        note = ", ".join([note, *self._rates(now)])
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        if self._lines and self._lines.is_due(now, last=self._done == self._total):
            say(f"step {self._done}/{self._total}  {note}")

    def restart(self) -> None:
        """The time since the last step was a pause."""
        self._since = time.monotonic()

    def _rates(self, now: float) -> list[str]:
        (worked, bp), elapsed = self._recent[0], now - (self._began or now)
        if self._worked <= worked or self._bp <= bp:
            return []
        speed = f"{(self._bp - bp) / (self._worked - worked):,.0f} bp/s"
        left = tqdm.format_interval(self._bp_left * elapsed / self._bp)
        return [speed, f"{left} left"] if self._done < self._total else [speed]

    def close(self) -> None:
        self._bar.close()
