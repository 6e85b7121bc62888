"""Fine-tuned models are kept: of an encoder's version, task and settings the best on dev.

Each fine-tuned model is stored with the run that made it. When all runs are done the best is registered,
under a name of its own, and the files of the others are removed. Every call may be repeated after a kill.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.evaluation.tasks.config import ENCODER_MODES, MODES, TaskConfig
from trainer.evaluation.tasks.kept import task_card, task_model
from trainer.evaluation.tasks.kept.task_model import TaskRecord
from trainer.evaluation.tasks.kept.task_pyfunc import write_task_mlmodel
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results.results import UnitOutcome
from trainer.models import pretrained
from trainer.tracking import task_models
from trainer.tracking.mlflow_run import Run
from trainer.tracking.registry import Registry
from trainer.tracking.task_models import TaskModels, TaskVersion


class EncoderVersion(Protocol):
    """A version of a registered encoder: MLflow's, or ours, opened."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> Any: ...
    @property
    def run_id(self) -> str | None: ...


def name_of(encoder: str, task: str) -> str:
    """The name under which the fine-tuned models of an encoder and a task are registered."""
    return f"{encoder}-{task}"


def refuse_name(registry: Registry, encoder: str, task: str) -> None:
    """ConfigError, before any work, if the models of the task cannot be registered under their name, or
    ``encoder`` names fine-tuned models."""
    models = TaskModels(registry)
    models.refuse_as_encoder(encoder)
    models.refuse_name(name_of(encoder, task), task=task)


def store_model(run: Run, outcome: UnitOutcome) -> None:
    """Upload the model of ``outcome``, if it has one, to its ``run``, which must not be finished yet."""
    if not outcome.model:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in outcome.model.items():
            Path(folder, name).write_bytes(content)
        task_models.store(run, Path(folder))


def keep_best(registry: Registry, version: EncoderVersion, task: TaskConfig, settings: str) -> list[str]:
    """Sentences about the version that was registered; the alias champion moves if ``decide`` says so.

    Of all finished runs of an encoder's version, task and settings that hold a model, the best on dev is
    registered, unless it is already, and the files of the others are removed.
    """
    models, name = TaskModels(registry), name_of(version.name, task.name)
    runs = _runs(registry, version, task.name, settings)
    held = [run for run in runs if models.is_stored(run) or models.is_registered(run)]
    if not held:
        return []
    metric = KINDS[task.kind].metrics[0]
    best = max(held, key=lambda run: _rank(run, metric.name))
    sentences = []
    if models.is_stored(best):
        with tempfile.TemporaryDirectory() as scratch:
            folder = models.fetch(best, Path(scratch))
            record = task_model.read_record(str(folder))
            baselines = _baselines(runs)
            new = TaskVersion(name, best, task.name, _tags(record, version.run_id, metric.name))

            def make(model_id: str) -> Path:
                (folder / pretrained.CARD).write_text(task_card.card(record, baselines))
                write_task_mlmodel(folder, model_id=model_id)
                return folder

            number = models.register(new, make)
        uri = f"models:/{name}/{number}"
        models.describe(name, number, task_card.describe(record, baselines, uri=uri))
        sentences = [
            f"{task.name}: {record.mode} seed {record.seed}, the best on dev ({metric.heading} "
            f"{record.scores[f'val/{metric.name}']:.3f}), is kept as {name} version {number}",
            _settle_alias(registry, models, name, number),
        ]
        models.close(best, name=name, version=number)
    for run in held:
        if models.is_registered(run):
            models.remove_files(run)  # a kill may have left them
        elif run is not best:
            models.remove(run)
    return sentences


@dataclass(frozen=True)
class KeptVersion:
    """A version of a fine-tuned model, and the run that made it, MLflow's."""

    name: str
    version: str
    run: Any

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def kept_versions(registry: Registry, version: EncoderVersion) -> list[KeptVersion]:
    """The fine-tuned models that were made of an encoder's version, oldest first."""
    models = TaskModels(registry)
    runs = registry.tagged(None, _child(version), finished=True)
    return [KeptVersion(*found, run) for run in runs if (found := models.version_of(run))]


def _child(version: EncoderVersion) -> dict[str, str]:
    """The tags of the runs that hold results of an encoder's version."""
    return {"model.name": version.name, "model.version": str(version.version), "finetune": "child"}


def _runs(registry: Registry, version: EncoderVersion, task: str, settings: str) -> list[Any]:
    """The finished runs of an encoder's version, task and settings, oldest first."""
    found = registry.tagged(None, _child(version), finished=True)
    wanted = {"task": task, "settings": settings}
    return [run for run in found if wanted.items() <= run.data.params.items()]


def _rank(run: Any, metric: str) -> tuple[Any, ...]:
    """Orders runs by their score on dev; of equals the later mode, the lower seed and the older run win."""
    score = run.data.metrics.get(f"val/{metric}", float("nan"))
    mode = ENCODER_MODES.index(run.data.params["mode"])
    order = (mode, -int(run.data.params["seed"]), -run.info.start_time, run.info.run_id)
    return (score == score, score if score == score else 0.0, *order)


def _baselines(runs: Sequence[Any]) -> dict[str, list[Mapping[str, float]]]:
    """By mode the scores of each of its runs."""
    by_mode = {mode: [run.data.metrics for run in runs if run.data.params["mode"] == mode] for mode in MODES}
    return {mode: found for mode, found in by_mode.items() if found}


def _tags(record: TaskRecord, encoder_run: str | None, metric: str) -> dict[str, str]:
    """The lineage of a version, and its scores."""
    return {
        "encoder.name": record.encoder,
        "encoder.version": record.encoder_version,
        "encoder.run": encoder_run or "",
        "task": record.task,
        "kind": record.kind,
        "mode": record.mode,
        "seed": str(record.seed),
        "settings": record.settings,
        "dev.sha256": record.dev_sha256,
        "dev.metric": metric,
        **{key: repr(value) for key, value in record.scores.items()},
    }


@dataclass(frozen=True)
class Kept:
    """What decides between two versions: the score on dev, of which metric and rows."""

    version: str
    metric: str
    dev_sha256: str
    dev: float

    @classmethod
    def of(cls, version: Any) -> "Kept":
        """Of MLflow's version, by its tags. One that is none of ours has no rows in common."""
        metric = version.tags.get("dev.metric", "")
        score = float(version.tags.get(f"val/{metric}", "nan"))
        return cls(str(version.version), metric, version.tags.get("dev.sha256", ""), score)


@dataclass(frozen=True)
class Decision:
    moves: bool
    reason: str


def decide(new: Kept, standing: Kept | None) -> Decision:
    """Whether ``new`` becomes the champion in place of ``standing``, and why: its score on the same dev rows
    must not be lower."""
    if standing is None:
        return Decision(True, "the first")
    if standing.version == new.version:
        return Decision(False, "it is the champion already")
    if (standing.metric, standing.dev_sha256) != (new.metric, new.dev_sha256):
        return Decision(
            False,
            f"version {standing.version} stays champion: it was scored on other dev rows, so that the two do "
            "not compare; set the alias in MLflow if this one is to replace it",
        )
    scores = f"dev {new.metric} {new.dev:.4f}, version {standing.version} {standing.dev:.4f}"
    if new.dev >= standing.dev:
        return Decision(True, f"not below the standing one: {scores}")
    return Decision(False, f"version {standing.version} stays champion: {scores}")


def _settle_alias(registry: Registry, models: TaskModels, name: str, number: str) -> str:
    """Set the alias champion where ``decide`` says so; a sentence."""
    new, champion = registry.version(f"models:/{name}/{number}"), registry.champion(name)
    decision = decide(Kept.of(new), Kept.of(champion) if champion else None)
    if decision.moves:
        registry.set_alias(name, "champion", number)
    models.tag(name, number, {"champion.reason": decision.reason})
    what = f"version {number} is the champion" if decision.moves else f"version {number}"
    return f"{name}: {what} ({decision.reason})"
