"""The work of a study: pretrainings and units of tasks on one Ray, each as soon as there is room for it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from cluster.storage import store
from cluster.tasks.pool import Pool
from cluster.tasks.ray_session import session
from trainer.core.console import say
from trainer.evaluation.tasks.downstream import describe_rows
from trainer.evaluation.tasks.kept.kept_models import refuse_name
from trainer.study.plan import StudyPlan
from trainer.study.pretrainings import Pretrainings
from trainer.study.table import ALL, Asked
from trainer.tracking.mlmodel import packed_code
from trainer.tracking.registry import Registry
from trainer.workers.claims import Owner
from trainer.workers.command import work_tasks
from trainer.workers.driver import Driver
from trainer.workers.plan import WorkTask, read_data
from trainer.workers.progress import UnitProgress

TASKS = "tasks.json"
_POLL_S = 0.5


@dataclass(frozen=True)
class Stages:
    """What of a study is to be done."""

    pretrain: bool = True
    tasks: bool = True


def do_work(plan: StudyPlan, stages: Stages, *, parent: str, cpus: int | None, wait_s: float) -> list[str]:
    """What failed, in sentences; all else is in MLflow.

    Raises:
        ConfigError, StoreError, ValueError, TrackError, RuntimeError: before the work, or MLflow is away for
            longer than ``wait_s``.
    """
    config = plan.config
    packed_code()  # while the working folder of a Ray job is surely there
    registry = Registry(config.track.uri)
    found = read_data(plan.task_configs) if stages.tasks else []
    for task, data in found:
        refuse_name(registry, config.model, task.name)
        for sentence in describe_rows(task, data):
            say(sentence)
    with session(cpus), Pool() as pool, UnitProgress() as progress:
        asked = list(work_tasks(found, pool))
        if stages.tasks:
            write_settings(plan, asked)
        pretrainings = Pretrainings(
            config,
            plan.pretrainings,
            pool,
            registry,
            parent,
            trains=stages.pretrain,
            offers=stages.tasks,
        )
        driver = Driver(
            registry,
            pretrainings,
            merged(asked),
            pool,
            wait_s=wait_s,
            poll_s=_POLL_S,
            owner=Owner(),
            on_version=lambda work: say(f"{work.name}: all tasks done"),
            on_other=pretrainings.take_in,
        )
        try:
            pretrainings.begin()
            driver.run(progress)
        except BaseException:
            pretrainings.stop()
            raise
        failures = [f"{name}: {why}" for name, why in pretrainings.failures.items()]
        return failures + driver.failures()


def merged(tasks: Sequence[WorkTask]) -> list[WorkTask]:
    """``tasks`` without those that have the rows and settings of one before, which gets their modes and
    seeds: more rows were asked for than there are."""
    found: dict[tuple[str, str], WorkTask] = {}
    for task in tasks:
        first = found.setdefault((task.name, task.settings), task)
        both = {
            "modes": tuple(dict.fromkeys((*first.config.modes, *task.config.modes))),
            "seeds": tuple(dict.fromkeys((*first.config.seeds, *task.config.seeds))),
        }
        found[task.name, task.settings] = replace(first, config=first.config.model_copy(update=both))
    return list(found.values())


def write_settings(plan: StudyPlan, tasks: Sequence[WorkTask]) -> None:
    """Note in the study's folder which settings its tasks are computed with, for the report."""
    asked = [
        Asked(
            task.name,
            str(task.config.max_train_rows or ALL),
            plan.groups[task.name],
            task.settings,
            task.config.modes,
            task.config.seeds,
        )
        for task in tasks
    ]
    text = json.dumps([asdict(one) for one in asked], indent=1)
    store.write_bytes(store.join(plan.config.output, TASKS), text.encode() + b"\n")


def read_settings(plan: StudyPlan) -> list[Asked]:
    """What ``write_settings`` noted; empty where no task was begun."""
    uri = store.join(plan.config.output, TASKS)
    found = json.loads(store.read_bytes(uri)) if store.exists(uri) else []
    return [Asked(**{**one, "modes": tuple(one["modes"]), "seeds": tuple(one["seeds"])}) for one in found]
