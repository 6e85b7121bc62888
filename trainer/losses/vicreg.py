"""VICReg: features that vary over the global batch, do not repeat each other, and agree with the teacher's.

Shapes: B rows of this rank, G of all ranks, D hidden, E features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.numbers import Positive, Weight
from trainer.losses.reduction import among_all, as_share, full_precision
from trainer.losses.rows import RowsConfig, RowsLoss
from trainer.losses.term import RankBatch, StepShape
from trainer.models.heads import mlp
from trainer.models.network import Outputs, Reading

DEVIATION = 1.0  # γ, the standard deviation that each feature is to reach
EPSILON = 1e-4  # under the root of the variance, whose slope is then at most 50 × the deviation from the mean


class VicregConfig(RowsConfig):
    """``invariance``, ``variance``, ``covariance``: the weights of its three parts."""

    LOSS = "vicreg"

    mlp_size: Positive = 512
    embedding: Positive = 256
    invariance: Weight = 25.0
    variance: Weight = 25.0
    covariance: Weight = 1.0


class ExpanderOutput(NamedTuple):
    expanded_BE: Tensor  # fp32, not normalised


class ExpanderHead(nn.Module):
    """Vectors of free length (Bardes et al. 2022): pooled [B, D] -> fp32 [B, E]."""

    def __init__(self, hidden_size: int, *, mlp_size: int, embedding: int) -> None:
        super().__init__()
        self.mlp = mlp(hidden_size, mlp_size, embedding)

    def forward(self, reading: Reading, request: None = None) -> ExpanderOutput:
        return ExpanderOutput(self.mlp(reading.pooled_BD.to(reading.letters_BLD.dtype)).float())


class Vicreg(RowsLoss[VicregConfig]):
    name = "vicreg"
    Config = VicregConfig

    def __init__(self, config: VicregConfig) -> None:
        super().__init__(config)
        self.reads_teacher = config.invariance > 0

    def head(self, hidden_size: int) -> nn.Module:
        return ExpanderHead(hidden_size, mlp_size=self.config.mlp_size, embedding=self.config.embedding)

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        return shape.views, shape.views if self.reads_teacher else 0

    def rows(self, outputs: Outputs) -> Tensor:
        expanded_BE: Tensor = outputs.heads[self.name].expanded_BE
        return expanded_BE

    def value_of(self, rows_AE: Tensor, all_GE: Tensor, direction: int, batch: RankBatch) -> Tensor:
        taught = [rows_AE.detach()]
        if self.reads_teacher:
            taught = [self.rows(by_direction[direction]) for by_direction in batch.taught]
        return vicreg(
            Expanded(
                rows_AE,
                all_GE,
                torch.cat(taught),
                batch.group.rank * len(rows_AE),
                batch.group.size,
                self.config.invariance,
                self.config.variance,
                self.config.covariance,
            )
        )


@dataclass(frozen=True)
class Expanded:
    """This rank's rows of one view, the teacher's of the other, and the student's of all ranks; not
    normalised."""

    rows_BE: Tensor  # with gradient
    all_GE: Tensor  # the student's of all ranks, in rank order; no gradient
    teacher_BE: Tensor  # the other view of rows_BE; no gradient
    first_row: int  # where rows_BE stand in all_GE
    ranks: int  # into how many shares the value is divided
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


def vicreg(expanded: Expanded) -> Tensor:
    """Variance hinge, covariance and distance to the teacher: this rank's share, with its rows' whole
    gradient, fp32.

    Mean and covariance are those of the global batch. Bardes et al. 2022, for one view; the coefficients, and
    the mean over features in the invariance that belongs to them, as in the authors' code.
    Naive: C = cov(z), G - 1 in the denominator;
    invariance · sum((z[g, e] - t[g, e])² for every g, e) / (G · E)
    + variance · sum(max(0, 1 - sqrt(C[e, e] + 1e-4)) for every e) / E
    + covariance · sum(C[e, f]² for every e ≠ f) / E
    Raises ValueError where the global batch has fewer than 2 rows.
    """
    rows, size = expanded.all_GE.shape
    if rows < 2:
        raise ValueError(
            f"VICReg needs a variance over the global batch, which has {rows} row(s); "
            "use a global batch of at least 2, or weight 0 for this loss"
        )
    assert not expanded.teacher_BE.requires_grad, "the teacher's rows carry no gradient"
    assert expanded.teacher_BE.shape == expanded.rows_BE.shape, (
        f"rows of {tuple(expanded.rows_BE.shape)} and of the teacher {tuple(expanded.teacher_BE.shape)}"
    )
    rows_BE = (
        expanded.rows_BE.float()
    )  # once: the gradients of two casts would be added in the dtype that came in
    distance = (rows_BE - expanded.teacher_BE.float()).square().sum() / (rows * size)
    all_GE = among_all(rows_BE, expanded.all_GE, expanded.first_row)
    centred_GE = all_GE - all_GE.mean(0)
    with full_precision(centred_GE):
        covariance_EE = centred_GE.T @ centred_GE / (rows - 1)
    variance_E = covariance_EE.diagonal()
    hinge = (DEVIATION - (variance_E + EPSILON).sqrt()).relu().sum() / size
    off_diagonal = (covariance_EE - torch.diag(variance_E)).square().sum() / size
    everywhere = expanded.variance * hinge + expanded.covariance * off_diagonal
    return expanded.invariance * distance + as_share(everywhere, expanded.ranks)
