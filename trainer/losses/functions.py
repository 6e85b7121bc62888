"""The losses as functions of plain tensors. docs/api.md has an example of each.

They return this rank's share of a value over the global batch, which is the rows of all ranks of ``group``:
the shares sum to the value, and gradients that are summed over ranks are its gradient. Under
DistributedDataParallel, which averages gradients, multiply the share by the number of ranks. Every rank must
give as many rows as the others. ``group`` None is all processes, or this one alone if torch.distributed is
not initialised.

Shapes: B rows of this rank, G of all ranks, E embedding, C vector, K prototypes, D features.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.losses import infonce
from trainer.losses import koleo as koleo_room
from trainer.losses import sinkhorn as sinkhorn_room

ProcessGroup = dist.ProcessGroup


def info_nce(
    query_BE: Tensor, key_BE: Tensor, *, temperature: float | Tensor = 0.1, group: ProcessGroup | None = None
) -> Tensor:
    """InfoNCE of each query against the keys of all ranks; the key of its own row is the positive.

    Keys get no gradient, as those of a teacher. One all-gather; memory does not grow with B · G. van den Oord
    et al. 2018; He et al. 2020 (MoCo). Both are normalised here. Naive, on one rank:
    F.cross_entropy(F.normalize(query) @ F.normalize(key).T / temperature, torch.arange(B))

    Args:
        temperature: a tensor may have a gradient.

    Raises:
        ValueError: the shapes differ, or there is no row.
    """
    _check_rows(query_BE, key_BE)
    ranks, rows = Group.of(group), len(query_BE)
    key_GE = _gather(ranks, key=F.normalize(key_BE.float(), dim=-1))["key"]
    own_B = torch.arange(rows, device=query_BE.device) + ranks.rank * rows
    query_BE = F.normalize(query_BE.float(), dim=-1)
    scale = _scale(temperature, query_BE)
    return infonce.info_nce(infonce.Contrast(query_BE, key_GE, own_B, scale, len(key_GE)))


def symmetric_info_nce(
    first_BE: Tensor,
    second_BE: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE of both views against each other, halved, with the gradient of both.

    Radford et al. 2021 (CLIP). Rows of other ranks are negatives, and their losses, too, have a gradient for
    this rank's rows. The views travel in one all-gather; if a gradient is wanted, 4 numbers a row in another.
    Both are normalised here. Naive, on one rank, with l = F.normalize(first) @ F.normalize(second).T /
    temperature: (F.cross_entropy(l, torch.arange(B)) + F.cross_entropy(l.T, torch.arange(B))) / 2

    Args:
        temperature: a tensor may have a gradient.

    Raises:
        ValueError: the shapes differ, or there is no row.
    """
    _check_rows(first_BE, second_BE)
    ranks, rows = Group.of(group), len(first_BE)
    first_BE, second_BE = (F.normalize(view_BE.float(), dim=-1) for view_BE in (first_BE, second_BE))
    everywhere = _gather(ranks, first=first_BE, second=second_BE)
    contrast = infonce.SymmetricContrast(
        first_BE,
        second_BE,
        everywhere["first"],
        everywhere["second"],
        first_row=ranks.rank * rows,
        scale=_scale(temperature, first_BE),
        group=ranks,
        rows_total=ranks.size * rows,
    )
    return infonce.symmetric_info_nce(contrast)


@torch.no_grad()
def sinkhorn(
    vector_BC: Tensor,
    prototype_KC: Tensor,
    *,
    temperature: float = 0.05,
    iterations: int = 3,
    weight_B: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """fp32 [B, K]: probabilities of this rank's rows, such that all ranks' rows use all prototypes equally.

    In log space; one all-gather of the vectors, and no [G, K] exists. Both are normalised here. Cuturi 2013;
    Caron et al. 2020 (SwAV). Naive, on one rank: Q = exp(cosines / temperature); ``iterations`` times:
    Q /= Q.sum(0), then Q /= Q.sum(1, keepdim=True)

    Args:
        weight_B: 0 for rows that get probabilities but do not count, else 1.

    Raises:
        ValueError: temperature or iterations are not above 0, or the shapes do not match.
    """
    if temperature <= 0 or iterations < 1:
        raise ValueError(f"temperature {temperature} and iterations {iterations} must be above 0")
    if vector_BC.ndim != 2 or prototype_KC.ndim != 2 or vector_BC.shape[1] != prototype_KC.shape[1]:
        raise ValueError(
            f"vectors {tuple(vector_BC.shape)} and prototypes {tuple(prototype_KC.shape)} must be [B, C] and "
            "[K, C]"
        )
    if weight_B is not None and weight_B.shape != vector_BC.shape[:1]:
        raise ValueError(f"weights {tuple(weight_B.shape)} must be one for each of {len(vector_BC)} vectors")
    ranks, rows = Group.of(group), len(vector_BC)
    counted_B = torch.ones(rows, device=vector_BC.device) if weight_B is None else weight_B.float()
    everywhere = _gather(ranks, vectors=F.normalize(vector_BC.float(), dim=-1), weights=counted_B)
    assignment = sinkhorn_room.Assignment(
        everywhere["vectors"],
        F.normalize(prototype_KC.float(), dim=-1),
        everywhere["weights"],
        temperature,
        iterations,
    )
    return sinkhorn_room.sinkhorn(assignment, slice(ranks.rank * rows, (ranks.rank + 1) * rows))


def koleo(rows_BD: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """-mean log(distance to the nearest other row of all ranks) on the unit sphere: rows are spread evenly.

    The gradient is exact also where a row of this rank is the nearest of another rank's. One all-gather.
    Sablayrolles et al. 2019; Oquab et al. 2023 (DINOv2).

    Raises:
        ValueError: all ranks together have fewer than 2 rows.
    """
    ranks = Group.of(group)
    all_GD = _gather(ranks, rows=rows_BD)["rows"]
    spread = koleo_room.Spread(rows_BD, all_GD, ranks.rank * len(rows_BD), ranks.size)
    return koleo_room.koleo(spread)


def _gather(ranks: Group, **tensors: Tensor) -> dict[str, Tensor]:
    """Each tensor's rows of all ranks, in rank order, from one all-gather; no gradient."""
    gathered = collectives.gather_packed(ranks, {name: tensor.detach() for name, tensor in tensors.items()})
    return {name: tensor.flatten(0, 1) for name, tensor in gathered.items()}


def _scale(temperature: float | Tensor, like: Tensor) -> Tensor:
    """0-d fp32: the inverse temperature."""
    if isinstance(temperature, Tensor):
        return 1 / temperature.float().reshape(())
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    return torch.full((), 1 / temperature, device=like.device)


def _check_rows(one_BE: Tensor, other_BE: Tensor) -> None:
    if one_BE.ndim != 2 or one_BE.shape != other_BE.shape or not len(one_BE):
        raise ValueError(
            f"rows {tuple(one_BE.shape)} and {tuple(other_BE.shape)} must be of one shape [B, E], B above 0"
        )
