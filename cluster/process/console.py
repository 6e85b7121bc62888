"""Output through a thread, so that no other thread ever waits for the terminal.

After Ctrl-S, or with a pipe that nobody reads, a write blocks; the supervisor must go on all the same.
"""

import contextlib
import functools
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator

_MOST = 4 << 20  # bytes that wait to be written
_LAST_S = 5.0  # how long the end waits for a reader that takes nothing


class Console(io.TextIOBase):
    """A text stream onto ``descriptor`` whose ``write`` never blocks.

    Output that nobody has read is kept, up to ``most`` bytes. Then the oldest lines are dropped, and a note
    says how many. Once nobody can read any more (the terminal or the reader is gone) everything is dropped.
    """

    def __init__(self, descriptor: int, *, encoding: str = "utf-8", most: int = _MOST) -> None:
        self._descriptor, self._encoding, self._most = descriptor, encoding, most
        self._waiting, self._bytes, self._dropped, self._written = deque[bytes](), 0, 0, 0
        self._gone = self._ending = self._writing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_out, name="console", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        data = text.encode(self._encoding, errors="backslashreplace")
        with self._changed:
            if data and not self._gone:
                self._waiting.append(data)
                self._bytes += len(data)
                while self._bytes > self._most and len(self._waiting) > 1:
                    oldest = self._waiting.popleft()
                    self._bytes -= len(oldest)
                    self._dropped += oldest.count(b"\n")
                self._changed.notify_all()
        return len(text)

    def finish(self) -> None:
        """Wait until everything is written, or nobody has read anything for a while."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            written = -1
            while not self._done() and self._written != written:
                written = self._written
                self._changed.wait_for(functools.partial(self._moved, written), _LAST_S)

    def _moved(self, since: int) -> bool:
        return self._written != since or self._done()

    def _done(self) -> bool:
        return self._gone or not (self._waiting or self._writing)

    def _write_out(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                note = (
                    f"({self._dropped} lines are left out here: nobody read them)\n" if self._dropped else ""
                )
                line = self._waiting.popleft()
                self._bytes -= len(line)
                piece, self._dropped, self._writing = note.encode() + line, 0, True
            try:
                while piece:
                    piece = piece[self._put(piece) :]
                    self._update(written=1)
            except OSError:
                self._update(gone=True)
                return
            self._update(writing=False)

    def _update(self, *, written: int = 0, gone: bool = False, writing: bool = True) -> None:
        with self._changed:
            self._written += written
            self._gone, self._writing = gone, writing
            if gone:
                self._waiting.clear()
            self._changed.notify_all()

    def _put(self, piece: bytes) -> int:
        try:
            return os.write(self._descriptor, piece[: select.PIPE_BUF])
        except BlockingIOError:  # another process that shares the terminal has set it to non-blocking
            select.select([], [self._descriptor], [])
            return 0


@contextlib.contextmanager
def unblocked() -> Iterator[None]:
    """In the block sys.stderr is a Console, to which writing never blocks."""
    stream = sys.stderr
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no real file, as in some tests
        yield
        return
    stream.flush()
    console = Console(descriptor, encoding=stream.encoding)
    sys.stderr = console
    try:
        yield
    finally:
        sys.stderr = stream
        console.finish()
