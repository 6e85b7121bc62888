"""What is said, by a thread that may wait for the terminal: nobody who says something ever does.

Ctrl-S, a pipe that nobody reads, a terminal that is gone: a process that waits there does nothing else.
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

_MOST = 4 << 20  # bytes that wait
_LAST_S = 5.0  # that the end waits for a reader who takes nothing


class Console(io.TextIOBase):
    """A text stream onto ``descriptor`` that takes whatever is written to it at once.

    What nobody has read stays, up to ``most`` bytes; then the oldest lines go, and it is said how many. Where
    nobody can read any more (the terminal or the reader is gone) everything goes.
    """

    def __init__(self, descriptor: int, *, encoding: str = "utf-8", most: int = _MOST) -> None:
        self._descriptor, self._encoding, self._most = descriptor, encoding, most
        self._waiting, self._bytes, self._left_out, self._taken = deque[bytes](), 0, 0, 0
        self._gone = self._ending = self._writing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._pass_on, name="console", daemon=True)
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
        with self._news:
            if data and not self._gone:
                self._waiting.append(data)
                self._bytes += len(data)
                while self._bytes > self._most and len(self._waiting) > 1:
                    oldest = self._waiting.popleft()
                    self._bytes -= len(oldest)
                    self._left_out += oldest.count(b"\n")
                self._news.notify_all()
        return len(text)

    def finish(self) -> None:
        """Come back when all is out, or nobody has taken anything for a while."""
        with self._news:
            self._ending = True
            self._news.notify_all()
            taken = -1
            while not self._done() and self._taken != taken:
                taken = self._taken
                self._news.wait_for(functools.partial(self._moved, taken), _LAST_S)

    def _moved(self, since: int) -> bool:
        return self._taken != since or self._done()

    def _done(self) -> bool:
        return self._gone or not (self._waiting or self._writing)

    def _pass_on(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                note = (
                    f"({self._left_out} lines are left out here: nobody read them)\n"
                    if self._left_out
                    else ""
                )
                line = self._waiting.popleft()
                self._bytes -= len(line)
                piece, self._left_out, self._writing = note.encode() + line, 0, True
            try:
                while piece:
                    piece = piece[self._put(piece) :]
                    self._tell(taken=1)
            except OSError:
                self._tell(gone=True)
                return
            self._tell(writing=False)

    def _tell(self, *, taken: int = 0, gone: bool = False, writing: bool = True) -> None:
        with self._news:
            self._taken += taken
            self._gone, self._writing = gone, writing
            if gone:
                self._waiting.clear()
            self._news.notify_all()

    def _put(self, piece: bytes) -> int:
        try:
            return os.write(self._descriptor, piece[: select.PIPE_BUF])
        except BlockingIOError:  # whoever shares it has made it so
            select.select([], [self._descriptor], [])
            return 0


@contextlib.contextmanager
def unblocked() -> Iterator[None]:
    """What goes to sys.stderr in the block keeps nobody waiting."""
    stream = sys.stderr
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # of no file, as in some tests
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
