"""The config of a study: every key of ``configs/studies/*.yaml``, its type, its default, what is accepted."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cluster.process import paths
from configs import Section
from configs.numbers import Above0, Positive
from configs.values import scalar
from trainer.tracking import names
from trainer.tracking.config import default_tracking_uri

FLOOR = "floor"  # stands for the better floor in ``compare``
SCRATCH, PRESET = "scratch", "config"  # keys of an arm that are no overrides
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)

Overrides = dict[str, Any]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("at least one is needed, and none twice")
    return values


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} must be letters, digits, '.', '_' or '-' only, since folders, and parameters in "
            "MLflow, are named by it"
        )
    return name


Name = Annotated[str, AfterValidator(_plain_name)]
Files = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_list)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], BeforeValidator(_as_list), AfterValidator(_distinct)
]


class Data(Section):
    """``config``: of ``data_prep build``, which makes the dataset where it is not there. ``uri``: where it
    is; default its ``output``. Without either the presets' data.uri is read."""

    config: str | None = None
    uri: str | None = None


class Pretrain(Section):
    """What all pretrainings have in common: the preset and its overrides, FLOPs, seeds, what one of them
    takes of a node, how many run at once (default: as many as fit), and how long one may take to save when it
    is told to stop. ``cluster``: each is a ``cluster train`` with this config, not a process."""

    config: str
    set: Overrides = {}
    flops: Annotated[float, Field(gt=0)]
    seeds: Seeds = (0,)
    cpus: Annotated[int, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    at_once: Positive | None = None
    cluster: str | None = None
    grace_s: Above0 = 100.0


class TaskSet(Section):
    """Task files or globs of them, and overrides of each."""

    configs: Files
    set: Overrides = {}


class Statistics(Section):
    """How differences are told from chance: what share an interval covers, bootstrap samples, their seed."""

    interval: Annotated[float, Field(gt=0, lt=1)] = 0.9
    samples: Annotated[int, Field(ge=100)] = 10_000
    seed: Annotated[int, Field(ge=0)] = 0


class Track(Section):
    """Which MLflow, experiment, and registered model; the last two by default have the study's name."""

    uri: Annotated[str, AfterValidator(names.tracking)] = Field(
        default_factory=default_tracking_uri, validate_default=True
    )
    experiment: Annotated[str, AfterValidator(names.experiment)] | None = None
    registered_model: Annotated[str, AfterValidator(names.model)] | None = None

    @field_validator("uri")
    @classmethod
    def _expanded(cls, uri: str) -> str:
        return paths.expand_uri(uri)


class StudyConfig(Section):
    """A study. ``arms``: name -> overrides of the preset; ``scratch: true`` is an arm without pretraining,
    and ``config`` gives an arm a preset of its own. ``compare``: pairs of arms, or of an arm and ``floor``;
    default all. ``groups``: name -> tasks (names or globs) that overlap, and are drawn together."""

    name: Name
    output: Annotated[str, Field(min_length=1)]
    data: Data = Data()
    pretrain: Pretrain
    arms: dict[Name, Overrides]
    tasks: Annotated[tuple[TaskSet, ...], Field(min_length=1)]
    compare: tuple[tuple[str, str], ...] | None = None
    groups: dict[str, Files] = {}
    statistics: Statistics = Statistics()
    track: Track = Field(default_factory=Track)

    @field_validator("output")
    @classmethod
    def _output(cls, uri: str) -> str:
        return paths.expand(uri) if "://" not in uri else uri

    @field_validator("arms", mode="before")
    @classmethod
    def _as_mappings(cls, arms: Any) -> Any:
        """An arm with nothing behind its name is the preset as it is."""
        return (
            {name: {} if arm is None else arm for name, arm in arms.items()}
            if isinstance(arms, dict)
            else arms
        )

    @model_validator(mode="after")
    def _usable(self) -> "StudyConfig":
        faults = []
        for name, arm in self.arms.items():
            if not isinstance(arm.get(SCRATCH, False), bool):
                faults.append(f"arms.{name}.{SCRATCH}: must be true or false, not {arm[SCRATCH]!r}")
            if not isinstance(arm.get(PRESET, ""), str):
                faults.append(f"arms.{name}.{PRESET}: must be the path of a preset, not {arm[PRESET]!r}")
        if FLOOR in self.arms:
            faults.append(
                f"arms: {FLOOR} means the better of the models without a network; give another name"
            )
        if not self.arms:
            faults.append("arms: none is given; give at least one that is pretrained, for example both: {}")
        elif not self.pretrained():
            faults.append("arms: at least one must be pretrained, and so be without scratch: true")
        known = {*self.arms, FLOOR}
        for pair in self.compare or ():
            if unknown := [name for name in pair if name not in known]:
                faults.append(
                    f"compare: {', '.join(unknown)} is no arm; there are {', '.join(sorted(known))}"
                )
            elif pair[0] == pair[1]:
                faults.append(f"compare: {pair[0]} is compared with itself")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def pretrained(self) -> list[str]:
        """The arms that are pretrained."""
        return [name for name, arm in self.arms.items() if arm.get(SCRATCH) is not True]

    @property
    def experiment(self) -> str:
        return self.track.experiment or self.name

    @property
    def model(self) -> str:
        """The name of the registered model, whose versions are the pretrainings."""
        return self.track.registered_model or self.name

    def pairs(self) -> list[tuple[str, str]]:
        """What is compared: each arm with those before it, and with the floor, unless ``compare`` says."""
        if self.compare is not None:
            return list(self.compare)
        arms = list(self.arms)
        before = [(later, sooner) for at, later in enumerate(arms) for sooner in arms[:at]]
        return [*before, *((arm, FLOOR) for arm in arms)]


def words(overrides: Overrides) -> list[str]:
    """``overrides`` as a command line has them: key=VALUE, of nested mappings with dotted keys."""
    return [f"{key}={_word(value)}" for key, value in flat(overrides).items()]


def flat(values: Overrides, prefix: str = "") -> Overrides:
    """``values`` with dotted keys alone; of a key that is given in both ways the later counts."""
    found: Overrides = {}
    for key, value in values.items():
        inner = (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        )
        for name in inner:
            found.pop(name, None)  # so that its place is that of the later one
        found |= inner
    return found


def _word(value: Any) -> str:
    plain = isinstance(value, str) and value == scalar(value) and value == value.strip()
    if plain and not value.startswith(("[", "{", '"', "'")):
        return str(value)
    return _item(value)


def _item(value: Any) -> str:
    """A value as it stands within brackets, where text needs quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_item, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_item(str(key))}: {_item(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
