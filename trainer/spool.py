"""Lines on disk that wait to be delivered: appended by the steps, read by whoever delivers, kept over a kill.

One JSON object a line. What was delivered is noted beside, as a hint: whoever delivers must bear a line twice.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Spool:
    """The lines of ``folder``; methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Takes up what is there; a last line that a kill cut short is dropped."""
        self.path, self._note = folder / "queue.jsonl", folder / "delivered"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = open(self.path, "a+b")  # noqa: SIM115 - it stays open
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)
        self._size = whole
        self._delivered = min(self._noted(), whole)

    def append(self, entry: Entry) -> None:
        """``entry`` as the last line; handed to the system, not yet to the disk."""
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            self._size += len(line)

    def sync(self) -> None:
        """All lines are on the disk."""
        os.fsync(self._file.fileno())

    @property
    def waiting(self) -> int:
        """Bytes of the lines that are not delivered."""
        return self._size - self._delivered

    def count(self) -> int:
        """Lines that are not delivered."""
        return self.tail().count(b"\n")

    def tail(self) -> bytes:
        """The lines that are not delivered."""
        with self._lock:
            return self._read(self._delivered)

    def next(self, most: int) -> list[tuple[int, Entry]]:
        """The first lines, at most so many, that are not delivered: (where the line ends, its entry)."""
        with self._lock:
            data, end = self._read(self._delivered, 1 << 20), self._delivered
        found = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True)[:most]:
            end += len(line)
            found.append((end, json.loads(line)))
        return found

    def delivered(self, end: int) -> None:
        """All lines up to ``end`` are delivered."""
        self._delivered = end
        temporary = self._note.with_suffix(".new")
        temporary.write_text(str(end))
        os.replace(temporary, self._note)

    def keep(self, wanted: Callable[[Entry], bool], *, before: bytes = b"") -> None:
        """Of the lines that are not delivered only those that are ``wanted`` stay; ``before`` come other lines, unless
        they are there already."""
        with self._lock:
            own = self._read(self._delivered).splitlines(keepends=True)
            there = set(own)
            lines = [line for line in before.splitlines(keepends=True) if line not in there] + own
            kept = b"".join(line for line in lines if wanted(json.loads(line)))
            temporary = self.path.with_suffix(".new")
            with open(temporary, "wb") as file:
                file.write(kept)
                file.flush()
                os.fsync(file.fileno())
            self._note.unlink(missing_ok=True)  # first: without it all of the file waits, which is what is meant
            os.replace(temporary, self.path)
            self._file.close()
            self._file = open(self.path, "a+b")  # noqa: SIM115 - it stays open
            self._size, self._delivered = len(kept), 0

    def close(self) -> None:
        self._file.close()

    def _read(self, start: int, most: int = -1) -> bytes:
        self._file.seek(start)
        return self._file.read(most)  # writes go to the end whatever the position is

    def _noted(self) -> int:
        try:
            return max(0, int(self._note.read_text()))
        except (OSError, ValueError):
            return 0
