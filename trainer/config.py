"""The training config: every key of ``configs/train/*.yaml``, its type, its default, and what is accepted."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from cluster.process import cache_root
from configs import Section
from trainer.models import MODELS
from trainer.models.chordmixer import Norm
from trainer.views import VIEWS

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
OnCorrupt = Literal["fail", "skip"]
MIN_LENGTH = 16


class Run(Section):
    dir: str
    name: str = "findna"
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
            return Path(self.cache_dir)
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


class ViewConfig(Section):
    """One view: operations of VIEWS in their order with their limits in bp, then substitution, strand, noise."""

    operations: dict[str, Annotated[int, Field(ge=0, le=1000)]] = {}
    substitution: Fraction = 0.0
    reverse_complement: Fraction = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("operations")
    @classmethod
    def _known(cls, operations: dict[str, int]) -> dict[str, int]:
        unknown = sorted(operations.keys() - VIEWS.keys())
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; must be of {', '.join(sorted(VIEWS))}")
        return operations


class Masking(Section):
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.3
    mask_share: Fraction = 0.8
    random_share: Fraction = 0.1

    @model_validator(mode="after")
    def _shares(self) -> "Masking":
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(f"mask_share {self.mask_share} and random_share {self.random_share} exceed 1 together")
        return self


class Views(Section):
    """``symmetric``: each view is also read by the other network, so both directions are distilled and contrasted."""

    symmetric: bool = False
    student: ViewConfig = ViewConfig()
    teacher: ViewConfig = ViewConfig()
    masking: Masking = Masking()


class MlmLoss(Section):
    weight: Annotated[float, Field(ge=0)] = 1.0


class DistillLoss(Section):
    weight: Annotated[float, Field(ge=0)] = 1.0
    prototypes: Positive = 4096
    mlp_size: Positive = 512
    bottleneck: Positive = 128
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class ContrastiveLoss(Section):
    weight: Annotated[float, Field(ge=0)] = 0.0
    mlp_size: Positive = 512
    embedding: Positive = 128
    temperature: Annotated[float, Field(gt=0)] = 0.1


class Loss(Section):
    mlm: MlmLoss = MlmLoss()
    distill: DistillLoss = DistillLoss()
    contrastive: ContrastiveLoss = ContrastiveLoss()

    @model_validator(mode="after")
    def _some(self) -> "Loss":
        if not self.weights():
            raise ValueError("every loss has weight 0; at least one of mlm, distill, contrastive must be above 0")
        return self

    def weights(self) -> dict[str, float]:
        """The losses in use: name -> weight."""
        all_ = {"mlm": self.mlm.weight, "distill": self.distill.weight, "contrastive": self.contrastive.weight}
        return {name: weight for name, weight in all_.items() if weight > 0}


class Ema(Section):
    momentum: Fraction = 0.996
    momentum_end: Fraction = 1.0


class Train(Section):
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

    @field_validator("zero_stage")
    @classmethod
    def _supported(cls, stage: int) -> int:
        if stage == 3:
            raise ValueError("ZeRO-3 is not supported yet; use 0, 1 or 2")
        return stage


class Validation(Section):
    every: Positive = 500
    windows: Positive = 512
    batch: Positive = 32


class Checkpoint(Section):
    """Snapshots of the teacher under run.dir/checkpoints every so many steps (0: only the export at the end)."""

    every: Annotated[int, Field(ge=0)] = 0
    keep_last: Positive = 2


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the working folder, which a bare ``mlflow ui`` shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class Track(Section):
    uri: str = Field(default_factory=default_tracking_uri)
    artifact_uri: str | None = None
    experiment: str = "findna"
    registered_model: str | None = "findna"
    every: Positive = 50


class TrainConfig(Section):
    run: Run
    data: Data
    model: Model = Model()
    views: Views = Views()
    loss: Loss = Loss()
    ema: Ema = Ema()
    train: Train
    val: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Field(default_factory=Track)

    @property
    def schedule_steps(self) -> int:
        return self.train.schedule_steps or self.train.steps

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
