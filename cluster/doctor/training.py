"""The check that a training config fits the memory of this machine; ``trainer/run/fits.py`` computes it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

from cluster.doctor import machine
from cluster.doctor.finding import Finding
from cluster.process.exits import error_in
from configs import redact

_LIMIT_S = 300.0


def fits(config: str, overrides: Sequence[str], *, ranks: int | None) -> Iterator[Finding]:
    """A finding for each of 1, 8 and 64 ranks; nothing without a config.

    A rank has the smallest GPU of this machine for itself; without one, the memory is shared by ``ranks`` of
    them (by default 1).
    """
    if not config:
        return
    gpus = machine.gpu_bytes()
    memory = min(gpus) if gpus else machine.memory_bytes()[0] // (ranks or 1)
    command = [sys.executable, "-m", "trainer.run.fits", "--config", config]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(machine.ROOT), environment.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [*command, "--bytes-per-rank", str(memory), *overrides],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [error for line in lines if (error := error_in(line))]
        reason = [*errors, *lines[-1:], f"it ended with code {done.returncode}"][0]
        if missing := re.search(r"No module named '([\w.]+)'", reason):
            yield Finding(
                "fits",
                "warning",
                f"not looked at: {missing[1]} is not installed here",
                "install the package with its extra train, as on a machine that trains: "
                "pip install 'dna-distill[train]'",
            )
            return
        yield Finding("fits", "FAILED", redact(reason), "correct the config, and check again")
        return
    for line in done.stdout.splitlines():
        if line.startswith('{"what"'):
            yield Finding(**json.loads(line))
