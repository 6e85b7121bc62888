"""Messages wait on disk while MLflow is away, and each arrives once, in order, with its own time."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.store import StoreError
from trainer.tracking import delivery, uploader
from trainer.tracking.messages import Metrics
from trainer.tracking.mlflow_run import Point, RunSpec, TrackError
from trainer.tracking.outbox import FILE, Outbox
from trainer.tracking.uploader import Uploader

AWAY = TrackError("MLflow at http://tracker: Connection refused", transient=True)
MAX_POINTS = 10


class Server:
    """What MLflow keeps, and how it fails."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.tags: dict[str, str] = {}
        self.keys: list[str | None] = []
        self.ended: list[str] = []
        self.calls = 0
        self.away = False
        self.loses_answers = 0
        self.stops_after = -1  # points of a call that is cut

    def steps(self, key: str) -> list[int]:
        return [point.step for point in self.points if point.key == key]


class FakeRun:
    def __init__(self, server: Server, spec: RunSpec) -> None:
        self.server, self.spec, self.id = server, spec, ""

    def _answer(self) -> None:
        if self.server.away:
            raise AWAY

    def open(self) -> dict[str, int]:
        self._answer()
        if self.spec.key not in self.server.keys:
            self.server.keys.append(self.spec.key)
        self.id = f"run{self.server.keys.index(self.spec.key)}"
        return {point.key: max(self.server.steps(point.key)) for point in self.server.points}

    def send(self, points: Sequence[Point]) -> None:
        self._answer()
        assert len(points) <= MAX_POINTS
        self.server.calls += 1
        if self.server.stops_after >= 0:
            self.server.points += points[: self.server.stops_after]
            self.server.stops_after = -1
            raise AWAY
        self.server.points += points
        if self.server.loses_answers:
            self.server.loses_answers -= 1
            raise AWAY

    def tag(self, tags: dict[str, str]) -> None:
        self._answer()
        self.server.tags |= tags

    def attach_dict(self, values: dict[str, Any], name: str) -> None:
        self.tag({name: json.dumps(values)})

    def attach(self, local: Path) -> None:
        self.tag({local.name: local.read_text()})

    def end(self, status: str) -> None:
        self._answer()
        self.server.ended.append(status)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(uploader, "ResumableRun", lambda spec: FakeRun(made, spec))
    monkeypatch.setattr(uploader, "MAX_POINTS", MAX_POINTS)
    monkeypatch.setattr(delivery, "MAX_POINTS", MAX_POINTS)
    monkeypatch.setattr(uploader, "_PAUSE_S", 0.02)
    return made


@pytest.fixture
def begin(server: Server, tmp_path: Path) -> Callable[..., Uploader]:
    def make(machine: str = "a", **more: Any) -> Uploader:
        return Uploader(RunSpec("http://u:secret@tracker", "e", "n", key="k"), tmp_path / machine, **more)

    return make


def log(run: Uploader, *steps: int) -> None:
    for step in steps:
        run.log({"loss": 1 / step, "lr": step * 1.0}, step=step)


def test_every_point_arrives_once_in_order_with_the_time_it_was_logged_at(
    server: Server, begin: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin()
    clock = iter(range(1_000, 100_000))
    monkeypatch.setattr(uploader.time, "time", lambda: next(clock))
    log(run, *range(1, 38))
    run.tag({"a": "b"})
    run.drain(30)
    for key in ("loss", "lr"):
        assert server.steps(key) == list(range(1, 38))
    assert [point.time for point in server.points if point.key == "lr"] == [
        1000 * t for t in range(1_000, 1_037)
    ]
    assert server.tags == {"a": "b"}
    assert server.calls >= 8  # of ten points at most


def test_mlflow_away_from_the_start_stops_nothing(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.away = True
    run = begin()
    log(run, 1, 2, 3)
    path = tmp_path / "a" / FILE
    with pytest.raises(
        TrackError, match=rf"Connection refused; 3 messages wait in {path}, and the same command"
    ):
        run.drain(0)
    message = capsys.readouterr().err
    assert message.count("metrics wait in") == 1
    assert "secret" not in message
    server.away = False
    begin(after=3).drain(30)
    assert server.steps("loss") == [1, 2, 3]
    assert server.keys == ["k"]


def test_an_outage_in_the_middle_is_reported_once_and_so_is_its_end(
    server: Server,
    begin: Callable[..., Uploader],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploader, "_MANY", 1)
    run = begin()
    log(run, 1)
    server.away = True
    log(run, 2, 3)
    wait_for(lambda: run._warned)
    server.away = False
    log(run, 4)
    run.drain(30)
    assert server.steps("loss") == [1, 2, 3, 4]
    message = capsys.readouterr().err
    assert message.count("does not answer") == message.count("answers again") == 1


def test_a_call_whose_answer_is_lost_is_not_made_twice(
    server: Server, begin: Callable[..., Uploader]
) -> None:
    server.loses_answers = 3
    run = begin()
    log(run, *range(1, 20))
    run.drain(60)
    assert server.steps("loss") == server.steps("lr") == list(range(1, 20))


@pytest.mark.parametrize("kept", range(8))
def test_a_call_that_is_taken_in_part_goes_on_where_it_was_cut(
    server: Server, begin: Callable[..., Uploader], kept: int
) -> None:
    server.stops_after = kept
    run = begin()
    log(run, 1, 2, 3, 4)
    run.drain(30)
    assert server.steps("loss") == server.steps("lr") == [1, 2, 3, 4]


def test_steps_that_are_run_again_do_not_arrive_again(server: Server, begin: Callable[..., Uploader]) -> None:
    run = begin()
    log(run, 1, 2, 3, 4)
    run.drain(30)  # step 4 is delivered, and then the process dies; the checkpoint is of step 2
    run = begin(after=2)
    log(run, 3, 4, 5)
    run.drain(30)
    assert server.steps("loss") == [1, 2, 3, 4, 5]


def test_what_waits_of_steps_that_are_run_again_is_forgotten(
    server: Server, begin: Callable[..., Uploader]
) -> None:
    server.away = True
    run = begin()
    log(run, 1, 2, 3, 4)
    run.end("KILLED", wait_s=0)
    server.away = False
    again = begin(after=2)
    again.log({"loss": 99.0}, step=3)
    again.drain(30)
    assert server.steps("loss") == [1, 2, 3]
    assert [point.value for point in server.points if point.key == "loss"] == [1, 0.5, 99]


def test_another_machine_goes_on_with_what_the_checkpoint_has_kept(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path
) -> None:
    server.away = True
    tail_of = begin()
    log(tail_of, 1, 2)
    tail_of.tag({"x": "y"})
    tail = tail_of.tail()
    tail_of.end("KILLED", wait_s=0)
    server.away = False
    for machine in ("b", "a"):  # where nothing is, and where all of it is already
        begin(machine, after=2, tail=tail).drain(30)
        assert server.steps("loss") == [1, 2]
        assert server.tags == {"x": "y"}


def test_what_mlflow_refuses_for_good_is_raised_at_the_start(
    server: Server, begin: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: FakeRun) -> None:
        raise TrackError("MLflow at x: unsupported URI")

    monkeypatch.setattr(FakeRun, "open", refuse)
    with pytest.raises(TrackError, match="unsupported URI"):
        begin()


def test_a_run_that_has_to_stop_does_not_wait_for_mlflow(
    server: Server, begin: Callable[..., Uploader], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    log(run, 1)
    run.end("KILLED", wait_s=30)
    assert server.ended == ["KILLED"]
    run = begin(after=1)
    server.away = True
    log(run, 2)
    run.end("KILLED", wait_s=0)
    assert "1 messages wait in" in capsys.readouterr().err


def test_a_run_that_comes_back_to_a_machine_with_an_old_outbox(
    server: Server, begin: Callable[..., Uploader]
) -> None:
    """MLflow is away; the run goes from a to b and back, and each time on from a checkpoint that has the
    outbox."""
    server.away = True
    on_a = begin("a")
    log(on_a, 1, 2, 3, 4)
    saved = on_a.tail()
    on_a.tag({"checkpoint": "4"})
    log(on_a, 5, 6)  # and dies: 5 and 6 are run again
    on_b = begin("b", after=4, tail=saved)
    log(on_b, 5, 6, 7, 8)
    on_b.tag({"checkpoint": "8"})
    on_b.sync()
    logged = [message.time for _, message in on_b._outbox.first(99) if isinstance(message, Metrics)]
    saved = on_b.tail()
    on_b.end("KILLED", wait_s=0)
    on_a.end("KILLED", wait_s=0)
    server.away = False
    again = begin("a", after=8, tail=saved)
    log(again, 9)
    again.drain(30)
    assert server.steps("loss") == server.steps("lr") == list(range(1, 10))
    assert [point.time for point in server.points if point.key == "lr"][:8] == logged
    assert server.tags == {"checkpoint": "8"}


def test_what_waits_goes_to_the_disk_while_mlflow_is_away(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path
) -> None:
    """Without ``sync``: a kill loses only what was logged in the last half second."""
    server.away = True
    run = begin()
    log(run, 1, 2)
    wait_for(lambda: not run._outbox.unwritten)
    assert Outbox(tmp_path / "a").waiting == 2
    run.end("KILLED", wait_s=0)


def test_a_damaged_message_is_left_out_with_a_warning(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.away = True
    run = begin()
    log(run, 1, 2, 3)
    run.end("KILLED", wait_s=0)
    with run._outbox._database as database:
        database.execute("UPDATE messages SET line = '{}' WHERE step = 2")
    server.away = False
    begin().drain(30)
    assert server.steps("loss") == [1, 3]
    assert f"warning: message 2 in {tmp_path}/a/{FILE} is damaged, and left out\n" in capsys.readouterr().err


def test_a_step_that_is_logged_twice_arrives_once_also_in_one_call(
    server: Server, begin: Callable[..., Uploader]
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


def test_draining_waits_for_mlflow_to_come_back(server: Server, begin: Callable[..., Uploader]) -> None:
    server.away = True
    run = begin()
    log(run, 1)
    wait_for(lambda: bool(run._warned))
    tries = []
    real = run._run.open

    def open_() -> dict[str, int]:
        tries.append(time.monotonic())
        server.away = len(tries) < 5
        return real()

    run._run.open = open_  # type: ignore[method-assign]
    run.drain(60)
    assert server.steps("loss") == [1]
    # From the fifth on it is taken; between two there is a pause, which doubles.
    assert tries[4] - tries[1] >= 0.02 + 0.04


def test_nothing_that_mlflow_raises_ends_the_thread(
    server: Server, begin: Callable[..., Uploader], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    faults = [
        KeyError("http://u:secret@tracker"),
        ValueError("experiment e keeps its artifacts elsewhere"),
        AWAY,
    ]
    real = run._run.send

    def send(points: Sequence[Point]) -> None:
        if faults:
            raise faults.pop(0)
        real(points)

    run._run.send = send  # type: ignore[method-assign]
    log(run, 1, 2)
    run.drain(30)
    assert server.steps("loss") == [1, 2]
    message = capsys.readouterr().err
    assert "refuses (MLflow at http://***@tracker: KeyError: 'http://***@tracker')" in message
    assert message.count("refuses") == message.count("does not answer") == message.count("answers again") == 1
    assert "secret" not in message


def test_a_refusal_after_the_start_has_gone_on_is_reported_and_waits(
    server: Server,
    begin: Callable[..., Uploader],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    go = threading.Event()

    def refuse(run: FakeRun) -> None:
        go.wait(30)
        raise ValueError("experiment e keeps its artifacts elsewhere")

    monkeypatch.setattr(uploader, "_START_S", 0.05)
    monkeypatch.setattr(FakeRun, "open", refuse)
    run = begin()
    log(run, 1)
    assert "does not answer within 0.05 s" in capsys.readouterr().err
    go.set()
    wait_for(lambda: run._warned == "refuses")
    path = tmp_path / "a" / FILE
    with pytest.raises(
        TrackError, match=rf"experiment e keeps its artifacts elsewhere; 1 messages wait in {path}, and"
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
    begin: Callable[..., Uploader],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploader, "_LAST_CALL_S", 0.05)
    run = begin()
    log(run, 1)
    go = threading.Event()
    run._run.end = lambda status: go.wait(60) and None  # type: ignore[method-assign, assignment, return-value]
    run.end("KILLED", wait_s=0.2)
    assert not go.is_set()
    go.set()
    assert "was too slow; all points are delivered, but not that the run is KILLED" in capsys.readouterr().err


def test_messages_that_a_full_disk_never_took_are_named(
    server: Server, begin: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = begin()
    log(run, 1)

    wait_for(lambda: not run._outbox.waiting)

    def full() -> None:
        raise StoreError("cannot write: disk is full")

    monkeypatch.setattr(run._outbox, "flush", full)
    log(run, 2)
    with pytest.raises(StoreError, match="disk is full"):
        run.sync()
    with pytest.raises(
        TrackError, match=rf"1 messages for MLflow are lost, as the disk does not take {tmp_path}/a/{FILE}"
    ):
        run.drain(30)
    assert server.steps("loss") == [1]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_is_sent_as_it_is_then_and_one_of_another_machine_not_at_all(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path
) -> None:
    server.away = True
    run = begin()
    log_file = tmp_path / "log.txt"
    log_file.write_text("old")
    run.upload(log_file)
    run.upload(tmp_path / "elsewhere.txt")
    log_file.write_text("new")
    server.away = False
    run.drain(30)
    assert server.tags == {"log.txt": "new"}
