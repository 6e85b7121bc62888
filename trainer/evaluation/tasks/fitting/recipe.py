"""How a whole network is trained on a task: the keys of the section ``finetune``, and what follows of
them."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from configs import Section
from configs.numbers import Above0, Fraction, Positive, Weight
from trainer.inference.precision import Precision

PoolingName = Literal["mean", "mean_max", "bins", "attention"]
Norm = Literal["batch", "layer"]
READINGS = 20  # of dev, where more epochs than that are made by min_steps


def as_list(value: Any) -> Any:
    """A single value as a list of one, so that ``finetune.lr=1e-3`` works on a command line."""
    return value if isinstance(value, list | tuple) else [value]


def _null_as_0(value: Any) -> Any:
    return 0 if value is None else value


Grid = Annotated[tuple[Above0, ...], Field(min_length=1), BeforeValidator(as_list)]
Count = Annotated[int, Field(ge=0), BeforeValidator(_null_as_0)]


class Length(NamedTuple):
    """How long a training is: ``epochs`` of ``batches`` steps; dev is read after every ``stride`` of them."""

    epochs: int
    batches: int
    stride: int

    @property
    def steps(self) -> int:
        return self.epochs * self.batches

    @property
    def readings(self) -> int:
        """How often dev is read."""
        return math.ceil(self.epochs / self.stride)


class Finetune(Section):
    """Training of the whole network: modes ``finetune`` (from the teacher's weights) and ``scratch``.

    ``epochs`` and ``min_steps``: the longer of the two; who gives ``epochs`` alone gets just those.
    ``patience``: readings of dev without a better score after which training at a learning rate ends; 0 is
    off. ``pooling``: all are trained at once on the one network, and dev chooses.
    ``backbone_lr_factor``, ``layer_decay``, ``frozen_steps``: of pretrained weights, so for ``finetune``
    alone.
    """

    epochs: Positive = 10
    min_steps: Count = 2000
    patience: Count = 6
    batch: Annotated[int, Field(ge=4)] = 64
    lr: Grid = (5e-4, 1e-3, 2e-3)
    weight_decay: Weight = 0.01
    warmup: Fraction = 0.01
    grad_clip: Above0 = 1.0
    pooling: Annotated[tuple[PoolingName, ...], Field(min_length=1), BeforeValidator(as_list)] = (
        "mean_max",
        "bins",
        "attention",
    )
    norm: Norm = "layer"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    backbone_lr_factor: Above0 = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen_steps: Count = 0
    precision: Precision = "auto"

    @field_validator("pooling")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("none may be given twice")
        return names

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, values: Any) -> Any:
        """Who gives ``epochs`` and not ``min_steps`` gets just those epochs."""
        if isinstance(values, Mapping) and "epochs" in values and "min_steps" not in values:
            return {"min_steps": 0} | dict(values)
        return values

    def length(self, rows: int) -> Length:
        """Of a training on ``rows``."""
        batches = math.ceil(rows / self.batch)
        epochs = max(self.epochs, math.ceil(self.min_steps / batches))
        return Length(epochs, batches, max(1, epochs // max(self.epochs, READINGS)))


class HeadConfig(Section):
    """What a kept model's head is. The defaults are what was before there was a choice."""

    pooling: PoolingName = "mean"
    norm: Norm = "batch"
