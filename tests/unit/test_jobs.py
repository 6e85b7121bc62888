"""cluster.jobs: results in order, faults as themselves, dead workers replaced."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from cluster import jobs, store
from configs import ConfigError

pytestmark = pytest.mark.usefixtures("local_ray")


def square(task: tuple[int, str]) -> int:
    """The square, once the file that is named is there."""
    while task[1] and not Path(task[1]).exists():
        time.sleep(0.01)
    return task[0] ** 2


def refuse(task: int) -> int:
    if task == 2:
        raise ConfigError("task two is wrong")
    return task


def beat(task: tuple[str, bool]) -> None:
    """Write to a file again and again, or fail once somebody does."""
    while not task[1]:
        Path(task[0]).write_text(str(time.monotonic_ns()))
        time.sleep(0.02)
    while not Path(task[0]).exists():
        time.sleep(0.01)
    raise ValueError("stop here")


def slow_then_mark(task: tuple[str, float]) -> None:
    path, seconds = task
    if seconds == 0:
        raise ValueError("stop here")
    time.sleep(seconds)
    Path(path).touch()


def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "alive"


def out_of_reach(task: tuple[str, int]) -> int:
    """A store that answers from the third time on (or never, with 99)."""
    folder, times = task
    tries = len(list(Path(folder).iterdir()))
    if tries < times:
        (Path(folder) / str(tries)).touch()
        raise store.TransientError(f"cannot read x: try {tries}")
    return tries


def total(task: int, shared: tuple[np.ndarray, str]) -> tuple[int, str, bool]:
    return int(shared[0][:task].sum()), shared[1], shared[0].flags.writeable


def where(_: int) -> int:
    return os.getpid()


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_results_in_order_of_tasks_progress_as_they_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def on_result(index: int, result: int) -> None:
        seen.append((index, result))
        if len(seen) == 2:
            (tmp_path / "go").touch()

    tasks = [(3, str(tmp_path / "go")), (1, ""), (2, "")]
    assert jobs.run(square, tasks, workers=2, on_result=on_result) == [9, 1, 4]
    assert seen == [(1, 1), (2, 4), (0, 9)], "the quick ones are reported while the first waits for them"
    assert jobs.run(square, [], workers=2) == []


def test_a_task_fault_is_raised_as_itself() -> None:
    with pytest.raises(ConfigError) as fault:
        jobs.run(refuse, range(4), workers=2)
    assert str(fault.value) == "task two is wrong"


def test_a_failure_is_raised_when_the_others_have_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop here"):
        jobs.run(slow_then_mark, [(str(tmp_path / "late"), 1.0), ("", 0.0)], workers=2)
    assert (tmp_path / "late").exists()


def test_nothing_is_written_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs._PATIENCE", 0.1)
    file = tmp_path / "beat"
    with pytest.raises(ValueError, match="stop here"):
        jobs.run(beat, [(str(file), False), (str(file), True)], workers=2)
    written = file.read_text()
    time.sleep(1)
    assert file.read_text() == written, "the task is still at it"


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    assert jobs.run(die_once, [str(tmp_path / "died")], workers=1) == ["alive"]
    assert (tmp_path / "died").exists()


def test_what_may_pass_is_tried_again_with_growing_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs._BACKOFF", 0.1)
    told: list[tuple[int, str]] = []
    began = time.monotonic()
    assert jobs.run(out_of_reach, [(str(tmp_path), 2)], workers=1, on_retry=lambda *at: told.append(at)) == [2]
    assert told == [(0, "cannot read x: try 0"), (0, "cannot read x: try 1")]
    assert time.monotonic() - began >= 0.8 * (0.1 + 0.2), "it did not wait"
    monkeypatch.setattr("cluster.jobs._BACKOFF", 0.01)
    (tmp_path / "never").mkdir()
    with pytest.raises(store.TransientError, match="cannot read x: try 4"):
        jobs.run(out_of_reach, [(str(tmp_path / "never"), 99)], workers=1)


def test_a_shared_object_is_sent_once_and_read_only() -> None:
    found = jobs.run(total, [1, 3], workers=2, shared=(np.arange(1 << 20), "x"))
    assert found == [(0, "x", False), (3, "x", False)]


def test_one_worker_needs_no_ray() -> None:
    seen: list[int] = []
    assert jobs.run_here_or_there(where, [0, 1], workers=1, on_result=lambda i, _: seen.append(i)) == [os.getpid()] * 2
    assert seen == [0, 1]
    assert os.getpid() not in jobs.run_here_or_there(where, [0, 1], workers=2)


def test_one_thread_a_task() -> None:
    assert jobs.run(threads, [0], workers=1) == ["1"]


def test_a_session_inside_a_session_is_the_same_one(local_ray: int) -> None:
    with jobs.session(1) as workers:
        assert workers == 1
    with jobs.session() as workers:
        assert workers == local_ray
