"""Losses that compare the student's rows of a direction with those of all ranks: KoLeo, VICReg, SIGReg.

Shapes: A rows of this rank, G of all ranks, E features.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from trainer.losses.term import LossConfig, LossTerm, RankBatch
from trainer.models.network import Outputs
from trainer.views.config import Views


class RowsConfig(LossConfig):
    LOSS: ClassVar[str]  # its key in the config

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        if global_batch >= 2:
            return []
        return [
            f"train.global_batch: {global_batch} must be at least 2 for loss.{self.LOSS}, which compares the "
            f"rows of a batch with each other; or set loss.{self.LOSS}.weight to 0"
        ]


R = TypeVar("R", bound=RowsConfig)


class RowsLoss(LossTerm[R, None]):
    """Mean over the directions, each by itself: the other view of a sample is no row beside it."""

    coupled = True

    def rows(self, outputs: Outputs) -> Tensor:
        """[B, E] of the student."""
        raise NotImplementedError

    def value_of(self, rows_AE: Tensor, all_GE: Tensor, direction: int, batch: RankBatch) -> Tensor:
        """This rank's share of one direction; this rank's rows begin at ``batch.group.rank`` · A of all."""
        raise NotImplementedError

    def features(self, outputs: Outputs) -> tuple[Tensor]:
        return (self.rows(outputs),)

    def coupled_payload(self, features: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        return {f"rows {d}": rows_AE for d, (rows_AE,) in enumerate(features)}

    def coupled_value(
        self,
        features: Sequence[tuple[Tensor, ...]],
        batch: RankBatch,
        gathered: Mapping[str, Tensor],
        context: None,
    ) -> Tensor:
        values = [
            self.value_of(rows_AE, gathered[f"rows {d}"].flatten(0, 1), d, batch)
            for d, (rows_AE,) in enumerate(features)
        ]
        return torch.stack(values).sum() / len(values)
