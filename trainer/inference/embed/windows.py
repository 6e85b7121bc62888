"""Where the windows of a record lie, and which letters each of them keeps.

Windows start every ``length - overlap`` letters. Each letter is kept by one window: the one in which it is
farthest from an edge, so that most of what it sees lies within. The middle of that window is the nearest, so
the border between two neighbours lies halfway between their middles.

Shapes: W windows of a record.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Places = np.ndarray[Any, np.dtype[np.int64]]


class Windows(NamedTuple):
    """Windows [start, end) of a record, and the letters [keep_start, keep_end) that each keeps; all count
    from the beginning of the record, 0-based and half-open."""

    start_W: Places
    end_W: Places
    keep_start_W: Places
    keep_end_W: Places


@dataclass(frozen=True)
class Tiling:
    """Windows of ``length`` letters, neighbours of which share ``overlap`` (below ``length``).

    Without overlap the last window is what is left. With overlap it is moved back so that it is full, if the
    record is long enough.
    """

    length: int
    overlap: int = 0

    def count(self, letters: int) -> int:
        """How many windows a record of so many letters (at least 1) has."""
        return 1 + max(0, -(-(letters - self.length) // (self.length - self.overlap)))

    def windows(self, letters: int) -> Windows:
        """The windows of a record of so many letters (at least 1), in order."""
        start_W = np.arange(self.count(letters), dtype=np.int64) * (self.length - self.overlap)
        if self.overlap:
            start_W = np.minimum(start_W, max(0, letters - self.length))
        end_W = np.minimum(start_W + self.length, letters)
        # Of two windows that are as near, the first keeps the letter.
        borders = (start_W[:-1] + start_W[1:] + self.length - 1) // 2 + 1
        return Windows(start_W, end_W, np.append(np.int64(0), borders), np.append(borders, np.int64(letters)))
