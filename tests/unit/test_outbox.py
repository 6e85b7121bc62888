"""Messages on disk: kept over kills and full disks, in order, never given again once they are delivered."""

import errno
import os
import random
import signal
import sqlite3
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.store import StoreError
from tests.ranks import forkserver
from trainer.tracking import outbox as module
from trainer.tracking.messages import Attachment, Metrics, Tags, to_line
from trainer.tracking.outbox import FILE, Outbox


def metrics(step: int, *, at: int = 1) -> Metrics:
    return Metrics(at, step, {"é": 0.1 * step})


def steps(outbox: Outbox, most: int = 99) -> list[int | None]:
    return [message.step if isinstance(message, Metrics) else None for _, message in outbox.first(most)]


def fill(outbox: Outbox, *numbers: int) -> None:
    for step in numbers:
        outbox.append(metrics(step))
    outbox.flush()


def test_messages_come_in_order_and_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    given = [metrics(0), Tags(2, {"a": "b"}), Attachment(3, "config.yaml", {"a": [1]}), metrics(1)]
    for message in given:
        outbox.append(message)
    assert outbox.waiting == outbox.unwritten == 4
    assert outbox.tail().decode().splitlines() == [to_line(message) for message in given]
    assert outbox.first(9) == []  # nothing is sent that is not on the disk
    outbox.flush()
    assert (outbox.waiting, outbox.unwritten) == (4, 0)
    entries = outbox.first(2)
    assert [message for _, message in entries] == given[:2]
    outbox.confirm(entries[:1])
    assert [message for _, message in outbox.first(9)] == given[1:]
    outbox.append(metrics(2))
    assert outbox.waiting == 4
    assert outbox.tail().decode().splitlines() == [to_line(message) for message in [*given[1:], metrics(2)]]
    outbox.flush()
    again = Outbox(tmp_path)
    assert again.waiting == 4
    assert steps(again) == [None, None, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} <= {FILE, f"{FILE}-journal"}


def test_the_file_is_one_that_a_crash_and_a_network_file_system_leave_whole(tmp_path: Path) -> None:
    database = Outbox(tmp_path)._database
    assert database.execute("PRAGMA journal_mode").fetchone() == ("truncate",)  # not wal
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # full


def _write_until_killed(folder: Path, answers: Connection) -> None:
    """Reports s<step> after the step is on the disk, c<step> before it is confirmed, d<step> after."""
    outbox, pipe = Outbox(folder), answers.fileno()
    for step in range(1, 1_000_000):
        outbox.append(metrics(step))
        if step % 3 == 0:
            outbox.flush()
            os.write(pipe, b"s%d\n" % step)
        if step % 7 == 0:
            entries = outbox.first(5)
            (last,) = [message.step for _, message in entries[-1:] if isinstance(message, Metrics)]
            os.write(pipe, b"c%d\n" % last)
            outbox.confirm(entries)
            os.write(pipe, b"d%d\n" % last)


def test_a_kill_at_any_moment_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    chance, context = random.Random(0), forkserver()
    for number in range(30):
        folder = tmp_path / str(number)
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_write_until_killed, args=(folder, writing), daemon=True)
        process.start()
        writing.close()
        try:
            with open(reading.fileno(), "rb", closefd=False) as file:
                lines = [file.readline() for _ in range(chance.randrange(1, 40))]
                time.sleep(chance.uniform(0, 0.003))
                process.kill()
                lines += file.readlines()
        finally:
            process.kill()
            process.join()
            reading.close()
        assert process.exitcode == -signal.SIGKILL
        flushed, to_confirm, confirmed = (
            max((int(line[1:]) for line in lines if line.startswith(kind)), default=0)
            for kind in (b"s", b"c", b"d")
        )
        outbox = Outbox(folder)
        left = [step or 0 for step in steps(outbox, 10_000)]
        first, last = (left[0], left[-1]) if left else (to_confirm + 1, to_confirm)
        assert left == list(range(first, last + 1))
        assert first - 1 in (confirmed, to_confirm)  # the kill may have come while it was removed
        assert last in (flushed, flushed + 3)  # or while it was written
        assert outbox.waiting == len(left)
        outbox.close()


def test_a_resumed_run_drops_steps_that_are_run_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, 1, 2, 3)
    outbox.append(Tags(1, {"a": "b"}))
    outbox.flush()
    again = Outbox(tmp_path)
    again.resume(after=2)
    assert steps(again) == [1, 2, None]
    assert again.waiting == 3
    again.resume(after=None)
    assert steps(again) == [1, 2, None]


def test_the_tail_of_another_machine_is_put_in_order_with_what_waits_here(tmp_path: Path) -> None:
    here = Outbox(tmp_path / "here")
    for message in (Tags(3, {"x": "3"}), metrics(1), metrics(4), Tags(9, {"x": "9"}), metrics(7)):
        here.append(message)
    here.flush()
    there = Outbox(tmp_path / "there")
    for message in (metrics(1), Tags(5, {"x": "5"}), metrics(2), metrics(3)):
        there.append(message)
    damaged = b'{"time": 1, "step"\n\xff\n'
    here.resume(after=6, tail=there.tail() + damaged)
    found = [message for _, message in here.first(99)]
    tags = [Tags(3, {"x": "3"}), Tags(5, {"x": "5"}), Tags(9, {"x": "9"})]
    assert found == [*tags, *map(metrics, (1, 2, 3, 4))]
    assert here.waiting == 7 == Outbox(tmp_path / "here").waiting


def test_a_full_disk_stops_no_step_and_loses_no_message(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, 1)
    (pages,) = outbox._database.execute("PRAGMA page_count").fetchone()
    outbox._database.execute(f"PRAGMA max_page_count = {pages}")
    large = Metrics(1, 2, {f"metric {i}": 0.0 for i in range(1000)})
    outbox.append(large)
    outbox.append(metrics(3))
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}/{FILE}: database or disk is full"):
        outbox.flush()
    assert (outbox.unwritten, outbox.waiting) == (2, 3)
    assert steps(outbox) == [1]
    assert outbox.tail().count(b"\n") == 3
    outbox._database.execute("PRAGMA max_page_count = 100000")
    outbox.append(metrics(4))
    outbox.flush()
    assert (outbox.unwritten, steps(Outbox(tmp_path))) == (0, [1, 2, 3, 4])


class _Refusing:
    """A connection to a disk that is too full for the journal of a DELETE."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real, self.full = real, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __enter__(self) -> Any:
        return self.real.__enter__()

    def __exit__(self, *fault: Any) -> Any:
        return self.real.__exit__(*fault)

    def execute(self, text: str, *values: Any) -> Any:
        if self.full and text.startswith("DELETE"):
            raise sqlite3.OperationalError("database or disk is full")
        return self.real.execute(text, *values)


def test_what_a_full_disk_does_not_remove_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, 1, 2, 3)
    disk = _Refusing(outbox._database)
    monkeypatch.setattr(outbox, "_database", disk)
    outbox.confirm(outbox.first(1))
    assert (steps(outbox), outbox.waiting, outbox.tail().count(b"\n")) == ([2, 3], 2, 2)
    disk.full = False
    outbox.confirm(outbox.first(1))
    assert (steps(outbox), outbox.waiting) == ([3], 1)
    assert steps(Outbox(tmp_path)) == [3]


def test_an_append_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    with outbox._database_lock:  # as while a flush is under way
        thread = threading.Thread(target=outbox.append, args=(metrics(1),))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    outbox.flush()
    assert steps(outbox) == [1]


@pytest.mark.parametrize("damage", ["no database", "torn page"])
def test_a_damaged_file_is_kept_aside_and_the_run_goes_on(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / FILE
    first = Outbox(tmp_path)
    fill(first, *range(300))
    first.close()
    content = b"\xab" * 5000 if damage == "no database" else path.read_bytes()[:8192] + b"\xab" * 8192
    path.write_bytes(content)
    outbox = Outbox(tmp_path)
    assert outbox.waiting == 0
    fill(outbox, 5)
    assert steps(Outbox(tmp_path)) == [5]
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*[0-9]")
    assert aside.read_bytes() == content
    message = capsys.readouterr().err
    assert f"warning: {path} is damaged (" in message
    assert f"; it is kept as {aside.name}, what waited in it is lost" in message


def test_a_damaged_line_has_no_message(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    fill(outbox, 1, 2)
    with outbox._database as database:
        database.execute("UPDATE messages SET line = substr(line, 1, 20) WHERE step = 1")
    (one, two) = outbox.first(9)
    assert one.message is None
    assert two.message == metrics(2)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with Outbox(tmp_path)._database as database:
        database.execute("PRAGMA user_version = 2")
    sentence = f"^{tmp_path}/{FILE} has format version 2, this code reads 1: use the newer version"
    with pytest.raises(StoreError, match=sentence):
        Outbox(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"cannot make {tmp_path}/file: "):
        Outbox(tmp_path / "file")
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError, match=rf"cannot open {tmp_path}/{FILE}: unable to open database file"):
        Outbox(tmp_path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite would refuse it, so it takes none; run.lock keeps other runs away."""
    asked: list[str] = []
    connect = sqlite3.connect

    def remember(name: str, **more: Any) -> sqlite3.Connection:
        asked.append(name)
        return connect(name, **more)

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.sqlite3, "connect", remember)
    folder = tmp_path / "a ?#%20b"
    fill(Outbox(folder), 1)
    monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    outbox = Outbox(folder)
    fill(outbox, 2)
    assert steps(outbox) == [1, 2]
    assert [uri.partition("?")[2] for uri in asked] == ["", "vfs=unix-none"]
    assert (folder / FILE).is_file()
