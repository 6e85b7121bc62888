"""One process at a time for one folder: flock on a local disk, a lease on an object store (lease.py)."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from cluster.storage import lease, store
from cluster.storage.lease import Lease, LockedError, LockLostError, refusal

__all__ = ["Lock", "LockLostError", "LockedError", "hold"]

_flocked: set[IO[str]] = set()


class Lock(Protocol):
    def check(self) -> None:
        """LockLostError, if another process may hold it by now."""


@contextlib.contextmanager
def hold(
    uri: str, *, name: str = "run.lock", token: str | None = None, ttl_s: float = 60.0
) -> Iterator[Lock]:
    """The lock of the folder ``uri``, until the block ends or this process does.

    Local: an flock on ``name`` in it, which the kernel frees with the process; it holds between machines
    where the file system's does (NFSv4). Processes that are forked do not have it. Elsewhere: a lease of
    ``ttl_s``, taken over at once where the holder had the same ``token``.

    Raises:
        LockedError: another process holds it. StoreError: the folder cannot be written to.
    """
    held = _flock(uri, name) if store.is_local(uri) else lease.take(store.join(uri, name), uri, token, ttl_s)
    with held as lock:
        yield lock


class _Flock:
    def __init__(self, uri: str, path: Path, file: IO[str]) -> None:
        self._uri, self._path, self._file = uri, path, file

    def check(self) -> None:
        """The kernel keeps an flock for as long as the process lives; but a folder may be deleted and made
        anew."""
        if not _is_at(self._file, self._path):
            raise LockLostError(
                f"the lock on {self._uri} is lost: {self._path} was removed or replaced; another run "
                "may have it by now"
            )


@contextlib.contextmanager
def _flock(uri: str, name: str) -> Iterator[Lock]:
    path = store.local_path(uri) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - closed below
    except OSError as fault:
        raise store.StoreError(f"cannot lock {path}: {fault.strerror}") from fault
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            file.seek(0)
            raise LockedError(refusal(uri, file.read().strip() or "another process")) from fault
        except OSError as fault:
            raise store.StoreError(f"cannot lock {path}: {fault.strerror}") from fault
        if not _is_at(file, path):  # removed since it was opened
            raise LockedError(refusal(uri, "another process"))
        file.truncate(0)
        file.write(Lease.of_this_process(None, 0).told())
        file.flush()
        _flocked.add(file)
        try:
            yield _Flock(uri, path, file)
        finally:
            _flocked.discard(file)


def _let_go() -> None:
    """In a process that was forked: it would keep the lock of a parent that is dead. The parent's is not
    touched."""
    for file in _flocked:
        file.close()
    _flocked.clear()


os.register_at_fork(after_in_child=_let_go)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False
