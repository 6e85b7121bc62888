"""The state of other processes of this machine, by their pid."""

import os
import time
from pathlib import Path

import psutil


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie, which nobody has waited for yet, has."""
    return _status(pid) in (None, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP, Ctrl-Z) or a debugger keeps the process from running."""
    return _status(pid) in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def start_ticks(pid: int) -> str:
    """When the process began, in clock ticks since boot; "" if it has ended.

    With the pid this identifies a process. psutil's create_time would not do: it moves when the clock is set.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def age_s(pid: int) -> float:
    """Seconds since the process began; 0 if it has ended."""
    ticks = start_ticks(pid)
    if not ticks:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK"))


def find_launcher() -> int:
    """The pid of DeepSpeed's launcher, whose child started this process; 0 without it."""
    try:
        parent = psutil.Process(os.getppid())
        return parent.ppid() if any("deepspeed.launcher" in word for word in parent.cmdline()) else 0
    except psutil.Error:  # the parent has ended
        return 0


def _status(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return None
