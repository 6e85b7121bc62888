"""Masked nucleotide prediction.

Shapes: B rows, L letters, V nucleotides, N scored letters.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from trainer.losses.reduction import over_total


@dataclass(frozen=True)
class Scored:
    """Predictions for B rows of L letters, and which of them count."""

    logits_BLV: Tensor  # V = 4 nucleotides
    labels_BL: Tensor  # codes; 0-3 where target_BL
    target_BL: Tensor  # bool
    weight_BL: Tensor | None  # of each letter, 1 but less in soft-masked repeats; None: 1
    total: float  # sum of the weights of the scored letters of the global batch, all views


def masked_nucleotides(scored: Scored) -> Tensor:
    """Cross-entropy at exactly the scored positions: this micro-batch's share of the weighted global mean,
    fp32.

    Without a scored letter 0, with a gradient of 0. What stands in logits and labels elsewhere, NaN included,
    does not reach value or gradient. The masked-token objective of Devlin et al. 2019 (BERT).
    Naive: sum(-w[b, l] · log softmax(logits[b, l])[labels[b, l]] for every b, l with target[b, l]) / total
    """
    logits_NV = scored.logits_BLV[scored.target_BL].float()
    labels_N = scored.labels_BL[scored.target_BL].long()
    loss_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    if scored.weight_BL is not None:
        loss_N = loss_N * scored.weight_BL[scored.target_BL].float()
    return over_total(loss_N.sum(), scored.total)
