"""A registered model on a labelled task: floors, frozen probe, fine-tuning, and the same from scratch.

Everything that is chosen is chosen on dev; test is scored once for each unit, in ``compute_unit``.
"""

from collections.abc import Iterator

import torch

from trainer.core.console import say
from trainer.evaluation.precision import best_device
from trainer.evaluation.registered_model import RegisteredModel, open_model
from trainer.evaluation.tasks.champion import settle_champion
from trainer.evaluation.tasks.config import SEEDLESS, TaskConfig
from trainer.evaluation.tasks.data import TaskData, load
from trainer.evaluation.tasks.kept_models import keep_best, refuse_name, store_model
from trainer.evaluation.tasks.modes import compute_unit, prepare
from trainer.evaluation.tasks.parent_story import update_parent
from trainer.evaluation.tasks.results import Result, Unit
from trainer.evaluation.tasks.results_log import ResultsLog, log_result, parent_run, past_results
from trainer.tracking.registry import Registry

_EXPERIMENT = "finetune"  # for models that no run of ours made


def finetune(
    registry: Registry, model_uri: str, task: TaskConfig, *, device: torch.device | None = None
) -> list[Result]:
    """One result for each mode and seed of the task, each in a child run; then the champion is settled.

    Raises: StoreError, ValueError, TrackError, RuntimeError, MemoryError, each one sentence.
    """
    model = open_model(registry, model_uri)
    experiment = task.track.experiment or registry.experiment_of(model.run_id) or _EXPERIMENT
    registry.usable(experiment)  # before the work
    refuse_name(registry, model.name, task.name)
    data = load(task)
    for sentence in describe_rows(task, data):
        say(sentence)
    prepared = prepare(model.network, model.config, task=task, data=data, device=device or best_device())
    log = ResultsLog(
        registry.uri,
        experiment,
        parent=parent_run(registry, model, experiment),
        task=task,
        settings=prepared.settings,
        rows=data.rows,
        data_sha256=data.sha256(),
    )
    results = []
    for unit in units(model, task):
        with log.open(unit) as run:
            outcome = compute_unit(prepared, unit)
            log_result(run, outcome.result)
            store_model(run, outcome)
        say(describe(outcome.result))
        results.append(outcome.result)
    sentences = keep_best(registry, model, task, prepared.settings)
    sentences.append(settle_champion(registry, model.name, model.version))
    for sentence in sentences:
        say(sentence)
    update_parent(registry, log.parent, past_results(registry, model.name, model.version), sentences)
    return results


def units(model: RegisteredModel, task: TaskConfig) -> list[Unit]:
    """The units of work of a task on a model version, in the order of the config. What has no seed is one."""
    return [
        Unit(model.name, model.version, task.name, mode, seed)
        for mode in task.modes
        for seed in ((0,) if mode in SEEDLESS else task.seeds)
    ]


def describe(result: Result) -> str:
    """A result in one sentence."""
    unit, metric = result.unit, result.metric
    return (
        f"{unit.task} {unit.mode} seed {unit.seed}: dev {metric.heading} {result.val[metric.name]:.3f}, "
        f"test {metric.heading} {result.test[metric.name]:.3f} ({result.chosen}; {result.seconds:.1f} s)"
    )


def describe_rows(task: TaskConfig, data: TaskData) -> Iterator[str]:
    """Sentences about the rows that are used, those that are left out, and what may be a mistake."""
    rows = ", ".join(f"{role} {count:,}" for role, count in data.rows.items())
    leaks = ", ".join(f"{count} of {role}" for role, count in data.dropped.items() if count)
    left_out = f"; left out, as dev or test holds the same sequence: {leaks}" if leaks else ""
    yield f"{task.name}: {rows} rows{left_out}"
    for remark in data.remarks:
        yield f"{task.name}: {remark}"
