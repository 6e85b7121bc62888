"""What this process may use of its machine: cores, within affinity and a container's quota; and the cache
folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cluster.process import paths

THREADS = "DNA_THREADS"
_OWN_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def bound() -> int:
    """The number of cores that this process is bound to, without a container's quota."""
    return len(os.sched_getaffinity(0))


def quota() -> float:
    """Cores' worth of time that this process may use: the lowest limit of its control groups, else
    ``bound``."""
    limits = [
        *(text.split() for (text,) in control_groups("cpu", "cpu.max")),
        *control_groups("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    ]
    found = [int(limit) / int(period) for limit, period in limits if limit.strip() not in ("max", "-1")]
    return min([*found, float(bound())])


def usable() -> int:
    """Processes that can work at the same time at full speed, at least 1."""
    return max(1, int(quota()))


def cache_root() -> Path:
    """The folder for files that can be made again: DNA_CACHE, else ``~/.cache/dna-distill``; an absolute
    path."""
    path = os.environ.get("DNA_CACHE", "").strip() or "~/.cache/dna-distill"
    return Path(paths.expand(path, what="DNA_CACHE")).absolute()


def threads_per_process(local_size: int) -> int:
    """DNA_THREADS, which a program that starts several on one machine sets for each; else cores that this
    process may use, divided by ``local_size`` processes of its kind, at least 1."""
    given = os.environ.get(THREADS, "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return max(1, usable() // max(1, local_size))


def control_groups(controller: str, *files: str) -> Iterator[list[str]]:
    """The text of ``files`` in each control group (v1 or v2) of this process that has them, up to the
    machine's."""
    for line in _OWN_CGROUP.read_text().splitlines() if _OWN_CGROUP.exists() else ():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            own = _CGROUPS / (controller if names else "") / path.strip("/")
            for folder in (own, *own.parents):
                with contextlib.suppress(OSError):
                    yield [(folder / name).read_text() for name in files]
