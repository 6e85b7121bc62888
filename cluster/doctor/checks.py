"""``python -m cluster doctor``: what this machine can do, what is missing, and what to do about it."""

import argparse
import contextlib
import email.utils
import http.client
import importlib.metadata
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from cluster.process import exits, host, world
from cluster.process.command import exit_code
from cluster.storage import store
from configs import redact

_BETWEEN_NODES = """between nodes: the same on each of them, its ranks as one group:
  python -m cluster train --config configs/cluster/hosts.yaml launch.hostfile=HOSTS max_faults=1 \\
      survivor_s=120 'program=[-m,cluster,doctor]' 'fit=[-m,cluster.doctor.bandwidth]' -- --store s3://bucket/prefix"""
_ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "s3fs", "pydantic", "safetensors")
_GIB, _OBJECT = 1 << 30, 8 << 20
_SKEW_S, _WRONG_S, _RANKS_S = (
    5.0,
    300.0,
    150.0,
)  # S3 refuses 15 minutes; cluster.doctor.bandwidth gives up at 120 s
_REFUSED = re.compile(
    r"(?i)^(?!.*\(\w*(Skewed|Signature|AccessKey|Token)\w*\)).*(denied|forbidden|not permitted)"
)


@dataclass(frozen=True)
class Finding:
    """One check: how it went, what was found, and what to do if that is not well."""

    what: str
    state: Literal["ok", "warning", "FAILED"]
    found: str
    advice: str = ""


def graded(what: str, found: str, advice: str, *, fails: bool = False, warns: bool = False) -> Finding:
    """FAILED, a warning, or ok, which needs no ``advice``."""
    return Finding(
        what, "FAILED" if fails else "warning" if warns else "ok", redact(found), advice * (fails or warns)
    )


def versions(constraints: Path = _ROOT / "constraints.txt") -> Iterator[Finding]:
    """The packages that a run needs, against constraints.txt where it is there."""
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


def devices() -> Iterator[Finding]:
    """GPUs and cores, and what a container takes away of them."""
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        lines = (asked.stdout or asked.stderr).strip().splitlines() or ["without a word"]
        wrong = f"nvidia-smi ended with {asked.returncode}: {lines[-1]}" if asked.returncode else ""
    except FileNotFoundError:
        lines, wrong = ["none here: training uses the CPU"], ""
    except (subprocess.TimeoutExpired, OSError) as fault:
        lines, wrong = [], f"nvidia-smi: {fault}"
    for line in [wrong] if wrong else lines:
        yield graded("GPU", line, "mend the driver, or restart the machine", fails=bool(wrong))
    bound, quota = host.bound(), host.quota()
    found = f"{bound} of {os.cpu_count() or 1}" + f", of which the container may use {quota:g}" * (
        quota < bound
    )
    yield graded(
        "cores",
        found,
        f"set OMP_NUM_THREADS={host.usable()}, or give the container more",
        warns=quota < bound,
    )


def memory() -> Iterator[Finding]:
    """RAM, shared memory, open files."""
    there = psutil.virtual_memory()
    total, free = there.total, there.available
    for names in (("max", "current", "stat"), ("limit_in_bytes", "usage_in_bytes", "stat")):
        for limit, used, stat in host.control_groups("memory", *(f"memory.{name}" for name in names)):
            if limit.strip() != "max":  # the kernel takes back pages of files that nobody uses
                cached = re.findall(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
                total = min(total, int(limit))
                free = min(free, int(limit) - int(used) + int([0, *cached][-1]))
    yield graded(
        "memory",
        f"{total / _GIB:.1f} of the machine's {there.total / _GIB:.1f} GiB, {free / _GIB:.1f} free",
        "end what else runs here, give the container more, or use fewer ranks a node",
        warns=free < 2 * _GIB,
    )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield graded(
        "open files",
        "no limit" if files == resource.RLIM_INFINITY else str(files),
        "ulimit -n 65536",
        warns=files != resource.RLIM_INFINITY and files < 4096,
    )
    shared = shutil.disk_usage("/dev/shm").total
    yield graded(
        "/dev/shm",
        f"{shared / _GIB:.2f} GiB",
        "nccl and Ray use it: docker run --shm-size=8g, in Kubernetes an emptyDir of medium Memory",
        warns=shared < 256 << 20,
    )


def disks(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free room in ``folders`` (name -> path)."""
    for name, folder in folders.items():
        free = shutil.disk_usage(
            next(path for path in (folder, *folder.absolute().parents) if path.exists())
        ).free
        yield graded(
            f"disk, {name}",
            f"{free / _GIB:.1f} GiB free in {folder}",
            f"make room in {folder}: a checkpoint "
            "needs 16 bytes a parameter, and checkpoint.keep_last + 1 of them are there at a time",
            fails=free < _GIB,
            warns=free < 10 * _GIB,
        )


def ranks(count: int | None = None) -> Iterator[Finding]:
    """What ``count`` ranks of this machine exchange, or (None) those of its launcher, else one a GPU, or
    2."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    joins = count is None and os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    count = world.world_from_env().size if joins else count or gpus or 2
    what = f"{count} rank{'s' * (count > 1)}"
    command = [sys.executable, "-m", "cluster.doctor.bandwidth", *([] if joins else ["--ranks", str(count)])]
    done = subprocess.run(
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RANKS_S,
        check=False,
    )
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        last = next(
            (line for line in lines if line.startswith("error: ")), lines[-1] if lines else "without a word"
        )
        yield Finding(
            what,
            "FAILED",
            redact(last.removeprefix("error: ")),
            "look for a firewall, a wrong "
            "GLOO_SOCKET_IFNAME, a GPU that hangs; training needs torch.distributed",
        )
        return
    figures = next((json.loads(line) for line in lines if line.startswith('{"ranks"')), None)
    if figures is None:
        yield Finding(what, "ok", f"rank {world.world_from_env().rank} took part; rank 0 has the figures")
        return
    unseen = bool(gpus) and figures["backend"] == "gloo"
    for name in ("all_reduce", "all_gather"):
        speed = (
            f"{figures[f'{name}_us']:.0f} µs for 8 bytes, {figures[f'{name}_gb_s']:.2f} GB/s bus bandwidth"
        )
        yield graded(
            f"{what}, {name}",
            f"{speed} for 64 MiB ({figures['backend']})",
            "torch sees no GPU: install its CUDA build, look at CUDA_VISIBLE_DEVICES",
            warns=unseen,
        )


def store_round_trip(uri: str) -> Iterator[Finding]:
    """8 MiB written below ``uri``, read back, listed and removed; each right that is missing by its name."""
    shown = redact(uri)
    if urlsplit(uri).scheme in ("http", "https"):
        yield Finding(
            "store",
            "warning",
            f"{shown} is a web server: it takes no files, and nothing was tried",
            "it can be data.uri; give output and run.dir a folder or a bucket, and try that",
        )
        return
    folder, data = store.join(uri, f"doctor-{os.urandom(6).hex()}"), os.urandom(_OBJECT)
    path, times = store.join(folder, "object"), dict[str, float]()
    here = f"the rights of this user in {shown}" if store.is_local(uri) else ""
    steps: list[tuple[str, Callable[[], object], str]] = [
        (
            "write",
            lambda: store.write_bytes(path, data),
            "s3:PutObject and s3:GetObject, by which it is looked up",
        ),
        ("read", lambda: store.read_bytes(path) == data, "s3:GetObject"),
        (
            "list",
            lambda: store.sizes(folder) == ({"object": _OBJECT} if "write" in times else {}),
            "s3:ListBucket",
        ),
        (
            "remove",
            lambda: store.remove(folder),
            f"s3:DeleteObject and s3:ListBucket; then remove {redact(path)}",
        ),
    ]
    for name, step, right in steps:
        if name == "read" and "write" not in times:
            continue
        start, fault, advice = (
            time.perf_counter(),
            f"{shown} gives back other than was written",
            "use another store",
        )
        try:
            if step() is not False:
                times[name] = time.perf_counter() - start
                continue
        except (OSError, ValueError) as failed:
            fault, advice = (
                str(failed),
                "look at the address, the bucket's name, the network and the AWS_ variables",
            )
            if _REFUSED.search(fault):
                advice = f"give the right to {name}: {here or right}"
        yield Finding(f"store, {name}", "FAILED", redact(fault), advice)
        if name == "write" and not _REFUSED.search(fault):
            return  # it is not there or does not answer, and would not for the others
    if len(times) == len(steps):
        took = ", ".join(f"{name} {times[name] * 1e3:.0f} ms" for name in times)
        speeds = " and ".join(f"{_OBJECT / 1e6 / times[name]:.0f} MB/s" for name in ("write", "read"))
        yield Finding("store", "ok", f"{shown}: {took} for 8 MiB, which is {speeds}")


def clock(name: str, url: str | None) -> Iterator[Finding]:
    """How far this machine's clock is from that of the server at ``url``, by the Date of any answer."""
    what, start = f"clock, {name}", time.time()
    if url is None:
        yield Finding(what, "ok", "not asked: it is on this machine")
        return
    try:
        _, headers, _ = _ask(url, "HEAD")
        date, age = (
            headers.get("Date", "none"),
            float(headers.get("Age", 0)),
        )  # the second: of an answer out of a cache
        there = email.utils.parsedate_to_datetime(date).timestamp() + age + 0.5  # in whole seconds
    except (OSError, ValueError) as fault:
        yield Finding(
            what, "warning", f"{redact(url)} does not say: {fault}", "look at the address and the network"
        )
        return
    skew = (start + time.time()) / 2 - there
    yield graded(
        what,
        f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {url}",
        "let chrony or systemd-timesyncd set this machine's clock",
        fails=abs(skew) > _WRONG_S,
        warns=abs(skew) > _SKEW_S,
    )


def tracker(uri: str | None) -> Iterator[Finding]:
    """Whether MLflow at ``uri`` answers, or its SQLite file can be written."""
    shown, start = redact(uri), time.perf_counter()
    if not uri:
        yield Finding("MLflow", "ok", "none given: runs go to sqlite:///mlflow.db in the working folder")
    elif urlsplit(uri).scheme in ("http", "https"):
        advice = (
            "start the server, mend the address, or set MLFLOW_TRACKING_USERNAME and _PASSWORD for a login"
        )
        try:
            status, _, body = _ask(f"{uri.rstrip('/')}/health")
        except OSError as fault:
            yield Finding("MLflow", "FAILED", f"{shown}: {fault}", advice)
            return
        odd = status != http.HTTPStatus.OK or body.strip() != b"OK"
        yield graded(
            "MLflow",
            f"{shown} answers in {(time.perf_counter() - start) * 1e3:.0f} ms"
            + odd * (f", but not as MLflow does ({status})"),
            advice,
            fails=odd and status not in (401, 403),
            warns=odd,
        )
        yield from clock("MLflow", uri)
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        wrong = "; ".join(
            f"{each} cannot be written"
            for each in [path.parent, *[path] * path.exists()]
            if not os.access(each, os.W_OK)
        )
        try:
            with contextlib.closing(
                sqlite3.connect(path if path.exists() and not wrong else ":memory:")
            ) as database:
                database.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.Error as fault:
            wrong = f"{path}: {fault}"
        yield graded(
            "MLflow", wrong or str(path), "give another file, or the right to write there", fails=bool(wrong)
        )
    else:
        yield Finding("MLflow", "ok", f"{shown} is not looked at: only http(s) and sqlite are")


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """All of it, one after the other; of a node's ranks the first does it, and the others only exchange."""
    if args.ranks is None and world.world_from_env().local_rank:
        yield from ranks()
        return
    uri, track = args.store or "", args.track_uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    aws = (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or "https://s3.amazonaws.com"
    )
    server = {"s3": aws, "s3a": aws, "http": uri, "https": uri}.get(urlsplit(uri).scheme)
    folders = {
        "working folder": Path.cwd(),
        "cache": host.cache_root(),
        "temporary": Path(tempfile.gettempdir()),
    }
    with tempfile.TemporaryDirectory() as folder:
        checks = {
            "versions": versions(),
            "devices": devices(),
            "memory": memory(),
            "disks": disks(folders),
            "ranks": ranks(args.ranks),
            "store": store_round_trip(uri or folder),
            "clock, store": clock("store", server),
            "MLflow": tracker(track),
        }
        for what, findings in checks.items():
            try:
                yield from findings
            except (
                OSError,
                ValueError,
                RuntimeError,
                subprocess.SubprocessError,
            ) as fault:  # others are made still
                yield Finding(what, "FAILED", redact(f"cannot be looked at: {fault}"), "mend that, ask again")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster doctor",
        description=__doc__,
        epilog=_BETWEEN_NODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", metavar="URI", help="folder or bucket to try; default a temporary folder")
    parser.add_argument("--track-uri", metavar="URI", help="MLflow; default MLFLOW_TRACKING_URI")
    parser.add_argument(
        "--ranks", type=int, help="ranks of this machine that exchange; default one a GPU, or 2"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each check")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)
    if args.ranks is not None and args.ranks < 1:
        parser.error(f"--ranks: {args.ranks} must be at least 1")
    return exit_code(lambda: _tell(examine(args), as_json=args.json), debug=args.debug, resumable=True)


def _tell(findings: Iterator[Finding], *, as_json: bool) -> int:
    """Print each as it comes; 1 if any FAILED."""
    failed = 0
    for one in findings:
        failed += one.state == "FAILED"
        advice = f"\n{'':<33} → {one.advice}" if one.advice else ""
        print(
            json.dumps(asdict(one)) if as_json else f"{one.state:<8} {one.what:<24} {one.found}{advice}",
            flush=True,
        )
    return exits.EXIT_FAILED if failed else exits.EXIT_OK


def _ask(url: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and first bytes of an answer, a refusal too. OSError without one. It sends no
    password."""
    opener = (
        urllib.request.OpenerDirector()
    )  # urllib's own would follow redirects, to a server with another clock
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        bare = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
        with opener.open(urllib.request.Request(bare, method=method), timeout=5) as answer:
            return answer.status, answer.headers, answer.read(64)
    except (OSError, http.client.HTTPException, ValueError) as fault:  # urllib has the reason inside its own
        reason = getattr(fault, "reason", None) or f"no answer of a web server ({type(fault).__name__})"
        raise OSError(str(reason)) from fault
