"""What there is to do: the tasks, read once, and the units of a version with what each weighs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import configs
from configs import ConfigError
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.prepared import Precisions, settings_digest
from trainer.evaluation.tasks.results.results import Unit
from trainer.evaluation.tasks.results.results_log import unit_digest
from trainer.evaluation.tasks.rows.data import TaskData, load

EMBEDDING_MODE = "probe"  # reads the embeddings of frozen weights, which are computed once
_TRAINING = ("finetune", "scratch")
_BACKWARD = 3  # a step of training costs as much as so many readings


@dataclass(frozen=True, eq=False)
class WorkTask:
    """A task with a single number of train rows, its data, and what its units compute in."""

    config: TaskConfig
    data: TaskData
    data_sha256: str
    precisions: Precisions
    settings: str

    @classmethod
    def of(cls, config: TaskConfig, data: TaskData, precisions: Precisions) -> "WorkTask":
        sha256 = data.sha256()
        settings = settings_digest(config, precisions=precisions, data_sha256=sha256)
        return cls(config, data, sha256, precisions, settings)

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property  # asked at every turn of the driver, and the rows of all tasks are many
    def letters(self) -> dict[str, int]:
        """The letters of each split, by its role."""
        return {split.role: sum(map(len, split.letters)) for split in self.data.splits}


@dataclass(frozen=True)
class PlannedUnit:
    """A unit of a version, and the task that it is of. Equal are those with the same unit and settings."""

    unit: Unit
    settings: str

    @property
    def digest(self) -> str:
        return unit_digest(self.unit, self.settings)

    def __str__(self) -> str:
        unit = self.unit
        return f"version {unit.version}: {unit.task} {unit.mode} seed {unit.seed}"


def read_configs(paths: Sequence[str], overrides: Sequence[str]) -> list[TaskConfig]:
    """The tasks of some YAML files. ConfigError with the faults of all of them."""
    found: list[TaskConfig] = []
    faults: dict[str, None] = {}
    for path in paths:
        try:
            found.append(configs.load(TaskConfig, path, overrides))
        except ConfigError as fault:
            faults[str(fault)] = None
    names = [task.name for task in found]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        count = names.count(name)
        faults[f"{count} of the tasks have the name {name!r}, by which results are told apart"] = None
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def read_data(tasks: Iterable[TaskConfig]) -> list[tuple[TaskConfig, TaskData]]:
    """Each task with its data, one for each number of train rows. ValueError with the faults of all."""
    found: list[tuple[TaskConfig, TaskData]] = []
    faults: list[str] = []
    for task in tasks:
        try:
            found += [(variant, load(variant)) for variant in task.variants()]
        except (OSError, ValueError, RuntimeError) as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("\n".join(faults))
    return found


def distinct(tasks: Iterable[WorkTask]) -> list[WorkTask]:
    """Without those that have the rows and settings of one before: more rows were asked for than there
    are."""
    return list({(task.name, task.settings): task for task in reversed(list(tasks))}.values())[::-1]


def weight(mode: str, task: WorkTask) -> float:
    """About how much there is to compute, in letters read by a network."""
    if mode not in _TRAINING:
        return float(len(task.data.train))  # linear models last
    finetune, letters = task.config.finetune, task.letters
    length = finetune.length(len(task.data.train))
    training = length.epochs * _BACKWARD * letters["train"] + length.readings * 2.0 * letters["dev"]
    return len(finetune.lr) * training


def largest(tasks: Iterable[WorkTask]) -> dict[str, WorkTask]:
    """Of each task, by its name, the one with the most train rows."""
    found: dict[str, WorkTask] = {}
    for task in tasks:
        if task.name not in found or len(task.data.train) > len(found[task.name].data.train):
            found[task.name] = task
    return found
