"""What the kernel says of other processes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

from cluster.process.processes import age_s, is_gone, is_stopped, start_ticks


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_runs_is_stopped_goes_on_is_a_zombie_and_is_gone() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert not is_gone(process.pid) and not is_stopped(process.pid)
        started = start_ticks(process.pid)
        assert int(started) >= int(start_ticks(os.getpid()))
        process.send_signal(signal.SIGSTOP)
        await_that(lambda: is_stopped(process.pid))
        assert not is_gone(process.pid), "a stopped process still holds its locks"
        process.send_signal(signal.SIGCONT)
        await_that(lambda: not is_stopped(process.pid))
        assert start_ticks(process.pid) == started
        assert 0 <= age_s(process.pid) < age_s(os.getpid())
        process.kill()
        await_that(lambda: is_gone(process.pid))  # a zombie: this process has not waited for it
        assert start_ticks(process.pid) == started
        process.wait()
        assert is_gone(process.pid) and not is_stopped(process.pid)
        assert start_ticks(process.pid) == ""
        assert age_s(process.pid) == 0
