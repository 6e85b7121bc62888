"""Locks: one process of this machine at a time for a path, and one process anywhere for a folder.

The first is an flock. The second is an flock on a local disk and a lease on an object store (lease.py).
"""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cluster.storage import lease, store
from cluster.storage.lease import Lease, LockedError, LockLostError, refusal

__all__ = ["Lock", "LockLostError", "LockedError", "exclusive", "hold"]

_PAUSE_S = 0.05  # between tries, while a lock is waited for with a limit
_held: set[int] = set()  # the descriptors that this process has locked


@contextlib.contextmanager
def exclusive(path: str | Path, *, wait_s: float = math.inf) -> Iterator[int]:
    """The descriptor of ``path``, a file (made if missing) or a folder, that this process alone has locked.

    The kernel frees the lock at the end of the block or of the process. Forked processes do not have it.

    Raises:
        BlockingIOError: another process has had it for ``wait_s``. OSError: ``path`` cannot be opened, or its
            file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _held.add(descriptor)
    try:
        _flock(descriptor, wait_s)
        yield descriptor
    finally:
        if descriptor in _held:  # otherwise this process was forked inside the block
            _held.discard(descriptor)
            # By closing alone the lock would last until a child that is being forked has closed it, too.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _flock(descriptor: int, wait_s: float) -> None:
    if wait_s == math.inf:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_S)


def _release_in_child() -> None:
    """In a forked process, which would keep the lock after its parent's death. The parent keeps its own."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


class Lock(Protocol):
    def check(self) -> None:
        """LockLostError if another process may have it by now."""


@contextlib.contextmanager
def hold(
    uri: str, *, name: str = "run.lock", token: str | None = None, ttl_s: float = 60.0
) -> Iterator[Lock]:
    """The lock of the folder ``uri``, until the block or this process ends.

    Local: ``exclusive`` on the file ``name`` in it, without waiting. It holds between machines if the file
    system's locks do (NFSv4). Elsewhere: a lease of ``ttl_s``, taken over at once if its holder had the same
    ``token``.

    Raises:
        LockedError: another process has it. StoreError: the folder cannot be written to.
    """
    local = store.is_local(uri)
    held = _hold_local(uri, name) if local else lease.take(store.join(uri, name), uri, token, ttl_s)
    with held as lock:
        yield lock


class _LocalLock:
    def __init__(self, uri: str, path: Path, descriptor: int) -> None:
        self._uri, self._path, self._descriptor = uri, path, descriptor

    def is_in_place(self) -> bool:
        """Whether the locked file is still at its path: the folder may be deleted and made anew."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def check(self) -> None:
        if not self.is_in_place():
            raise LockLostError(
                f"the lock on {self._uri} is lost: {self._path} was removed or replaced; another run "
                "may have it by now"
            )


@contextlib.contextmanager
def _hold_local(uri: str, name: str) -> Iterator[Lock]:
    path = store.local_path(uri) / name
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(exclusive(path, wait_s=0))
        except BlockingIOError as fault:
            raise LockedError(refusal(uri, _holder(path))) from fault
        except OSError as fault:
            raise store.StoreError(f"cannot lock {path}: {fault.strerror}") from fault
        lock = _LocalLock(uri, path, descriptor)
        if not lock.is_in_place():  # removed since it was opened
            raise LockedError(refusal(uri, "another process"))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, Lease.of_this_process(None, 0).describe().encode(), 0)
        yield lock


def _holder(path: Path) -> str:
    """What the process that has the lock has written into the file."""
    with contextlib.suppress(OSError):
        return path.read_text().strip() or "another process"
    return "another process"
