"""The cross-entropy of a student's prototypes against its teacher's.

Shapes: S student readings, N places, K prototypes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses.reduction import over_total


@dataclass(frozen=True)
class Distilled:
    """S student readings, each against the same teacher reading, at N places; K prototypes."""

    student_SNK: Tensor  # cosines
    teacher_NK: Tensor  # probabilities, no gradient
    weight_N: Tensor | None  # 0 where a place does not count; None: 1
    temperature: float  # of the student
    total: Tensor | float  # sum of the weights of the global batch: places and readings, all views


def distillation(distilled: Distilled) -> Tensor:
    """Cross-entropy of the student against the teacher's probabilities: this micro-batch's share of the
    global mean.

    fp32. Without a place that counts 0, with a gradient of 0.
    Caron et al. 2021 (DINO); at masked letters, Zhou et al. 2022 (iBOT).
    Naive: sum(-w[n] · t[n] · log softmax(s[r, n] / τ) for every r, n) / total
    """
    assert not distilled.teacher_NK.requires_grad, "the teacher's probabilities carry no gradient"
    log_student_SNK = F.log_softmax(distilled.student_SNK.float() / distilled.temperature, dim=-1)
    loss_SN = -(distilled.teacher_NK.float() * log_student_SNK).sum(-1)
    if distilled.weight_N is not None:
        loss_SN = loss_SN * distilled.weight_N.float()
    return over_total(loss_SN.sum(), distilled.total)


def centred_probabilities(teacher_NK: Tensor, centre_K: Tensor | None, temperature: float) -> Tensor:
    """softmax((teacher - centre) / temperature) over K, in fp32 (Caron et al. 2021); no centre is a centre of
    0."""
    centred = teacher_NK.float() if centre_K is None else teacher_NK.float() - centre_K.float()
    return torch.softmax(centred / temperature, dim=-1)
