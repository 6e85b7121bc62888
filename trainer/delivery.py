"""A training run's points on their way to MLflow, which may be away for a minute or for the whole run.

The steps append to a queue on disk; a thread delivers, in order, with the times at which things were told. Each point
arrives once: points of a metric arrive in the order of their steps, so whatever MLflow has of it up to its last step
need not be sent, and that is asked for whenever the outcome of a call is not known, and at every start.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.progress import say
from trainer.spool import Entry, Spool
from trainer.track import Point, Tracker, TrackError, shown

_EVERY_S = 5.0  # between two calls, unless much waits
_MANY = 1 << 15  # bytes that are sent before that time
_MOST_PAUSE_S = 60.0
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
        after: int | None = None,
        tail: bytes = b"",
    ) -> None:
        """``key`` tells the run from others; ``folder``, local, keeps the queue. ``after``: the step that the run goes
        on after: what waits of later steps is told again and is forgotten. ``tail`` waited where it ran before.

        Raises:
            TrackError, ValueError: MLflow refuses, as it always will. Where it does not answer, the run goes on.
        """
        self.uri, self._tracker = uri, Tracker(uri)
        self._opening: dict[str, Any] = {"experiment": experiment, "name": name, "artifact_uri": artifact_uri,
                                         "key": key, "params": params, "tags": tags}  # fmt: skip
        self._spool = Spool(folder)
        if after is not None or tail:
            self._spool.keep(lambda entry: after is None or entry.get("step", 0) <= after, before=tail)
        self._last: dict[str, int] = {}  # of each metric, the last step that MLflow has
        self._sure = False  # whether the run is open, and _last is what MLflow has
        self._fault: TrackError | None = None
        self._said = False
        self._wake, self._over = threading.Event(), threading.Event()
        self._patience = float("inf")  # until when a delivery is tried, on the monotonic clock
        try:
            self._open()
        except TrackError as fault:
            if not fault.passes:
                raise
            self._tell(fault)
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

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

    def drain(self, wait_s: float) -> None:
        """Come back when all that was told is delivered.

        Raises:
            TrackError: it is not within ``wait_s``; it stays in the queue, which the sentence names.
        """
        self._patience = time.monotonic() + wait_s
        self._over.set()
        self._wake.set()
        self._thread.join(wait_s + _LAST_CALL_S)
        if self._thread.is_alive() or self._spool.waiting or not self._sure:
            raise TrackError(f"{self._reason()}; {self._spool.count()} lines wait in {self._spool.path}, and the same "
                             "command delivers them")  # fmt: skip

    def publish(self, local: Path, *, model: str | None) -> str | None:
        """Attach a folder of files as artifact ``model``, register it, FINISHED; to be called after ``drain``.

        Gives the registered version, if ``model`` names a model. TrackError if MLflow does not take it.
        """
        self._tracker.attach(local, "model")
        version = self._tracker.register(model, "model") if model else None
        if version:
            self._tracker.tag({"model.version": version})
        self._tracker.end("FINISHED")
        return version

    def end(self, status: str, *, wait_s: float) -> None:
        """The run ends early, with ``status``; what is not delivered within ``wait_s`` waits for the next start."""
        try:
            self.drain(wait_s)
            self._tracker.end(status)
        except TrackError as fault:
            say(f"warning: {fault}")

    def _append(self, entry: Entry) -> None:
        self._spool.append({"time": int(time.time() * 1000), **entry})

    def _open(self) -> None:
        self._last = self._tracker.open(**self._opening)
        self._sure = True

    def _deliver(self) -> None:
        pause, began = 1.0, time.monotonic()
        while True:
            over = self._over.is_set()
            if over or not self._sure or self._spool.waiting >= _MANY or time.monotonic() - began >= _EVERY_S:
                began = time.monotonic()
                try:
                    if not self._sure:
                        self._open()
                    while self._spool.waiting:
                        self._send()
                    if self._said:
                        say(f"MLflow at {shown(self.uri)} answers again; all that waited is delivered")
                    self._fault, self._said, pause = None, False, 1.0
                except TrackError as fault:
                    self._sure = False  # what of the last call arrived is not known
                    self._tell(fault)
                    if over and time.monotonic() + pause > self._patience:
                        return
                    self._wake.wait(pause)
                    pause = min(2 * pause, _MOST_PAUSE_S)
                    continue
                except ValueError as fault:  # another experiment than when it began
                    self._fault = TrackError(str(fault))
                    return
                if over:
                    return
            self._wake.wait(0.5)

    def _send(self) -> None:
        """One call: points of many lines, or one line of another kind."""
        points: list[Point] = []
        end = None
        for line_end, entry in self._spool.next(self._tracker.MOST):
            if "metrics" not in entry:
                if end is None:
                    self._do(entry)
                    end = line_end
                break
            fresh = [Point(key, value, entry["time"], entry["step"]) for key, value in entry["metrics"].items()
                     if entry["step"] > self._last.get(key, -1)]  # fmt: skip
            if len(points) + len(fresh) > self._tracker.MOST:
                break
            points += fresh
            end = line_end
        assert end is not None, "a line has at most as many metrics as a call takes"
        if points:
            self._tracker.send(points)
            self._last |= {point.key: point.step for point in points}
        self._spool.delivered(end)

    def _do(self, entry: Entry) -> None:
        if "tags" in entry:
            self._tracker.tag(entry["tags"])
        else:
            self._tracker.attach_dict(entry["values"], entry["name"])

    def _tell(self, fault: TrackError) -> None:
        self._fault = fault
        if not self._said:
            how = "does not answer" if fault.passes else "refuses"
            say(f"warning: MLflow at {shown(self.uri)} {how} ({fault}); metrics wait in {self._spool.path}, and "
                "training goes on")  # fmt: skip
            self._said = True

    def _reason(self) -> str:
        return str(self._fault or f"MLflow at {shown(self.uri)} was too slow")
