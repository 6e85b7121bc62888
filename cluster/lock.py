"""One process at a time for one folder: flock on a local disk, a lease on an object store.

A lease is an object that its holder writes anew every third of its time to live. No clock but one's own is trusted: a
lease is dead if it has not changed while *we* watched it for that long. The same host takes the lease of a process of
its own that is gone at once, and so does whoever has the holder's token, on any host. Stores have no common way to
write only if nobody else has: the taker writes, waits a moment, and reads whether it was the last to write.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from cluster import store
from cluster.process import state_of

_SETTLE_S = 1.0  # between writing a lease and reading whose it is


class LockedError(RuntimeError):
    """Another process holds the lock; the message says which."""


class LockLostError(RuntimeError):
    """The lock was lost, so nothing may be published any more."""


class Lock(Protocol):
    def check(self) -> None:
        """LockLostError, if another process may hold it by now."""


@contextlib.contextmanager
def hold(uri: str, *, name: str = "run.lock", token: str | None = None, ttl_s: float = 60.0) -> Iterator[Lock]:
    """The lock of the folder ``uri``, until the block ends or this process does.

    Local: an flock on ``name`` in it, which the kernel frees with the process; it holds between machines where the
    file system's does (NFSv4). A process that is forked and does not exec keeps it. Elsewhere: a lease of ``ttl_s``,
    taken over at once where the holder had the same ``token``.

    Raises:
        LockedError: another process holds it. StoreError: the folder cannot be written to.
    """
    held = _flock(uri, name) if store.is_local(uri) else _lease(store.join(uri, name), uri, token, ttl_s)
    with held as lock:
        yield lock


class _Kept:
    def check(self) -> None:
        """The kernel keeps an flock for as long as the process lives."""


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
            raise LockedError(_refusal(uri, file.read().strip() or "another process")) from fault
        except OSError as fault:
            raise store.StoreError(f"cannot lock {path}: {fault.strerror}") from fault
        file.truncate(0)
        file.write(_Lease.of_this_process(None, 0).told())
        file.flush()
        yield _Kept()


@dataclass(frozen=True)
class _Lease:
    """``number`` rises with every renewal. ``machine`` and ``started`` tell this process from others of its pid."""

    holder: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    token_sha256: str | None
    ttl_s: float
    number: int = 0

    @classmethod
    def of_this_process(cls, token: str | None, ttl_s: float) -> "_Lease":
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()),
                   time.strftime("%Y-%m-%d %H:%M:%S %z"),
                   hashlib.sha256(token.encode()).hexdigest() if token else None, ttl_s)  # fmt: skip

    def told(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_dead_here(self) -> bool | None:
        """Whether its process is gone; None if it is not of this machine."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        return state_of(self.pid) in ("", "Z", "X") or _started(self.pid) != self.started


class _LeaseLock:
    """A lease that is ours, and the thread that renews it."""

    def __init__(self, path: str, uri: str, lease: _Lease) -> None:
        self._path, self._uri, self._lease = path, uri, lease
        self._renewed, self._fault = _now(), ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        if not self._fault and _now() - self._renewed > self._lease.ttl_s:
            self._fault = f"it could not be renewed for {_now() - self._renewed:.0f} s"
        if self._fault:
            raise LockLostError(f"the lease on {self._uri} is lost: {self._fault}; another run may have it by now")

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(store.StoreError):  # then it dies by itself
            there = _read(self._path)
            if there and there.holder == self._lease.holder:
                store.remove(self._path)

    def _renew(self) -> None:
        while not self._over.wait(self._lease.ttl_s / 3) and not self._fault:
            try:
                there = _read(self._path)
                if there is None or there.holder != self._lease.holder:
                    self._fault = f"{there.told() if there else 'somebody'} has taken it"
                    return
                began = _now()
                self._lease = replace(self._lease, number=self._lease.number + 1)
                _write(self._path, self._lease)
                self._renewed = began
            except store.StoreError:
                continue  # check() counts the time


@contextlib.contextmanager
def _lease(path: str, uri: str, token: str | None, ttl_s: float) -> Iterator[Lock]:
    mine = _Lease.of_this_process(token, ttl_s)
    _await_end(path, uri, mine)
    _write(path, mine)
    time.sleep(min(_SETTLE_S, ttl_s / 10))
    there = _read(path)
    if there is None or there.holder != mine.holder:
        raise LockedError(_refusal(uri, there.told() if there else "another process"))
    lock = _LeaseLock(path, uri, mine)
    try:
        yield lock
    finally:
        lock.release()


def _await_end(path: str, uri: str, mine: _Lease) -> None:
    """Come back when nobody holds the lease, or it may be taken over. LockedError once its holder shows life."""
    first = there = _read(path)
    if first is None or (mine.token_sha256 and first.token_sha256 == mine.token_sha256) or first.is_dead_here():
        return
    deadline = _now() + first.ttl_s
    while _now() < deadline and first.is_dead_here() is None and there == first:
        time.sleep(min(1.0, first.ttl_s / 10))
        there = _read(path)
        if there is None:
            return
    if first.is_dead_here() is False or there != first:
        raise LockedError(_refusal(uri, first.told()))


def _read(path: str) -> _Lease | None:
    """The lease that is there; None if there is none, or what is there is none."""
    if not store.exists(path):
        return None
    try:
        return _Lease(**json.loads(store.read_bytes(path)))
    except (ValueError, TypeError):
        return None
    except store.StoreError:
        if store.exists(path):
            raise
        return None  # it was released meanwhile


def _write(path: str, lease: _Lease) -> None:
    store.write_bytes(path, json.dumps(asdict(lease)).encode())


def _refusal(uri: str, holder: str) -> str:
    return f"{uri} is in use by {holder}; end that run, or give another run.dir"


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it goes on while the machine sleeps


def _machine() -> str:
    """What tells this boot of this machine, and this container, from others that have the same host name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
