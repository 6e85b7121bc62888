"""The losses, each a pure function of LossInputs, in fp32.

A loss returns this micro-batch's share of the loss over the global batch: summed over ranks and micro-batches, the
shares are the global mean. A new loss is a function and a line in LOSSES.

Shapes: B local rows, L letters, V = 4 nucleotides, P summary positions, K prototypes, E embedding, G global rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """One student view against one teacher view. What a loss in use does not need may be None."""

    logits_BLV: Tensor | None
    labels_BL: Tensor  # codes; 0-3 where target_BL
    target_BL: Tensor  # bool
    targets_total: float  # scored positions of the global batch, all views
    rows_total: int  # rows of the global batch, all views
    student_BPK: Tensor | None = None  # cosines
    teacher_BPK: Tensor | None = None  # cosines
    centre_K: Tensor | None = None
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    query_BE: Tensor | None = None  # the student's unit vectors
    keys_GE: Tensor | None = None  # the teacher's unit vectors, all ranks
    positive_B: Tensor | None = None  # int64, the row of keys_GE that shows the same sample
    contrastive_temperature: float = 0.1


def masked_nucleotides(inputs: LossInputs) -> Tensor:
    """Cross-entropy at exactly the scored positions.

    Naive: sum(-log softmax(logits[b, l])[labels[b, l]] for every b, l with target[b, l]) / targets_total
    """
    assert inputs.logits_BLV is not None, "masked_nucleotides needs logits"
    logits_NV, labels_N = inputs.logits_BLV[inputs.target_BL].float(), inputs.labels_BL[inputs.target_BL].long()
    return F.cross_entropy(logits_NV, labels_N, reduction="sum") / max(inputs.targets_total, 1.0)


def distillation(inputs: LossInputs) -> Tensor:
    """Cross-entropy of the student's prototypes against the teacher's, sharpened and centred (Caron et al. 2021, DINO).

    Naive: sum(-softmax((t[b, p] - centre) / τt) · log softmax(s[b, p] / τs) for every b, p) / (rows_total · P)
    """
    assert inputs.student_BPK is not None and inputs.teacher_BPK is not None, "distillation needs both prototypes"
    teacher_BPK = teacher_probabilities(inputs.teacher_BPK, inputs.centre_K, inputs.teacher_temperature)
    student_BPK = F.log_softmax(inputs.student_BPK.float() / inputs.student_temperature, dim=-1)
    return -(teacher_BPK * student_BPK).sum() / (inputs.rows_total * teacher_BPK.shape[1])


def info_nce(inputs: LossInputs) -> Tensor:
    """Each query against every teacher key of the global batch (van den Oord et al. 2018; He et al. 2020, MoCo).

    Naive: sum(-log(exp(q[b]·k[pos[b]]/τ) / sum(exp(q[b]·k[g]/τ) for every g)) for every b) / rows_total
    """
    assert inputs.query_BE is not None and inputs.keys_GE is not None, "info_nce needs queries and keys"
    assert inputs.positive_B is not None, "info_nce needs to know each query's key"
    logits_BG = inputs.query_BE.float() @ inputs.keys_GE.float().T / inputs.contrastive_temperature
    return F.cross_entropy(logits_BG, inputs.positive_B, reduction="sum") / inputs.rows_total


def teacher_probabilities(teacher_BPK: Tensor, centre_K: Tensor | None, temperature: float) -> Tensor:
    """softmax((teacher - centre) / temperature) over K, in fp32."""
    centred = teacher_BPK.float() if centre_K is None else teacher_BPK.float() - centre_K
    return torch.softmax(centred / temperature, dim=-1)


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "mlm": masked_nucleotides,
    "distill": distillation,
    "contrastive": info_nce,
}
