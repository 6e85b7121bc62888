"""One run at a time for one folder: flock on a disk, a lease on an object store."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import lease, store
from cluster.storage.lock import LockedError, LockLostError, exclusive, hold
from tests.s3 import S3

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from cluster.storage.lock import hold
with hold(sys.argv[1], token=sys.argv[2] or None, ttl_s=float(sys.argv[3])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds a lock until its stdin ends."""

    def __init__(self, uri: str, *, token: str = "", ttl_s: float = 60) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, uri, token, str(ttl_s)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout and self.process.stdout.readline() == "held\n"

    def end(self, how: int | None = None) -> None:
        if how:
            self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def holders() -> Any:
    made: list[Holder] = []

    def make(*args: Any, **more: Any) -> Holder:
        made.append(Holder(*args, **more))
        return made[-1]

    yield make
    for holder in made:
        holder.end(signal.SIGKILL)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on another host from now on."""
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "elsewhere")


def test_the_second_is_refused_and_a_killed_holder_leaves_the_folder_free(
    tmp_path: Path, holders: Callable[..., Holder]
) -> None:
    uri = str(tmp_path / "run")
    first = holders(uri)
    said = (
        rf"{uri} is in use by process {first.process.pid} on \S+, since .*; end that run, or give "
        rf"another run.dir"
    )
    with pytest.raises(LockedError, match=said), hold(uri):
        pass
    first.end(signal.SIGKILL)
    with hold(uri) as held, pytest.raises(LockedError, match=f"process {os.getpid()} on"), hold(uri):
        held.check()
    with hold(uri) as held:
        held.check()


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        store.StoreError, match=f"cannot lock {tmp_path}/file/run.lock: (Not a directory|File exists)"
    ):
        hold(str(tmp_path / "file")).__enter__()


def test_a_lease_refuses_a_second_of_this_host_at_once_and_comes_back_when_its_holder_is_dead(
    s3: S3, holders: Callable[..., Holder]
) -> None:
    uri = f"{s3.uri}/run"
    first = holders(uri)
    with pytest.raises(LockedError, match=f"{uri} is in use by process {first.process.pid} on "), hold(uri):
        pass
    first.end(signal.SIGKILL)
    assert store.exists(f"{uri}/run.lock")
    began = time.monotonic()
    with hold(uri, ttl_s=1) as held:
        held.check()
    assert time.monotonic() - began < 30  # of the 60 that the lease had to live
    assert not store.exists(f"{uri}/run.lock")


def test_another_host_waits_for_a_lease_to_die_and_is_refused_while_it_is_renewed(
    s3: S3, holders: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3.uri}/run"
    first = holders(uri, ttl_s=1)
    elsewhere(monkeypatch)
    with pytest.raises(LockedError, match=f"in use by process {first.process.pid}"), hold(uri):
        pass
    first.process.send_signal(signal.SIGSTOP)
    with hold(uri, ttl_s=1) as held:
        held.check()
        first.process.send_signal(signal.SIGCONT)  # it wakes up, and must leave the lease to us
        time.sleep(0.7)
        held.check()
        first.end()
        assert store.exists(f"{uri}/run.lock")


def test_the_same_token_takes_a_lease_at_once_and_its_old_holder_notices(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3.uri}/run"
    with hold(uri, token="t", ttl_s=1) as old:
        elsewhere(monkeypatch)
        began = time.monotonic()
        with hold(uri, token="t", ttl_s=300) as new:
            assert time.monotonic() - began < 60
            deadline = time.monotonic() + 20
            while not old._fault and time.monotonic() < deadline:
                time.sleep(0.05)
            said = f"the lease on {uri} is lost: process {os.getpid()} on elsewhere"
            with pytest.raises(LockLostError, match=said):
                old.check()
            new.check()
    assert not store.exists(f"{uri}/run.lock")


def test_of_two_that_take_a_lease_together_one_is_refused(s3: S3) -> None:
    uri, outcomes = f"{s3.uri}/run", []
    start, done = threading.Barrier(2), threading.Barrier(2)

    def take() -> None:
        start.wait()
        try:
            with hold(uri, ttl_s=10):
                outcomes.append("held")
                done.wait()
        except LockedError as fault:
            outcomes.append(str(fault))
            done.wait()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("held" if one == "held" else one[: len(uri) + 10] for one in outcomes) == sorted(
        ["held", f"{uri} is in use"]
    )


def test_a_lease_that_is_not_renewed_in_time_is_lost_for_good_and_left_to_whoever_takes_it(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, clock = f"{s3.uri}/run", [0.0]
    real = lease._now
    monkeypatch.setattr(lease, "_now", lambda: real() + clock[0])
    with hold(uri, ttl_s=600) as held:
        held.check()
        clock[0] = 500.0
        held.check()
        clock[0] = 9000.0
        with pytest.raises(
            LockLostError, match=r"could not be renewed for 90\d\d s; another run may have it by now"
        ):
            held.check()
        clock[0] = 0.0
        with pytest.raises(LockLostError):
            held.check()
    assert store.exists(f"{uri}/run.lock")


def test_the_clock_of_the_wall_is_not_looked_at(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.uri}/run"
    with hold(uri, ttl_s=60) as held:
        for jump in (-1e9, 1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: 1.8e9 + jump)
            held.check()
            with pytest.raises(LockedError), hold(uri, ttl_s=60):
                pass


def test_what_is_no_lease_is_watched_and_taken_once_it_is_still(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{s3.uri}/run/run.lock"
    store.write_bytes(path, b"{not JSON")
    with hold(f"{s3.uri}/run", ttl_s=1) as held:
        held.check()
    store.write_bytes(path, b'{"of": "a later version"}')
    monkeypatch.setattr(lease.time, "sleep", lambda _: store.write_bytes(path, b"renewed"))
    with pytest.raises(LockedError, match="/run is in use by another process; end"):
        hold(f"{s3.uri}/run", ttl_s=60).__enter__()


def test_a_folder_that_was_deleted_and_made_anew_is_another(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with hold(uri) as held:
        held.check()
        store.remove(uri)
        with pytest.raises(
            LockLostError, match=rf"lock on {uri} is lost: {uri}/run.lock was removed or replaced; an"
        ):
            held.check()
        with hold(uri) as second:
            second.check()
            with pytest.raises(LockLostError):
                held.check()


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_a_file_is_swapped_only_for_what_was_read(s3: S3, kind: str) -> None:
    uri = f"{s3.uri}/x" if kind == "s3" else "memory://swap/x"
    assert store.read_tagged(uri) is None
    first = store.swap(uri, b"1", None)
    assert first and store.read_tagged(uri) == (b"1", first)
    assert store.swap(uri, b"2", None) is None
    second = store.swap(uri, b"2", first)
    assert second and store.swap(uri, b"3", first) is None and store.read_tagged(uri) == (b"2", second)
    assert store.swap(uri, None, second) == "" and not store.exists(uri)
    assert store.swap(uri, b"3", second) is None and not store.exists(uri)
    with pytest.raises(
        store.StoreError, match="cannot write s3://no-such-bucket-at-all/x: no such file or bucket"
    ):
        store.swap("s3://no-such-bucket-at-all/x", b"1", None)


def test_a_lease_where_the_store_knows_no_conditions() -> None:
    uri = "memory://lease/run"
    with hold(uri, ttl_s=1) as held:
        with pytest.raises(LockedError, match=f"{uri} is in use by process {os.getpid()} on"), hold(uri):
            pass
        held.check()
    assert not store.exists(f"{uri}/run.lock")


def test_a_pid_that_another_process_has_now_is_no_holder() -> None:
    mine = lease.Lease.of_this_process("secret", 1)
    assert mine.is_dead_here() is False
    assert replace(mine, started="1").is_dead_here() is True
    assert replace(mine, host="elsewhere").is_dead_here() is None
    assert "secret" not in repr(mine)


def test_exclusive_waits_for_as_long_as_it_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "file", tmp_path):  # of a folder, too, which it leaves as it is
        with exclusive(path):
            began = time.monotonic()
            with pytest.raises(BlockingIOError), exclusive(path, wait_s=0.2):
                pass
            assert time.monotonic() - began >= 0.2
            entered = threading.Event()

            def wait(path: Path = path, entered: threading.Event = entered) -> None:
                with exclusive(path):
                    entered.set()

            thread = threading.Thread(target=wait)
            thread.start()
            assert not entered.wait(0.2)
        assert entered.wait(30)
        thread.join()
    with exclusive(tmp_path / "file") as descriptor:
        os.write(descriptor, b"what the caller keeps in the file stays")
    with exclusive(tmp_path / "file", wait_s=0) as descriptor:
        assert os.read(descriptor, 100) == b"what the caller keeps in the file stays"


def test_a_released_lock_is_free_though_a_copy_of_its_descriptor_is_open(tmp_path: Path) -> None:
    """As in a child that is being forked while the block ends."""
    with exclusive(tmp_path / "file") as descriptor:
        copy = os.dup(descriptor)
    try:
        with exclusive(tmp_path / "file", wait_s=0):
            pass
    finally:
        os.close(copy)


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with exclusive(tmp_path / "file"):
        pid = os.fork()
        if not pid:
            os.close(theirs)
            os.read(ours, 1)  # until the parent has taken the lock again
            os._exit(0)
    try:
        with exclusive(tmp_path / "file", wait_s=0):
            pass
        os.close(theirs)
        assert os.waitpid(pid, 0)[1] == 0
    except BaseException:  # such as the limit of time: left behind, it would hold the pipes of later tests
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(ours)
