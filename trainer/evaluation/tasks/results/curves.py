"""Downstream scores as curves on the pretraining run: ``downstream/TASK/MODE_METRIC`` at a version's step."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from trainer.evaluation.tasks.config import SEEDLESS, TaskConfig
from trainer.evaluation.tasks.curve_names import downstream, read_online
from trainer.evaluation.tasks.results.results_log import StoredResult, stored_results
from trainer.inference.registered_model import RegisteredModel
from trainer.tracking.registry import Registry
from trainer.tracking.shared_run import SharedRuns


class CurveTask(NamedTuple):
    """A task with a single number of train rows, and the digest of its settings."""

    config: TaskConfig
    settings: str


class CurvePoint(NamedTuple):
    """``time_ms``: the same whoever computes it, so that MLflow takes the same point twice as one."""

    name: str
    value: float
    time_ms: int


def add_points(
    registry: Registry, model: RegisteredModel, shared: SharedRuns, *, tasks: Sequence[CurveTask]
) -> None:
    """Log the points of the version, where its pretraining run and its step are known. None is logged
    twice. ``tasks``: each task once, with the most train rows."""
    step = _step(registry, model)
    if step is None or model.run_id is None:
        return
    run = shared.read(model.run_id)
    if not run.active:
        return
    stored = stored_results(registry, model.name, model.version)
    for point in points(stored, tasks, online=read_online(run.tags)):
        shared.add_point(model.run_id, point.name, point.value, step=step, time_ms=point.time_ms)


def points(
    stored: Iterable[StoredResult], tasks: Iterable[CurveTask], *, online: Sequence[str] = ()
) -> Iterator[CurvePoint]:
    """For each task and mode the means over its seeds: on test (``MODE_METRIC``) and on dev
    (``MODE_dev_METRIC``); none while a seed is missing.

    ``online``: tasks that the run reads itself, and logs as ``probe_METRIC``.
    """
    by_mode: dict[tuple[str, str, str], dict[int, StoredResult]] = defaultdict(dict)
    for one in stored:
        unit = one.result.unit
        by_mode[unit.task, one.result.settings, unit.mode][unit.seed] = one
    for task in tasks:
        for mode in task.config.modes:
            seeds = (0,) if mode in SEEDLESS else task.config.seeds
            found = by_mode[task.config.name, task.settings, mode]
            if not set(seeds) <= set(found):
                continue
            ours = [found[seed] for seed in seeds]
            metric = ours[0].result.metric.name
            start, name = max(one.start_ms for one in ours), task.config.name
            on_test = f"{mode}_test" if mode == "probe" and name in online else mode
            for prefix, scores in (
                (on_test, [one.result.test for one in ours]),
                (f"{mode}_dev", [one.result.val for one in ours]),
            ):
                value = fmean(each[metric] for each in scores)
                yield CurvePoint(downstream(name, f"{prefix}_{metric}"), value, start)


def _step(registry: Registry, model: RegisteredModel) -> int | None:
    """The step at which the version was exported; of versions without that tag, that of the run's end."""
    found = registry.version(f"models:/{model.name}/{model.version}").tags.get("step")
    if found is None and model.run_id:
        found = registry.run(model.run_id).data.params.get("train.steps")
    return int(found) if found and str(found).isdigit() else None
