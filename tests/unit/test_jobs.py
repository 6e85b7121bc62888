"""cluster.jobs: results in order, faults as themselves, dead workers replaced."""

import os
import time
from pathlib import Path

import pytest

from cluster import jobs
from configs import ConfigError

pytestmark = pytest.mark.usefixtures("local_ray")


def square(task: tuple[int, float]) -> int:
    time.sleep(task[1])
    return task[0] ** 2


def refuse(task: int) -> int:
    if task == 2:
        raise ConfigError("task two is wrong")
    return task


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


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_results_in_order_of_tasks_progress_as_they_end() -> None:
    seen: list[tuple[int, int]] = []
    tasks = [(3, 0.8), (1, 0.0), (2, 0.0)]
    assert jobs.run(square, tasks, workers=2, on_result=lambda i, r: seen.append((i, r))) == [9, 1, 4]
    assert sorted(seen) == [(0, 9), (1, 1), (2, 4)]
    assert seen[0] == (1, 1), "the quick one is reported first"
    assert jobs.run(square, [], workers=2) == []


def test_a_task_fault_is_raised_as_itself() -> None:
    with pytest.raises(ConfigError) as fault:
        jobs.run(refuse, range(4), workers=2)
    assert str(fault.value) == "task two is wrong"


def test_nothing_is_written_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop here"):
        jobs.run(slow_then_mark, [(str(tmp_path / "late"), 3.0), ("", 0.0)], workers=2)
    time.sleep(0.1)
    assert not (tmp_path / "late").exists()


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    assert jobs.run(die_once, [str(tmp_path / "died")], workers=1) == ["alive"]
    assert (tmp_path / "died").exists()


def test_one_thread_a_task() -> None:
    assert jobs.run(threads, [0], workers=1) == ["1"]


def test_a_session_inside_a_session_is_the_same_one(local_ray: int) -> None:
    with jobs.session(1) as workers:
        assert workers == 1
    with jobs.session() as workers:
        assert workers == local_ray
