"""The process that reads tasks and fits probes beside the steps: at low priority, on one core, without a
GPU."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from configs import ConfigError
from trainer.evaluation.online.messages import FIT, READ, Refused, Scores, TaskRows, ToRead
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures
from trainer.run.report_process import OF_RANKS

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 900.0  # for one answer
_NICE = "10"  # the steps come first, but a fit still ends when they leave no core idle
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class FitError(RuntimeError):
    """A sentence of why nothing was fitted."""


class Fitted(NamedTuple):
    """What the process gave for all tasks, and its seconds for that."""

    scores: list[Scores]
    seconds: float


class FitProcess:
    """The process, started when it is first asked. For one thread at a time, but for ``close``."""

    def __init__(self, to_read: ToRead) -> None:
        self._to_read = to_read
        self._rows: list[str] = []  # their digests, once they are read
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object
        self._lock, self._closed = threading.Lock(), False

    def read(self) -> list[TaskRows]:
        """The rows of all tasks.

        Raises:
            ConfigError: a task cannot be read. FitError: the process did not work.
        """
        if self._process is None:
            self._start()
        rows: list[TaskRows] = self._ask(READ, self._to_read)
        self._rows = [task.sha256 for task in rows]
        return rows

    def fit(self, embeddings: Sequence[Mapping[ProbeFeatures, Tensor]]) -> Fitted:
        """The scores of each task's embeddings, [N, F] of each kind.

        Raises:
            FitError: it did not work; if the process ended, the next call starts another one.
        """
        if self._process is None:
            self._read_again()
        arrays = [{read: vectors.numpy() for read, vectors in of_task.items()} for of_task in embeddings]
        return Fitted(*self._ask(FIT, arrays))

    def _read_again(self) -> None:
        """In a new process: the rows must be those of the start, which the embeddings are of."""
        before = self._rows
        try:
            after = [task.sha256 for task in self.read()]
        except ConfigError as fault:
            raise FitError(str(fault)) from fault
        self._rows = before
        if after != before:
            raise FitError("the files of the tasks have changed since the start")

    def close(self) -> None:
        """End it, from any thread; a fit that is under way fails."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in OF_RANKS}
        path = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
        environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path} | _ONE_THREAD
        nice = shutil.which("nice")
        command = [*([nice, "-n", _NICE] if nice else []), sys.executable, "-m", "trainer.evaluation.online"]
        self._errors.seek(0)
        self._errors.truncate()
        with self._lock:
            if self._closed:
                raise FitError("the run is over")
            try:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,  # Ctrl-C is for the training, which ends this
                )
            except OSError as fault:
                raise FitError(str(fault)) from fault

    def _ask(self, what: str, given: Any) -> Any:
        process = self._process
        assert process and process.stdin and process.stdout, "started"
        limit = threading.Timer(_LIMIT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            pickle.dump((what, given), process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as fault:
            raise FitError(self._ending(process)) from fault
        finally:
            limit.cancel()
        if isinstance(answer, Refused):
            raise ConfigError(answer.sentence)
        if isinstance(answer, str):
            raise FitError(answer)
        return answer

    def _ending(self, process: "subprocess.Popen[bytes]") -> str:
        """How the process ended, which is to be started anew."""
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe, "of this process"
                pipe.close()
        self._process = None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return (
            f"the process that fits ended with code {code}{': ' if lines else ''}{lines[-1] if lines else ''}"
        )
