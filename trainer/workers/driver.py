"""The driver: looks at what is missing, gives it to Ray, puts what comes back into MLflow; until all is
there, or, watching, until it is told to stop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.storage.store import TransientError
from cluster.tasks.pool import Ended, Needs, Pool
from trainer.core.console import say
from trainer.evaluation.tasks.results.results import Result
from trainer.inference.registered_model import open_model
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry
from trainer.workers.claims import Owner, Standing
from trainer.workers.compute import (
    EmbeddedSequences,
    SharedNetwork,
    UnitTask,
    all_letters,
    embed_sequences,
    unit_outcome,
)
from trainer.workers.plan import EMBEDDING_MODE, PlannedUnit, WorkTask, weight
from trainer.workers.progress import UnitProgress
from trainer.workers.version_work import TaskWork, VersionWork
from trainer.workers.versions import VersionSource

T = TypeVar("T")

_LOOK_S = 2.0  # between looks at what other drivers have done
_PAUSE_S = 10.0  # the longest between two tries while MLflow is away


@dataclass(frozen=True)
class Embedding:
    """The key of a task of Ray: the embeddings of a version and task."""

    version: str
    task: str


@dataclass
class Refs:
    """References to what Ray's workers share of one version."""

    network: Any = None
    embedded: dict[str, Any] = field(default_factory=dict)  # by the task's name


@dataclass
class Driver:
    """One driver. ``wait_s``: how long an MLflow or store that is away is waited for; None: for ever.

    ``poll_s``: seconds between looks for new versions, unless ``rung`` says that there may be one now.
    ``on_version``: called when a version is complete. ``on_other``: called with each task of the pool that
    ends and is not of this driver: another part of the same process may have given it.
    """

    registry: Registry
    versions: VersionSource
    tasks: Sequence[WorkTask]
    pool: Pool
    wait_s: float | None = 60.0
    poll_s: float = 10.0
    owner: Owner = field(default_factory=Owner)
    on_version: Callable[[VersionWork], object] = lambda work: None
    on_other: Callable[[Ended], object] = lambda ended: None
    rung: Callable[[], bool] = lambda: False
    open: list[VersionWork] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of versions that are complete
    _results: list[Result] = field(default_factory=list)  # the same
    _given: dict[Any, tuple[VersionWork, TaskWork]] = field(default_factory=dict)  # to the pool
    _refs: dict[str, Refs] = field(default_factory=dict)  # by version
    _data: dict[WorkTask, Any] = field(default_factory=dict)
    _looked: float = -_LOOK_S
    _polled: float | None = None

    def run(self, progress: UnitProgress) -> None:
        """Until every version that ``versions`` means is done. RuntimeError, TrackError: see command.py."""
        self.pool.may_start, self.pool.on_retry = self._may_start, self._on_retry
        try:
            while self._step():
                progress.show(self._done_weight(), self._all_weight(), len(self._given), self._left())
        finally:
            self._leave()

    def _step(self) -> bool:
        """One turn; False once there is nothing to do any more."""
        self._patiently(self._find_versions)
        if not self.open and not self.versions.watch:
            return False
        for ended in self._patiently(lambda: self.pool.wait(_LOOK_S / 4)):
            take = self._take_in if ended.key in self._given else self.on_other
            self._patiently(lambda ended=ended, take=take: take(ended))  # type: ignore[misc]
        if time.monotonic() - self._looked >= _LOOK_S or not self._given:
            self._looked = time.monotonic()
            for work in list(self.open):
                self._patiently(lambda work=work: self._look(work))  # type: ignore[misc]
        return True

    def _find_versions(self) -> None:
        """Open the next new version, once all units of those before have begun."""
        now = time.monotonic()
        due = self._polled is None or now - self._polled >= self.poll_s or self.rung()
        if not due or self.pool.waiting or (self._polled is not None and not self.versions.watch):
            return
        pending = self.versions.pending()
        if not pending:
            self._polled = now
        for uri in pending[:1]:
            work = self._open(uri)
            self.versions.take(uri)
            if work:
                self.open.append(work)
                self._refs[work.model.version] = Refs()
                self._looked = -_LOOK_S
        if not self.versions.watch:  # only now: opening may fail, and is tried again
            self._polled = now

    def _open(self, uri: str) -> VersionWork | None:
        """The version in work; None, watching, if it was removed since it was seen, or its files do not
        fit this code: it stops no other."""
        try:
            model = open_model(self.registry, uri)
        except (TrackError, ValueError) as fault:
            if getattr(fault, "transient", False) or not self.versions.watch:
                raise
            say(f"left out: {fault}")
            return None
        return VersionWork.open(self.registry, model, self.tasks, self.owner)

    def _look(self, work: VersionWork) -> None:
        """Learn what others have done, give to the pool what may be computed, and end what is complete."""
        work.beat()
        work.refresh()
        for task, planned in list(work.missing()):
            if planned not in self._given and not work.copy(task, planned):
                self._give(work, task, planned)
        if work.settle():
            work.leave()
            self.open.remove(work)
            self._refs.pop(work.model.version)
            # Not the work itself: it holds the version's network.
            self._results += work.results.values()
            self.problems += [*_failures(work), *work.problems]
            self.on_version(work)

    def _give(self, work: VersionWork, task: TaskWork, planned: PlannedUnit) -> None:
        """Give a unit to the pool, if it is free; first what it needs."""
        if task.claims.standing(planned.digest) not in (Standing.FREE, Standing.OURS):
            return
        content = work.content(planned)
        if content and any(self._is_same(key, content) for key in self._given):
            return  # another version's unit gives this result, too
        refs, embedded = self._refs[work.model.version], None
        if refs.network is None:
            refs.network = self.pool.share(SharedNetwork(work.model.network, work.model.config))
        if planned.unit.mode == EMBEDDING_MODE:
            embedded = refs.embedded.get(task.task.name)
            if embedded is None:
                self._give_embedding(work, task, refs)
                return
        if task.task not in self._data:
            self._data[task.task] = self.pool.share(task.task.data)
        asked = UnitTask(planned.unit, task.task.config, task.task.precisions)
        arguments = (asked, self._data[task.task], refs.network, embedded)
        self._given[planned] = work, task
        heavy = weight(planned.unit.mode, task.task)
        self._submit(planned, unit_outcome, arguments, task, (int(work.model.version), -heavy))

    def _give_embedding(self, work: VersionWork, task: TaskWork, refs: Refs) -> None:
        key = Embedding(work.model.version, task.task.name)
        if key in self._given:
            return
        letters = all_letters([one.task.data for one in work.tasks if one.task.name == task.task.name])
        self._given[key] = work, task
        arguments = (task.task.config, task.task.precisions, letters, refs.network)
        heavy = 2.0 * sum(map(len, letters))
        self._submit(key, embed_sequences, arguments, task, (int(work.model.version), -heavy))

    def _submit(
        self, key: Any, function: Any, arguments: tuple[Any, ...], task: TaskWork, order: tuple[int, float]
    ) -> None:
        workers = task.task.config.workers
        needs = Needs(workers.cpus, workers.gpus)
        self.pool.submit(key, function, *arguments, needs=needs, order=order)

    def _may_start(self, key: Any) -> bool:
        """Claim the unit, or all probe units that read an embedding. What is not this driver's may start."""
        if key not in self._given:
            return True
        wanted = [(self._given[key][1], key)] if isinstance(key, PlannedUnit) else self._readers(key)
        standings = {task.claims.take(unit.digest) for task, unit in wanted}
        starts = Standing.OURS in standings
        if not starts:
            del self._given[key]
        return starts

    def _readers(self, key: Embedding) -> list[tuple[TaskWork, PlannedUnit]]:
        """The missing units that read an embedding."""
        work, _ = self._given[key]
        return [
            (task, unit)
            for task, unit in work.missing()
            if task.task.name == key.task and unit.unit.mode == EMBEDDING_MODE
        ]

    def _take_in(self, ended: Ended) -> None:
        """Put what a task gave into MLflow."""
        key: Any = ended.key
        work, task = self._given[key]
        if isinstance(key, Embedding):
            if ended.fault:
                for reader, unit in self._readers(key):
                    if reader.claims.standing(unit.digest) is Standing.OURS:
                        work.fail(reader, unit, _reason(ended.fault))
            else:
                assert isinstance(ended.result, EmbeddedSequences), "that is what embed_sequences returns"
                self._refs[key.version].embedded[key.task] = self.pool.share(ended.result)
        elif ended.fault:
            work.fail(task, key, _reason(ended.fault))
        else:
            work.record(task, key, ended.result)
        del self._given[key]
        self._looked = -_LOOK_S  # there may be more to give now

    def _is_same(self, key: Any, content: Any) -> bool:
        return isinstance(key, PlannedUnit) and self._given[key][0].content(key) == content

    def _on_retry(self, key: Any, reason: str) -> None:
        what = f"version {key.version}: embeddings of {key.task}" if isinstance(key, Embedding) else key
        say(f"trying again: {what}: {reason}")

    def _patiently(self, action: Callable[[], T]) -> T:
        """``action``, again and again while MLflow or a store is away."""
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return action()
            except (TrackError, TransientError) as fault:
                away = isinstance(fault, TransientError) or fault.transient
                waited = time.monotonic() - began
                if not away or (self.wait_s is not None and waited >= self.wait_s):
                    raise
                if pause == 0.5:
                    say(f"waiting: {fault}")
                time.sleep(pause)
                pause = min(2 * pause, _PAUSE_S)

    def _leave(self) -> None:
        """Give up what is not done, so that another driver may take it at once."""
        for work in self.open:
            try:
                work.leave()
            except TrackError as fault:
                say(f"warning: {fault}")

    def results(self) -> list[Result]:
        return self._results + [result for work in self.open for result in work.results.values()]

    def failures(self) -> list[str]:
        """What failed, in sentences."""
        return self.problems + [sentence for work in self.open for sentence in _failures(work)]

    def _left(self) -> int:
        return sum(1 for work in self.open for _ in work.missing())

    def _all_weight(self) -> float:
        return sum(_weight_of(task, task.units) for work in self.open for task in work.tasks)

    def _done_weight(self) -> float:
        return self._all_weight() - sum(
            _weight_of(task, [unit]) for work in self.open for task, unit in work.missing()
        )


def _failures(work: VersionWork) -> list[str]:
    return [f"{unit}: {why}" for unit, why in work.failures.items()]


def _weight_of(task: TaskWork, units: Sequence[PlannedUnit]) -> float:
    return sum(weight(planned.unit.mode, task.task) for planned in units)


def _reason(fault: Exception) -> str:
    return f"out of memory: {fault}" if isinstance(fault, MemoryError) else str(fault) or type(fault).__name__
