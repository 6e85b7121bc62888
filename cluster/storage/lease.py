"""A lease on an object store: an object that its holder rewrites every third of its time to live (TTL).

No process trusts another's clock. A lease is dead if it has not changed while *we* watched it for its TTL,
and its holder gives it up if it could not renew it for the same time. So a store may be unreachable for two
thirds of the TTL. A lease whose process was on this host and has ended is taken over at once. So is any
lease, on any host, by a process that has its token.

Every write is conditional ("if it is still what I read": S3's If-Match and If-None-Match). Of two processes
that take a lease one is refused, and a holder that was stopped cannot overwrite its successor. A store that
ignores conditions cannot be recognised; so the process that takes a lease also waits a moment, and reads
whether it was the last to write.
"""

import contextlib
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
from typing import Any, NamedTuple

from cluster.process.processes import is_gone, start_ticks
from cluster.storage import store

_SETTLE_S = 1.0  # between writing a lease and reading who holds it


class LockedError(RuntimeError):
    """Another process has the lock; the message says which."""


class LockLostError(RuntimeError):
    """The lock was lost, so nothing may be published any more."""


def refusal(uri: str, holder: str) -> str:
    return f"{uri} is in use by {holder}; end that run, or give another run.dir"


@dataclass(frozen=True)
class Lease:
    """``number`` grows with every renewal. ``machine`` and ``started`` distinguish the process from others
    with the same pid."""

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
    def of_this_process(cls, token: str | None, ttl_s: float) -> "Lease":
        return cls(
            uuid.uuid4().hex,
            socket.gethostname(),
            _machine(),
            os.getpid(),
            start_ticks(os.getpid()),
            time.strftime("%Y-%m-%d %H:%M:%S %z"),
            hashlib.sha256(token.encode()).hexdigest() if token else None,
            ttl_s,
        )

    def describe(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_dead_here(self) -> bool | None:
        """Whether its process has ended; None if it runs on another machine."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        return is_gone(self.pid) or start_ticks(self.pid) != self.started


class _Found(NamedTuple):
    """What is stored as the lease. ``tag`` is None if nothing is, ``lease`` also if it cannot be read."""

    lease: Lease | None
    tag: str | None

    def is_of(self, mine: Lease) -> bool:
        return self.lease is not None and self.lease.holder == mine.holder

    def describe(self) -> str:
        return self.lease.describe() if self.lease else "another process"


class LeaseLock:
    """A lease that is ours, and the thread that renews it."""

    def __init__(self, path: str, uri: str, lease: Lease, tag: str | None, began: float) -> None:
        self._path, self._uri, self._lease, self._tag = path, uri, lease, tag
        self._fault = ""
        self._renewed = began  # the time before the write: nobody can have seen it earlier
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._is_lost():
            raise LockLostError(
                f"the lease on {self._uri} is lost: {self._fault}; another run may have it by now"
            )

    def release(self) -> None:
        self._over.set()
        self._thread.join(self._lease.ttl_s / 6)
        if self._thread.is_alive() or self._is_lost():
            return  # the store is unreachable, and the lease will expire; or another process has it
        with contextlib.suppress(store.StoreError):
            there = _read(self._path, **self._once())
            if there.is_of(self._lease):
                store.swap(self._path, None, there.tag, **self._once())

    def _is_lost(self) -> bool:
        age = _now() - self._renewed
        if not self._fault and age > self._lease.ttl_s:
            self._fault = f"it could not be renewed for {age:.0f} s"
        return bool(self._fault)

    def _once(self) -> dict[str, Any]:
        """Options for the store: one short try each, since its own tries may last longer than a lease."""
        return {"tries": 1, "timeout": self._lease.ttl_s / 6}

    def _renew(self) -> None:
        pause = self._lease.ttl_s / 3
        while not self._over.wait(pause) and not self._is_lost():
            began, lease = _now(), replace(self._lease, number=self._lease.number + 1)
            try:
                there = _write(self._path, lease, self._tag, **self._once())
            except store.StoreError:
                pause = min(1.0, self._lease.ttl_s / 20)
                continue
            if there.lease == lease:
                self._lease, self._tag, self._renewed, pause = lease, there.tag, began, self._lease.ttl_s / 3
            elif there.is_of(self._lease):  # a write whose answer was lost has succeeded
                assert there.lease, "it is ours"
                self._lease, self._tag, pause = there.lease, there.tag, 0.0
            else:
                self._fault = f"{there.describe()} has taken it" if there.tag else "it was removed"
                return


@contextlib.contextmanager
def take(path: str, uri: str, token: str | None, ttl_s: float) -> Iterator[LeaseLock]:
    """The lease at ``path``, for the folder ``uri`` and the length of the block. LockedError if another holds
    it."""
    mine = Lease.of_this_process(token, ttl_s)
    tag = _await_end(path, uri, mine)
    began = _now()
    there = _write(path, mine, tag)
    if there.is_of(mine):
        time.sleep(min(_SETTLE_S, ttl_s / 10))
        there = _read(path)
    if not there.is_of(mine):
        raise LockedError(refusal(uri, there.describe()))
    lock = LeaseLock(path, uri, mine, there.tag, began)
    try:
        yield lock
    finally:
        lock.release()


def _await_end(path: str, uri: str, mine: Lease) -> str | None:
    """The tag of what may be taken over, None if nothing is there. LockedError once the holder renews it."""
    first = there = _read(path)
    if first.tag is None or (
        first.lease and mine.token_sha256 and first.lease.token_sha256 == mine.token_sha256
    ):
        return first.tag
    ttl_s = first.lease.ttl_s if first.lease else mine.ttl_s
    deadline = _now() + ttl_s
    while there.tag == first.tag:
        dead = first.lease.is_dead_here() if first.lease else None
        if dead or _now() >= deadline:
            return first.tag
        if dead is False:
            break
        time.sleep(min(1.0, ttl_s / 10))
        there = _read(path)
        if there.tag is None:
            return None
    raise LockedError(refusal(uri, there.describe()))


def _read(path: str, **how: Any) -> _Found:
    found = store.read_tagged(path, **how)
    if found is None:
        return _Found(None, None)
    try:
        return _Found(Lease(**json.loads(found[0])), found[1])
    except (ValueError, TypeError):
        return _Found(None, found[1])


def _write(path: str, lease: Lease, tag: str | None, **how: Any) -> _Found:
    """What is there after ``lease`` has replaced what had ``tag``, or has not, because that had changed."""
    new = store.swap(path, json.dumps(asdict(lease)).encode(), tag, **how)
    return _read(path, **how) if new is None else _Found(lease, new)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it goes on while the machine sleeps


def _machine() -> str:
    """Identifies this boot of this machine, and this container, among others with the same host name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
