"""A loss from outside: the student's pooled vectors are pulled to the teacher's, less their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.numbers import Positive
from trainer.losses.term import LossConfig, LossTerm, Place, RankBatch
from trainer.models.network import Outputs, Reading


class AgreementConfig(LossConfig):
    """The section ``loss.agreement``; ``weight`` is inherited."""

    size: Positive = 16


class AgreementOutput(NamedTuple):
    vector_BE: Tensor


class AgreementHead(nn.Module):
    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, size)

    def forward(self, reading: Reading, request: None = None) -> AgreementOutput:
        return AgreementOutput(self.project(reading.pooled_BD.to(reading.letters_BLD.dtype)).float())


@dataclass(frozen=True)
class Taught:
    """Of a step: the teacher's vectors by micro-batch and direction, their mean and number in the batch."""

    vectors: list[list[Tensor]]
    mean_E: Tensor
    rows: int


class Agreement(LossTerm[AgreementConfig, Taught]):
    name = "agreement"
    Config = AgreementConfig

    def head(self, hidden_size: int) -> nn.Module:
        return AgreementHead(hidden_size, self.config.size)

    def payload(self, batch: RankBatch) -> dict[str, Tensor]:
        return {
            "sum": torch.stack([vector_BE.sum(0) for part in self._taught(batch) for vector_BE in part]).sum(
                0
            )
        }

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> Taught:
        rows = batch.global_batch * batch.directions
        return Taught(self._taught(batch), gathered["sum"].sum(0) / rows, rows)

    def value(self, outputs: Outputs, place: Place, context: Taught) -> Tensor:
        """Naive: sum(|s[g] - (t[g] - mean(t))|² for every g) / (G · E), G rows of the global batch."""
        target_BE = context.vectors[place.micro_batch][place.direction] - context.mean_E
        squares = (outputs.heads[self.name].vector_BE - target_BE).square()
        return squares.sum() / (context.rows * self.config.size)

    def _taught(self, batch: RankBatch) -> list[list[Tensor]]:
        return [[out.heads[self.name].vector_BE for out in by_direction] for by_direction in batch.taught]
