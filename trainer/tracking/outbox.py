"""Messages that wait on disk until MLflow has them: an SQLite file, which survives a kill at any moment.

The steps append in memory; ``flush`` writes to the disk, and is called by the uploader's thread, so that no
step waits for a disk. The process that holds the lock of its run.dir is the only one that uses the file.
"""

import fcntl
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from cluster.storage.retry import StoreError, named
from trainer.core.console import say
from trainer.tracking import messages, old_queue
from trainer.tracking.messages import Export, Message, Metrics

FILE = "outbox.sqlite"
_FORMAT_VERSION = 1
# id: in the order of appending; step: of metrics and exports; line: see messages.py
_TABLE = """CREATE TABLE IF NOT EXISTS messages
    (id INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER, line TEXT NOT NULL)"""
_INSERT = "INSERT INTO messages (step, line) VALUES (?, ?)"
_WAITING = "FROM messages WHERE id > ? ORDER BY id"


class Entry(NamedTuple):
    """A message that waits; None if its line is damaged."""

    id: int
    message: Message | None


class Outbox:
    """The messages of ``folder``. Its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Takes up what waits there, also in the queue.jsonl of an earlier version.

        Raises:
            StoreError: the folder cannot be written, or a newer version wrote the file.
        """
        self.path = folder / FILE
        self._buffer: list[tuple[int | None, str]] = []  # appended, not yet on the disk: (step, line)
        self._buffer_lock = threading.Lock()
        self._database_lock = threading.Lock()
        self._confirmed = 0  # messages up to this id are delivered; a full disk may still hold them
        with named(str(folder), "make"):
            folder.mkdir(parents=True, exist_ok=True)
        with _store_errors(self.path, "open"):
            self._database = _open(self.path)
            self._take_over(folder)
            (self._stored,) = self._database.execute("SELECT count(*) FROM messages").fetchone()

    def _take_over(self, folder: Path) -> None:
        """The lines of an earlier version's queue become messages here, each once, also after a kill."""
        if lines := old_queue.waiting(folder):
            there = {line for (line,) in self._database.execute("SELECT line FROM messages")}
            missing = [_row(line, message) for line, message in lines.items() if line not in there]
            with self._database:
                self._database.executemany(_INSERT, missing)
        old_queue.remove(folder)

    def resume(self, *, after: int | None, tail: bytes = b"") -> None:
        """Drop what is of steps beyond ``after``, which are run and logged again; add what ``tail`` has more.

        ``tail`` is what waited elsewhere when the checkpoint was saved, while other messages may have waited
        here: all of them are put in order, metrics by their steps and before them the rest by time.
        """
        with self._database_lock, _store_errors(self.path, "write"), self._database as database:
            if tail:
                here = (line for (line,) in database.execute("SELECT line FROM messages ORDER BY id"))
                lines = dict.fromkeys([*tail.decode(errors="replace").split("\n"), *here])  # each once
                known = [(line, found) for line in lines if (found := messages.from_line(line))]
                known.sort(key=lambda item: _order(item[1]))
                database.execute("DELETE FROM messages")
                database.executemany(_INSERT, [_row(*item) for item in known])
            if after is not None:
                database.execute("DELETE FROM messages WHERE step > ?", [after])
            (self._stored,) = database.execute("SELECT count(*) FROM messages").fetchone()

    def append(self, message: Message) -> None:
        """``message`` as the last one, in memory until the next ``flush``."""
        row = _row(messages.to_line(message), message)
        with self._buffer_lock:
            self._buffer.append(row)

    def flush(self) -> None:
        """All that was appended is on the disk, and outlives a crash of the machine.

        Raises:
            StoreError: the disk is full or fails. What it did not take stays in memory for the next call.
        """
        with self._database_lock, _store_errors(self.path, "write"):
            with self._buffer_lock:
                rows = list(self._buffer)
            if rows:
                with self._database:
                    self._database.executemany(_INSERT, rows)
                self._stored += len(rows)
                with self._buffer_lock:
                    del self._buffer[: len(rows)]

    @property
    def waiting(self) -> int:
        """Messages that are not delivered."""
        return self._stored + len(self._buffer)

    @property
    def unwritten(self) -> int:
        """Messages that are in memory alone."""
        return len(self._buffer)

    def tail(self) -> bytes:
        """The messages that are not delivered, a line each."""
        with self._database_lock, _store_errors(self.path, "read"):
            found = self._database.execute(f"SELECT line {_WAITING}", [self._confirmed])
            lines = [line for (line,) in found] + [line for _, line in self._buffer]
        return "".join(line + "\n" for line in lines).encode()

    def first(self, most: int) -> list[Entry]:
        """The first messages on the disk that are not delivered, at most so many."""
        with self._database_lock, _store_errors(self.path, "read"):
            found = self._database.execute(f"SELECT id, line {_WAITING} LIMIT ?", [self._confirmed, most])
            return [Entry(number, messages.from_line(line)) for number, line in found]

    def confirm(self, entries: Sequence[Entry]) -> None:
        """``entries``, the first that waited, are delivered."""
        with self._database_lock:
            self._confirmed = entries[-1].id
            self._stored -= len(entries)
            # A full disk may refuse: then the next call removes them.
            with suppress(sqlite3.OperationalError), self._database:
                self._database.execute("DELETE FROM messages WHERE id <= ?", [self._confirmed])

    def close(self) -> None:
        self._database.close()


def _row(line: str, message: Message) -> tuple[int | None, str]:
    return (message.step if isinstance(message, Metrics | Export) else None), line


def _order(message: Message) -> tuple[int, int]:
    match message:
        case Metrics(step=step):
            return step, 0
        case Export(step=step):  # its validation comes first
            return step, 1
    return -1, message.time


def _open(path: Path) -> sqlite3.Connection:
    """The database, with its table. A damaged one is moved aside: a run is worth more than its metrics."""
    database = _connect(path)
    if damage := _prepare(database):
        database.close()
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        os.replace(path, aside)
        with suppress(FileNotFoundError):
            os.replace(f"{path}-journal", f"{aside}-journal")
        say(f"warning: {path} is damaged ({damage}); it is kept as {aside.name}, what waited in it is lost")
        database = _connect(path)
        _prepare(database)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > _FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}, this code reads {_FORMAT_VERSION}: use the newer version "
            "that wrote it, or move the file away, and the metrics in it do not reach MLflow"
        )
    if not version:
        database.execute(_TABLE)
        database.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")
    return database


def _connect(path: Path) -> sqlite3.Connection:
    locks = "" if _has_locks(path.parent) else "?vfs=unix-none"
    return sqlite3.connect(f"file:{quote(str(path))}{locks}", uri=True, check_same_thread=False)


def _prepare(database: sqlite3.Connection) -> str:
    """Set how the file is written; what is damaged in it, "" if nothing is."""
    try:
        # Not a write-ahead log: that needs shared memory, which network file systems lack.
        database.execute("PRAGMA journal_mode = TRUNCATE")
        database.execute("PRAGMA synchronous = FULL")
        return "; ".join(text for (text,) in database.execute("PRAGMA quick_check(1)") if text != "ok")
    except sqlite3.DatabaseError as fault:
        if fault.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        return str(fault)


def _has_locks(folder: Path) -> bool:
    """Whether the file system has the locks that SQLite takes; they guard against other programs only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _store_errors(path: Path, what: str) -> Iterator[None]:
    """An error of SQLite in the block becomes a StoreError that names the file."""
    try:
        yield
    except sqlite3.Error as fault:
        raise StoreError(f"cannot {what} {path}: {fault}") from fault
