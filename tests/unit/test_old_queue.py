"""The queue.jsonl of an earlier version is taken over into the outbox: every line once, whatever cut it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_uploader import Server, begin, log, server
from trainer.tracking import old_queue
from trainer.tracking.messages import Metrics
from trainer.tracking.outbox import FILE, Outbox
from trainer.tracking.uploader import Uploader

__all__ = ["begin", "server"]

LINE = b'{"time": 5, "step": %d, "metrics": {"x": 1.0}}\n'


def steps(outbox: Outbox) -> list[int]:
    return [message.step for _, message in outbox.first(99) if isinstance(message, Metrics)]


def test_what_waits_in_an_earlier_versions_run_dir_is_delivered(
    server: Server, begin: Callable[..., Uploader], tmp_path: Path
) -> None:
    """Delivered up to step 2; what it noted there, and steps that are run again, do not arrive again."""
    folder = tmp_path / "a"
    folder.mkdir()
    tag = b'{"time": 6, "tags": {"checkpoint.uri": "/c"}}\n'
    config = b'{"time": 4, "name": "config.yaml", "values": {"a": 1}}\n'
    data = LINE % 1 + LINE % 2 + config + LINE % 3 + tag + LINE % 4 + LINE % 5
    (folder / "queue.jsonl").write_bytes(data + b'{"time": 5, "ste')
    (folder / "delivered").write_text(str(len(LINE % 1 + LINE % 2)))
    run = begin(after=4, tail=LINE % 3 + tag)  # the tail of its checkpoint has a part of it again
    log(run, 5)
    run.drain(30)
    assert server.steps("x") == [3, 4]
    assert [point.time for point in server.points if point.key == "x"] == [5, 5]
    assert server.steps("loss") == [5]
    assert server.tags == {"config.yaml": '{"a": 1}', "checkpoint.uri": "/c"}
    assert {path.name for path in folder.iterdir()} <= {FILE, f"{FILE}-journal"}


def test_a_queue_that_was_cut_at_any_byte(tmp_path: Path) -> None:
    data = b"".join(LINE % step for step in range(4))
    for cut in range(len(data) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "queue.jsonl").write_bytes(data[:cut])
        (folder / "delivered").write_text("torn" if cut % 2 else "0")
        whole = [Metrics(5, step, {"x": 1.0}) for step in range(data[:cut].count(b"\n"))]
        assert list(old_queue.waiting(folder).values()) == whole


@pytest.mark.parametrize("note", ["3", "999", "-4", "", "x", "0"])
def test_a_note_that_is_not_the_end_of_a_line_is_none(tmp_path: Path, note: str) -> None:
    (tmp_path / "queue.jsonl").write_bytes(LINE % 1 + LINE % 2)
    (tmp_path / "delivered").write_text(note)
    assert list(old_queue.waiting(tmp_path).values()) == [Metrics(5, step, {"x": 1.0}) for step in (1, 2)]
    (tmp_path / "delivered").write_text(str(len(LINE % 1)))
    assert [message.step for message in old_queue.waiting(tmp_path).values()] == [2]  # type: ignore[union-attr]


def test_a_damaged_line_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = tmp_path / "queue.jsonl"
    queue.write_bytes(LINE % 1 + b"\0" * 20 + b'ics": {"x": 1.0}}\n' + b"7\n" + LINE % 2)
    assert steps(Outbox(tmp_path)) == [1, 2]
    message = capsys.readouterr().err
    end = len(LINE % 1) + 38
    for at in (end, end + 2):
        assert f"warning: a line of {queue} that ends at byte {at} is damaged, and left out\n" in message


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_kill_while_the_queue_is_taken_over_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """It dies after the messages are in the outbox, when so many of the two files are removed."""
    (tmp_path / "queue.jsonl").write_bytes(LINE % 1 + LINE % 2 + LINE % 3)
    (tmp_path / "delivered").write_text(str(len(LINE % 1)))

    def die(folder: Path) -> None:
        for name in ("queue.jsonl", "delivered")[:removed]:
            (folder / name).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(old_queue, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            Outbox(tmp_path)
    again = Outbox(tmp_path)
    assert steps(again) == [2, 3]
    assert again.waiting == 2
    assert not (tmp_path / "delivered").exists()
