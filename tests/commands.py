"""A command as a user gives it, on the CPU, in a process that is forked from one that has imported what it
imports."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.ranks import forkserver


def run(
    file: Path, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout_s: float = 110
) -> "subprocess.CompletedProcess[str]":
    """``python FILE ARGUMENTS`` in ``cwd``, without stdin. ``environment`` is set once all is imported."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = (str(file), *arguments)
        process = forkserver().Process(
            target=_main, args=(given, str(cwd), dict(environment), str(out), str(err)), daemon=True
        )
        process.start()
        process.join(timeout_s)
        late = process.is_alive()
        if late:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        done = subprocess.CompletedProcess(given, process.exitcode or 0, out.read_text(), err.read_text())
    assert not late, f"no end in {timeout_s} s: {done}"
    return done


def exit_code(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit code of a command's ``main`` in this process, also where argparse ends it."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(str(stop.code))


def _main(given: tuple[str, ...], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    os.setpgid(0, 0)  # it may have children of its own
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    chosen = {name: os.environ[name] for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES")}
    os.environ.clear()
    os.environ.update(environment | chosen)
    sys.argv = [*given]
    gc.freeze()  # as in tests/ranks.py
    runpy.run_path(given[0], run_name="__main__")
