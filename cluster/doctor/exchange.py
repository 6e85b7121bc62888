"""The check that ranks can exchange data, and how fast."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.doctor.finding import Finding, graded
from cluster.doctor.machine import ROOT
from cluster.process import world
from cluster.process.exits import error_in
from configs import redact

_RANKS_S = 150.0  # cluster.doctor.bandwidth gives up after 120 s


def ranks(count: int | None = None) -> Iterator[Finding]:
    """What ``count`` ranks of this machine exchange; without it the ranks of the launcher that started this
    process, else one for each GPU, else 2."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    joins = count is None and os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    count = world.world_from_env().size if joins else count or gpus or 2
    what = f"{count} rank{'s' * (count > 1)}"
    done = subprocess.run(
        [sys.executable, "-m", "cluster.doctor.bandwidth", *([] if joins else ["--ranks", str(count)])],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RANKS_S,
        check=False,
    )
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        errors = [error for line in lines if (error := error_in(line))]
        advice = (
            "look for a firewall, a wrong GLOO_SOCKET_IFNAME, a GPU that hangs; training needs "
            "torch.distributed"
        )
        yield Finding(what, "FAILED", redact([*errors, *lines[-1:], "no output"][0]), advice)
        return
    figures = next((json.loads(line) for line in lines if line.startswith('{"ranks"')), None)
    if figures is None:
        yield Finding(what, "ok", f"rank {world.world_from_env().rank} took part; rank 0 has the figures")
        return
    backend = figures["backend"]
    for name in ("all_reduce", "all_gather"):
        small, large = figures[f"{name}_us"], figures[f"{name}_gb_s"]
        yield graded(
            f"{what}, {name}",
            f"{small:.0f} µs for 8 bytes, {large:.2f} GB/s bus bandwidth for 64 MiB ({backend})",
            "torch sees no GPU: install its CUDA build, check CUDA_VISIBLE_DEVICES",
            warns=bool(gpus) and backend == "gloo",
        )
