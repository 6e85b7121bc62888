"""Results in MLflow: one parent run for each model version, one child run for each result.

A unit's result counts once, whoever computes it, and however often. All results of a parent are decided on in
one more child of it, the ledger: of the runs that hold a result of the same unit and settings, that one
counts whose id the ledger's param ``done.UNIT`` has (shared_run.py says why there is one only). It alone is
FINISHED; the others are deleted by who made them. A run is made when the result is there, and begins, by its
start time, when the work began.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import configs
from trainer.core.console import say
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.kinds.registry import DEFAULT_KIND, KINDS
from trainer.evaluation.tasks.results.child_story import one_line, run_name, task_inputs
from trainer.evaluation.tasks.results.results import Result, Unit, UnitOutcome
from trainer.inference.registered_model import RegisteredModel
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.provenance import NOTE, source_tags
from trainer.tracking.registry import Registry
from trainer.tracking.shared_run import SharedRuns

FINETUNE_EXPERIMENT = "finetune"  # for models that no run of ours made
_LEDGER_NOTE = "Which process computed which unit, and which run holds its result. Nothing to review here."


def store_nothing(run: Run, outcome: UnitOutcome) -> None:
    """What a result without a model to keep stores."""


@dataclass(frozen=True)
class VersionLog:
    """Where the results of one model version go: the ids of the parent run and of the ledger.

    ``architecture``: a digest of the network's config.json.
    """

    shared: SharedRuns
    experiment: str
    parent: str
    ledger: str
    architecture: str

    @classmethod
    def open(cls, registry: Registry, model: RegisteredModel, experiment: str) -> "VersionLog":
        """The version's parent run and ledger, which are made if there are none."""
        shared = SharedRuns(registry.uri)
        parent = parent_run(registry, model, experiment, shared=shared)

        def make() -> str:
            tags = _tags(model.name, model.version, "ledger") | {NOTE: _LEDGER_NOTE}
            name = f"{model.name} v{model.version} ledger"
            with Run(RunSpec(registry.uri, experiment, name, tags=tags, parent=parent)) as run:
                return run.id

        return cls(
            shared, experiment, parent, shared.elect(parent, "ledger", make=make), digest_of(model.config)
        )

    def remove_leftovers(self, is_gone: Callable[[str], bool]) -> None:
        """Finish the runs that the ledger counts, and delete those that an owner who ``is_gone`` left."""
        counted = {value for key, value in self.shared.read(self.ledger).params.items() if _is_done(key)}
        tags = {"mlflow.parentRunId": self.parent, "finetune": "child"}
        for run in Registry(self.shared.uri).tagged(self.experiment, tags):
            if run.info.status != "RUNNING":
                continue
            if run.info.run_id in counted:
                self.shared.finish(run.info.run_id)
            elif is_gone(run.data.tags.get("owner", "")):
                self.shared.drop(run.info.run_id)

    def update_parent(self) -> None:
        """The parent run ends now: its time spans the work so far, whatever happens to this process."""
        self.shared.finish(self.parent)


@dataclass(frozen=True)
class ResultsLog:
    """Where the results of a model version on a task go, and what all their runs hold.

    ``data_sha256``: of the rows. ``owner``: who computes them, for the runs' tag; "" where nobody else could.
    """

    version: VersionLog
    task: TaskConfig
    settings: str
    rows: Mapping[str, int]
    data_sha256: str
    owner: str = ""
    command: str = "trainer/finetune.py"

    def unit_digest(self, unit: Unit) -> str:
        """Of a unit and its settings, for the ledger's params."""
        return unit_digest(unit, self.settings)

    def record(
        self,
        outcome: UnitOutcome,
        *,
        computed_by: str = "",
        store_model: Callable[[Run, UnitOutcome], None] = store_nothing,
    ) -> bool:
        """Put a result into MLflow; False if another run holds a result of this unit already.

        ``computed_by``: the id of the run that it was copied from. May be called again after a fault.
        """
        result, shared = outcome.result, self.version.shared
        tags = {"chosen": result.chosen} | ({"computed.by": computed_by} if computed_by else {})
        began_ms = int(1000 * (time.time() - result.seconds))
        made = ""

        def make() -> str:
            nonlocal made
            run = self._open(result.unit, tags, began_ms)
            try:
                run.record(result.scores())
                store_model(run, outcome)
            except BaseException:
                with suppress(TrackError):  # then remove_leftovers deletes it
                    shared.drop(run.id)
                raise
            made = run.id
            return made

        stands = shared.elect(self.version.ledger, f"done.{self.unit_digest(result.unit)}", make=make)
        shared.finish(stands)
        self.version.update_parent()
        return stands == made

    def finish_counted(self, unit: Unit) -> bool:
        """Whether the ledger counts a run for the unit that is still there; it is FINISHED then."""
        params, key = self.version.shared.read(self.version.ledger).params, f"done.{self.unit_digest(unit)}"
        for run_id in [value for name, value in params.items() if name == key or name.startswith(f"{key}.")]:
            if self.version.shared.read(run_id).active:
                self.version.shared.finish(run_id)
                return True
        return False

    def record_failure(self, unit: Unit, reason: str) -> None:
        """A run that is FAILED, with the reason as its description."""
        run = self._open(unit, {NOTE: reason}, None)
        run.end("FAILED")

    def _open(self, unit: Unit, tags: Mapping[str, str], start_ms: int | None) -> Run:
        own = {
            "architecture": self.version.architecture,
            "owner": self.owner,
            NOTE: one_line(unit, self.rows),
        }
        return Run(
            RunSpec(
                uri=self.version.shared.uri,
                experiment=self.version.experiment,
                name=run_name(unit),
                params=self._params(unit),
                tags=_tags(unit.model, unit.version, "child") | source_tags(self.command) | own | dict(tags),
                parent=self.version.parent,
                start_ms=start_ms,
                inputs=task_inputs(self.task, self.rows, digest=self.data_sha256),
            )
        )

    def _params(self, unit: Unit) -> dict[str, Any]:
        resolved = configs.dump(self.task)
        section = "finetune" if unit.mode == "scratch" else unit.mode
        return {
            "task": unit.task,
            "kind": self.task.kind,
            "seed": unit.seed,
            "mode": unit.mode,
            "settings": self.settings,
            "class_weights": self.task.class_weights,
            **{f"{role}_rows": count for role, count in self.rows.items()},
            **{f"{role}_uri": resolved[role] for role in ROLES if resolved[role]},
            **(configs.flatten({section: resolved[section]}) if section in resolved else {}),
        }


@dataclass(frozen=True)
class StoredResult:
    """A finished result in MLflow: its run, when that began, and the digest of the network's config.json."""

    result: Result
    run_id: str
    start_ms: int
    architecture: str
    computed_by: str


def stored_results(registry: Registry, model: str, version: str | None = None) -> list[StoredResult]:
    """Every finished result of a model version, or of all, in all experiments, oldest first.

    A result of a kind of task that this code does not know is left out with a warning.
    """
    tags = _tags(model, version, "child") if version is not None else _of_model(model, "child")
    return list(_parsed(registry.tagged(None, tags, finished=True)))


def past_results(registry: Registry, model: str, version: str) -> list[Result]:
    """Every finished result of a model version, in all experiments, oldest first."""
    return [stored.result for stored in stored_results(registry, model, version)]


def parent_run(
    registry: Registry, model: RegisteredModel, experiment: str, *, shared: SharedRuns | None = None
) -> str:
    """The id of the parent run of all fine-tuning of this version; it is made if there is none.

    It is a child of the run that made the version, and elected by a param of that. A version that no run made
    has nothing to elect by: the oldest parent counts.
    """
    shared = shared or SharedRuns(registry.uri)
    tags = _tags(model.name, model.version, "parent")

    def find() -> str | None:
        return next((str(run.info.run_id) for run in registry.tagged(experiment, tags)), None)

    def make() -> str:
        name = f"{model.name} v{model.version} fine-tuning"
        own = tags | source_tags("trainer/finetune.py")
        with Run(RunSpec(registry.uri, experiment, name, tags=own, parent=model.run_id)) as run:
            return run.id

    if model.run_id and shared.read(model.run_id).active:
        which = hashlib.sha256(f"{model.name}\n{experiment}".encode()).hexdigest()[:6]
        key = f"finetune_parent.v{model.version}.{which}"
        return shared.elect(model.run_id, key, find=find, make=make)
    made = "" if find() else make()
    oldest = find()
    assert oldest, "the run that was just made is found"
    if made and made != oldest:
        shared.drop(made)
    return oldest


def unit_digest(unit: Unit, settings: str) -> str:
    """12 hex digits of a unit and the settings that its result has."""
    text = json.dumps([*vars(unit).values(), settings])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of(export_config: Mapping[str, Any]) -> str:
    """12 hex digits of a network's config.json: networks that share them differ in their weights alone."""
    return hashlib.sha256(json.dumps(export_config, sort_keys=True).encode()).hexdigest()[:12]


def _parsed(runs: list[Any]) -> Iterator[StoredResult]:
    for run in runs:
        params, tags = run.data.params, run.data.tags
        kind = params.get("kind", DEFAULT_KIND)  # the runs of before had one kind and did not log it
        if kind not in KINDS:
            say(
                f"warning: MLflow run {run.info.run_id} is left out: its task {params['task']} is of kind "
                f"{kind!r}, this code knows {', '.join(sorted(KINDS))}"
            )
            continue
        val, test = (
            {metric.name: run.data.metrics[f"{split}/{metric.name}"] for metric in KINDS[kind].metrics}
            for split in ("val", "test")
        )
        unit = Unit(
            tags["model.name"], tags["model.version"], params["task"], params["mode"], int(params["seed"])
        )
        result = Result(
            unit,
            val,
            test,
            kind=kind,
            settings=params["settings"],
            rows={role: int(params[f"{role}_rows"]) for role in ROLES},
            chosen=tags.get("chosen", ""),
            seconds=((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
        )
        architecture, computed_by = tags.get("architecture", ""), tags.get("computed.by", "")
        yield StoredResult(result, run.info.run_id, run.info.start_time, architecture, computed_by)


def _is_done(key: str) -> bool:
    return key.startswith("done.")


def _of_model(model: str, which: str) -> dict[str, str]:
    return {"model.name": model, "finetune": which}


def _tags(model: str, version: str, which: str) -> dict[str, str]:
    return {"model.version": str(version)} | _of_model(model, which)
