"""FLOPs of one training step by formula: those that the method needs, not those that an implementation
spends.

A weight of a matrix product costs 2 FLOPs for each vector that it is applied to, and 4 more in the backward
(Kaplan et al. 2020): 6 for the student, 2 for the teacher, which has none. Activations that are computed
again, the first look of losses that tie all rows together, and whatever a kernel does beside, are not
counted: they are the price of a way to do it. Left out as small: Sinkhorn, KoLeo's distances, VICReg's
covariance, SIGReg's slices, norms, softmaxes, the optimiser's step.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from trainer.distill.method import Method
from trainer.losses.term import STUDENT_FLOPS, TEACHER_FLOPS, StepShape
from trainer.models.network import Network


def step_flops(method: Method, network: Network, *, length: int) -> float:
    """FLOPs of one rank's share of a step that reads windows of ``length`` bp."""
    terms, views = method.terms, method.views
    windows = method.global_batch / method.group.size
    shape = StepShape(
        windows=windows,
        views=windows * (2 if views.symmetric else 1),
        crops=windows * views.crops.number,
        length=length,
        summaries=network.backbone.summaries,
        hidden_size=network.backbone.hidden_size,
        global_batch=method.global_batch,
        teacher_flops=TEACHER_FLOPS if method.reads_teacher else 0,
    )
    backbone = _weights(network.backbone)
    total = (
        backbone * (STUDENT_FLOPS + shape.teacher_flops) * shape.views * network.backbone.positions(length)
    )
    total += backbone * STUDENT_FLOPS * shape.crops * network.backbone.positions(views.crops.length)
    for term in terms:
        if term.name in network.heads:
            students, teachers = term.head_vectors(shape)
            head = network.heads[term.name]
            weights, students_own = _weights(head), sum(map(_weights, term.student_only(head)))
            total += STUDENT_FLOPS * students * weights
            total += shape.teacher_flops * teachers * (weights - students_own)
        total += term.product_flops(shape)
    return float(total)


def embedding_flops(network: Network, lengths: Sequence[int]) -> float:
    """FLOPs of the frozen embeddings of sequences of these ``lengths``: a forward of each strand."""
    backbone = network.backbone
    positions = sum(backbone.positions(length) for length in lengths)
    return float(2 * TEACHER_FLOPS * _weights(backbone) * positions)


def _weights(module: nn.Module) -> int:
    """Entries of its matrices; under ZeRO-3, where a rank holds a part of each, of the whole ones."""
    parameters: list[Any] = list(module.parameters())
    return sum(
        getattr(p, "ds_numel", p.numel()) for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2
    )
