"""The training config: every key of ``configs/train/*.yaml``, its type, its default, and what is accepted."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_serializer, field_validator, model_validator

from cluster import paths
from cluster.process import cache_root
from configs import Section
from trainer import names, zero
from trainer.method_config import MIN_LENGTH, Fraction, Loss, Positive, Views
from trainer.models import MODELS
from trainer.models.chordmixer import Norm

OnCorrupt = Literal["fail", "skip"]
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)\b")  # MLflow without a server: its artifacts go where it runs


class Run(Section):
    dir: str
    name: Annotated[str, AfterValidator(names.run)] = "findna"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


class Mixed(Section):
    """One dataset of a mixture and its share of the samples, relative to the other weights."""

    uri: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0


class Length(Section):
    """Windows of ``length`` bp from step ``from_step`` on; the first step is 0."""

    from_step: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=MIN_LENGTH)]


class Data(Section):
    """``uri`` is given as one URI or a list of {uri, weight}, ``length`` as bp or a list of {from_step, length}."""

    uri: tuple[Mixed, ...]
    length: tuple[Length, ...] = (Length(from_step=0, length=1000),)
    lanes: Positive = 48
    workers: Annotated[int, Field(ge=0, le=256)] | None = None  # threads that fetch; default 4, or 0 if all is local
    cache_dir: str | None = None  # of remote blocks; default: blocks/ in DNA_CACHE or ~/.cache/dna-distill
    cache_bytes: Annotated[int, Field(ge=0)] = 10 << 30  # 0: no cache on disk
    on_corrupt: OnCorrupt = "fail"

    @field_validator("uri", mode="before")
    @classmethod
    def _one_uri(cls, value: Any) -> Any:
        if isinstance(value, str) and value:
            return ({"uri": value},)
        if not isinstance(value, list | tuple):
            raise ValueError("must be a URI or a list of {uri, weight}")
        return value

    @field_validator("length", mode="before")
    @classmethod
    def _one_length(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value >= MIN_LENGTH:
            return ({"from_step": 0, "length": value},)
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be an integer of at least {MIN_LENGTH} or a list of {{from_step, length}}")
        return value

    @field_validator("uri")
    @classmethod
    def _different(cls, uri: tuple[Mixed, ...]) -> tuple[Mixed, ...]:
        if not uri:
            raise ValueError("at least one dataset is needed")
        twice = sorted({part.uri for part in uri if sum(part.uri == other.uri for other in uri) > 1})
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}; give each dataset once, with the sum of its weights")
        return uri

    @field_validator("length")
    @classmethod
    def _in_order(cls, length: tuple[Length, ...]) -> tuple[Length, ...]:
        steps = [part.from_step for part in length]
        if not steps or steps[0] != 0:
            raise ValueError(f"the first from_step must be 0, not {steps[0] if steps else 'missing'}")
        if any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"from_step must increase from entry to entry: {', '.join(map(str, steps))}")
        return length

    @field_serializer("uri")
    def _as_given_uri(self, uri: tuple[Mixed, ...]) -> str | list[dict[str, Any]]:
        return uri[0].uri if len(uri) == 1 else [part.model_dump() for part in uri]

    @field_serializer("length")
    def _as_given_length(self, length: tuple[Length, ...]) -> int | list[dict[str, Any]]:
        return length[0].length if len(length) == 1 else [part.model_dump() for part in length]

    @property
    def last_length(self) -> int:
        """The length in bp that a run ends with, at which it is validated."""
        return self.length[-1].length

    @property
    def cache_folder(self) -> Path:
        if self.cache_dir:
            return Path(paths.expand(self.cache_dir, what="data.cache_dir")).absolute()
        return cache_root() / "blocks"


class Model(Section):
    name: str = "findna"
    num_layers: Positive = 40
    num_groups: Positive = 11
    group_channels: Positive = 28
    intermediate_size: Positive = 512
    num_summary: Positive = 10
    norm: Norm = "none"

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"must be one of {', '.join(sorted(MODELS))}")
        return name


class Ema(Section):
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0


class Train(Section):
    """``max_skipped``: steps in a row without a finite loss and gradient after which the run ends.

    ``deepspeed``: further settings for DeepSpeed, of those that keep the teacher exact (zero.py).
    """

    steps: Positive
    schedule_steps: Positive | None = None
    global_batch: Positive = 64
    micro_batch: Positive | None = None
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup_fraction: Fraction = 0.3
    final_lr_fraction: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(ge=0)] = 0.5
    activation_checkpointing: bool = False

    max_skipped: Positive = 10
    deepspeed: dict[str, Any] = {}

    @field_validator("deepspeed")
    @classmethod
    def _exact(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        faults = zero.faults(deepspeed)
        if faults:
            raise ValueError("\n".join(faults))
        return deepspeed


class Health(Section):
    """Every so many steps (0: never) the batch at hand is looked at for signs of collapse.

    ``patience``: readings in a row that must show it. ``on_collapse``: ``stop`` ends the run, ``warn`` only says so.
    """

    every: Annotated[int, Field(ge=0)] = 10
    patience: Positive = 5
    on_collapse: Literal["warn", "stop"] = "warn"


class Validation(Section):
    every: Positive = 500
    windows: Positive = 512
    batch: Positive = 32


class Checkpoint(Section):
    """The whole state under run.dir/checkpoints every so many steps and at the end (0: only when told to stop).

    Kept are the newest ``keep_last``, and those whose step ``keep_every`` divides (0: none). After ``max_failed`` that
    could not be written, one after the other, the run ends.
    """

    every: Annotated[int, Field(ge=0)] = 1000
    keep_last: Positive = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    max_failed: Positive = 3


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the working folder, which a bare ``mlflow ui`` shows."""
    return paths.expand_uri(os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db")


class Track(Section):
    """``wait_s``: a run that is finished waits so long for an MLflow that is away."""

    uri: Annotated[str, AfterValidator(names.tracking)] = Field(
        default_factory=default_tracking_uri, validate_default=True
    )
    artifact_uri: str | None = None
    experiment: Annotated[str, AfterValidator(names.experiment)] = "findna"
    registered_model: Annotated[str, AfterValidator(names.model)] | None = "findna"
    every: Positive = 50
    wait_s: Annotated[float, Field(ge=0)] = 60.0

    @field_validator("uri", "artifact_uri")
    @classmethod
    def _expanded(cls, uri: str | None) -> str | None:
        return uri and paths.expand_uri(uri)


class TrainConfig(Section):
    run: Run
    data: Data
    model: Model = Model()
    views: Views = Views()
    loss: Loss = Loss()
    ema: Ema = Ema()
    train: Train
    health: Health = Health()
    val: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Field(default_factory=Track)

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        faults = self.loss.faults(self.views)
        shortest = min(part.length for part in self.data.length)
        if self.views.crops.number and self.views.crops.length >= shortest:
            faults.append(f"views.crops.length: {self.views.crops.length} must be below data.length {shortest}")
        if self.train.global_batch < 2:
            faults += [
                f"train.global_batch: {self.train.global_batch} must be at least 2 for loss.{name}, which compares the "
                f"rows of a batch with each other; or set loss.{name}.weight to 0"
                for name in ("koleo", "vicreg") if name in self.loss.weights()
            ]  # fmt: skip
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def refuse_lost(self) -> None:
        """ConfigError where what the run writes would lie in a folder that Ray deletes, or its data are not there."""
        track = self.track
        artifacts = track.artifact_uri or ("./mlruns" if _DATABASE.match(track.uri) else None)  # MLflow's own default
        outputs = {"run.dir": self.run.dir, "track.uri": track.uri, "track.artifact_uri": artifacts}
        paths.refuse_lost(outputs=outputs, inputs=[("data.uri", part.uri) for part in self.data.uri])

    @property
    def schedule_steps(self) -> int:
        return self.train.schedule_steps or self.train.steps

    def bp(self, first: int, last: int) -> int:
        """What the steps ``first`` … ``last`` - 1, counted from 0, read: bp of the source windows of all ranks."""
        parts = self.data.length
        ends = [*(part.from_step for part in parts[1:]), last]
        return self.train.global_batch * sum(
            part.length * max(0, min(end, last) - max(part.from_step, first))
            for part, end in zip(parts, ends, strict=True)
        )

    def micro_batch(self, world: int) -> int:
        """Rows a rank reads at once; by default its whole share of the global batch."""
        return self.train.micro_batch or self.train.global_batch // world

    def accumulation(self, world: int) -> int:
        return self.train.global_batch // (world * self.micro_batch(world))

    def world_faults(self, world: int) -> list[str]:
        """What is wrong with running on ``world`` processes, a line each with the key, the value and what works."""
        faults = []
        if self.data.lanes % world or self.train.global_batch % world:
            sizes = [w for w in range(1, 1025) if self.data.lanes % w == 0 and self.train.global_batch % w == 0]
            faults.append(
                f"train.global_batch {self.train.global_batch} and data.lanes {self.data.lanes} must both be divisible "
                f"by the {world} processes; numbers of processes that work: {', '.join(map(str, sizes))}"
            )
        elif self.train.global_batch % (world * self.micro_batch(world)):
            faults.append(
                f"train.micro_batch: {self.micro_batch(world)} times {world} processes does not divide "
                f"train.global_batch {self.train.global_batch}"
            )
        elif self.train.precision == "bf16" and self.train.zero_stage == 0 and self.accumulation(world) > 1:
            faults.append(
                "train.zero_stage: DeepSpeed accumulates bf16 gradients in bf16 at stage 0; use stage 1 or 2, "
                f"or train.micro_batch {self.train.global_batch // world}"
            )
        return faults
