"""A registered model on a labelled task: floors, frozen probe, fine-tuning, and the same from scratch.

Everything that is chosen is chosen on dev; test is scored once for each unit, in ``compute_unit``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from trainer.core.console import say
from trainer.evaluation.tasks.config import SEEDLESS, TaskConfig
from trainer.evaluation.tasks.fitting.modes import compute_unit
from trainer.evaluation.tasks.fitting.prepared import PreparedTask, prepare
from trainer.evaluation.tasks.kept.kept_models import keep_best, refuse_name, store_model
from trainer.evaluation.tasks.results.champion import settle_champion
from trainer.evaluation.tasks.results.curves import CurveTask, add_points
from trainer.evaluation.tasks.results.parent_story import update_parent
from trainer.evaluation.tasks.results.results import Result, Unit, UnitOutcome
from trainer.evaluation.tasks.results.results_log import (
    FINETUNE_EXPERIMENT,
    ResultsLog,
    VersionLog,
    past_results,
    store_nothing,
    stored_results,
)
from trainer.evaluation.tasks.results.reuse import KnownResults, as_result_of
from trainer.evaluation.tasks.rows.data import TaskData, load
from trainer.inference.precision import best_device
from trainer.inference.registered_model import RegisteredModel, open_model
from trainer.tracking.registry import Registry


def finetune(
    registry: Registry, model_uri: str, task: TaskConfig, *, device: torch.device | None = None
) -> list[Result]:
    """One result for each mode and seed of the task, each in a child run; then the champion is settled.

    What MLflow has already is not computed again. Of several numbers of train rows, models are kept and
    curves drawn of the largest alone.

    Raises: StoreError, ValueError, TrackError, RuntimeError, MemoryError, each one sentence.
    """
    model = open_model(registry, model_uri)
    experiment = experiment_of(registry, model, task)
    registry.usable(experiment)  # before the work
    refuse_name(registry, model.name, task.name)
    variants = [(variant, load(variant)) for variant in task.variants()]
    version = VersionLog.open(registry, model, experiment)
    results: dict[tuple[Unit, str], Result] = {}
    sentences: list[str] = []
    fullest = max(range(len(variants)), key=lambda number: len(variants[number][1].train))
    for number, (variant, data) in enumerate(variants):
        for sentence in describe_rows(variant, data):
            say(sentence)
        prepared = prepare(
            model.network, model.config, task=variant, data=data, device=device or best_device()
        )
        log = ResultsLog(version, variant, prepared.settings, data.rows, data.sha256())
        known = KnownResults(stored_results(registry, model.name))
        for unit in units(model, variant):
            result, sentence = _result_of(unit, prepared, log, known, keeps=number == fullest)
            say(sentence)
            results[unit, prepared.settings] = result
        if number == fullest:
            sentences = keep_best(registry, model, variant, prepared.settings)
            for sentence in sentences:
                say(sentence)
            add_points(registry, model, version.shared, tasks=[CurveTask(variant, prepared.settings)])
    champion = settle_champion(registry, model.name, model.version)
    say(champion)
    past = past_results(registry, model.name, model.version)
    update_parent(registry, version.parent, past, [*sentences, champion])
    return list(results.values())


class _Obtained(NamedTuple):
    result: Result
    sentence: str


def _result_of(
    unit: Unit, prepared: PreparedTask, log: ResultsLog, known: KnownResults, *, keeps: bool
) -> _Obtained:
    """The result of a unit: the one that MLflow has, a copy of another version's, or a new one.

    ``keeps``: whether its model may be kept.
    """
    stored = known.of(unit, log.settings)
    if stored:
        return _Obtained(stored.result, describe(stored.result, from_run=stored.run_id))
    same = known.elsewhere(unit, log.settings, log.version.architecture)
    if same:
        copied = as_result_of(unit, same)
        log.record(UnitOutcome(copied), computed_by=same.run_id)
        return _Obtained(copied, describe(copied, from_run=same.run_id, version=same.result.unit.version))
    try:
        outcome = compute_unit(prepared, unit)
    except (RuntimeError, MemoryError) as fault:
        log.record_failure(unit, str(fault))
        raise
    log.record(outcome, store_model=store_model if keeps else store_nothing)
    return _Obtained(outcome.result, describe(outcome.result))


def experiment_of(registry: Registry, model: RegisteredModel, task: TaskConfig) -> str:
    """Where the results of ``task`` go: its own experiment, else that of the run that made the model."""
    return task.track.experiment or registry.experiment_of(model.run_id) or FINETUNE_EXPERIMENT


def units(model: RegisteredModel, task: TaskConfig) -> list[Unit]:
    """The units of work of a task on a model version, in the order of the config. What has no seed is one."""
    return [
        Unit(model.name, model.version, task.name, mode, seed)
        for mode in task.modes
        for seed in ((0,) if mode in SEEDLESS else task.seeds)
    ]


def describe(result: Result, *, from_run: str = "", version: str = "") -> str:
    """A result in one sentence. ``from_run``: the run that has it already, of another ``version``."""
    unit, metric = result.unit, result.metric
    how = f"{result.seconds:.1f} s"
    if from_run:
        how = f"computed for version {version}, run {from_run}" if version else f"already in run {from_run}"
    return (
        f"{unit.task} {unit.mode} seed {unit.seed}: dev {metric.heading} {result.val[metric.name]:.3f}, "
        f"test {metric.heading} {result.test[metric.name]:.3f} ({result.chosen}; {how})"
    )


def describe_rows(task: TaskConfig, data: TaskData) -> Iterator[str]:
    """Sentences about the rows that are used, those that are left out, and what may be a mistake."""
    rows = ", ".join(f"{role} {count:,}" for role, count in data.rows.items())
    leaks = ", ".join(f"{count} of {role}" for role, count in data.dropped.items() if count)
    left_out = f"; left out, as dev or test holds the same sequence: {leaks}" if leaks else ""
    yield f"{task.name}: {rows} rows{left_out}"
    for remark in data.remarks:
        yield f"{task.name}: {remark}"
