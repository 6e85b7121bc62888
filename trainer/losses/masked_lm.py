"""Masked nucleotide prediction: the loss ``mlm``.

Shapes: B rows, L letters, V nucleotides, N scored letters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.numbers import Fraction, Weight
from data_prep import alphabet
from trainer.core import device
from trainer.data.windows import Windows
from trainer.losses.reduction import over_total
from trainer.losses.term import STUDENT_FLOPS, LossConfig, LossTerm, Place, RankBatch, StepShape
from trainer.models.network import Outputs
from trainer.views.alignment import letter_weights
from trainer.views.view_batch import ViewBatch

_NOT_SCORED = 255  # no code of a letter


class MaskedLmConfig(LossConfig):
    """``soft_weight``: what a letter counts that is soft-masked (lower case, a repeat) in the reference.

    ``track_floor``: what a letter counts whose weight in the dataset is 0; one of weight 1 counts 1, others
    in proportion. None: the dataset's weights are not used.
    """

    weight: Weight = 1.0
    soft_weight: Fraction = 1.0
    track_floor: Fraction | None = None

    @property
    def needs_soft_mask(self) -> bool:
        return self.soft_weight != 1

    @property
    def needs_track(self) -> bool:
        return self.track_floor is not None


@dataclass(frozen=True)
class ScoredLetters:
    """Of a step: its views and the weights of their letters, by micro-batch and direction; what they sum
    to."""

    views: list[ViewBatch]
    weights: list[list[Tensor | None]]  # [B, L], None: 1
    total: Tensor  # fp64 0-d


class MaskedLm(LossTerm[MaskedLmConfig, ScoredLetters]):
    """The nucleotide head belongs to the encoder and is the network's own; so this loss needs no head."""

    name = "mlm"
    Config = MaskedLmConfig
    reads_teacher = False

    def product_flops(self, shape: StepShape) -> float:
        return STUDENT_FLOPS * alphabet.BASES * shape.hidden_size * shape.views * shape.length

    def prepare(self, windows: Windows, views: ViewBatch) -> list[Tensor | None]:
        config = self.config
        if not (config.needs_soft_mask or config.needs_track):
            return [None] * len(views.pairs)
        soft, floor = config.soft_weight, config.track_floor
        return [
            letter_weights(pair.student, windows, soft_weight=soft, track_floor=floor) for pair in views.pairs
        ]

    def payload(self, batch: RankBatch) -> dict[str, Tensor]:
        weights = [
            pair.masked.target_BL.sum()
            if weight_BL is None
            else (weight_BL * pair.masked.target_BL).sum(dtype=torch.float64)
            for views, extra in zip(batch.views, batch.extras, strict=True)
            for pair, weight_BL in zip(views.pairs, extra, strict=True)
        ]
        return {"letters": torch.stack(weights).double().sum()}

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> ScoredLetters:
        return ScoredLetters(list(batch.views), list(batch.extras), gathered["letters"].sum())

    def value(self, outputs: Outputs, place: Place, context: ScoredLetters) -> Tensor:
        masked = context.views[place.micro_batch].pairs[place.direction].masked
        weight_BL = context.weights[place.micro_batch][place.direction]
        assert outputs.logits_BLV is not None, "the student gives logits"
        return masked_nucleotides(
            Scored(outputs.logits_BLV, masked.labels_BL, masked.target_BL, weight_BL, context.total)
        )


@dataclass(frozen=True)
class Scored:
    """Predictions for B rows of L letters, and which of them count."""

    logits_BLV: Tensor  # V = 4 nucleotides
    labels_BL: Tensor  # codes; 0-3 where target_BL
    target_BL: Tensor  # bool
    weight_BL: Tensor | None  # of each letter, at most 1; None: 1
    total: Tensor | float  # sum of the weights of the scored letters of the global batch, all views


def masked_nucleotides(scored: Scored) -> Tensor:
    """Cross-entropy at exactly the scored positions: this micro-batch's share of the weighted global mean,
    fp32.

    Without a scored letter 0, with a gradient of 0. What stands in logits and labels elsewhere, NaN included,
    does not reach value or gradient. The masked-token objective of Devlin et al. 2019 (BERT).
    Naive: sum(-w[b, l] · log softmax(logits[b, l])[labels[b, l]] for every b, l with target[b, l]) / total
    """
    if device.is_queued(scored.target_BL.device):
        return over_total(_all_letters(scored), scored.total)
    # About a quarter of the letters; how many there are, a GPU would have to be waited for.
    logits_NV = scored.logits_BLV[scored.target_BL].float()
    labels_N = scored.labels_BL[scored.target_BL].long()
    loss_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    if scored.weight_BL is not None:
        loss_N = loss_N * scored.weight_BL[scored.target_BL].float()
    return over_total(loss_N.sum(), scored.total)


def _all_letters(scored: Scored) -> Tensor:
    """The sum of the weighted cross-entropies, from all letters, of which those that are not scored give 0.

    Their logits are replaced, since 0 · NaN is not 0.
    """
    target_BL = scored.target_BL
    logits_BLV = torch.where(target_BL[..., None], scored.logits_BLV.float(), 0)
    labels_BL = torch.where(target_BL, scored.labels_BL, _NOT_SCORED).long()
    loss_N = F.cross_entropy(
        logits_BLV.flatten(0, 1), labels_BL.flatten(), reduction="none", ignore_index=_NOT_SCORED
    )
    if scored.weight_BL is not None:
        loss_N = loss_N * scored.weight_BL.flatten().float()
    return loss_N.sum()
