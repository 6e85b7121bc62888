"""A training run's points on their way to MLflow, which may be away for a minute or for the whole run.

The steps append to a queue on disk; a thread delivers, in order, with the times at which things were told.
Each point arrives once: points of a metric arrive in the order of their steps, so whatever MLflow has of it
up to its last step need not be sent, and that is asked for whenever the outcome of a call is not known, and
at every start. MLflow is called by that thread alone, so that no call delays a step or the start for long.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.storage.store import StoreError
from configs import redact
from trainer.core.console import say
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.mlflow_run import Point, Tracker
from trainer.tracking.outbox import Entry, Spool

_EVERY_S = 5.0  # between two calls, unless much waits
_MANY = 1 << 15  # bytes that are sent before that time
_PAUSE_S = 1.0  # after a fault; it doubles with each
_MOST_PAUSE_S = 60.0
_FIRST_S, _LOCAL_FIRST_S = (
    10.0,
    60.0,
)  # that the start waits for a server, and for a database that it may have to make
_LAST_CALL_S = 2.0  # for a call that is under way when there is no time left


class Delivery:
    """The MLflow run of a training run: told here, delivered when MLflow takes it."""

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str,
        artifact_uri: str | None,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        folder: Path,
        model: str | None = None,
        after: int | None = None,
        tail: bytes = b"",
    ) -> None:
        """``key`` tells the run from others; ``model``: that it will be published as. ``folder``, local,
        keeps the queue. ``after``: the step that the run goes on after: what waits of later steps is told
        again and is forgotten. ``tail`` waited where it ran before.

        Raises:
            TrackError, ValueError: MLflow refuses, as it always will. Where it does not answer, the run goes
            on.
        """
        self.uri, self._tracker = uri, Tracker(uri)
        self._opening: dict[str, Any] = {
            "experiment": experiment,
            "name": name,
            "artifact_uri": artifact_uri,
            "key": key,
            "params": params,
            "tags": tags,
            "model": model,
        }
        self._spool = Spool(folder)
        if after is not None or tail:
            self._spool.keep(
                lambda entry: after is None or entry.get("step", 0) <= after,
                before=tail,
                order=_order if tail else None,
            )
        self._last: dict[str, int] = {}  # of each metric, the last step that MLflow has
        self._sure = False  # whether the run is open, and _last is what MLflow has
        self._fault: TrackError | None = None
        self._said = ""
        self._wake, self._over = threading.Event(), threading.Event()
        self._patience = float("inf")  # until when a delivery is tried, on the monotonic clock
        self._status = ""  # that the run is given once all is delivered
        first = _First()
        self._thread = threading.Thread(target=self._deliver, args=(first,), daemon=True)
        self._thread.start()
        limit = _FIRST_S if uri.startswith("http") else _LOCAL_FIRST_S
        if not first.come(limit):
            self._tell(TrackError(f"MLflow at {redact(uri)} does not answer within {limit:g} s", passes=True))
        elif first.refusal:
            self._spool.close()
            raise first.refusal

    @property
    def id(self) -> str:
        """The MLflow run's; "" as long as MLflow has not answered."""
        return self._tracker.id

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step``."""
        self._append({"step": step, "metrics": {key: float(value) for key, value in metrics.items()}})

    def tag(self, tags: Mapping[str, str]) -> None:
        self._append({"tags": dict(tags)})

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        self._append({"name": name, "values": dict(values)})

    def sync(self) -> None:
        """What was told up to now outlives a crash of the machine."""
        self._spool.sync()

    def tail(self) -> bytes:
        """What is not delivered yet, for another machine to go on with."""
        return self._spool.tail()

    def drain(self, wait_s: float, *, status: str = "") -> None:
        """Come back when all that was told is delivered, and the run has ``status`` if that is given.

        Raises:
            TrackError: it is not within ``wait_s``; it stays in the queue, which the sentence names.
        """
        self._patience, self._status = time.monotonic() + wait_s, status
        with contextlib.suppress(StoreError):  # what stays in memory is named below
            self._spool.sync()
        self._over.set()
        self._wake.set()
        self._thread.join(wait_s + _LAST_CALL_S)
        queue = self._spool
        if queue.unwritten:
            raise TrackError(
                f"{queue.unwritten} lines for MLflow are lost, as the disk does not take {queue.path}"
            )
        if self._thread.is_alive() or queue.waiting or not self._sure:
            lines = queue.count()
            raise TrackError(
                f"{self._reason()}; "
                + (
                    f"{lines} lines wait in {queue.path}, and the same command delivers them"
                    if lines
                    else f"all points are delivered, but not that the run is {status or 'over'}"
                )
            )

    def publish(self, local: Path, *, model: str | None) -> str | None:
        """Attach a folder of files as artifact ``model``, register it, FINISHED; to be called after
        ``drain``.

        Gives the registered version, if ``model`` names a model. TrackError if MLflow does not take it.
        """
        self._tracker.attach(local, "model")
        version = self._tracker.register(model, "model") if model else None
        if version:
            self._tracker.tag({"model.version": version})
        self._tracker.end("FINISHED")
        return version

    def end(self, status: str, *, wait_s: float) -> None:
        """The run ends early, with ``status``; what is not delivered within ``wait_s`` waits for the next
        start."""
        try:
            self.drain(wait_s, status=status)
        except TrackError as fault:
            say(f"warning: {fault}")

    def _append(self, entry: Entry) -> None:
        self._spool.append({"time": _now_ms(), **entry})

    def _open(self) -> None:
        self._last = self._tracker.open(**self._opening)
        self._sure = True

    def _deliver(self, first: "_First") -> None:
        pause, began, over = _PAUSE_S, time.monotonic(), False
        while True:
            if self._over.is_set() and not over:  # the pauses begin anew: somebody waits
                over, pause = True, _PAUSE_S
                self._wake.clear()
            if over or not self._sure or self._spool.waiting >= _MANY or time.monotonic() - began >= _EVERY_S:
                began = time.monotonic()
                fault = self._try(first, over=over)
                if fault is None:
                    pause = _PAUSE_S
                    if over:
                        return
                elif first.ends(fault):
                    return
                else:
                    self._sure = False  # what of the last call arrived is not known
                    self._tell(fault)
                    left = self._patience - time.monotonic()
                    if self._over.is_set() and left <= 0:  # also where that began during this call
                        return
                    self._wake.wait(min(pause, max(left, 0)))
                    pause = min(2 * pause, _MOST_PAUSE_S)
                    continue
            self._wake.wait(0.5)

    def _try(self, first: "_First", *, over: bool) -> TrackError | ValueError | None:
        """Deliver all that waits; what went wrong."""
        try:
            if not self._sure:
                self._open()
                first.met()
            while self._spool.waiting:
                self._send()
            if over and self._status:
                self._tracker.end(self._status)
        except (TrackError, ValueError) as fault:
            return fault
        except Exception as fault:  # nothing that a library raises may end the delivery
            text = redact(" ".join(str(fault).split()))
            return TrackError(f"MLflow at {redact(self.uri)}: {type(fault).__name__}: {text}")
        if self._said:
            say(f"MLflow at {redact(self.uri)} answers again; all that waited is delivered")
        self._fault, self._said = None, ""
        return None

    def _send(self) -> None:
        """One call: points of many lines, or one line of another kind."""
        points: list[Point] = []
        end, last = None, dict(self._last)
        for line_end, entry in self._spool.next(self._tracker.MOST):
            if not entry:
                say(
                    f"warning: a line of {self._spool.path} that ends at byte {line_end} is damaged, and "
                    f"left out"
                )
            elif "metrics" not in entry:
                if end is None:
                    self._do(entry)
                    end = line_end
                break
            else:
                fresh = [
                    Point(key, value, entry["time"], entry["step"])
                    for key, value in entry["metrics"].items()
                    if entry["step"] > last.get(key, -1)
                ]
                if len(points) + len(fresh) > self._tracker.MOST:
                    break
                points += fresh
                last |= {point.key: point.step for point in fresh}
            end = line_end
        assert end is not None, "a line has at most as many metrics as a call takes"
        if points:
            self._tracker.send(points)
            self._last = last
        self._spool.delivered(end)

    def _do(self, entry: Entry) -> None:
        if "tags" in entry:
            self._tracker.tag(entry["tags"])
        else:
            self._tracker.attach_dict(entry["values"], entry["name"])

    def _tell(self, fault: TrackError | ValueError) -> None:
        passes = isinstance(fault, TrackError) and fault.passes
        self._fault = fault if isinstance(fault, TrackError) else TrackError(str(fault))
        how = "does not answer" if passes else "refuses"
        if self._said != how:
            self._said = how
            say(
                f"warning: MLflow at {redact(self.uri)} {how} ({fault}); metrics wait in "
                f"{self._spool.path}, and "
                "training goes on"
            )

    def _reason(self) -> str:
        return str(self._fault or f"MLflow at {redact(self.uri)} was too slow")


class _First:
    """The first answer of MLflow, which the start waits for, if not for ever."""

    def __init__(self) -> None:
        self.refusal: TrackError | ValueError | None = None
        self._lock, self._known, self._late = threading.Lock(), threading.Event(), False

    def come(self, limit_s: float) -> bool:
        """Whether it is known within ``limit_s``."""
        self._known.wait(limit_s)
        with self._lock:
            self._late = not self._known.is_set()
            return not self._late

    def met(self) -> None:
        self._known.set()

    def ends(self, fault: TrackError | ValueError) -> bool:
        """Whether ``fault`` ends all: it is the first answer, somebody waits for that, and it will not
        pass."""
        with self._lock:
            if self._known.is_set() or self._late:
                return False
            stays = not (isinstance(fault, TrackError) and fault.passes)
            self.refusal = fault if stays else None
            self._known.set()
            return stays


def _now_ms() -> int:
    return int(time.time() * 1000)


def _order(entry: Entry) -> tuple[int, int]:
    """Lines that waited in two places: points by their steps, before them all else, by time."""
    return entry.get("step", -1), 0 if "step" in entry else entry.get("time", 0)
