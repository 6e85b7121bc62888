"""cluster.tasks.programs: how a program ends, is told to stop, and dies with its worker."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.tasks.pool import Ended, Needs, Pool
from cluster.tasks.programs import Program, StopFlag, run_program

pytestmark = pytest.mark.usefixtures("local_ray")  # of 2 CPUs

STOPPABLE = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1] + '.saved').touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def only(pool: Pool, seconds: float = 60) -> Ended:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for ended in pool.wait(0.5):
            return ended
    raise AssertionError(f"nothing ended in {seconds} s")


def until(path: Path, pool: Pool | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        if pool:
            pool.wait(0.1)
        time.sleep(0.05)


def run(pool: Pool, flag: StopFlag, *arguments: str, **more: Any) -> None:
    pool.submit("it", run_program, Program(arguments, **more), flag.reference, needs=Needs(1), order=0)


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("print('done')", 0, "done"),
        (
            "import sys; print('error: no such thing', file=sys.stderr); print('late'); sys.exit(2)",
            2,
            "no such thing",
        ),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os, sys; sys.exit(os.environ['A'] != 'b' or 'HOME' in os.environ)", 0, ""),
        ("import os, sys; sys.exit(os.getcwd() != os.environ['HERE'])", 0, ""),
    ],
)
def test_how_a_program_ends(text: str, code: int, error: str, tmp_path: Path) -> None:
    environment: dict[str, str | None] = {"A": "b", "HOME": None, "HERE": str(tmp_path)}
    with Pool() as pool:
        run(pool, StopFlag(), "-c", text, environment=environment, directory=str(tmp_path))
        end = only(pool).result
    assert (end.code, end.told, end.error) == (code, False, error)
    assert end.node and end.seconds > 0


def test_a_driver_that_stops_waits_until_its_programs_have_saved(tmp_path: Path) -> None:
    with Pool() as pool:
        flag = StopFlag()
        run(pool, flag, "-c", STOPPABLE, str(tmp_path / "on"))
        until(tmp_path / "on", pool)
        assert pool.runs(lambda key: key == "it") and not pool.runs(lambda key: key == "other")
        flag.put_up()
        end = only(pool).result
    assert (end.code, end.told) == (75, True)
    assert (tmp_path / "on.saved").exists()


def test_a_program_that_does_not_end_within_its_grace_is_killed(tmp_path: Path) -> None:
    text = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    text += "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    with Pool() as pool:
        flag = StopFlag()
        run(pool, flag, "-c", text, str(tmp_path / "on"), grace_s=0.5)
        until(tmp_path / "on", pool)
        flag.put_up()
        end = only(pool).result
    assert (end.code, end.told) == (-signal.SIGKILL, True)


def test_a_program_ends_with_its_worker_and_is_tried_again(tmp_path: Path) -> None:
    """Its worker is killed: the kernel tells it to stop, and the pool starts it anew."""
    with Pool() as pool:
        run(pool, StopFlag(), "-c", STOPPABLE, str(tmp_path / "on"))
        until(tmp_path / "on", pool)
        (program,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(tmp_path / "on") in (process.info["cmdline"] or []) and process.pid != os.getpid()
        ]
        worker = program.parent()
        assert worker and sys.executable
        (tmp_path / "on").unlink()
        worker.kill()
        until(tmp_path / "on.saved", pool)
        until(tmp_path / "on", pool)


def test_waiting_tasks_are_dropped_by_their_key() -> None:
    with Pool() as pool:
        for key in "ab":
            pool.submit(key, os.path.basename, key, needs=Needs(1), order=0)
        pool.drop(lambda key: key == "a")
        assert pool.waiting == 1 and only(pool).key == "b"
