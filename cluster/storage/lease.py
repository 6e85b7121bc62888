"""A lease on an object store: an object that its holder writes anew every third of its time to live.

No clock but one's own is trusted: a lease is dead if it has not changed while *we* watched it for that long,
and its holder gives it up when it has not been able to renew it for as long. So a store may be away for two
thirds of that time. The same host takes the lease of a process of its own that is gone at once, and so does
whoever has the holder's token, on any host.

Every write is of the kind "if it is still what I read" (S3's If-Match and If-None-Match), so that of two
takers one is refused, and a holder that was stopped cannot write over its successor. A store that does not
know such writes is told apart by nothing: the taker waits a moment besides, and reads whether it was the last
to write.
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

_SETTLE_S = 1.0  # between writing a lease and reading whose it is


class LockedError(RuntimeError):
    """Another process holds the lock; the message says which."""


class LockLostError(RuntimeError):
    """The lock was lost, so nothing may be published any more."""


def refusal(uri: str, holder: str) -> str:
    return f"{uri} is in use by {holder}; end that run, or give another run.dir"


@dataclass(frozen=True)
class Lease:
    """``number`` rises with every renewal. ``machine`` and ``started`` tell this process from others of its
    pid."""

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
        """Whether its process is gone; None if it is not of this machine."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        return is_gone(self.pid) or start_ticks(self.pid) != self.started


class _Found(NamedTuple):
    """What is at a lease's place: ``tag`` None: nothing; ``lease`` None: nothing, or something that we cannot
    read."""

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
        self._renewed, self._fault = (
            began,
            "",
        )  # the time before the write: nobody has seen it earlier than that
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
            return  # the store is away, and the lease dies by itself; or it is another's
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
        """How to ask the store: many short tries of ours, since those of the store last longer than a
        lease."""
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
            elif there.is_of(self._lease):  # a try that was not answered came through after all
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
    """The tag of what may be taken over, None where nothing is there. LockedError once its holder shows
    life."""
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
    """What is there after ``lease`` was written over what had ``tag``, or was not because that had
    changed."""
    new = store.swap(path, json.dumps(asdict(lease)).encode(), tag, **how)
    return _read(path, **how) if new is None else _Found(lease, new)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it goes on while the machine sleeps


def _machine() -> str:
    """What tells this boot of this machine, and this container, from others that have the same host name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
