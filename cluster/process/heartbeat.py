"""What this rank is doing (step, collective, last checkpoint), in a small file that its node's agent reads.

The file is mapped into memory: writing it costs the rank nothing, and it can be read while the rank hangs, is
stopped, or is dead. Without DNA_HEARTBEAT the record stays inside this process.
"""

import contextlib
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.process import evidence

ENV = "DNA_HEARTBEAT"  # the path of this rank's record
# step, saved, moves, collectives, steps, at, inside, slow, then two texts: length of a label, label
_FORMAT = struct.Struct("<qqqqqd??B80sB40s")
SIZE = _FORMAT.size
_RECENT = 8  # labels that the process keeps, for a rank that hangs to show


@dataclass(frozen=True)
class HeartbeatRecord:
    """One reading of a heartbeat.

    ``step``: the current step, 0 before the first. ``saved``: the step of the newest checkpoint. ``moves``
    grows with everything the rank does; ``at`` is the Unix time of the last of it. ``collectives``: begun so
    far. ``label``: the last collective or phase; ``inside`` until it has ended. ``steps``: begun by this
    process. ``issued``: the last collective, on which a GPU may still work when the host is elsewhere.
    ``slow``: inside a call that shows no progress until it ends.
    """

    step: int = 0
    saved: int = 0
    moves: int = 0
    collectives: int = 0
    at: float = 0.0
    inside: bool = False
    label: str = ""
    steps: int = 0
    issued: str = ""
    slow: bool = False

    def describe(self) -> str:
        """As a part of a sentence: "step 7, inside all_reduce (collective 31)"."""
        where = (
            f"{'inside' if self.inside else 'after'} {self.label}" if self.label else "before any collective"
        )
        issued = f", last issued {self.issued}" if self.issued not in ("", self.label) else ""
        return f"step {self.step}, {where} (collective {self.collectives}{issued})"


class Heartbeat:
    """The record of this process, for writing."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Mapped to the file ``path``, which is overwritten; to no file where that is None."""
        if path is None:
            self._record = mmap.mmap(-1, SIZE)
        else:
            with open(path, "w+b") as file:
                file.truncate(SIZE)
                self._record = mmap.mmap(file.fileno(), SIZE)
        self._step = self._saved = self._moves = self._collectives = self._steps = 0
        self._inside, self._slow, self._label, self._issued = False, False, b"", b""
        self._recent, self._lock = deque[str](maxlen=_RECENT), threading.Lock()
        self._write()
        self.watched = path is not None  # by an agent, which ends a rank that makes no progress

    def step(self, step: int) -> None:
        """Step ``step`` (from 1) begins."""
        self._step = step
        self._steps += 1
        self._write()

    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` is published."""
        self._saved = step
        self._write()

    def advance(self) -> None:
        """A piece of long work is done: bytes sent, a file, a batch. Any thread may call it, but only after
        real progress, not while it waits."""
        self._write()

    @contextlib.contextmanager
    def advancing(self) -> Iterator[None]:
        """The block is such a piece; a block that fails does not count."""
        yield
        self.advance()

    def recent(self) -> list[str]:
        """The last collectives and phases of this process, newest first."""
        return [f"  {each}" for each in reversed(self._recent)]

    @contextlib.contextmanager
    def inside(self, what: str, *, phase: bool = False, slow: bool = False) -> Iterator[None]:
        """The block is one collective, or a ``phase`` that may have several: it may wait for other ranks.

        ``slow``: it may take as long as the start does and shows no progress meanwhile, such as a library's
        upload of a model. Calls from other threads are ignored: what runs in the background does not say
        where the rank is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer = self._inside, self._label, self._slow
        self._collectives += 1
        self._inside, self._label, self._slow = True, what.encode()[:80], slow
        if not phase:
            self._issued = what.encode()[:40]
        self._recent.append(f"{self._collectives} {what}, in step {self._step}")
        self._write()
        try:
            yield
        finally:
            self._inside, self._slow = outer[0], outer[2]
            if outer[0]:
                self._label = outer[1]
            self._write()

    def read(self) -> HeartbeatRecord:
        return _unpack(self._record[:SIZE])

    def _write(self) -> None:
        with self._lock:
            self._moves += 1
            self._record[:SIZE] = _FORMAT.pack(
                self._step,
                self._saved,
                self._moves,
                self._collectives,
                self._steps,
                time.time(),
                self._inside,
                self._slow,
                len(self._label),
                self._label,
                len(self._issued),
                self._issued,
            )


def read(path: str | Path) -> HeartbeatRecord:
    """The record of another process; the empty one where there is none yet."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return HeartbeatRecord()
    return _unpack(data) if len(data) == SIZE else HeartbeatRecord()


def _unpack(data: bytes) -> HeartbeatRecord:
    step, saved, moves, collectives, steps, at, inside, slow, *labels = _FORMAT.unpack(data)
    label, issued = (text[:length].decode(errors="replace") for length, text in (labels[:2], labels[2:]))
    return HeartbeatRecord(step, saved, moves, collectives, at, inside, label, steps, issued, slow)


# Removed from the environment: a program that this rank starts would overwrite the record under its map.
_PATH = os.environ.pop(ENV, None)
if _PATH is not None:  # before the record exists, since the agent asks for evidence once it does
    evidence.listen(_PATH, lambda: heartbeat.recent())
heartbeat: Heartbeat = Heartbeat(_PATH)
