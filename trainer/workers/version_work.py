"""One model version in work: what MLflow has of it, what is missing, and what is done once all is there."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from trainer.core.console import say
from trainer.evaluation.tasks.downstream import describe, experiment_of, units
from trainer.evaluation.tasks.kept.kept_models import keep_best, store_model
from trainer.evaluation.tasks.results.champion import settle_champion
from trainer.evaluation.tasks.results.curves import CurveTask, add_points
from trainer.evaluation.tasks.results.parent_story import update_parent
from trainer.evaluation.tasks.results.results import Result, UnitOutcome
from trainer.evaluation.tasks.results.results_log import (
    ResultsLog,
    VersionLog,
    past_results,
    store_nothing,
    stored_results,
)
from trainer.evaluation.tasks.results.reuse import Content, KnownResults, as_result_of, content_of
from trainer.inference.registered_model import RegisteredModel
from trainer.tracking.registry import Registry
from trainer.workers.claims import Claims, Owner, Standing
from trainer.workers.plan import PlannedUnit, WorkTask, largest

COMMAND = "trainer/workers"
_TELL_S = 60.0  # between two stories of the parents: each draws the pictures of all tasks anew


@dataclass
class TaskWork:
    """A task of the version: where its results go, and whether what follows on them is done."""

    task: WorkTask
    log: ResultsLog
    claims: Claims
    units: list[PlannedUnit]
    settled: bool = False


@dataclass
class VersionWork:
    """A version whose results are wanted. Its methods talk to MLflow, and may be called again after a fault.

    Attributes:
        results: those that there are.
        failures: units that failed for their own reason, with the reason.
        problems: what could not be done with the results, in sentences.
    """

    registry: Registry
    model: RegisteredModel
    tasks: list[TaskWork]
    known: KnownResults
    results: dict[PlannedUnit, Result] = field(default_factory=dict)
    failures: dict[PlannedUnit, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    settled: bool = False
    _told: float | None = None  # when the parents' story was brought up to date

    @classmethod
    def open(
        cls, registry: Registry, model: RegisteredModel, tasks: Sequence[WorkTask], owner: Owner
    ) -> "VersionWork":
        logs: dict[str, tuple[VersionLog, Claims]] = {}
        found = []
        for task in tasks:
            experiment = experiment_of(registry, model, task.config)
            if experiment not in logs:
                log = VersionLog.open(registry, model, experiment)
                logs[experiment] = log, Claims(log.shared, log.ledger, owner)
                log.remove_leftovers(logs[experiment][1].is_gone)
            log, claims = logs[experiment]
            results_log = ResultsLog(
                log, task.config, task.settings, task.data.rows, task.data_sha256, owner.id, COMMAND
            )
            planned = [PlannedUnit(unit, task.settings) for unit in units(model, task.config)]
            found.append(TaskWork(task, results_log, claims, planned))
        work = cls(registry, model, found, KnownResults(stored_results(registry, model.name)))
        work._find_known()
        return work

    @property
    def name(self) -> str:
        return f"{self.model.name} version {self.model.version}"

    @property
    def architecture(self) -> str:
        return self.tasks[0].log.version.architecture

    def missing(self) -> Iterator[tuple[TaskWork, PlannedUnit]]:
        for task in self.tasks:
            for planned in task.units:
                if planned not in self.results and planned not in self.failures:
                    yield task, planned

    def content(self, planned: PlannedUnit) -> Content | None:
        return content_of(planned.unit, planned.settings, self.architecture)

    def beat(self) -> None:
        for claims in self._claims():
            claims.beat()

    def refresh(self) -> None:
        """Learn what other drivers have done."""
        for claims in self._claims():
            claims.refresh()
        standing = {planned: task.claims.standing(planned.digest) for task, planned in self.missing()}
        if Standing.DONE in standing.values():
            # Those of this version alone: all versions together may have very many.
            for stored in stored_results(self.registry, self.model.name, self.model.version):
                self.known.add(stored)
            self._find_known(of_others=True)
        for task, planned in list(self.missing()):
            now = standing[planned]
            if now is Standing.FAILED:
                self.failures[planned] = task.claims.reason(planned.digest)
                say(f"{planned}: failed at another driver: {self.failures[planned]}")
            elif now is Standing.DONE:
                self._check_counted(task, planned)

    def _check_counted(self, task: TaskWork, planned: PlannedUnit) -> None:
        """The ledger counts a result that is not among the finished ones: who made it may have died just
        before it finished it, or a user has deleted it."""
        if not task.log.finish_counted(planned.unit):
            task.claims.void(planned.digest)

    def copy(self, task: TaskWork, planned: PlannedUnit) -> bool:
        """Take over the result of another version, if there is one that is the same."""
        same = self.known.elsewhere(planned.unit, planned.settings, self.architecture)
        if same is None:
            return False
        if task.claims.take(planned.digest) is Standing.OURS:
            copied = as_result_of(planned.unit, same)
            task.log.record(UnitOutcome(copied), computed_by=same.run_id)
            self._accept(
                planned, copied, describe(copied, from_run=same.run_id, version=same.result.unit.version)
            )
        return True

    def record(self, task: TaskWork, planned: PlannedUnit, outcome: UnitOutcome) -> None:
        task.log.record(outcome, store_model=store_model if self._is_fullest(task) else store_nothing)
        self._accept(planned, outcome.result, describe(outcome.result))

    def fail(self, task: TaskWork, planned: PlannedUnit, reason: str) -> None:
        """The unit failed for its own reason."""
        task.claims.fail(planned.digest, reason)
        task.log.record_failure(planned.unit, reason)
        self.failures[planned] = reason
        say(f"{planned}: failed: {reason}")

    def settle(self) -> bool:
        """Do what follows once a task's units, or all of them, are there; True once nothing is left."""
        for task in self.tasks:
            if not task.settled and all(one in self.results or one in self.failures for one in task.units):
                task.settled = self._once(task.claims, task.units, "kept", partial(self._settle_task, task))
        if not self.settled and all(task.settled for task in self.tasks):
            everything = [planned for task in self.tasks for planned in task.units]
            self.settled = self._once(self.tasks[0].claims, everything, "champion", self._settle_version)
        return self.settled

    def _settle_task(self, task: TaskWork) -> None:
        if not any(planned in self.results for planned in task.units):
            return
        if self._is_fullest(task):
            config, settings = task.task.config, task.task.settings
            for sentence in keep_best(self.registry, self.model, config, settings):
                say(sentence)
            curve = [CurveTask(config, settings)]
            add_points(self.registry, self.model, task.log.version.shared, tasks=curve)
        if self._told is None or time.monotonic() - self._told >= _TELL_S:
            self._tell([])

    def _is_fullest(self, task: TaskWork) -> bool:
        """Whether ``task`` has the most train rows of its name: of these alone models are kept and curves
        drawn."""
        return largest(one.task for one in self.tasks)[task.task.name] is task.task

    def _settle_version(self) -> None:
        if self.results:
            sentence = settle_champion(self.registry, self.model.name, self.model.version)
            say(sentence)
            self._tell([sentence])

    def _tell(self, lines: Sequence[str]) -> None:
        """Bring the parents' descriptions up to date."""
        self._told = time.monotonic()
        results = past_results(self.registry, self.model.name, self.model.version)
        for parent in {task.log.version.parent for task in self.tasks}:
            update_parent(self.registry, parent, results, lines)

    def _once(
        self, claims: Claims, units: Iterable[PlannedUnit], what: str, action: Callable[[], None]
    ) -> bool:
        """Do ``action`` unless a driver has done it for the results of these units; False if one is at it."""
        there = ",".join(sorted(one.digest for one in units if one in self.results))
        key = f"{what}-{hashlib.sha256(there.encode()).hexdigest()[:12]}"
        claims.refresh()
        standing = claims.take(key)
        if standing is Standing.OURS:
            try:
                action()
            except (OSError, ValueError, RuntimeError) as fault:
                if getattr(fault, "transient", False):
                    raise
                self.problems.append(f"{self.name}: {fault}")
                claims.fail(key, str(fault))  # so that the same command tries it again
            else:
                claims.finish(key)
        elif standing is Standing.FAILED:
            self.problems.append(f"{self.name}: {claims.reason(key)} (at another driver)")
        return standing is not Standing.THEIRS

    def leave(self) -> None:
        """Give up what is not finished."""
        for log, claims in {id(one.claims): (one.log.version, one.claims) for one in self.tasks}.values():
            claims.leave()
            log.remove_leftovers(claims.is_gone_or_us)

    def _find_known(self, *, of_others: bool = False) -> None:
        for _, planned in list(self.missing()):
            stored = self.known.of(planned.unit, planned.settings)
            if stored:
                how = ", by another driver" if of_others else ""
                self._accept(planned, stored.result, describe(stored.result, from_run=stored.run_id) + how)

    def _accept(self, planned: PlannedUnit, result: Result, sentence: str) -> None:
        self.results[planned] = result
        rows = result.rows.get("train", 0)
        say(f"v{planned.unit.version}, {rows:,} rows: {sentence}")

    def _claims(self) -> list[Claims]:
        return list({id(task.claims): task.claims for task in self.tasks}.values())
