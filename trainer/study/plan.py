"""What a study is to run, from its config: pretrainings with their steps, and tasks. Everything that is wrong
with any of them is told before the first of them starts."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import configs
from cluster.process import paths
from configs import ConfigError
from data_prep.config import DataConfig
from trainer.evaluation.tasks.config import ENCODER_MODES, ROLES, TaskConfig
from trainer.run.config import TrainConfig
from trainer.study.budget import Cost, cost_of, first_step
from trainer.study.config import PRESET, SCRATCH, Overrides, StudyConfig, flat, words
from trainer.study.precision import automatic_precision, run_dir

_OWN = ("run.", "track.", "train.steps", "train.schedule_steps")  # keys of a pretraining that the study sets
_FIRST: Overrides = {
    "track.report_every": 0
}  # each report takes a process for seconds; overrides may ask for them


@dataclass(frozen=True)
class Pretraining:
    """One pretraining: its arm and seed, its command's preset and overrides, and what they come to."""

    arm: str
    seed: int
    preset: str
    overrides: tuple[str, ...]
    config: TrainConfig
    cost: Cost

    def __str__(self) -> str:
        return f"{self.arm}-s{self.seed}"


@dataclass(frozen=True)
class Dataset:
    """The dataset of a study, and the config by which it is made where it is not there."""

    uri: str
    config: str


@dataclass(frozen=True)
class StudyPlan:
    """A study that can be run.

    Attributes:
        scratch: arms without pretraining -> an arm that is pretrained with the same network.
        tasks: one for each file and number of training rows, by (name, rows that were asked for).
    """

    config: StudyConfig
    dataset: Dataset | None
    pretrainings: tuple[Pretraining, ...]
    scratch: dict[str, str]
    task_configs: tuple[TaskConfig, ...]

    @cached_property
    def groups(self) -> dict[str, str]:
        """Task -> its group; a task that is in none is one by itself."""
        found = {}
        for task in dict.fromkeys(task.name for task in self.task_configs):
            of = [
                name
                for name, patterns in self.config.groups.items()
                if any(fnmatchcase(task, pattern) for pattern in patterns)
            ]
            found[task] = of[0] if of else task
        return found


def make_plan(config: StudyConfig) -> StudyPlan:
    """The plan of ``config``. ConfigError with every fault of presets, arms, tasks and data; StoreError: its
    folder cannot be read."""
    faults: list[str] = []
    dataset = _collect(faults, lambda: _dataset(config))
    pretrainings: list[Pretraining] = []
    for arm in config.pretrained():
        pretrainings += _collect(faults, lambda arm=arm: _of_arm(config, arm, dataset)) or []
    found = _collect(faults, lambda: _tasks(config)) or []
    faults += _twins(pretrainings)
    scratch = {} if faults else _collect(faults, lambda: _scratch(config, pretrainings)) or {}
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    _refuse_lost(config, dataset, found)
    return StudyPlan(config, dataset, tuple(pretrainings), scratch, tuple(found))


def _collect(faults: list[str], read: Any) -> Any:
    """What ``read`` gives; None, and one more of the ``faults``, where it is wrong."""
    try:
        return read()
    except ConfigError as fault:
        faults.append(str(fault))
        return None


def _dataset(config: StudyConfig) -> Dataset | None:
    if config.data.config is None:
        if config.data.uri is not None:
            raise ConfigError(
                "data.uri: without data.config there is nothing to build; set data.uri in pretrain.set"
            )
        return None
    overrides = [f"output={config.data.uri}"] if config.data.uri else []
    built = configs.load(DataConfig, config.data.config, overrides)
    return Dataset(built.output, config.data.config)


def _of_arm(config: StudyConfig, arm: str, dataset: Dataset | None) -> list[Pretraining]:
    """The pretrainings of an arm, one for each seed. ConfigError: its keys are wrong, or no step fits."""
    given = arm_overrides(config, arm)
    if own := [key for key in given if key.startswith(_OWN[:2]) or key in _OWN]:
        allowed = [key for key in own if key.startswith("track.") and key.partition(".")[2] in _TRACK_FREE]
        if own := [key for key in own if key not in allowed]:
            raise ConfigError(
                f"arms.{arm}: {', '.join(own)} is set by the study itself, by its keys output, seeds, flops "
                "and track; remove it"
            )
    preset = preset_of(config, arm)
    shared = words(_FIRST | ({"data.uri": dataset.uri} if dataset else {}) | given)
    first = _load(
        arm, preset, [*shared, *_own_words(config, arm, config.pretrain.seeds[0], steps=1, precision="")]
    )
    cost = cost_of(first, config.pretrain.flops)
    if cost.steps < 1:
        raise ConfigError(
            f"pretrain.flops: {config.pretrain.flops:g} is less than one step of arm {arm}, "
            f"{first_step(first):.3g}"
        )
    asked = configs.read(preset, shared).get("train", {}).get("precision")
    precision = automatic_precision(config, arm) if asked == "auto" else first.train.precision
    found = []
    for seed in config.pretrain.seeds:
        own = _own_words(config, arm, seed, steps=cost.steps, precision=precision)
        found.append(
            Pretraining(arm, seed, preset, (*shared, *own), _load(arm, preset, [*shared, *own]), cost)
        )
    return found


# Keys of the section track that a study leaves to its user.
_TRACK_FREE = (
    "artifact_uri",
    "every",
    "system_metrics",
    "report_every",
    "wait_s",
    "candidate",
    "register_keep",
)


def arm_overrides(config: StudyConfig, arm: str) -> Overrides:
    """The overrides of an arm, by dotted keys: those of all arms, then its own."""
    own = {key: value for key, value in config.arms[arm].items() if key not in (SCRATCH, PRESET)}
    return flat({**flat(config.pretrain.set), **flat(own)})


def preset_of(config: StudyConfig, arm: str) -> str:
    return str(config.arms[arm].get(PRESET) or config.pretrain.config)


def _load(arm: str, preset: str, overrides: Sequence[str]) -> TrainConfig:
    try:
        return configs.load(TrainConfig, preset, overrides)
    except ConfigError as fault:
        raise ConfigError(f"arms.{arm}: {fault}") from fault


def _own_words(config: StudyConfig, arm: str, seed: int, *, steps: int, precision: str) -> list[str]:
    """The overrides that the study itself makes. The schedules are of as many steps, so that a run that was
    begun with another number of FLOPs is refused. ``precision``: as this machine reads ``auto``."""
    own: Overrides = {
        "run.dir": run_dir(config, arm, seed),
        "run.name": f"{config.name} {arm} seed {seed}",
        "run.seed": seed,
        "train.steps": steps,
        "train.schedule_steps": steps,
        "track.experiment": config.experiment,
        "track.registered_model": config.model,
        "track.uri": config.track.uri,
    }
    return words(own | ({"train.precision": precision} if precision else {}))


def _twins(pretrainings: Sequence[Pretraining]) -> Iterator[str]:
    """A fault for each arm that changes nothing of another one."""
    first: dict[str, str] = {}
    for arm, config in {one.arm: one.config for one in pretrainings}.items():
        settings = json.dumps(configs.dump(config) | {"run": None}, sort_keys=True)
        if (twin := first.setdefault(settings, arm)) != arm:
            yield f"arms.{arm}: it is the same pretraining as arms.{twin}; remove one"


def _scratch(config: StudyConfig, pretrainings: Sequence[Pretraining]) -> dict[str, str]:
    """Arm without pretraining -> an arm that is pretrained with the same network."""
    found: dict[str, str] = {}
    for arm in config.arms:
        if arm in config.pretrained():
            continue
        own = {key: value for key, value in arm_overrides(config, arm).items() if key.startswith("model")}
        steps = words({"train.steps": 1, "run.dir": run_dir(config, arm, 0), "data.uri": "none"})
        wanted = _load(arm, preset_of(config, arm), [*words(own), *steps]).model
        same = [one.arm for one in pretrainings if one.config.model == wanted]
        if not same:
            raise ConfigError(
                f"arms.{arm}: no arm that is pretrained has its network, from which it is made; give the two "
                "the same model"
            )
        if same[0] in found.values():
            raise ConfigError(f"arms.{arm}: another arm is the same network from scratch")
        found[arm] = same[0]
    served = [one.config.model for one in pretrainings if one.arm in found.values()]
    if found and (lacking := [one.arm for one in pretrainings if one.config.model not in served]):
        raise ConfigError(
            f"arms.{lacking[0]}: no arm with scratch: true has its network, so that what is learned from "
            "scratch with it would be shown nowhere; add one"
        )
    return found


def _tasks(config: StudyConfig) -> list[TaskConfig]:
    """Each task of each file and number of training rows, with the modes that the study can use."""
    has_scratch = len(config.pretrained()) < len(config.arms)
    found: dict[tuple[str, int | None], TaskConfig] = {}
    faults: dict[str, None] = {}
    for number, task_set in enumerate(config.tasks):
        for pattern in task_set.configs:
            files = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            if not files:
                faults[f"tasks.{number}.configs: no file matches {pattern} (looked in {Path.cwd()})"] = None
            for file in files:
                try:
                    variants = configs.load(TaskConfig, file, words(task_set.set)).variants()
                except ConfigError as fault:
                    faults[f"tasks.{number}: {fault}"] = None
                    continue
                for task in variants:
                    modes = tuple(mode for mode in task.modes if mode != "scratch" or has_scratch)
                    task = task.model_copy(update={"modes": modes})
                    if found.setdefault((task.name, _rows(task)), task) is not task:
                        rows = f"{task.max_train_rows:,}" if task.max_train_rows else "all"
                        faults[
                            f"tasks: {task.name} with {rows} training rows is given twice; one is enough"
                        ] = None
    used = {mode for task in found.values() for mode in task.modes}
    if found and not used & set(ENCODER_MODES):
        faults[f"tasks: no mode uses what was pretrained; add one of {', '.join(ENCODER_MODES)}"] = None
    if faults:
        raise ConfigError("\n".join(faults))
    return list(found.values())


def _rows(task: TaskConfig) -> int | None:
    assert not isinstance(task.max_train_rows, tuple), "variants have one number"
    return task.max_train_rows


def _refuse_lost(config: StudyConfig, dataset: Dataset | None, tasks: Sequence[TaskConfig]) -> None:
    """ConfigError, in a Ray job, if what the study writes would be lost, or its inputs are not there."""
    outputs = {
        "output": config.output,
        "track.uri": config.track.uri,
        "data.uri": dataset.uri if dataset else None,
    }
    inputs = [
        (f"{task.name}: {role}", uri) for task in tasks for role in ROLES if (uri := getattr(task, role))
    ]
    paths.refuse_lost(outputs=outputs, inputs=inputs)
