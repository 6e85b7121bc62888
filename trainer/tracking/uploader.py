"""A training run's way to MLflow, which may be away for a minute or for the whole run.

The steps append to the outbox; a thread sends from there, in order, with the times at which things were
logged. Each point arrives once: the points of a metric are sent in the order of their steps, so MLflow has
all of them up to the last step that it names, and it is asked for that at every start and whenever the
outcome of a call is not known. Only this thread calls MLflow while training runs, so no call delays a step.

A kill loses what was appended since the thread wrote to the disk last. Those are steps after the checkpoint
that the run resumes from, since ``sync`` is called before a checkpoint counts: they are run and logged again.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.storage.store import StoreError
from configs import redact
from trainer.core.console import say
from trainer.tracking.delivery import Delivery
from trainer.tracking.messages import Attachment, Export, FileUpload, Metrics, Tags
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.mlflow_run import MAX_POINTS, ResumableRun, RunSpec
from trainer.tracking.outbox import Outbox
from trainer.tracking.versions import Registering

_EVERY_S = 5.0  # between two calls, unless much waits
_MANY = 100  # messages that are sent before that time
_FLUSH_S = 0.5  # between two writes to the disk
_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0  # after an error, doubled with each
_START_S = 10.0  # how long the start waits for a server
_LOCAL_START_S = 60.0  # and for a database, which may have to be made
_LAST_CALL_S = 2.0  # for a call that is under way when the time is over


class Uploader:
    """The MLflow run of a training run. What it is given arrives as soon as MLflow takes it."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        *,
        after: int | None = None,
        tail: bytes = b"",
        registering: Registering | None = None,
    ) -> None:
        """Opens the MLflow run, and goes on without it if MLflow does not answer.

        Args:
            folder: local, keeps the outbox.
            after: the step that training goes on after; what waits of later steps is dropped, since those
                are run again.
            tail: what waited on the machine where the run was before; see ``tail``.
            registering: what becomes of exports; None if there are none.

        Raises:
            TrackError, ValueError: MLflow refuses, and will go on to. StoreError: the outbox cannot be used.
        """
        self._spec, self._run = spec, ResumableRun(spec)
        self._outbox = Outbox(folder)
        self._outbox.resume(after=after, tail=tail)
        self._delivery = Delivery(self._run, registering, outbox=self._outbox.path)
        self._current = False  # whether the run is open, and the delivery knows what MLflow has
        self._error: TrackError | ValueError | None = None
        self._warned = ""  # of what, since the last success
        self._started: Future[None] = Future()
        self._drain_begun, self._drained = threading.Event(), False
        self._deadline, self._final_status = float("inf"), ""  # of the drain
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._wait_for_start(_START_S if spec.uri.startswith("http") else _LOCAL_START_S)

    def _wait_for_start(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            self._started.exception(limit_s)
        if self._started.cancel():  # from now on the thread reports nothing here
            text = f"{self._place} does not answer within {limit_s:g} s"
            self._warn(TrackError(text, transient=True))
        elif refusal := self._started.exception():
            self._outbox.close()
            raise refusal

    @property
    def id(self) -> str:
        """The MLflow run's; "" as long as MLflow has not answered."""
        return self._run.id

    @property
    def page(self) -> str:
        """The address of the run in MLflow's UI; "" where no server is known."""
        return self._run.page

    @property
    def _place(self) -> str:
        return f"MLflow at {redact(self._spec.uri)}"

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step``."""
        values = {key: float(value) for key, value in metrics.items()}
        self._outbox.append(Metrics(_now_ms(), step, values))

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.append(Tags(_now_ms(), tags))

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        """``values`` as the artifact ``name``, a YAML or JSON file by its ending."""
        self._outbox.append(Attachment(_now_ms(), name, values))

    def upload(self, path: Path) -> None:
        """A local file, as it is when MLflow takes it, as the artifact of the same name."""
        self._outbox.append(FileUpload(_now_ms(), str(path)))

    def export(self, step: int, *, bp: int) -> None:
        """The export of ``step`` is whole; ``bp`` were read up to it."""
        self._outbox.append(Export(_now_ms(), step, bp))

    def sync(self) -> None:
        """What was given up to now outlives a crash of the machine. StoreError: the disk does not take it."""
        self._outbox.flush()

    def tail(self) -> bytes:
        """What is not delivered yet, for another machine to go on with."""
        return self._outbox.tail()

    def drain(self, wait_s: float, *, status: str = "") -> None:
        """Return when everything is delivered, and the MLflow run has ``status`` if that is given.

        A model that is on its way when the time is over is waited for, unless the run ends early.

        Raises:
            TrackError: that takes longer than ``wait_s``; what remains is in the outbox, which is named.
        """
        self._deadline, self._final_status = time.monotonic() + wait_s, status
        with suppress(StoreError):  # what stays in memory is named below
            self._outbox.flush()
        self._drain_begun.set()
        self._thread.join(wait_s + _LAST_CALL_S)
        while self._delivery.registers and status in ("", "FINISHED") and self._thread.is_alive():
            self._thread.join(_LAST_CALL_S)
        outbox = self._outbox
        if outbox.unwritten:
            raise TrackError(
                f"{outbox.unwritten} messages for MLflow are lost, as the disk does not take {outbox.path}"
            )
        if not self._drained:
            reason = str(self._error or f"{self._place} was too slow")
            remains = (
                f"{outbox.waiting} messages wait in {outbox.path}, and the same command delivers them"
                if outbox.waiting
                else f"all points are delivered, but not that the run is {status or 'over'}"
            )
            raise TrackError(f"{reason}; {remains}")

    def end(self, status: str, *, wait_s: float) -> None:
        """End the run early. What is not delivered within ``wait_s`` waits for the next start."""
        try:
            self.drain(wait_s, status=status)
        except TrackError as fault:
            say(f"warning: {fault}")

    # What follows runs in the thread.

    def _serve(self) -> None:
        error = self._attempt(self._open)
        if not self._report_start(error):
            return
        error = error or self._attempt(self._send_all)
        pause = _PAUSE_S
        while not self._drain_begun.is_set():
            if error:
                self._warn(error)
                self._rest(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)
            else:
                self._rest(_EVERY_S, until_waiting=_MANY)
                pause = _PAUSE_S
            if not self._drain_begun.is_set():
                error = self._attempt(self._send_all)
        self._serve_drain(error)

    def _report_start(self, error: TrackError | ValueError | None) -> bool:
        """Tell the start how the first call ended; whether the thread goes on.

        It does not if MLflow refuses for good, unless training has begun meanwhile.
        """
        if self._started.set_running_or_notify_cancel():  # the start still waits
            if error and not _is_transient(error):
                self._started.set_exception(error)
                return False
            self._started.set_result(None)
        return True

    def _serve_drain(self, error: TrackError | ValueError | None) -> None:
        """Send what is left, until that succeeds or the time is over. ``error``: of a call just before."""
        pause = _PAUSE_S
        while True:
            if error:
                self._warn(error)
                left = self._deadline - time.monotonic()
                if left <= 0:
                    return
                time.sleep(min(pause, left))
                pause = min(2 * pause, _MAX_PAUSE_S)
            error = self._attempt(self._finish)
            if not error:
                self._drained = True
                return

    def _rest(self, seconds: float, *, until_waiting: float = float("inf")) -> None:
        """Call MLflow later: after so many seconds, when so many messages wait, or when the drain begins.

        What is appended meanwhile goes to the disk.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._outbox.waiting < until_waiting:
            with suppress(StoreError):  # the disk is full: the messages stay in memory
                self._outbox.flush()
            if self._drain_begun.wait(min(_FLUSH_S, left)):
                return

    def _attempt(self, work: Callable[[], None]) -> TrackError | ValueError | None:
        """``work()``; what went wrong. No error of a library may end the thread."""
        try:
            work()
        except (TrackError, ValueError) as fault:
            error: TrackError | ValueError = fault
        except StoreError as fault:
            error = TrackError(str(fault))
        except Exception as fault:
            text = redact(" ".join(str(fault).split()))
            error = TrackError(f"{self._place}: {type(fault).__name__}: {text}")
        else:
            return None
        self._current = False  # what arrived of the last call is not known
        return error

    def _open(self) -> None:
        self._delivery.last_steps = self._run.open()
        self._current = True

    def _send_all(self) -> None:
        """Send everything that waits."""
        if not self._current:
            self._open()
        with suppress(StoreError):
            self._outbox.flush()
        while entries := self._outbox.first(MAX_POINTS):
            self._outbox.confirm(self._delivery.send(entries))
        if self._warned:
            say(f"{self._place} answers again; everything that waited is delivered")
        self._error, self._warned = None, ""

    def _finish(self) -> None:
        self._send_all()
        if self._final_status:
            self._run.end(self._final_status)

    def _warn(self, error: TrackError | ValueError) -> None:
        self._error = error
        what = "does not answer" if _is_transient(error) else "refuses"
        if self._warned != what:
            self._warned = what
            path = self._outbox.path
            say(f"warning: {self._place} {what} ({error}); metrics wait in {path}, and training goes on")


def _is_transient(error: TrackError | ValueError) -> bool:
    return isinstance(error, TrackError) and error.transient


def _now_ms() -> int:
    return int(time.time() * 1000)
