"""SIGReg: embeddings that are normally distributed over the global batch and agree with the other view.

No prototypes, no centre, no negatives: an embedding that is the same for all samples is no normal one. LeJEPA
(Balestriero & LeCun 2025, arXiv:2511.08544) needs no teacher either (``target: student``); with one, the
student's embeddings are normal and those of the teacher, which follow, are what they agree with.

Shapes: B rows of this rank, A of all its micro-batches, G of all ranks, E embedding, K slices, T knots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.numbers import Fraction, Positive
from trainer.core import random
from trainer.losses.reduction import as_share, full_precision
from trainer.losses.rows import RowsConfig, RowsLoss
from trainer.losses.term import RankBatch, StepShape
from trainer.losses.vicreg import ExpanderHead
from trainer.models.network import Outputs
from trainer.views.config import Views

KNOTS, LAST_KNOT = (
    17,
    3.0,
)  # the integral over t from 0 on, doubled: the integrand is even. The authors' numbers


class SigregConfig(RowsConfig):
    """``share``: of the regularisation in the loss; the rest is the distance to ``target``.

    ``target``: the teacher's embedding of the other view, or the mean of the student's own two
    (``views.symmetric``), as published. ``slices``: directions that a step looks along, anew at every step.
    """

    LOSS = "sigreg"

    mlp_size: Positive = 512
    embedding: Positive = 64
    slices: Positive = 256
    share: Fraction = 0.05
    target: Literal["teacher", "student"] = "teacher"

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        found = super().faults(views, global_batch=global_batch)
        if self.target == "student" and not views.symmetric and self.share < 1:
            found.append(
                "loss.sigreg.target: the student's own other view needs views.symmetric: true; or use the "
                "teacher's"
            )
        return found


class Sigreg(RowsLoss[SigregConfig]):
    name = "sigreg"
    Config = SigregConfig

    def __init__(self, config: SigregConfig) -> None:
        super().__init__(config)
        self.reads_teacher = config.target == "teacher" and config.share < 1

    def head(self, hidden_size: int) -> nn.Module:
        return ExpanderHead(hidden_size, mlp_size=self.config.mlp_size, embedding=self.config.embedding)

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        return shape.views, shape.views if self.reads_teacher else 0

    def rows(self, outputs: Outputs) -> Tensor:
        expanded_BE: Tensor = outputs.heads[self.name].expanded_BE
        return expanded_BE

    def value_of(self, rows_AE: Tensor, all_GE: Tensor, direction: int, batch: RankBatch) -> Tensor:
        share, group = self.config.share, batch.group
        value = rows_AE.new_zeros(())
        if share > 0:
            slices_EK = slices(batch.moment.key, all_GE.shape[1], self.config.slices, device=all_GE.device)
            sketch = Sketch(rows_AE, all_GE, slices_EK, group.rank * len(rows_AE), group.size)
            value = value + share * sigreg(sketch)
        if self.reads_teacher:
            taught = torch.cat([self.rows(by_direction[direction]) for by_direction in batch.taught])
            value = value + (1 - share) * distance(rows_AE, taught, rows=len(all_GE))
        return value

    def coupled_value(
        self,
        features: Sequence[tuple[Tensor, ...]],
        batch: RankBatch,
        gathered: Mapping[str, Tensor],
        context: None,
    ) -> Tensor:
        value = super().coupled_value(features, batch, gathered, context)
        if self.config.target == "student" and self.config.share < 1:
            (first_AE,), (second_AE,) = features
            # A view is half the way to the other from their mean, and so is the other.
            apart = distance(first_AE, second_AE, rows=len(first_AE) * batch.group.size) / 4
            value = value + (1 - self.config.share) * apart
        return value


@dataclass(frozen=True)
class Sketch:
    """This rank's rows of one view and those of all ranks, not normalised, and the slices of this step."""

    rows_BE: Tensor  # with gradient
    all_GE: Tensor  # of all ranks, in rank order; no gradient
    slices_EK: Tensor  # unit columns
    first_row: int  # where rows_BE stand in all_GE
    ranks: int  # into how many shares the value is divided
    block: int = 512  # rows that are looked at together


def sigreg(sketch: Sketch) -> Tensor:
    """How far the rows are from N(0, 1), mean over slices: this rank's share, with its rows' whole gradient.

    fp32, sums over rows in fp64. The statistic of Epps & Pulley (1983): the characteristic function of the
    rows against that of the normal, exp(-t²/2), under the weight exp(-t²/2), times the number of rows, so
    that of normal rows it is as large in any batch.
    Naive: u[g, k] = x[g]·a[k];  G · sum(w[j] · |sum(exp(i t[j] u[g, k]) for every g) / G - exp(-t[j]²/2)|²
    for every j, k) / K, with t[j] from 0 to 3 and w[j] = 2 · exp(-t[j]²/2) · the trapezoid's weight of t[j].
    Memory O((block + B) · K · T).
    Raises ValueError where the global batch has fewer than 2 rows.
    """
    rows = len(sketch.all_GE)
    if rows < 2:
        raise ValueError(
            f"SIGReg needs a distribution over the global batch, which has {rows} row(s); "
            "use a global batch of at least 2, or weight 0 for this loss"
        )
    knot_T = torch.linspace(0, LAST_KNOT, KNOTS, device=sketch.all_GE.device)
    normal_T = torch.exp(-knot_T.square() / 2)
    trapezoid_T = torch.full_like(knot_T, LAST_KNOT / (KNOTS - 1))
    trapezoid_T[0] = trapezoid_T[-1] = trapezoid_T[0] / 2
    end = sketch.first_row + len(sketch.rows_BE)
    assert sketch.first_row >= 0 and end <= rows, f"rows {sketch.first_row} to {end} of {rows} gathered ones"
    with full_precision(sketch.all_GE):
        sums_2KT = _characteristic_sums(sketch.rows_BE, sketch.slices_EK, knot_T)
        with torch.no_grad():  # what the others have to say carries no gradient
            others_GE = torch.cat([sketch.all_GE[: sketch.first_row], sketch.all_GE[end:]])
            others = [
                _characteristic_sums(part_ME, sketch.slices_EK, knot_T)
                for part_ME in others_GE.split(sketch.block)
            ]
        real_KT, imaginary_KT = ((sums_2KT + sum(others)) / rows).unbind(0)
    apart_KT = (real_KT - normal_T).square() + imaginary_KT.square()
    value = rows * 2 * (apart_KT * (normal_T * trapezoid_T)).sum(1).mean()
    return as_share(value.float(), sketch.ranks)


def distance(rows_BE: Tensor, target_BE: Tensor, *, rows: int) -> Tensor:
    """sum((z[b, e] - y[b, e])² for every b, e) / (rows · E): this rank's share of the mean over ``rows``."""
    assert rows_BE.shape == target_BE.shape, f"rows of {tuple(rows_BE.shape)} and {tuple(target_BE.shape)}"
    return (rows_BE.float() - target_BE.float()).square().sum() / (rows * rows_BE.shape[1])


def slices(key: int, size: int, number: int, *, device: torch.device) -> Tensor:
    """fp32 [size, number]: unit columns, uniform over directions; the same for the same key on any rank."""
    drawn_1N = random.normals(torch.full((1,), key, device=device), "slices", size * number)
    return F.normalize(drawn_1N.view(size, number), dim=0)


def _characteristic_sums(rows_BE: Tensor, slices_EK: Tensor, knot_T: Tensor) -> Tensor:
    """fp64 [2, K, T]: sums over the rows of cos(t u) and sin(t u), u the rows along the slices."""
    angle_BKT = (rows_BE.float() @ slices_EK)[..., None] * knot_T
    return torch.stack([part.sum(0, dtype=torch.float64) for part in (angle_BKT.cos(), angle_BKT.sin())])
