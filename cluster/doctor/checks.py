"""``python -m cluster doctor``: what this machine can do, what is missing, and what to do about it."""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor import exchange, machine, services, stores, training
from cluster.doctor.finding import Finding
from cluster.process import host, world
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_FAILED, EXIT_OK
from configs import redact

_BETWEEN_NODES = """between nodes: the same on each of them, its ranks as one group:
  python -m cluster train --config configs/cluster/hosts.yaml launch.hostfile=HOSTS max_faults=1 \\
      survivor_s=120 'program=[-m,cluster,doctor]' 'fit=[-m,cluster.doctor.bandwidth]' -- --store s3://bucket/prefix"""
_AWS = "https://s3.amazonaws.com"


@dataclass(frozen=True)
class Request:
    """What the user asks about: a folder or bucket, an MLflow, how many ranks exchange, and a training."""

    store: str = ""
    track_uri: str = ""
    ranks: int | None = None
    config: str = ""
    overrides: Sequence[str] = ()

    def store_server(self) -> str | None:
        """The URL of the server of the store; None for a store on this machine."""
        aws = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _AWS
        google = "https://storage.googleapis.com"
        servers = {
            "s3": aws,
            "s3a": aws,
            "gs": google,
            "gcs": google,
            "http": self.store,
            "https": self.store,
        }
        return servers.get(urlsplit(self.store).scheme)


def _disks(_: Request) -> Iterator[Finding]:
    folders = {
        "working folder": Path.cwd(),
        "cache": host.cache_root(),
        "temporary": Path(tempfile.gettempdir()),
    }
    return machine.disks(folders)


def _store(request: Request) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        yield from services.store_round_trip(request.store or folder)
    yield from stores.ranges(request.store)


CHECKS: dict[str, Callable[[Request], Iterator[Finding]]] = {
    "versions": lambda _: machine.versions(),
    "GPU": lambda _: machine.gpus(),
    "cores": lambda _: machine.cores(),
    "memory": lambda _: machine.memory(),
    "open files": lambda _: machine.open_files(),
    "/dev/shm": lambda _: machine.shared_memory(),
    "disks": _disks,
    "ranks": lambda request: exchange.ranks(request.ranks),
    "fits": lambda request: training.fits(request.config, request.overrides, ranks=request.ranks),
    "stores": lambda _: stores.kinds(),
    "store": _store,
    "clock, store": lambda request: services.clock("store", request.store_server()),
    "MLflow": lambda request: services.tracker(request.track_uri),
}


def examine(request: Request) -> Iterator[Finding]:
    """The findings of all checks. Of the ranks of a node the first makes all, and the others only
    exchange."""
    if request.ranks is None and world.world_from_env().local_rank:
        yield from exchange.ranks()
        return
    for what, check in CHECKS.items():
        try:
            yield from check(request)
        except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as fault:
            yield Finding(
                what, "FAILED", redact(f"cannot be checked: {fault}"), "correct that, and check again"
            )


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
    parser.add_argument("--config", help="a training's YAML file: does it fit the memory here?")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of that config")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each check")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)
    if args.ranks is not None and args.ranks < 1:
        parser.error(f"--ranks: {args.ranks} must be at least 1")
    if args.overrides and not args.config:
        parser.error(f"{args.overrides[0]} overrides nothing: give --config too")
    track_uri = args.track_uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    request = Request(args.store or "", track_uri, args.ranks, args.config or "", args.overrides)
    return exit_code(lambda: report(examine(request), as_json=args.json), debug=args.debug, resumable=True)


def report(findings: Iterator[Finding], *, as_json: bool) -> int:
    """Print each finding as it comes; the exit code, 1 if any FAILED."""
    failed = False
    for one in findings:
        failed |= one.state == "FAILED"
        advice = f"\n{'':<33} → {one.advice}" if one.advice else ""
        line = json.dumps(asdict(one)) if as_json else f"{one.state:<8} {one.what:<24} {one.found}{advice}"
        print(line, flush=True)
    return EXIT_FAILED if failed else EXIT_OK
