"""A cache on local disk for blocks of remote datasets, shared by all processes of a machine."""

import contextlib
import errno
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.storage.lock import exclusive

_DIGITS = 20  # of the sum of sizes, as it is written
_PART = ".part"


def python_warning(text: str) -> None:
    """Issue ``text`` as a Python warning: the default of callers that pass no function of their own."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)


class DiskCache:
    """Payloads in files of a local folder, at most ``limit`` bytes of them, shared by all processes of a
    machine.

    Files appear whole (temporary name, then rename). The least recently used are evicted, by their time,
    which every use renews. Changes are made under a lock on ``<folder>/total``, which holds the sum of sizes.
    The folder may be deleted at any time. If it cannot be written (a full disk, for example), ``warn`` is
    called once, and from then on nothing is kept.
    """

    def __init__(self, folder: Path, limit: int, *, warn: Callable[[str], None] = python_warning) -> None:
        self.folder, self.limit, self._warn = folder, limit, warn
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
        """Keep ``payload``; if the limit would be passed, evict down to nine tenths of it."""
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
                # Written before the file: a process that dies in between leaves a sum that is too high,
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
        """The locked descriptor of the file that holds the sum of sizes."""
        with contextlib.ExitStack() as stack:
            try:
                total_file = stack.enter_context(exclusive(f"{self._root}/total"))
            except FileNotFoundError:
                self.folder.mkdir(parents=True, exist_ok=True)
                total_file = stack.enter_context(exclusive(f"{self._root}/total"))
            yield total_file

    def _evict(self, *, room: int) -> int:
        """The sum of sizes, after evicting so much that ``room`` more bytes fit below the limit."""
        found, total = [], 0
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _PART:  # its writer died: a living one would hold the lock
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
            self._warn(
                f"cannot {what} the block cache in {self.folder}: {fault.strerror}; going on without it "
                "(data.cache_dir names another folder)"
            )


def _read_total(file: int) -> int | None:
    text = os.pread(file, _DIGITS, 0)
    return int(text) if len(text) == _DIGITS and text.isdigit() else None


def _write_total(file: int, total: int) -> None:
    os.pwrite(file, b"%0*d" % (_DIGITS, total), 0)


def _write_whole(path: str, payload: bytes) -> None:
    """Write ``payload`` to ``path``, under another name until it is complete."""
    temporary = path + _PART
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        file = os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(temporary, flags, 0o666)
    try:
        written = os.write(file, payload)
        if written != len(payload):  # the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(file)
