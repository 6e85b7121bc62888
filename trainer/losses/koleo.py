"""KoLeo: rows of the global batch are kept apart from their nearest neighbours.

Shapes: B rows of this rank, G of all ranks, D features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses.reduction import among_all, as_share, full_precision
from trainer.losses.rows import RowsConfig, RowsLoss
from trainer.losses.term import RankBatch
from trainer.models.network import Outputs


class KoleoConfig(RowsConfig):
    """Spreads the student's pooled embeddings evenly."""

    LOSS = "koleo"


class Koleo(RowsLoss[KoleoConfig]):
    name = "koleo"
    Config = KoleoConfig
    reads_teacher = False

    def rows(self, outputs: Outputs) -> Tensor:
        return outputs.pooled_BD

    def value_of(self, rows_AE: Tensor, all_GE: Tensor, direction: int, batch: RankBatch) -> Tensor:
        return koleo(Spread(rows_AE, all_GE, batch.group.rank * len(rows_AE), batch.group.size))


@dataclass(frozen=True)
class Spread:
    """This rank's rows of one view, and those of all ranks; not normalised."""

    rows_BD: Tensor  # with gradient
    all_GD: Tensor  # of all ranks, in rank order; no gradient
    first_row: int  # where rows_BD stand in all_GD
    ranks: int  # into how many shares the value is divided
    block: int = 1024  # rows whose neighbours are searched at a time


def koleo(spread: Spread) -> Tensor:
    """-mean log(distance to the nearest neighbour) on the unit sphere: this rank's share, its rows' whole
    gradient.

    fp32. The gradient is exact also where a row of this rank is the neighbour of another rank's row. Equal
    rows do not push each other, and a row of zeros is a point without gradient, so that both are finite. One
    view a call: the other view of a sample is no neighbour. Memory O((block + D) · G). ε is the spacing of
    numbers at 1 of the coarsest dtype that comes in, below which distances are noise (fp32 1.2e-7, fp16
    9.8e-4, bf16 7.8e-3). Kozachenko & Leonenko 1987; Sablayrolles et al. 2019; Oquab et al. 2023 (DINOv2).
    Naive: z[g] = x[g] / |x[g]|;  -sum(log(min(|z[g] - z[h]| for every h ≠ g) + ε) for every g) / G
    Raises ValueError where the global batch has fewer than 2 rows.
    """
    if len(spread.all_GD) < 2:
        raise ValueError(
            f"KoLeo needs a neighbour for each row, and the global batch has {len(spread.all_GD)} row(s); "
            "use a global batch of at least 2, or weight 0 for this loss"
        )
    epsilon = max(
        torch.finfo(dtype).eps for dtype in (spread.rows_BD.dtype, spread.all_GD.dtype, torch.float32)
    )
    # The search sees what was gathered, the same bits on all ranks, which so agree on who is whose neighbour
    # (but for near ties, where processors or threads of the ranks differ).
    neighbour_G = _nearest(_unit(spread.all_GD.float()), spread.block)
    unit_GD = _unit(among_all(spread.rows_BD, spread.all_GD, spread.first_row))
    # Not from the cosine, whose square root has no gradient at 0; the norm's is 0 there.
    # Rows by F.embedding and not by indexing, whose backward has several threads add to a row in the order
    # they come.
    distance_G = torch.linalg.vector_norm(unit_GD - F.embedding(neighbour_G, unit_GD), dim=-1)
    return as_share(-(distance_G + epsilon).log().mean(), spread.ranks)


def _unit(rows_GD: Tensor) -> Tensor:
    """The rows over their norms; a row of zeros stays so, where a small number in place of its norm would
    give 1e12."""
    norm_G1 = torch.linalg.vector_norm(rows_GD, dim=-1, keepdim=True)
    return rows_GD / norm_G1.masked_fill(norm_G1 == 0, torch.inf)


@torch.no_grad()
def _nearest(unit_GD: Tensor, block: int) -> Tensor:
    """int64 [G]: the nearest other row of each; the order of distances below 5e-4 is lost in the cosine's
    rounding."""
    nearest = []
    with full_precision(unit_GD):
        for begin in range(0, len(unit_GD), block):
            cosine_MG = unit_GD[begin : begin + block] @ unit_GD.T
            cosine_MG.diagonal(begin).fill_(-torch.inf)
            nearest.append(cosine_MG.argmax(dim=-1))
    return torch.cat(nearest)
