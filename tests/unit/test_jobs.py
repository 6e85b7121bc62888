"""cluster.tasks.jobs: results in order, faults as themselves, dead workers replaced."""

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.process.signals import Preempted
from cluster.storage import store
from cluster.tasks import jobs, ray_session
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


def meet(task: tuple[str, str]) -> str:
    """Its name, once another task is there too."""
    folder, name = task
    (Path(folder) / name).touch()
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.01)
    return name


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
    monkeypatch.setattr("cluster.tasks.jobs._PATIENCE_S", 0.1)
    file = tmp_path / "beat"
    with pytest.raises(ValueError, match="stop here"):
        jobs.run(beat, [(str(file), False), (str(file), True)], workers=2)
    written = file.read_text()
    time.sleep(1)
    assert file.read_text() == written, "the task is still at it"


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    assert jobs.run(die_once, [str(tmp_path / "died")], workers=1) == ["alive"]
    assert (tmp_path / "died").exists()


def test_what_may_pass_is_tried_again_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.tasks.jobs._BACKOFF_S", 0.1)
    told: list[tuple[int, str]] = []
    began = time.monotonic()
    assert jobs.run(out_of_reach, [(str(tmp_path), 2)], workers=1, on_retry=lambda *at: told.append(at)) == [
        2
    ]
    assert told == [(0, "cannot read x: try 0"), (0, "cannot read x: try 1")]
    assert time.monotonic() - began >= 0.8 * (0.1 + 0.2), "it did not wait"
    monkeypatch.setattr("cluster.tasks.jobs._BACKOFF_S", 0.01)
    (tmp_path / "never").mkdir()
    with pytest.raises(store.TransientError, match="cannot read x: try 4"):
        jobs.run(out_of_reach, [(str(tmp_path / "never"), 99)], workers=1)


def test_a_shared_object_is_sent_once_and_read_only() -> None:
    found = jobs.run(total, [1, 3], workers=2, shared=(np.arange(1 << 20), "x"))
    assert found == [(0, "x", False), (3, "x", False)]


def test_one_worker_needs_no_ray() -> None:
    seen: list[int] = []
    assert (
        jobs.run_here_or_there(where, [0, 1], workers=1, on_result=lambda i, _: seen.append(i))
        == [os.getpid()] * 2
    )
    assert seen == [0, 1]
    assert os.getpid() not in jobs.run_here_or_there(where, [0, 1], workers=2)


def test_one_thread_a_task() -> None:
    assert jobs.run(threads, [0], workers=1) == ["1"]


def test_a_session_inside_a_session_is_the_same_one(local_ray: int) -> None:
    with ray_session.session(1) as workers:
        assert workers == 1
    with ray_session.session() as workers:
        assert workers == local_ray


def test_nodes_that_join_later_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head without CPUs counts as one worker, until nodes are there."""
    clock, there = [100.0], {"CPU": 0.0}
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(jobs.ray, "cluster_resources", lambda: there)
    slots = jobs._Slots(None)
    for after, cpus, now, missing in (
        (0, 0, 1, False),
        (9, 0, 1, False),
        (11, 0, 1, True),
        (17, 0, 1, False),
        (18, 24, 1, False),
        (23, 24, 24, False),
        (60, 32, 32, False),
        (90, 3, 3, False),
    ):
        clock[0], there["CPU"] = 100.0 + after, cpus
        assert (slots.count(), slots.are_missing()) == (now, missing), after
    there.clear()  # as Ray has it where no node has any
    clock[0] += 10
    assert slots.count() == 1
    assert jobs._Slots(5).count() == 5


def test_tasks_that_run_at_once_grow_with_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first task ends only once the second runs beside it, which needs a second look at the cluster."""
    seen = iter([0.0, 2.0])
    last = [0.0]

    def resources() -> dict[str, float]:
        last[0] = next(seen, last[0])
        return {"CPU": last[0]}

    monkeypatch.setattr("cluster.tasks.jobs._REFRESH_S", 0.1)
    monkeypatch.setattr(jobs.ray, "cluster_resources", resources)
    assert jobs.run(meet, [(str(tmp_path), "a"), (str(tmp_path), "b")]) == ["a", "b"]


def test_a_ray_that_does_not_start_in_time_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")  # of this class

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "init", late)
    with pytest.raises(
        RuntimeError, match=r"^cannot start a local Ray: The current node timed out during start"
    ):
        ray_session.join().__enter__()


def test_a_long_folder_for_temporary_files_has_a_short_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("slurm_jobdir" * 6) / "4711001.scratch"
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for variable in ("TMPDIR", "RAY_TMPDIR"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(long))
            with ray_session.short_folder() as way:
                assert way and len(way) < 30 and os.path.realpath(way) == f"{long}/ray"
                Path(way, "session").mkdir()
            assert not os.path.lexists(os.path.dirname(way)) and (long / "ray" / "session").is_dir()
            (long / "ray" / "session").rmdir()
            patch.setattr(ray_session.tempfile, "mkdtemp", refuse_folder)
            with pytest.raises(
                RuntimeError,
                match=f"^cannot start a local Ray: {variable}={long} is too long for its "
                r"sockets, .*\(\[Errno 30\] Read-only.*; set RAY_TMPDIR to a short",
            ):
                ray_session.short_folder().__enter__()
    monkeypatch.setenv("TMPDIR", "/tmp")
    with ray_session.short_folder() as way:
        assert way is None


def refuse_folder(**_: str) -> str:
    raise OSError(errno.EROFS, "Read-only file system", "/tmp")


def test_a_stop_while_ray_starts_is_handled_once_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler would raise SystemExit in the middle of its start."""
    events = []

    def init(**_: object) -> None:
        ray_session.ray._private.utils.set_sigterm_handler(lambda *_: events.append("Ray's handler"))
        signal.raise_signal(signal.SIGTERM)
        events.append("started")

    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "init", init)
    monkeypatch.setattr(ray_session.ray, "shutdown", lambda: events.append("shut down"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGTERM, lambda *_: raised())

    def raised() -> None:
        events.append("ours")
        raise Preempted

    try:
        with pytest.raises(Preempted), ray_session.join(local_cpus=1):
            events.append("inside")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert events == ["started", "ours", "shut down"]
