"""Use of processor, memory, disk, network and GPUs of this machine, read by MLflow's own monitors.

MLflow's thread sends its readings itself and ends when a call fails. Here they go where all points of a run
go, which waits for an MLflow that is away.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from configs import redact
from trainer.core.console import say
from trainer.tracking.mlflow_client import system_monitors

PREFIX = "system/"  # MLflow's UI shows these on a tab of their own
_EVERY_S = 10.0  # as MLflow does, unless its environment variable says otherwise


class SystemMetrics:
    """A thread that gives a reading to ``log`` every few seconds; an error in it stops nothing else."""

    def __init__(self, log: Callable[[Mapping[str, float]], None]) -> None:
        self._log, self._over = log, threading.Event()
        self._monitors: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """One more reading, so that a short run has some, and no further one."""
        self._over.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            every_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or _EVERY_S)
            self._monitors = system_monitors()
            last = False
            while not last:
                last = self._over.wait(every_s)
                if reading := self._read():
                    self._log({PREFIX + name: value for name, value in reading.items()})
        except Exception as fault:  # a sensor's library may raise anything
            text = redact(" ".join(str(fault).split()))
            say(f"warning: no system metrics from here on: {type(fault).__name__}: {text}")

    def _read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found
