"""Lines on disk that wait to be delivered: appended by the steps, read by whoever delivers, kept over a kill.

One JSON object a line. What was delivered is noted beside, as a hint: whoever delivers must bear a line
twice.
"""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.storage.retry import named

Entry = dict[str, Any]
_CHUNK = 1 << 20  # bytes that are read at once


class Spool:
    """The lines of ``folder``; methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Takes up what is there; a last line that a kill cut short is dropped. StoreError if it cannot be
        written."""
        self.path, self._note = folder / "queue.jsonl", folder / "delivered"
        with named(str(folder), "make"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []  # lines that a full disk has not taken yet
        with named(str(self.path), "open"):
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - it stays open
            data = self._read(0)
            self._size = data.rfind(b"\n") + 1
            self._file.truncate(self._size)
            self._settle()
        noted = self._noted()
        self._delivered = noted if noted <= self._size and data[noted - 1 : noted] in (b"", b"\n") else 0

    def append(self, entry: Entry) -> None:
        """``entry`` as the last line; handed to the system, not yet to the disk.

        A disk that is full does not stop the steps: the line is kept in memory, and goes to the disk before
        the next.
        """
        with self._lock:
            self._waiting.append(json.dumps(entry).encode() + b"\n")
            with contextlib.suppress(OSError):
                self._write()

    def sync(self) -> None:
        """All lines are on the disk. StoreError if it is full."""
        with self._lock, named(str(self.path), "write"):
            self._write()
            os.fsync(self._file.fileno())

    def _write(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, "no room for a whole line")
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(line)
            del self._waiting[0]

    @property
    def waiting(self) -> int:
        """Bytes of the lines that are not delivered."""
        return self._size - self._delivered

    @property
    def unwritten(self) -> int:
        """Lines that a full disk has not taken."""
        return len(self._waiting)

    def count(self) -> int:
        """Lines that are not delivered."""
        return self.tail().count(b"\n")

    def tail(self) -> bytes:
        """The lines that are not delivered."""
        with self._lock:
            return self._read(self._delivered) + b"".join(self._waiting)

    def next(self, most: int) -> list[tuple[int, Entry]]:
        """The first lines, at most so many, that are not delivered: (where the line ends, its entry).

        A crash of the machine may leave a line that is none: its entry is empty.
        """
        with self._lock:
            end, length, data = self._delivered, _CHUNK, b""
            while b"\n" not in data and end + len(data) < self._size:  # a line may be longer than that
                data, length = self._read(end, length), 2 * length
        found = []
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1][:most]:
            end += len(line) + 1
            found.append((end, _entry(line)))
        return found

    def delivered(self, end: int) -> None:
        """All lines up to ``end`` are delivered."""
        self._delivered = end
        temporary = self._note.with_suffix(".new")
        with contextlib.suppress(OSError):  # a hint that a full disk may do without
            temporary.write_text(str(end))
            os.replace(temporary, self._note)

    def keep(
        self,
        wanted: Callable[[Entry], bool],
        *,
        before: bytes = b"",
        order: Callable[[Entry], Any] | None = None,
    ) -> None:
        """Of the lines that are not delivered only those that are ``wanted`` stay, and those of ``before``
        with them.

        The latter may have waited elsewhere, while others waited here: ``order`` puts all of them in order.
        """
        with self._lock, named(str(self.path), "write"):
            both = before + self._read(self._delivered)
            lines = {line: _entry(line) for line in both.split(b"\n")}  # a line that is in both once
            good = [(line, entry) for line, entry in lines.items() if entry and wanted(entry)]
            if order:
                good.sort(key=lambda item: order(item[1]))
            kept = b"".join(line + b"\n" for line, _ in good)
            temporary = self.path.with_suffix(".new")
            with open(temporary, "wb") as file:
                file.write(kept)
                file.flush()
                os.fsync(file.fileno())
            self._note.unlink(
                missing_ok=True
            )  # first: without it all of the file waits, which is what is meant
            os.replace(temporary, self.path)
            self._settle()
            self._file.close()
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - it stays open
            self._size, self._delivered = len(kept), 0

    def close(self) -> None:
        self._file.close()

    def _read(self, start: int, most: int = -1) -> bytes:
        self._file.seek(start)
        return self._file.read(most) or b""  # writes go to the end whatever the position is

    def _settle(self) -> None:
        """The names in the folder outlive a crash of the machine, too."""
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _noted(self) -> int:
        try:
            return max(0, int(self._note.read_text()))
        except (OSError, ValueError):
            return 0


def _entry(line: bytes) -> Entry:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
