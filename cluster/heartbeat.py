"""What this rank is doing, in a small file that its node's launcher reads: step, collective, last saved step.

A record is memory that is mapped to a file, so that it costs the rank nothing, and can be read of a rank that hangs, is
stopped, or is dead. Without DNA_HEARTBEAT the record is kept for this process alone.
"""

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENV = "DNA_HEARTBEAT"  # the path of this rank's record
_FORMAT = struct.Struct("<qqqqd?B80s")  # step, saved, moves, collectives, at, inside, length of the label, label
SIZE = _FORMAT.size


@dataclass(frozen=True)
class Beat:
    """``step``: the step that runs, 0 before the first. ``saved``: of the newest checkpoint. ``moves`` rises with
    whatever the rank does; ``at``: Unix time of the last of it. ``collectives``: begun so far. ``label``: the last
    collective or phase, ``inside`` while it has not ended.
    """

    step: int = 0
    saved: int = 0
    moves: int = 0
    collectives: int = 0
    at: float = 0.0
    inside: bool = False
    label: str = ""

    def told(self) -> str:
        """As a part of a sentence: "step 7, inside all_reduce (collective 31)"."""
        where = f"{'inside' if self.inside else 'after'} {self.label}" if self.label else "before any collective"
        return f"step {self.step}, {where} (collective {self.collectives})"


class Heart:
    """The record of this process."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Mapped to ``path``, which is made anew; to no file where that is None."""
        self.beat = Beat()
        if path is None:
            self._record = mmap.mmap(-1, SIZE)
        else:
            with open(path, "w+b") as file:
                file.truncate(SIZE)
                self._record = mmap.mmap(file.fileno(), SIZE)
        self._step = self._saved = self._moves = self._collectives = 0
        self._inside, self._label = False, b""
        self._write()

    def step(self, step: int) -> None:
        """Step ``step`` (from 1) begins."""
        self._step = step
        self._write()

    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` is published."""
        self._saved = step
        self._write()

    @contextlib.contextmanager
    def inside(self, what: str) -> Iterator[None]:
        """The block is one collective, or a phase that has several: it may wait for other ranks.

        Told of the main thread alone: what others do in the background does not say where the rank is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer = self._inside, self._label
        self._collectives += 1
        self._inside, self._label = True, what.encode()[:80]
        self._write()
        try:
            yield
        finally:
            self._inside = outer[0]
            if outer[0]:
                self._label = outer[1]
            self._write()

    def read(self) -> Beat:
        return _unpack(self._record[:SIZE])

    def _write(self) -> None:
        self._moves += 1
        self._record[:SIZE] = _FORMAT.pack(self._step, self._saved, self._moves, self._collectives, time.time(),
                                           self._inside, len(self._label), self._label)  # fmt: skip


def read(path: str | Path) -> Beat:
    """The record of another process; the empty one where there is none yet."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return Beat()
    return _unpack(data) if len(data) == SIZE else Beat()


def _unpack(data: bytes) -> Beat:
    step, saved, moves, collectives, at, inside, length, label = _FORMAT.unpack(data)
    return Beat(step, saved, moves, collectives, at, inside, label[:length].decode(errors="replace"))


# Taken out of the environment: what this rank starts would make the record anew, under its map.
heart = Heart(os.environ.pop(ENV, None))
