"""Checks of this machine: packages, GPUs, cores, memory, open files, disks."""

import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.doctor.finding import Finding, graded
from cluster.process import host

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "s3fs", "pydantic", "safetensors")
_GIB = 1 << 30


def versions(constraints: Path = ROOT / "constraints.txt") -> Iterator[Finding]:
    """The packages that a run needs, against constraints.txt if that is there."""
    text = constraints.read_text() if constraints.is_file() else ""
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    yield Finding("python", "ok", sys.version.split()[0])
    for name in _PACKAGES:
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "FAILED", "not installed", f"pip install --constraint constraints.txt {name}")
            continue
        wanted = pinned.get(name, there)
        other = there.split("+")[0] != wanted.split("+")[0]
        yield graded(
            name,
            f"{there}, pinned is {wanted}" if other else there,
            f"pip install {name}=={wanted}, or see that the tests pass with yours",
            warns=other,
        )


def gpus() -> Iterator[Finding]:
    """One finding for each GPU, as nvidia-smi lists them."""
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    advice = "repair the driver, or restart the machine"
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        yield Finding("GPU", "ok", "none here: training uses the CPU")
        return
    except (subprocess.TimeoutExpired, OSError) as fault:
        yield graded("GPU", f"nvidia-smi: {fault}", advice, fails=True)
        return
    lines = (answer.stdout or answer.stderr).strip().splitlines() or ["no output"]
    if answer.returncode:
        found = f"nvidia-smi ended with {answer.returncode}: {lines[-1]}"
        yield graded("GPU", found, advice, fails=True)
        return
    for line in lines:
        yield Finding("GPU", "ok", line)


def gpu_bytes() -> list[int]:
    """The memory of each GPU, as nvidia-smi lists them; empty where there is none or it does not answer."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # ``gpus`` says why
    return [int(line) << 20 for line in answer.stdout.split() if line.isdecimal()]


def cores() -> Iterator[Finding]:
    """Cores, and how many of them a container's quota allows."""
    bound, quota = host.bound(), host.quota()
    limited = quota < bound
    yield graded(
        "cores",
        f"{bound} of {os.cpu_count() or 1}" + f", of which the container may use {quota:g}" * limited,
        f"set OMP_NUM_THREADS={host.usable()}, or give the container more",
        warns=limited,
    )


def memory_bytes() -> tuple[int, int]:
    """RAM (in all, free), within the limits of the control groups."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for names in (("max", "current", "stat"), ("limit_in_bytes", "usage_in_bytes", "stat")):
        for limit, used, stat in host.control_groups("memory", *(f"memory.{name}" for name in names)):
            if limit.strip() != "max":  # pages of files that nobody uses count as used, and are free
                cached = re.findall(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
                total = min(total, int(limit))
                free = min(free, int(limit) - int(used) + int([0, *cached][-1]))
    return total, free


def memory() -> Iterator[Finding]:
    """RAM, within the limits of the control groups."""
    total, free = memory_bytes()
    whole = psutil.virtual_memory().total
    yield graded(
        "memory",
        f"{total / _GIB:.1f} of the machine's {whole / _GIB:.1f} GiB, {free / _GIB:.1f} free",
        "end other programs here, give the container more, or use fewer ranks a node",
        warns=free < 2 * _GIB,
    )


def open_files() -> Iterator[Finding]:
    """The limit of open files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limited = files != resource.RLIM_INFINITY
    yield graded(
        "open files", str(files) if limited else "no limit", "ulimit -n 65536", warns=limited and files < 4096
    )


def shared_memory() -> Iterator[Finding]:
    """The size of /dev/shm."""
    size = shutil.disk_usage("/dev/shm").total
    yield graded(
        "/dev/shm",
        f"{size / _GIB:.2f} GiB",
        "nccl and Ray use it: docker run --shm-size=8g, in Kubernetes an emptyDir of medium Memory",
        warns=size < 256 << 20,
    )


def disks(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free room in ``folders`` (name -> path)."""
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        yield graded(
            f"disk, {name}",
            f"{free / _GIB:.1f} GiB free in {folder}",
            f"make room in {folder}: a checkpoint needs 16 bytes a parameter, and up to "
            "checkpoint.keep_last + 1 of them are there at a time",
            fails=free < _GIB,
            warns=free < 10 * _GIB,
        )
