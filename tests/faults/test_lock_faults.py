"""The lock of a run.dir when processes are killed, stopped or forked, two come at once, and the store
fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError

from cluster.storage import lease, store
from cluster.storage.lock import LockedError, LockLostError, hold
from tests.s3 import S3

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
FORKER = """
import os, sys, time
from cluster.storage.lock import hold
with hold(sys.argv[1]):
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
"""


class Gate:
    """Holds up the writes of a lease that ``chosen`` picks, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chosen: Callable[[Any], bool]) -> None:
        self.met, self.open = threading.Event(), threading.Event()
        real = lease._write

        def write(path: str, lease: Any, *args: Any, **more: Any) -> Any:
            if chosen(lease):
                self.met.set()
                assert self.open.wait(LIMIT_S)
            return real(path, lease, *args, **more)

        monkeypatch.setattr(lease, "_write", write)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(lease.socket, "gethostname", lambda: "elsewhere")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.02)


def lost(held: Any) -> bool:
    try:
        held.check()
    except LockLostError:
        return True
    return False


def there(s3: S3, run: str = "run") -> dict[str, Any]:
    """The lease of s3://.../run, past the proxy."""
    return json.loads(s3.client.get_object(Bucket=s3.bucket, Key=f"{run}/run.lock")["Body"].read())


def test_children_of_a_killed_holder_do_not_keep_its_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(LockedError, match=f"process {parent.pid} on"), hold(str(tmp_path)):
                pass  # closing it in the child has not taken it from the parent
            parent.kill()
            parent.wait()
            with hold(str(tmp_path)) as held:
                held.check()
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_holder_that_stopped_in_the_middle_of_a_renewal_does_not_write_over_its_successor(
    s3: S3, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]
) -> None:
    gate = Gate(monkeypatch, lambda lease: lease.number == 1 and lease.token_sha256 is not None)
    with hold(f"{s3.uri}/run", ttl_s=1.5, token="old") as old:
        assert gate.met.wait(LIMIT_S)
        elsewhere()
        with hold(f"{s3.uri}/run", ttl_s=60) as new:  # after having watched it for 1.5 s
            mine = there(s3)
            gate.open.set()
            wait_for(lambda: not old._thread.is_alive())
            assert there(s3) == mine
            new.check()
            with pytest.raises(
                LockLostError, match=r"is lost: (it could not be renewed|process \d+ on else)"
            ):
                old.check()
            old.release()
            assert there(s3) == mine


def test_of_two_takers_the_slower_is_refused_however_slow_it_is(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, lambda _: threading.current_thread().name == "slow")
    said: list[str] = []

    def take() -> None:
        try:
            with hold(f"{s3.uri}/run", ttl_s=60):
                said.append("held")
        except LockedError as fault:
            said.append(str(fault))

    slow = threading.Thread(target=take, name="slow")
    slow.start()
    assert gate.met.wait(LIMIT_S)  # it has looked, and found nobody
    with hold(f"{s3.uri}/run", ttl_s=60) as held:
        mine = there(s3)
        gate.open.set()
        slow.join(LIMIT_S)
        assert said and f"{s3.uri}/run is in use by process {os.getpid()} on" in said[0]
        assert there(s3) == mine
        held.check()


def test_a_store_that_is_away_for_less_than_a_lease_loses_none(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "300")  # the store's own waits are no part of it
    times = {"503": 2, "reset": 2, "timeout": 1, "lost": 1}  # of a renewal's tries
    with contextlib.ExitStack() as stack:
        held = {kind: stack.enter_context(hold(f"{s3.uri}/{kind}", ttl_s=6)) for kind in times}
        faults = {kind: s3.fault(kind, "PUT", f"{kind}/run.lock", times=times[kind]) for kind in times}
        for kind in times:
            wait_for(lambda kind=kind: faults[kind].met > times[kind] and held[kind]._lease.number >= 1)
            assert not lost(held[kind]) and there(s3, kind)["holder"] == held[kind]._lease.holder
    assert s3.objects() == {}


def test_a_store_that_stays_away_costs_the_lease_and_the_release_does_not_wait_for_it(s3: S3) -> None:
    with hold(f"{s3.uri}/run", ttl_s=1) as held:
        for method in ("GET", "PUT", "DELETE"):
            s3.fault("503", method, "run.lock")
        wait_for(lambda: lost(held))
        with pytest.raises(
            LockLostError, match=rf"on {s3.uri}/run is lost: it could not be renewed for \d+ s"
        ):
            held.check()
    assert there(s3)["pid"] == os.getpid()


def test_a_lease_whose_first_answer_was_lost_is_ours(s3: S3) -> None:
    s3.fault("lost", "PUT", "run.lock", times=1)
    with hold(f"{s3.uri}/run") as held:
        held.check()
        assert there(s3)["pid"] == os.getpid()
    assert s3.objects() == {}


def test_a_lease_that_was_deleted_is_lost_and_not_written_again(s3: S3) -> None:
    with hold(f"{s3.uri}/run", ttl_s=1) as held:
        s3.client.delete_object(Bucket=s3.bucket, Key="run/run.lock")
        wait_for(lambda: lost(held))
        with pytest.raises(LockLostError, match=r"is lost: it (was removed|could not be renewed)"):
            held.check()
        assert s3.objects() == {}


@pytest.fixture
def unconditional(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A service that refuses conditions: 501, as some do."""
    real, refused = s3fs.S3FileSystem._call_s3, list[str]()

    async def call(fs: Any, name: str, *args: Any, **more: Any) -> Any:
        if more.keys() & {"IfMatch", "IfNoneMatch"}:
            refused.append(name)
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise OSError("not implemented") from ClientError(answer, name)
        return await real(fs, name, *args, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    return refused


def test_a_service_without_conditions_is_asked_without_them(s3: S3, unconditional: list[str]) -> None:
    with hold(f"{s3.uri}/run", ttl_s=1) as held:
        with pytest.raises(LockedError, match="is in use by process"), hold(f"{s3.uri}/run"):
            pass
        wait_for(lambda: there(s3)["number"] >= 1)
        held.check()
    assert s3.objects() == {} and {"put_object", "delete_object"} <= set(unconditional)


def test_a_store_that_denies_is_named(s3: S3) -> None:
    s3.fault("denied", "PUT", "run.lock")
    with pytest.raises(store.StoreError, match=f"cannot write {s3.uri}/run/run.lock: Access Denied"):
        hold(f"{s3.uri}/run").__enter__()
