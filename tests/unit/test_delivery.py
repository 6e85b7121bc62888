"""Points wait on disk while MLflow is away, and each arrives once, in order, with its own time."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.store import StoreError
from trainer.tracking import uploader
from trainer.tracking.mlflow_run import Point, TrackError
from trainer.tracking.outbox import Spool
from trainer.tracking.uploader import Delivery

AWAY = TrackError("MLflow at http://tracker: Connection refused", passes=True)


class Server:
    """What MLflow keeps, and how it fails."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.tags: dict[str, str] = {}
        self.keys: list[str] = []
        self.ended: list[str] = []
        self.calls = 0
        self.away = False
        self.loses_answers = 0
        self.stops_after = -1  # points of a call that is cut

    def tracker(self, uri: str) -> "Tracker":
        return Tracker(self)

    def steps(self, key: str) -> list[int]:
        return [point.step for point in self.points if point.key == key]


class Tracker:
    MOST = 10

    def __init__(self, server: Server) -> None:
        self.server, self.id = server, ""

    def _answer(self) -> None:
        if self.server.away:
            raise AWAY

    def open(self, *, key: str, **more: Any) -> dict[str, int]:
        self._answer()
        if key not in self.server.keys:
            self.server.keys.append(key)
        self.id = f"run{self.server.keys.index(key)}"
        return {point.key: max(self.server.steps(point.key)) for point in self.server.points}

    def send(self, points: Sequence[Point]) -> None:
        self._answer()
        assert len(points) <= self.MOST
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

    def end(self, status: str) -> None:
        self._answer()
        self.server.ended.append(status)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(uploader, "Tracker", made.tracker)
    monkeypatch.setattr(uploader, "_PAUSE_S", 0.02)
    return made


@pytest.fixture
def begin(server: Server, tmp_path: Path) -> Callable[..., Delivery]:
    def make(**more: Any) -> Delivery:
        given: dict[str, Any] = {
            "uri": "http://u:secret@tracker",
            "experiment": "e",
            "name": "n",
            "artifact_uri": None,
            "key": "k",
            "params": {},
            "tags": {},
            "folder": tmp_path / "queue",
        }
        return Delivery(**given | more)

    return make


def log(run: Delivery, *steps: int) -> None:
    for step in steps:
        run.log({"loss": 1 / step, "lr": step * 1.0}, step=step)


def test_every_point_arrives_once_in_order_with_the_time_it_was_told_at(
    server: Server, begin: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
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
    server: Server, begin: Callable[..., Delivery], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.away = True
    run = begin()
    log(run, 1, 2, 3)
    path = tmp_path / "queue" / "queue.jsonl"
    with pytest.raises(
        TrackError, match=rf"Connection refused; 3 lines wait in {path}, and the same command"
    ):
        run.drain(0)
    said = capsys.readouterr().err
    assert said.count("metrics wait in") == 1
    assert "secret" not in said
    server.away = False
    begin(after=3).drain(30)
    assert server.steps("loss") == [1, 2, 3]
    assert server.keys == ["k"]


def test_an_outage_in_the_middle_is_said_once_and_so_is_its_end(
    server: Server,
    begin: Callable[..., Delivery],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploader, "_MANY", 1)
    run = begin()
    log(run, 1)
    server.away = True
    log(run, 2, 3)
    wait_for(lambda: run._said)
    server.away = False
    log(run, 4)
    run.drain(30)
    assert server.steps("loss") == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert said.count("does not answer") == said.count("answers again") == 1


def test_a_call_whose_answer_is_lost_is_not_made_twice(
    server: Server, begin: Callable[..., Delivery]
) -> None:
    server.loses_answers = 3
    run = begin()
    log(run, *range(1, 20))
    run.drain(60)
    assert server.steps("loss") == server.steps("lr") == list(range(1, 20))


@pytest.mark.parametrize("kept", range(8))
def test_a_call_that_is_taken_in_part_goes_on_where_it_was_cut(
    server: Server, begin: Callable[..., Delivery], kept: int
) -> None:
    server.stops_after = kept
    run = begin()
    log(run, 1, 2, 3, 4)
    run.drain(30)
    assert server.steps("loss") == server.steps("lr") == [1, 2, 3, 4]


def test_steps_that_are_run_again_are_not_told_again(server: Server, begin: Callable[..., Delivery]) -> None:
    run = begin()
    log(run, 1, 2, 3, 4)
    run.drain(30)  # step 4 is told, and then the process dies; the checkpoint is of step 2
    run = begin(after=2)
    log(run, 3, 4, 5)
    run.drain(30)
    assert server.steps("loss") == [1, 2, 3, 4, 5]


def test_what_waits_of_steps_that_are_run_again_is_forgotten(
    server: Server, begin: Callable[..., Delivery]
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
    server: Server, begin: Callable[..., Delivery], tmp_path: Path
) -> None:
    server.away = True
    tail_of = begin()
    log(tail_of, 1, 2)
    tail_of.tag({"x": "y"})
    tail = tail_of.tail()
    server.away = False
    for folder in ("elsewhere", "queue"):  # where nothing is, and where all of it is already
        begin(after=2, tail=tail, folder=tmp_path / folder).drain(30)
        assert server.steps("loss") == [1, 2]
        assert server.tags == {"x": "y"}


def test_what_mlflow_refuses_for_good_is_raised_at_the_start(
    server: Server, begin: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **more: Any) -> None:
        raise TrackError("MLflow at x: unsupported URI")

    monkeypatch.setattr(Tracker, "open", refuse)
    with pytest.raises(TrackError, match="unsupported URI"):
        begin()


def test_a_run_that_is_told_to_stop_does_not_wait_for_mlflow(
    server: Server, begin: Callable[..., Delivery], capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    log(run, 1)
    run.end("KILLED", wait_s=30)
    assert server.ended == ["KILLED"]
    run = begin(after=1)
    server.away = True
    log(run, 2)
    run.end("KILLED", wait_s=0)
    assert "1 lines wait in" in capsys.readouterr().err


def test_a_spool_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "whole")
    entries = [{"step": step, "metrics": {"é": 0.1 * step}} for step in range(4)]
    for entry in entries:
        spool.append(entry)
    data = spool.path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10]
    for cut in range(len(data) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "queue.jsonl").write_bytes(data[:cut])
        (folder / "delivered").write_text("torn" if cut % 2 else "0")
        again = Spool(folder)
        whole = sum(end <= cut for end in ends)
        assert [entry for _, entry in again.next(99)] == entries[:whole]
        again.append({"step": 9})
        assert [entry for _, entry in again.next(99)] == [*entries[:whole], {"step": 9}]
        again.close()


def test_a_spool_gives_lines_once_delivered_never_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(5):
        spool.append({"step": step})
    (end, first), *_ = spool.next(2)
    assert first == {"step": 0}
    spool.delivered(end)
    spool.sync()
    assert spool.count() == 4
    again = Spool(tmp_path)
    assert [entry["step"] for _, entry in again.next(2)] == [1, 2]
    again.keep(lambda entry: entry["step"] != 3, before=b'{"step": 7}\n{"step": 1}\n')
    assert [entry["step"] for _, entry in again.next(99)] == [7, 1, 2, 4]
    assert again.tail().count(b"\n") == 4 == Spool(tmp_path).count()


def test_a_full_disk_stops_no_step_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, real = Spool(tmp_path), None

    class Full:
        """A file on a disk that takes three more bytes of a line."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, line: bytes) -> int:
            return int(real.write(line[:3]))

    spool.append({"step": 1})
    real = spool._file
    monkeypatch.setattr(spool, "_file", Full())
    spool.append({"step": 2})
    spool.append({"step": 3})
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}/queue.jsonl: No space left on device"):
        spool.sync()
    assert [entry["step"] for _, entry in spool.next(9)] == [1]
    monkeypatch.setattr(spool, "_file", real)
    spool.append({"step": 4})
    spool.sync()
    assert [entry["step"] for _, entry in Spool(tmp_path).next(9)] == [1, 2, 3, 4]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
