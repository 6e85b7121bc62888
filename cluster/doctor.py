"""``python -m cluster doctor``: what this machine can do, what is missing, and what to do about it."""

import argparse
import contextlib
import email.utils
import importlib.metadata
import json
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from cluster import process, store
from configs import redact

_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "s3fs", "pydantic", "safetensors")
_CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
_GIB = 1 << 30
_OBJECT = 8 << 20
_SKEW_S, _WRONG_S = 5.0, 300.0  # S3 refuses signatures that are 15 minutes off
_RANKS_S = 120.0
State = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """One check: how it went, what was found, and what to do if that is not well."""

    what: str
    state: State
    found: str
    advice: str = ""


def versions(constraints: Path = _CONSTRAINTS) -> Iterator[Finding]:
    """The packages that a run needs, against constraints.txt where it is there."""
    pinned = {}
    if constraints.is_file():
        pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", constraints.read_text(), re.MULTILINE))
    yield Finding("python", "ok", sys.version.split()[0])
    for name in _PACKAGES:
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "FAILED", "not installed", f"pip install --constraint constraints.txt {name}")
            continue
        wanted = pinned.get(name, there)
        if there.split("+")[0] == wanted.split("+")[0]:
            yield Finding(name, "ok", there)
        else:
            yield Finding(name, "warning", f"{there}, pinned is {wanted}",
                          f"pip install {name}=={wanted}, or see that the tests pass with yours")  # fmt: skip


def devices() -> Iterator[Finding]:
    """GPUs and cores, and what a container takes away of them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
        for number, line in enumerate(listed.splitlines()):
            yield Finding(f"GPU {number}", "ok", line)
    except FileNotFoundError:
        yield Finding("GPU", "ok", "none here: training uses the CPU")
    except (subprocess.SubprocessError, OSError) as fault:
        yield Finding("GPU", "FAILED", f"nvidia-smi: {fault}", "mend the driver, or restart the machine")
    cores, machine = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = _cgroup_cores()
    if quota and quota < cores:
        yield Finding("cores", "warning", f"{cores}, of which the container may use {quota:g}",
                      f"set OMP_NUM_THREADS={max(1, int(quota))}, or give the container more")  # fmt: skip
    else:
        yield Finding("cores", "ok", f"{cores} of {machine}")


def memory() -> Iterator[Finding]:
    """RAM, shared memory, open files."""
    there = psutil.virtual_memory()
    limit = min(there.total, _cgroup_memory() or there.total)
    low = there.available < 2 * _GIB
    yield Finding("memory", "warning" if low else "ok",
                  f"{limit / _GIB:.1f} GiB, {there.available / _GIB:.1f} available",
                  "end what else runs here, or use fewer ranks a node" if low else "")  # fmt: skip
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").total
        small = shared < 256 << 20
        yield Finding("/dev/shm", "warning" if small else "ok", f"{shared / _GIB:.2f} GiB",
                      "nccl and Ray use it: docker run --shm-size=8g, in Kubernetes an emptyDir of medium Memory"
                      if small else "")  # fmt: skip
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = files != resource.RLIM_INFINITY and files < 4096
    yield Finding("open files", "warning" if few else "ok", str(files), "ulimit -n 65536" if few else "")


def disks(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free room in ``folders`` (name -> path)."""
    for name, folder in folders.items():
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        state: State = "FAILED" if free < _GIB else "warning" if free < 10 * _GIB else "ok"
        advice = "" if state == "ok" else (f"make room in {folder}: a checkpoint needs 16 bytes a parameter, and "
                                           "checkpoint.keep_last + 1 of them are there at a time")  # fmt: skip
        yield Finding(f"disk, {name}", state, f"{free / _GIB:.1f} GiB free in {folder}", advice)


def ranks(count: int) -> Iterator[Finding]:
    """What ``count`` ranks of this machine exchange, by python -m cluster.bandwidth."""
    what = f"{count} ranks"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(count):
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                                    "OMP_NUM_THREADS": "1"}  # fmt: skip
        started.append(subprocess.Popen([sys.executable, "-m", "cluster.bandwidth"], env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    deadline = time.monotonic() + _RANKS_S
    try:
        answers = [one.communicate(timeout=max(1.0, deadline - time.monotonic())) for one in started]
    except subprocess.TimeoutExpired:
        yield Finding(what, "FAILED", f"no answer in {_RANKS_S:g} s",
                      "look for a firewall between the ranks, or a GPU that hangs")  # fmt: skip
        return
    finally:
        for one in started:
            one.kill()
            one.wait()
    both = enumerate(zip(started, answers, strict=True))
    wrong = [(rank, words) for rank, (one, (_, words)) in both if one.returncode]
    if wrong:
        rank, words = wrong[0]
        last = (words.strip().splitlines() or ["without a word"])[-1].removeprefix("error: ")
        yield Finding(what, "FAILED", f"rank {rank}: {last}", "torch.distributed must work before anything else does")
        return
    found = json.loads(answers[0][0].strip().splitlines()[-1])
    for name in ("all_reduce", "all_gather"):
        yield Finding(f"{what}, {name}", "ok", f"{found[f'{name}_us']:.0f} µs for 8 bytes, "
                      f"{found[f'{name}_gb_s']:.2f} GB/s bus bandwidth for 64 MiB")  # fmt: skip


def store_round_trip(uri: str) -> Iterator[Finding]:
    """8 MiB written below ``uri``, read back, listed and removed."""
    folder, data = store.join(uri, f"doctor-{uuid.uuid4().hex[:12]}"), os.urandom(_OBJECT)
    path, shown, times = store.join(folder, "object"), redact(uri), {}
    steps: list[tuple[str, Callable[[], object], str]] = [
        ("write", lambda: store.write_bytes(path, data), "PutObject"),
        ("read", lambda: store.read_bytes(path) == data, "GetObject"),
        ("list", lambda: store.sizes(folder) == {"object": _OBJECT}, "ListBucket"),
        ("remove", lambda: store.remove(folder), "DeleteObject"),
    ]
    for name, step, permission in steps:
        start = time.perf_counter()
        try:
            wrong = step() is False
        except (store.StoreError, OSError) as fault:
            yield Finding(f"store, {name}", "FAILED", redact(str(fault)),
                          f"look at the address, the AWS_ variables, and the right to {permission}")  # fmt: skip
            return
        times[name] = time.perf_counter() - start
        if wrong:
            yield Finding(f"store, {name}", "FAILED", f"{shown} gives back other than was written",
                          "do not use this store")  # fmt: skip
            return
    speeds = ", ".join(f"{name} {_OBJECT / 1e6 / times[name]:.0f} MB/s" for name in ("write", "read"))
    calls = ", ".join(f"{name} {times[name] * 1e3:.0f} ms" for name in ("list", "remove"))
    yield Finding("store", "ok", f"{shown}: {speeds}, {calls}")


def clock(name: str, url: str | None) -> Iterator[Finding]:
    """How far this machine's clock is from that of the server at ``url``, by the Date of any answer."""
    what = f"clock, {name}"
    if url is None:
        yield Finding(what, "ok", "not asked: it is on this machine")
        return
    start = time.time()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:  # an answer all the same
        date = refusal.headers.get("Date")
    except (OSError, ValueError) as fault:
        yield Finding(what, "warning", f"{redact(url)} does not say: {fault}", "look at the address and the network")
        return
    if not date:
        yield Finding(what, "ok", f"{redact(url)} gives no date")
        return
    there = email.utils.parsedate_to_datetime(date).timestamp() + 0.5  # in whole seconds
    skew = (start + time.time()) / 2 - there
    wrong = abs(skew)
    state: State = "FAILED" if wrong > _WRONG_S else "warning" if wrong > _SKEW_S else "ok"
    yield Finding(what, state, f"{wrong:.0f} s {'ahead of' if skew > 0 else 'behind'} {redact(url)}",
                  "" if state == "ok" else "let chrony or systemd-timesyncd set this machine's clock")  # fmt: skip


def tracker(uri: str | None) -> Iterator[Finding]:
    """Whether MLflow at ``uri`` answers, or its SQLite file can be written."""
    if not uri:
        yield Finding("MLflow", "ok", "none given: runs go to sqlite:///mlflow.db in the working folder")
    elif urlsplit(uri).scheme in ("http", "https"):
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                yield Finding("MLflow", "ok", f"{redact(uri)} answers in {(time.perf_counter() - start) * 1e3:.0f} ms")
        except (OSError, ValueError) as fault:
            yield Finding("MLflow", "FAILED", f"{redact(uri)}: {fault}",
                          "start the server, or mend the address; a run would go on and keep its points")  # fmt: skip
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        try:
            if path.exists():
                with contextlib.closing(sqlite3.connect(path)) as database:
                    database.execute("select count(*) from sqlite_master").fetchone()
            if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
                raise OSError("it cannot be written")
            yield Finding("MLflow", "ok", str(path))
        except (sqlite3.Error, OSError) as fault:
            yield Finding("MLflow", "FAILED", f"{path}: {fault}", "give another file, or the right to write to it")
    else:
        yield Finding("MLflow", "ok", f"{redact(uri)} is not looked at: only http(s) and sqlite are")


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """All of it, one after the other."""
    yield from versions()
    yield from devices()
    yield from memory()
    yield from disks({"working folder": Path.cwd(), "cache": process.cache_root(),
                      "temporary": Path(tempfile.gettempdir())})  # fmt: skip
    yield from ranks(args.ranks or len(list(Path("/dev").glob("nvidia[0-9]*"))) or 2)
    with tempfile.TemporaryDirectory() as folder:
        uri = args.store or folder
        yield from store_round_trip(uri)
    scheme = urlsplit(args.store or "").scheme
    aws = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    yield from clock("store", aws if scheme.startswith("s3") else args.store if scheme.startswith("http") else None)
    track = args.track_uri or os.environ.get("MLFLOW_TRACKING_URI")
    yield from tracker(track)
    if track and track.startswith("http"):
        yield from clock("MLflow", track)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster doctor", description=__doc__)
    parser.add_argument("--store", metavar="URI", help="folder or bucket to try; default a temporary folder")
    parser.add_argument("--track-uri", metavar="URI", help="MLflow; default MLFLOW_TRACKING_URI")
    parser.add_argument("--ranks", type=int, help="ranks of this machine that exchange; default one a GPU, or 2")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each check")
    args = parser.parse_args(arguments)
    if args.ranks is not None and args.ranks < 1:
        parser.error(f"--ranks: {args.ranks} must be at least 1")
    return process.exit_code(lambda: _tell(examine(args), as_json=args.json))


def _tell(findings: Iterator[Finding], *, as_json: bool) -> int:
    """Print each as it comes; 1 if any FAILED."""
    failed = 0
    for one in findings:
        failed += one.state == "FAILED"
        if as_json:
            print(json.dumps(asdict(one)), flush=True)
            continue
        print(f"{one.state:<8} {one.what:<24} {one.found}", flush=True)
        if one.advice:
            print(f"{'':<8} {'':<24} → {one.advice}", flush=True)
    return process.EXIT_FAILED if failed else process.EXIT_OK


def _cgroup_cores() -> float | None:
    """Cores that the container may use; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota, every = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / every if quota > 0 else None
    return None


def _cgroup_memory() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None
