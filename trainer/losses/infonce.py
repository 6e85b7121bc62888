"""InfoNCE over the global batch: a student against a teacher's keys, or a student's two views against each
other.

Each loss exists in two variants. ``ref`` is what one would write: all logits at once, autograd, for two views
a gather that carries gradients. ``lse`` gives the same numbers from blocks of logits: a softmax that is
carried on over blocks of keys, so that B·G logits never exist, and gradients that are ready when the forward
ends, so that the backward recomputes and communicates nothing. ring.py has the same losses for keys that no
rank could hold.

Notation: query q_i, keys k_j, scale s, logits l_ij = s q_i·k_j, positive p(i), n = rows_total. Sums run over
negatives: neither the positive nor, where loci are given, another window of the same place.

    m_i = max l_ij, t_i = Σ_j exp(l_ij - m_i)   carried on from block to block (Milakov and Gimelshein 2018)
    δ_i = m_i + log t_i - l_ip(i)
    loss = 1/n Σ_i log(1 + exp δ_i)             which is log Σ exp(l_ij) - l_ip(i), without its cancellation
    d_i = σ(δ_i) (Σ_j exp(l_ij - m_i) k_j / t_i - k_p(i)),    ∂/∂q_i = s/n d_i,    ∂/∂s = 1/n Σ_i q_i·d_i

The weighted sum of keys is carried on with t_i, as in attention (Dao et al. 2022): one pass, two products a
block. Two views z, z' have l_ij = s z_i·z'_j and a softmax each way, P over j and Q over i. Each rank reads
all keys for its rows of both; (m, 1/t) of all rows, positives included, come in one gather of scalars and
make a second pass local:

    loss = 1/2n Σ_i [log(1 + exp δ_i) + log(1 + exp δ'_i)]
    d_i = Σ_j (P_ij + Q_ij) z'_j - (σ(δ_i) + σ(δ'_i)) z'_i,    ∂/∂z_i = s/2n d_i,    ∂/∂s = 1/2n Σ_i z_i·d_i

and alike for z' with P and Q transposed.

Shapes: B rows of this call, G of the global batch, E embedding.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.data.locus import Loci, same_place
from trainer.losses.streaming_softmax import Rows, both_ways, one_way, wants_gradient, with_gradients

Variant = Literal["lse", "ref"]


@dataclass(frozen=True)
class Contrast:
    """B local queries against the keys of all G rows of the global batch."""

    query_BE: Tensor  # the student's unit vectors
    keys_GE: Tensor  # the teacher's unit vectors of all ranks, no gradient
    positive_B: Tensor  # int64, the row of keys_GE that shows the same sample
    scale: Tensor  # 0-d fp32, the inverse temperature
    rows_total: int  # queries of the global batch, all views
    locus_B: Loci | None = None  # where both are given, keys of the query's place are no negatives
    locus_G: Loci | None = None
    variant: Variant = "lse"
    block: int | None = None  # keys at once, in whole 64s; None: what suits the device


@dataclass(frozen=True)
class SymmetricContrast:
    """Two views of all B rows of this rank, and of all G = W·B rows of the global batch, in rank order."""

    first_BE: Tensor  # the student's unit vectors of one view
    second_BE: Tensor  # and of the other
    firsts_GE: Tensor  # of all ranks, gathered, no gradient
    seconds_GE: Tensor
    first_row: int  # the row of firsts_GE that is first_BE's row 0
    scale: Tensor  # 0-d fp32, the inverse temperature
    group: Group
    rows_total: int  # rows of the global batch
    loci_G: Loci | None = None  # where given, rows of the same place are no negatives
    variant: Variant = "lse"
    block: int | None = None  # keys at once, in whole 64s; None: what suits the device


def info_nce(contrast: Contrast) -> Tensor:
    """Each query against every key (van den Oord et al. 2018; He et al. 2020, MoCo): this micro-batch's
    share.

    Naive: sum(-log(exp(s · q[b]·k[pos[b]]) / sum(exp(s · q[b]·k[g]) for every g)) for every b) / rows_total,
    where g runs over pos[b] and the keys of other places. Nothing is communicated.
    """
    query_BE, keys_GE, scale = contrast.query_BE.float(), contrast.keys_GE.detach().float(), contrast.scale
    positive_B, loci = contrast.positive_B, (contrast.locus_B, contrast.locus_G)
    with torch.autocast(query_BE.device.type, enabled=False):
        if contrast.variant == "ref":
            return _cross_entropy(scale * (query_BE @ keys_GE.T), positive_B, *loci) / contrast.rows_total
        weigh = wants_gradient(query_BE, scale)
        with torch.no_grad():
            rows = Rows(query_BE, scale, block=contrast.block, weigh=weigh)
            rows.read(keys_GE, positive_B, *loci)
            loss, gradients = one_way(rows, keys_GE[positive_B], contrast.rows_total)
        return with_gradients(loss, [query_BE, scale], gradients)


def symmetric_info_nce(contrast: SymmetricContrast) -> Tensor:
    """Each first view against all second views and each second against all firsts, halved: this rank's share.

    Radford et al. 2021 (CLIP). Naive, with l[i, j] = s · z[i]·z'[j]:
    sum(-log softmax(l[i, :])[i] - log softmax(l[:, i])[i] for every i of this rank) / (2 · rows_total),
    each softmax over i and the rows of other places. The gradients are the global loss's, with what other
    ranks' rows have to say of this rank's. ``lse`` gathers four scalars a row, and only where a gradient is
    wanted; ``ref`` gathers the views anew, with gradients.
    """
    views = contrast.first_BE.float(), contrast.second_BE.float()
    group, scale, rows = contrast.group, contrast.scale, len(contrast.first_BE)
    mine = slice(contrast.first_row, contrast.first_row + rows)
    own_B = torch.arange(mine.start, mine.stop, device=views[0].device)
    loci = (None, None) if contrast.loci_G is None else (contrast.loci_G.rows(mine), contrast.loci_G)
    with torch.autocast(own_B.device.type, enabled=False):
        if contrast.variant == "ref":
            logits = [scale * (views[i] @ _gathered(group, views[1 - i]).T) for i in range(2)]
            both = [_cross_entropy(logits_BG, own_B, *loci) for logits_BG in logits]
            return (both[0] + both[1]) / (2 * contrast.rows_total)
        keys = contrast.seconds_GE.detach().float(), contrast.firsts_GE.detach().float()
        assert len(keys[0]) == len(keys[1]) == group.size * rows, (
            f"{len(keys[1])} and {len(keys[0])} gathered rows are not those of {group.size} ranks with "
            f"{rows} each"
        )
        weigh = wants_gradient(*views, scale)
        with torch.no_grad():
            sides = [Rows(view_BE, scale, block=contrast.block) for view_BE in views]
            for side, keys_GE in zip(sides, keys, strict=True):
                side.read(keys_GE, own_B, *loci)
            if weigh:
                softmax_B4 = torch.cat([side.softmax() for side in sides], 1)
                softmax_G4 = softmax_B4.new_empty(group.size * rows, 4)
                collectives.all_gather_flat(group, softmax_G4.view(-1), softmax_B4.view(-1))
                sides[0].read_both_ways(keys[0], softmax_G4[:, 2:], own_B, *loci)
                sides[1].read_both_ways(keys[1], softmax_G4[:, :2], own_B, *loci)
            loss, gradients = both_ways(sides, [keys[0][mine], keys[1][mine]], contrast.rows_total)
        return with_gradients(loss, [*views, scale], gradients)


def _cross_entropy(
    logits_BG: Tensor, positive_B: Tensor, locus_B: Loci | None, locus_G: Loci | None
) -> Tensor:
    """The summed cross-entropy of all logits at once, keys of the query's place but its positive left out."""
    if locus_B is not None and locus_G is not None:
        same_BG = same_place(locus_B, locus_G).scatter_(1, positive_B[:, None], False)
        logits_BG = logits_BG.masked_fill(same_BG, -torch.inf)
    return F.cross_entropy(logits_BG, positive_B, reduction="sum")


def _gathered(group: Group, rows_BE: Tensor) -> Tensor:
    """The rows of all ranks; the backward brings each rank the gradients that all have for its rows."""
    if group.size == 1:
        return rows_BE
    gathered: Tensor = _Gathered.apply(rows_BE, group)
    return gathered


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BE: Tensor, group: Group) -> Tensor:
        ctx.group = group
        rows_GE = rows_BE.new_empty(group.size * len(rows_BE), rows_BE.shape[1])
        collectives.all_gather_flat(group, rows_GE.view(-1), rows_BE.reshape(-1))
        return rows_GE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_GE: Tensor) -> tuple[Tensor, None]:
        return collectives.sum_over_ranks(ctx.group, gradient_GE).chunk(ctx.group.size)[ctx.group.rank], None


def clamped_scale(log_scale: Tensor, maximum: float) -> Tensor:
    """exp(log_scale), at most ``maximum``; above it, only a gradient that brings the value back passes.

    A plain clamp has no gradient there, and a scale that one step carried past the limit would stay for good.
    Above the limit each share of a global gradient is judged by itself, so that the sum may pull back harder
    than its own sign says; at the limit and below, the gradient is exact.
    """
    scale: Tensor = _ClampedScale.apply(log_scale, math.log(maximum))
    return scale


class _ClampedScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_scale: Tensor, limit: float) -> Tensor:
        scale = log_scale.float().clamp(max=limit).exp()
        ctx.save_for_backward(scale, log_scale > limit)
        return scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        scale, above = ctx.saved_tensors
        return torch.where(above, upstream.clamp(min=0), upstream) * scale, None
