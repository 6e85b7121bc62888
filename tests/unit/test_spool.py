"""Queues that come from two machines, damaged lines, full disks, and how long a delivery is waited for."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.store import StoreError
from tests.unit.test_delivery import AWAY, Server, log, wait_for
from trainer.tracking import outbox, uploader
from trainer.tracking.mlflow_run import Point, TrackError
from trainer.tracking.outbox import Spool
from trainer.tracking.uploader import Delivery


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(uploader, "Tracker", made.tracker)
    monkeypatch.setattr(uploader, "_PAUSE_S", 0.02)
    monkeypatch.setattr(uploader, "_EVERY_S", 0.02)
    return made


@pytest.fixture
def begin(server: Server, tmp_path: Path) -> Callable[..., Delivery]:
    def make(machine: str = "a", **more: Any) -> Delivery:
        given: dict[str, Any] = {
            "uri": "http://tracker",
            "experiment": "e",
            "name": "n",
            "artifact_uri": None,
            "key": "k",
            "params": {},
            "tags": {},
            "folder": tmp_path / machine,
        }
        return Delivery(**given | more)

    return make


def test_a_run_that_comes_back_to_a_machine_with_an_old_queue(
    server: Server, begin: Callable[..., Delivery]
) -> None:
    """MLflow is away; the run goes from a to b and back, and each time on from a checkpoint that has the
    queue."""
    server.away = True
    on_a = begin("a")
    log(on_a, 1, 2, 3, 4)
    saved = on_a.tail()
    on_a.tag({"checkpoint": "4"})
    log(on_a, 5, 6)  # and dies: 5 and 6 are run again
    on_b = begin("b", after=4, tail=saved)
    log(on_b, 5, 6, 7, 8)
    on_b.tag({"checkpoint": "8"})
    told = [entry["time"] for _, entry in on_b._spool.next(99) if "metrics" in entry]
    saved = on_b.tail()
    on_b.end("KILLED", wait_s=0)
    on_a.end("KILLED", wait_s=0)
    server.away = False
    again = begin("a", after=8, tail=saved)
    log(again, 9)
    again.drain(30)
    assert server.steps("loss") == server.steps("lr") == list(range(1, 10))
    assert [point.time for point in server.points if point.key == "lr"][:8] == told
    assert server.tags == {"checkpoint": "8"}


def test_a_step_that_is_told_twice_arrives_once_also_in_one_call(
    server: Server, begin: Callable[..., Delivery]
) -> None:
    server.away = True
    run = begin()
    run.log({"val": 1.0}, step=0)
    run.end("FAILED", wait_s=0)
    server.away = False
    again = begin(after=0)  # from the start, before any checkpoint: it is validated again
    again.log({"val": 1.0}, step=0)
    again.log({"val": 2.0}, step=1)
    again.drain(30)
    assert server.steps("val") == [0, 1]


def test_a_damaged_line_is_left_out_and_said(
    server: Server, begin: Callable[..., Delivery], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    queue = tmp_path / "a" / "queue.jsonl"
    line = b'{"time": 5, "step": %d, "metrics": {"x": 1.0}}\n'
    queue.write_bytes(line % 1 + b"\0" * 20 + b'ics": {"x": 1.0}}\n' + b"7\n" + line % 2)
    begin().drain(30)
    assert server.steps("x") == [1, 2]
    said = capsys.readouterr().err
    assert said.count(f"warning: a line of {queue} that ends at byte ") == 2
    assert "is damaged, and left out" in said
    (tmp_path / "a" / "delivered").unlink()
    begin(after=9).drain(30)  # where the queue is cut, it is dropped
    assert queue.read_bytes() == line % 1 + line % 2
    assert server.steps("x") == [1, 2]


@pytest.mark.parametrize("note", ["3", "999", "-4", "", "x"])
def test_a_note_that_is_not_the_end_of_a_line_is_none(tmp_path: Path, note: str) -> None:
    (tmp_path / "queue.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    (tmp_path / "delivered").write_text(note)
    assert [entry["step"] for _, entry in Spool(tmp_path).next(9)] == [1, 2]
    (tmp_path / "delivered").write_text("12")
    assert [entry["step"] for _, entry in Spool(tmp_path).next(9)] == [2]


def test_a_line_longer_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_CHUNK", 8)
    queue = Spool(tmp_path)
    entries = [{"step": 1}, {"text": "x" * 100}, {"step": 2}]
    for entry in entries:
        queue.append(entry)
    for entry in entries:
        (end, found), *_ = queue.next(1)
        assert found == entry
        queue.delivered(end)
    assert queue.next(1) == []


def test_draining_waits_for_mlflow_to_come_back(server: Server, begin: Callable[..., Delivery]) -> None:
    server.away = True
    run = begin()
    log(run, 1)
    wait_for(lambda: bool(run._said))
    tries = []
    real = run._tracker.open

    def open_(**more: Any) -> dict[str, int]:
        tries.append(time.monotonic())
        server.away = len(tries) < 5
        return real(**more)

    run._tracker.open = open_  # type: ignore[method-assign]
    run.drain(60)
    assert server.steps("loss") == [1]
    # From the fifth on it is taken; between two there is a pause, which doubles.
    assert tries[4] - tries[1] >= 0.02 + 0.04


def test_nothing_that_mlflow_raises_ends_the_delivery(
    server: Server, begin: Callable[..., Delivery], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    faults = [
        KeyError("http://u:secret@tracker"),
        ValueError("experiment e keeps its artifacts elsewhere"),
        AWAY,
    ]
    real = run._tracker.send

    def send(points: Sequence[Point]) -> None:
        if faults:
            raise faults.pop(0)
        real(points)

    run._tracker.send = send  # type: ignore[method-assign]
    log(run, 1, 2)
    run.drain(30)
    assert server.steps("loss") == [1, 2]
    said = capsys.readouterr().err
    assert "refuses (MLflow at http://tracker: KeyError: 'http://***@tracker')" in said
    assert said.count("refuses") == said.count("does not answer") == said.count("answers again") == 1
    assert "secret" not in said


def test_a_refusal_after_the_start_has_gone_on_is_said_and_waits(
    server: Server,
    begin: Callable[..., Delivery],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    go = threading.Event()

    def refuse(**_: Any) -> None:
        go.wait(30)
        raise ValueError("experiment e keeps its artifacts elsewhere")

    monkeypatch.setattr(uploader, "_FIRST_S", 0.05)
    tracker = server.tracker("")
    tracker.open = refuse  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(uploader, "Tracker", lambda uri: tracker)
    run = begin()
    log(run, 1)
    assert "does not answer within 0.05 s" in capsys.readouterr().err
    go.set()
    wait_for(lambda: run._said == "refuses")
    path = tmp_path / "a" / "queue.jsonl"
    with pytest.raises(
        TrackError, match=rf"experiment e keeps its artifacts elsewhere; 1 lines wait in {path}, and"
    ):
        run.drain(0.1)
    assert (
        capsys.readouterr().err.count("refuses (experiment e keeps its artifacts elsewhere); metrics wait")
        == 1
    )
    with pytest.raises(ValueError, match="keeps its artifacts elsewhere"):
        begin()


def test_a_call_that_hangs_holds_up_no_end(
    server: Server,
    begin: Callable[..., Delivery],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploader, "_LAST_CALL_S", 0.05)
    run = begin()
    log(run, 1)
    go = threading.Event()
    run._tracker.end = lambda status: go.wait(60) and None  # type: ignore[method-assign, assignment, return-value]
    run.end("KILLED", wait_s=0.2)
    assert not go.is_set()
    go.set()
    assert "was too slow; all points are delivered, but not that the run is KILLED" in capsys.readouterr().err


def test_lines_that_a_full_disk_never_took_are_named(
    server: Server, begin: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begin()
    log(run, 1)

    def full() -> None:
        raise StoreError("cannot write: No space left on device")

    monkeypatch.setattr(run._spool, "_write", full)
    log(run, 2)
    with pytest.raises(StoreError, match="No space left"):
        run.sync()
    with pytest.raises(
        TrackError, match=rf"1 lines for MLflow are lost, as the disk does not take {tmp_path}/a/queue"
    ):
        run.drain(30)
    assert server.steps("loss") == [1]
