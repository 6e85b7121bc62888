"""What a command says on the terminal while it works: lines, and how far it is."""

import sys
import time

from tqdm import tqdm

from configs import redact


class Progress:
    """Steps done: a bar on a terminal, otherwise a line a minute. Silent where ``shown`` is False."""

    def __init__(self, total: int, *, shown: bool, done: int = 0) -> None:
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not (shown and terminal))
        self._total, self._done, self._next_line = total, done, time.monotonic() + 60

    def advance(self, note: str) -> None:
        self._done += 1
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        if self._lines and (time.monotonic() >= self._next_line or self._done == self._total):
            self._next_line = time.monotonic() + 60
            say(f"step {self._done}/{self._total}  {note}")

    def close(self) -> None:
        self._bar.close()


def say(text: str) -> None:
    """One line to the terminal, past any progress bar, without passwords of URIs."""
    tqdm.write(redact(text), file=sys.stderr)
