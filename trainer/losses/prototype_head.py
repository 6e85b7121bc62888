"""The head of the losses over prototypes: a bottleneck of each vector, compared with K unit prototypes; its
config.

Shapes: C bottleneck, K prototypes; leading dimensions are the caller's.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from configs.numbers import Above0, Fraction, Positive
from trainer.core import schedules
from trainer.losses.term import LossConfig
from trainer.models.heads import mlp


class PrototypeConfig(LossConfig):
    """A prototype head and how the teacher's side of it is balanced.

    ``balance``: ``centring`` takes the moving mean of the teacher's cosines off, ``sinkhorn`` spreads the
    global batch evenly over the prototypes, ``none`` leaves them as they are, which collapses.
    ``centre_bottleneck``: the moving mean of the teacher's bottleneck is taken off both networks' before it
    is normalised; ``centring`` then takes off nothing else. What all samples have in common, which in a young
    network is nearly all, is in no cosine then.
    ``teacher_temperature``: reached linearly from ``teacher_temperature_start`` on over the share
    ``teacher_temperature_warmup`` of the schedule.
    """

    prototypes: Positive = 4096
    mlp_size: Positive = 512
    bottleneck: Positive = 128
    predictor: bool = False
    student_temperature: Above0 = 0.1
    teacher_temperature: Above0 = 0.04
    teacher_temperature_start: Above0 | None = None
    teacher_temperature_warmup: Fraction = 0.0
    balance: Literal["centring", "sinkhorn", "none"] = "centring"
    centre_bottleneck: bool = False
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    sinkhorn_iterations: Positive = 3

    @model_validator(mode="after")
    def _agree(self) -> "PrototypeConfig":
        if self.balance == "none" and self.centre_bottleneck:
            raise ValueError(
                "balance none takes no mean off, and centre_bottleneck true wants one taken off; "
                "use balance centring or sinkhorn"
            )
        if (self.teacher_temperature_start is None) != (self.teacher_temperature_warmup == 0):
            raise ValueError(
                f"teacher_temperature_start {self.teacher_temperature_start or 'null'} and "
                f"teacher_temperature_warmup {self.teacher_temperature_warmup:g} belong together; "
                "give both, or neither"
            )
        return self

    @property
    def takes_off(self) -> bool:
        """Whether a moving mean is taken off."""
        return self.balance == "centring" or self.centre_bottleneck

    def temperature_at(self, progress: float) -> float:
        """The teacher's, where the share ``progress`` of the schedule is done."""
        if self.teacher_temperature_start is None:
            return self.teacher_temperature
        return schedules.linear(
            progress,
            start=self.teacher_temperature_start,
            end=self.teacher_temperature,
            share=self.teacher_temperature_warmup,
        )


class PrototypeOutput(NamedTuple):
    """What a PrototypeHead gives for vectors [..., D]: cosines, or that from which they can be computed."""

    cosines: Tensor | None  # fp32 [..., K] in [-1, 1]
    bottleneck: Tensor | None = None  # fp32 [..., C]; unit vectors, but where their mean is taken off first
    prototypes_KC: Tensor | None = None  # fp32 unit vectors

    def rows(self) -> "PrototypeOutput":
        """[B, N, ...] as rows of one position: [B·N, 1, ...]."""
        cosines, bottleneck = (None if part is None else part.flatten(0, 1)[:, None] for part in self[:2])
        return PrototypeOutput(cosines, bottleneck, self.prototypes_KC)

    def cut(self, parts: int) -> "list[PrototypeOutput]":
        """Of equal parts of the rows; the prototypes are everybody's."""
        cosines, bottleneck = (
            [None] * parts if part is None else part.chunk(parts) for part in (self.cosines, self.bottleneck)
        )
        return [PrototypeOutput(*pair, self.prototypes_KC) for pair in zip(cosines, bottleneck, strict=True)]

    def first(self, count: int) -> "PrototypeOutput":
        """Of the first ``count`` rows."""
        cosines, bottleneck = (None if part is None else part[:count] for part in self[:2])
        return PrototypeOutput(cosines, bottleneck, self.prototypes_KC)

    def cosines_about(self, mean_C: Tensor | None) -> Tensor:
        """fp32 [..., K]: the cosines, of the bottleneck less ``mean_C`` [..., C] where that is given."""
        if self.cosines is not None:
            return self.cosines
        assert self.bottleneck is not None and self.prototypes_KC is not None, (
            "cosines, or both of their parts"
        )
        return centred_unit(self.bottleneck, mean_C) @ self.prototypes_KC.T


def centred_unit(bottleneck: Tensor, mean_C: Tensor | None) -> Tensor:
    """Unit vectors: ``bottleneck`` less ``mean_C``; as it is, for it has been normalised, without a mean."""
    return bottleneck if mean_C is None else F.normalize(bottleneck - mean_C, dim=-1)


class PrototypeHead(nn.Module):
    """Cosines between a bottleneck of each vector and K unit prototypes.

    Caron et al. 2021 (DINO), with the prototypes' norm fixed at 1. A subclass says which vectors are read.

    Args:
        raw: it gives the bottleneck as it is, not normalised, and its prototypes.
        predictor: in training its bottleneck goes through a further MLP, which the teacher so has no part in
            (Grill et al. 2020, BYOL).
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        mlp_size: int,
        bottleneck: int,
        prototypes: int,
        raw: bool = False,
        predictor: bool = False,
    ) -> None:
        super().__init__()
        self.raw = raw
        self.mlp = mlp(hidden_size, mlp_size, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)
        self.predictor = mlp(bottleneck, mlp_size, bottleneck) if predictor else None

    def outputs(self, x: Tensor, *, split: bool = False) -> PrototypeOutput:
        """``split``: bottleneck and prototypes in place of their cosines."""
        projected = self.mlp(x)
        if self.predictor is not None and self.training:
            projected = self.predictor(projected)
        prototypes_KC = F.normalize(self.prototypes.float(), dim=-1)
        if self.raw:
            return PrototypeOutput(None, projected.float(), prototypes_KC)
        bottleneck = F.normalize(projected.float(), dim=-1)
        if split:
            return PrototypeOutput(None, bottleneck, prototypes_KC)
        return PrototypeOutput(bottleneck @ prototypes_KC.T)
