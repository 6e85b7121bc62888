"""Blocks on their way to the reader: a cache on local disk, one in memory, and workers that fetch ahead of
need.

Blocks stay packed (0.25 bytes a base) everywhere. A block in memory or on its way is never asked for twice.
"""

import contextlib
import errno
import itertools
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import PriorityQueue

from cluster.storage.lock import exclusive
from cluster.storage.store import StoreError
from data_prep.shards import FormatError, PackedBlock

NOW, SOON, LATER = 0, 1, 2  # a batch waits for the block; the open set has it; the next set has it
_DIGITS = 20  # of the sum of sizes, as it is written
_PART = ".part"


def warn(text: str) -> None:
    """A Python warning, for callers without a terminal line of their own."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


class DiskCache:
    """Payloads in files of a local folder, at most ``limit`` bytes of them, shared by all processes of a
    machine.

    Files appear whole (temporary name, then rename) and are evicted by their time, which every use renews.
    Changes are made under a lock on ``<folder>/total``, which holds the sum of sizes. The folder may be
    deleted at any time. Where it cannot be written (a full disk, say), that is said once, and from then on
    nothing is kept.
    """

    def __init__(self, folder: Path, limit: int, *, say: Callable[[str], None] = warn) -> None:
        self.folder, self.limit, self._say = folder, limit, say
        self._root = str(folder)
        self._usable = True

    def get(self, key: str) -> bytes | None:
        """The payload kept under ``key`` (hexadecimal), or None."""
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                payload = file.read()
            os.utime(path)
        except FileNotFoundError:  # not kept, or evicted a moment ago
            return None
        except OSError as fault:
            self._give_up("read", fault)
            return None
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Keep ``payload``; the least recently used are evicted, to nine tenths of the limit, where it would
        pass."""
        if not self._usable or len(payload) > self.limit:
            return
        path = self._path(key)
        try:
            with self._locked() as total_file:
                if os.path.exists(path):
                    return
                total = _read_total(total_file)
                if total is None or total + len(payload) > self.limit:
                    total = self._evict(room=len(payload))
                # Before the file is there: a process that dies in between leaves a sum that is too high,
                # never too low.
                _write_total(total_file, total + len(payload))
                try:
                    _write_whole(path, payload)
                except OSError:
                    _write_total(total_file, total)
                    raise
        except FileNotFoundError:
            return  # the folder was deleted just now; the next block makes it again
        except OSError as fault:
            self._give_up("write", fault)

    def drop(self, key: str) -> None:
        """Forget what is kept under ``key``."""
        path = self._path(key)
        with contextlib.suppress(OSError), self._locked() as total_file:
            size = os.path.getsize(path)
            os.unlink(path)
            total = _read_total(total_file)
            if total is not None:
                _write_total(total_file, max(0, total - size))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the file that holds the sum, locked."""
        with contextlib.ExitStack() as stack:
            try:
                total_file = stack.enter_context(exclusive(f"{self._root}/total"))
            except FileNotFoundError:
                self.folder.mkdir(parents=True, exist_ok=True)
                total_file = stack.enter_context(exclusive(f"{self._root}/total"))
            yield total_file

    def _evict(self, *, room: int) -> int:
        """The size of what is kept once ``room`` more bytes fit below the limit."""
        found, total = [], 0
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _PART:  # whoever wrote it died: writers hold the lock
                    path.unlink()
                    continue
                found.append((status.st_mtime_ns, status.st_size, path))
                total += status.st_size
        if total + room > self.limit:
            goal = max(0, self.limit * 9 // 10 - room)
            for _, size, path in sorted(found):
                if total <= goal:
                    break
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _give_up(self, what: str, fault: OSError) -> None:
        if self._usable:
            self._usable = False
            self._say(
                f"cannot {what} the block cache in {self.folder}: {fault.strerror}; going on without it "
                "(data.cache_dir names another folder)"
            )


def _read_total(file: int) -> int | None:
    text = os.pread(file, _DIGITS, 0)
    return int(text) if len(text) == _DIGITS and text.isdigit() else None


def _write_total(file: int, total: int) -> None:
    os.pwrite(file, b"%0*d" % (_DIGITS, total), 0)


def _write_whole(path: str, payload: bytes) -> None:
    """``payload`` at ``path``, under another name until it is all there."""
    temporary = path + _PART
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        file = os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(temporary, flags, 0o666)
    try:
        written = os.write(file, payload)
        if written != len(payload):  # the disk is full; the next attempt would say so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(file)


class Workers:
    """Threads, each with its own queue, most urgent first; they start with their first task."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._queues: list[PriorityQueue[tuple[int, int, Callable[[], None] | None]]] = []
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()
        self._closed = False

    def put(self, worker: int, urgency: int, task: Callable[[], None]) -> None:
        assert not self._closed, "the workers have ended; open another reader"
        if not self._threads:
            self._queues = [PriorityQueue() for _ in range(self.count)]
            self._threads = [
                threading.Thread(target=self._work, args=(queue,), name=f"blocks-{i}", daemon=True)
                for i, queue in enumerate(self._queues)
            ]
            for thread in self._threads:
                thread.start()
        self._queues[worker].put((urgency, next(self._numbers), task))

    def close(self, *, wait_s: float = 10.0) -> None:
        """End the threads after their current task, and wait for that; what is queued is left undone."""
        self._closed = True
        for queue in self._queues:
            queue.put((NOW - 1, next(self._numbers), None))
        deadline = (
            time.monotonic() + wait_s
        )  # a request that hangs keeps nobody here: the threads are daemons
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @staticmethod
    def _work(queue: "PriorityQueue[tuple[int, int, Callable[[], None] | None]]") -> None:
        while (task := queue.get()[2]) is not None:
            task()


class Blocks:
    """Blocks of one dataset by number: the ``capacity`` last wanted in memory, the others read by workers.

    Without workers a block is read by whoever asks. A fault (StoreError or FormatError) is remembered: the
    block stays damaged for as long as this object lives, so that what a run does about it does not change on
    the way.
    """

    def __init__(self, read: Callable[[int], PackedBlock], *, capacity: int, workers: Workers) -> None:
        self._read, self._capacity, self._workers = read, capacity, workers
        self._lock = threading.Lock()
        self._have: OrderedDict[int, PackedBlock] = OrderedDict()
        self._failed: dict[int, StoreError | FormatError] = {}
        self._coming: dict[int, tuple[Future[PackedBlock], int, int]] = {}  # future, its worker, its urgency

    def __len__(self) -> int:
        return len(self._have)

    def get(self, block: int, *, worker: int = 0) -> PackedBlock:
        """The block, waiting for it where it is not there yet. StoreError or FormatError if it cannot be
        had."""
        found = self._have.get(block)  # the way of nearly every call: no lock, and only want() renews
        if found is not None:
            return found
        with self._lock:
            if block in self._failed:
                raise self._failed[block].with_traceback(None)
        if self._workers.count:
            coming = self.want(block, worker=worker, urgency=NOW)
            return coming.result() if coming else self.get(block, worker=worker)
        try:
            found = self._read(block)
        except (StoreError, FormatError) as fault:
            self._failed[block] = fault
            raise
        with self._lock:
            self._keep(block, found)
        return found

    def want(self, block: int, *, worker: int, urgency: int) -> "Future[PackedBlock] | None":
        """Have ``worker`` fetch the block unless it is here (None) or on its way; an urgent call jumps the
        queue."""
        with self._lock:
            if block in self._have:
                self._have.move_to_end(block)
                return None
            if block in self._failed or not self._workers.count:
                return None
            future, worker, before = self._coming.get(block, (Future(), worker, LATER + 1))
            if urgency < before:
                self._coming[block] = (future, worker, urgency)
                self._workers.put(worker, urgency, lambda: self._fetch(block, future))
        return future

    def give_up(self) -> None:
        """Cancel what is on its way, so that nobody waits for workers that have ended."""
        with self._lock:
            for future, _, _ in self._coming.values():
                future.cancel()

    def _fetch(self, block: int, future: "Future[PackedBlock]") -> None:
        if (
            future.done() or not future.set_running_or_notify_cancel()
        ):  # fetched by a more urgent call, or given up
            return
        try:
            found = self._read(block)
        except BaseException as fault:
            with self._lock:
                if isinstance(fault, StoreError | FormatError):
                    self._failed[block] = fault
                del self._coming[block]
            future.set_exception(fault)
            return
        with self._lock:
            self._keep(block, found)
            del self._coming[block]
        future.set_result(found)

    def _keep(self, block: int, found: PackedBlock) -> None:
        self._have[block] = found
        while len(self._have) > self._capacity:
            self._have.popitem(last=False)
