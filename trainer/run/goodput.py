"""Goodput: the share of the wall-clock time since a run began that was spent in steps that count.

A step counts from the end of the one before to its own end, with its wait for data, if its update was applied
and is in the run's state now. All else counts against it: starting, validation, checkpoints, exports, skipped
steps, steps lost with a crash and made again, and the time in which no process ran.
"""

import json
import os
import time
from collections.abc import Callable

from cluster.process.heartbeat import heartbeat
from cluster.process.processes import age_s
from cluster.storage import store
from trainer.run import run_status

FILE = f"{run_status.TRACK}/goodput.json"
_KEPT = 64  # steps that the file has the seconds of: those of the checkpoints that a run may go on from


def began(run_dir: str, *, step: int) -> float | None:
    """When the run that goes on after ``step`` began, in seconds since 1970; None where that is not known."""
    if not step:
        return None
    try:
        return float(json.loads(store.read_bytes(store.join(run_dir, FILE)))["began"])
    except (store.StoreError, ValueError, KeyError, TypeError):
        return None


class Goodput:
    """Of one run, on one rank; ``keep`` lets the next process go on."""

    def __init__(self, run_dir: str, *, step: int, say: Callable[[str], None]) -> None:
        """The run goes on after ``step``: with what the file in ``run_dir`` says of it, where that is there.

        Else the time counts from the start of this process; ``say`` tells so if there were steps before.
        """
        self._path, self._say = store.join(run_dir, FILE), say
        self._began = time.time() - age_s(os.getpid())
        self._applied_s = 0.0
        self._by_step: dict[int, float] = {}
        if step:
            self._go_on(step)

    def _go_on(self, step: int) -> None:
        try:
            found = json.loads(store.read_bytes(self._path))
            by_step = {int(known): float(seconds) for known, seconds in found["applied_s"].items()}
            self._applied_s, self._began = by_step[step], min(self._began, float(found["began"]))
        except (store.StoreError, ValueError, KeyError, TypeError, AttributeError) as fault:
            kind = (
                fault if isinstance(fault, store.StoreError) else f"{self._path} does not tell of step {step}"
            )
            self._say(f"throughput/goodput counts from this start on, not from the run's: {kind}")
            return
        self._by_step = {known: seconds for known, seconds in by_step.items() if known <= step}

    def applied(self, seconds: float) -> None:
        """A step that took ``seconds`` was applied."""
        self._applied_s += seconds

    def read(self) -> float:
        """Between 0 and 1, up to now."""
        return min(1.0, self._applied_s / max(time.time() - self._began, 1e-9))

    def keep(self, step: int) -> None:
        """Write down what counts up to ``step``, after which a run may go on.

        A store that does not take it is told of, and this run goes on.
        """
        self._by_step[step] = self._applied_s
        self._by_step = dict(sorted(self._by_step.items())[-_KEPT:])
        content = {"began": self._began, "applied_s": self._by_step}
        try:
            with heartbeat.inside("writing down the goodput", phase=True):
                store.write_bytes(self._path, json.dumps(content).encode())
        except store.StoreError as fault:
            self._say(f"warning: goodput of step {step} is not kept: {fault}")
