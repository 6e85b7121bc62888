"""The report of a run that still trains, made by a process of its own, at low priority and without a GPU.

The steps wait for nothing: what is read comes from MLflow, and what is written goes to run.dir/report and to
the artifacts of the MLflow run. It takes some seconds of one core.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from configs import redact
from trainer.core.console import say

_ROOT = Path(__file__).parents[2]
_SHARE = 0.05  # at most, of the time of a run, that reports are being made
_LAST_S = 300.0  # that a finished run waits for its last one
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "DNA_RUN_TOKEN")


class ReportProcess:
    """At most one process at a time; what goes wrong in it is one warning."""

    def __init__(self, track_uri: str) -> None:
        self._track_uri = track_uri
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object
        self._began, self._next = 0.0, 0.0

    def begin(self, run_id: str) -> None:
        """A report from now on, unless one is being made or the last one ended only just now."""
        self._look()
        if self._process is None and run_id and time.monotonic() >= self._next:
            self._start(run_id)

    def last(self, run_id: str) -> None:
        """Return when the report of the finished run is made."""
        self.close()
        self._start(run_id)
        if self._process:
            try:
                self._process.wait(_LAST_S)
            except subprocess.TimeoutExpired:
                say(
                    f"warning: the report is not made within {_LAST_S:g} s; python -m trainer.report {run_id}"
                )
                self.close()
        self._look()

    def close(self) -> None:
        """End the process that is at work, if there is one."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _start(self, run_id: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in OF_RANKS}
        path = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
        # The URI may hold a password, which a command line would show to all users.
        environment |= {
            "MLFLOW_TRACKING_URI": self._track_uri,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": path,
        }
        nice = [shutil.which("nice") or "", "-n", "19"] if shutil.which("nice") else []
        command = [*nice, sys.executable, "-m", "trainer.report", run_id]
        self._began = time.monotonic()
        self._errors.seek(0)
        self._errors.truncate()
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for the training, which ends this
            )
        except OSError as fault:
            say(f"warning: no report: {fault}")

    def _look(self) -> None:
        """Take note of a process that has ended."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        self._next = now + (now - self._began) * (1 / _SHARE - 1)
        if self._process.returncode:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
            say(redact(f"warning: no report: {lines[-1].removeprefix('error: ')}"))
        self._process = None
