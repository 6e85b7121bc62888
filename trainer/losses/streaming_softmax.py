"""Softmax rows over keys that come in blocks, and gradients that are ready when the forward ends.

Logits, and m with them, are in units of log 2 here: exp2 takes a fifth of exp's time on a CPU, whose exp
(MKL) moreover slows down thirtyfold where results are denormal, as at a high scale they are.

Products have one shape whatever B is, tiles of rows, the last one padded, and on a CPU one thread each. How a
matrix product rounds depends on both, and a row's gradient must be the same bits on any number of ranks,
which share out the threads of their machine.

Notation as in contrastive.py. Shapes: B rows, R rows padded to whole tiles, T rows of a tile, N keys, M of a
block of them, E embedding.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.core.tiles import aligned, each_alone, one_thread
from trainer.data.locus import Loci, same_place

# Rows of a tile, keys of a block. On a CPU core the logits stay in its cache; on a GPU a product must fill
# it.
_CPU_SHAPE, _GPU_SHAPE = (64, 1024), (1024, 8192)
# Keys and features are padded to multiples of these, or MKL rounds by a row's place in the tile, where
# features are odd and keys few.
_KEYS, _FEATURES = 64, 16
_LOW = -1e30  # below every logit, and finite: from minus infinity it is no distance to itself


class Rows:
    """B queries, and for each of them, carried on over the keys read so far: m, t, the positive's logit, and
    with ``weigh`` the sum of keys weighted by 2^(l - m).
    """

    def __init__(
        self, query_BE: Tensor, scale: Tensor, *, block: int | None = None, weigh: bool = False
    ) -> None:
        assert block is None or block > 0, f"a block of {block} keys holds none"
        tile, fitting_block = _CPU_SHAPE if query_BE.device.type == "cpu" else _GPU_SHAPE
        self.tile, self.block = tile, -(-(block or fitting_block) // _KEYS) * _KEYS
        self.query_BE, self.scale = query_BE.detach(), scale.detach()
        padding = (0, -query_BE.shape[1] % _FEATURES, 0, -len(query_BE) % tile)
        # In float64, or the factor's own rounding would be multiplied by the scale.
        self.scaled_RE = F.pad(
            (self.query_BE.double() * (self.scale.double() / math.log(2))).float(), padding
        )
        self.top_R = torch.full_like(self.scaled_RE[:, 0], _LOW)
        self.total_R = torch.zeros_like(self.top_R)
        self.positive_R = torch.zeros_like(self.top_R)
        self.weighted_RE = torch.zeros_like(self.scaled_RE) if weigh else None

    def read(
        self,
        keys_NE: Tensor,
        positive_B: Tensor | None,
        locus_B: Loci | None = None,
        locus_N: Loci | None = None,
    ) -> None:
        """Carry all on over these keys. ``positive_B``: the row of each positive in them; None: none is
        there."""

        def read_tile(tile: slice, blocks: Iterator[_Block]) -> None:
            for _, keys_ME, logits_TM, found_T in blocks:
                if found_T is not None:
                    self.positive_R[tile] += found_T
                top_T = torch.maximum(self.top_R[tile], logits_TM.amax(1))
                decay_T = (self.top_R[tile] - top_T).exp2_()
                self.top_R[tile] = top_T
                weight_TM = logits_TM.sub_(top_T[:, None]).exp2_()
                self.total_R[tile].mul_(decay_T).add_(weight_TM.sum(1))
                if self.weighted_RE is not None:
                    self.weighted_RE[tile].mul_(decay_T[:, None]).addmm_(weight_TM, keys_ME)

        self._each_tile(read_tile, keys_NE, positive_B, locus_B, locus_N)

    def read_both_ways(
        self,
        keys_NE: Tensor,
        columns_N2: Tensor,
        positive_B: Tensor | None,
        locus_B: Loci | None = None,
        locus_N: Loci | None = None,
    ) -> None:
        """Second pass over all keys: add to ``weighted_RE`` the keys weighted by P + Q, of these rows' and of
        the keys' own softmax, which is ``columns_N2`` as ``softmax`` gives it.
        """
        if self.weighted_RE is None:
            self.weighted_RE = torch.zeros_like(self.scaled_RE)
        top_R1, inverse_R1 = self._softmax().split(1, 1)
        top_1N, inverse_1N = F.pad(columns_N2.T, (0, -len(keys_NE) % _KEYS)).split(1, 0)
        weighted_RE = self.weighted_RE

        def read_tile(tile: slice, blocks: Iterator[_Block]) -> None:
            for block, keys_ME, logits_TM, _ in blocks:
                weight_TM = (logits_TM - top_R1[tile]).exp2_().mul_(inverse_R1[tile])
                weight_TM.addcmul_(logits_TM.sub_(top_1N[:, block]).exp2_(), inverse_1N[:, block])
                weighted_RE[tile].addmm_(weight_TM, keys_ME)

        self._each_tile(read_tile, keys_NE, positive_B, locus_B, locus_N)

    def loss(self) -> Tensor:
        """Σ log(1 + exp δ) over the rows."""
        return F.softplus(self._gap()[: len(self.query_BE)]).sum()

    def miss(self) -> Tensor:
        """σ(δ) [B, 1], which is 1 - P of the positive."""
        with one_thread(self.query_BE.device):
            return torch.sigmoid(self._gap())[: len(self.query_BE), None]

    def mean_key(self) -> Tensor:
        """Σ 2^(l - m) k / t [B, E], zero where there is no negative."""
        return self.weighted() / self.total_R[: len(self.query_BE), None].clamp(
            min=torch.finfo(torch.float32).tiny
        )

    def weighted(self) -> Tensor:
        """The weighted sum of keys [B, E]."""
        assert self.weighted_RE is not None, "these rows were not asked to weigh their keys"
        return self.weighted_RE[: len(self.query_BE), : self.query_BE.shape[1]]

    def softmax(self) -> Tensor:
        """(m, 1/t) [B, 2] of each row's softmax over positive and negatives: P = 2^(l - m) / t."""
        return self._softmax()[: len(self.query_BE)]

    def _gap(self) -> Tensor:
        # Of whole tiles: functions of a vector's last few elements round differently. Each thread's part has
        # some, too.
        return (self.top_R - self.positive_R) * math.log(2) + self.total_R.log()

    def _softmax(self) -> Tensor:
        with one_thread(self.query_BE.device):
            top_R = torch.maximum(self.top_R, self.positive_R)
            total_R = self.total_R * (self.top_R - top_R).exp2() + (self.positive_R - top_R).exp2()
            return torch.stack([top_R, 1 / total_R], 1)

    def _each_tile(
        self,
        read: "Callable[[slice, Iterator[_Block]], None]",
        keys_NE: Tensor,
        positive_B: Tensor | None,
        locus_B: Loci | None,
        locus_N: Loci | None,
    ) -> None:
        """``read`` of each tile of rows and its blocks of keys, positives and the same place taken out."""
        count = len(keys_NE)
        if any(padding := (0, -keys_NE.shape[1] % _FEATURES, 0, -count % _KEYS)):
            keys_NE = F.pad(keys_NE, padding)
        keys_NE = aligned(keys_NE)
        positive_R = None
        if positive_B is not None:
            positive_R = F.pad(positive_B, (0, len(self.scaled_RE) - len(positive_B)), value=-1)

        def blocks(tile: slice) -> Iterator[_Block]:
            for first in range(0, count, self.block):
                block = slice(first, first + self.block)
                logits_TM = self.scaled_RE[tile] @ keys_NE[block].T
                logits_TM[:, count - first :].fill_(-torch.inf)
                found_T = None if positive_R is None else _take_out(logits_TM, positive_R[tile] - first)
                if locus_B is not None and locus_N is not None:
                    same_TM = same_place(locus_B.rows(tile), locus_N.rows(block))
                    logits_TM[: same_TM.shape[0], : same_TM.shape[1]].masked_fill_(same_TM, -torch.inf)
                yield _Block(block, keys_NE[block], logits_TM, found_T)

        tiles = [slice(start, start + self.tile) for start in range(0, len(self.scaled_RE), self.tile)]
        each_alone(lambda tile: read(tile, blocks(tile)), tiles, device=keys_NE.device)


class _Block(NamedTuple):
    """Keys against a tile of rows."""

    keys: slice
    keys_ME: Tensor
    logits_TM: Tensor
    found_T: (
        Tensor | None
    )  # the positives' logits, 0 where the positive is in another block; None: none is there


def _take_out(logits_TM: Tensor, column_T: Tensor) -> Tensor:
    """The logits at the columns, 0 where a column is not here; in ``logits_TM`` they become minus
    infinity."""
    here_T = (column_T >= 0) & (column_T < logits_TM.shape[1])
    column_T1 = column_T.clamp(0, logits_TM.shape[1] - 1)[:, None]
    logit_T = logits_TM.gather(1, column_T1)[:, 0]
    logits_TM.scatter_(1, column_T1, torch.where(here_T, -torch.inf, logit_T)[:, None])
    return torch.where(here_T, logit_T, 0)


def one_way(rows: Rows, positive_BE: Tensor, rows_total: int) -> tuple[Tensor, list[Tensor]]:
    """(loss, its gradients for queries and scale, [] if the rows weigh nothing) of rows that have read all
    keys."""
    loss = rows.loss() / rows_total
    if rows.weighted_RE is None:
        return loss, []
    direction_BE = rows.miss() * (rows.mean_key() - positive_BE)
    return loss, [direction_BE * (rows.scale / rows_total), _dot(rows.query_BE, direction_BE) / rows_total]


def both_ways(sides: list[Rows], positives: list[Tensor], rows_total: int) -> tuple[Tensor, list[Tensor]]:
    """(loss, its gradients for both sides' queries and scale, [] before the second pass) of rows and
    columns."""
    loss = (sides[0].loss() + sides[1].loss()) / (2 * rows_total)
    if sides[0].weighted_RE is None:
        return loss, []
    miss_B1 = sides[0].miss() + sides[1].miss()
    directions = [side.weighted() - miss_B1 * key_BE for side, key_BE in zip(sides, positives, strict=True)]
    gradients = [direction_BE * (sides[0].scale / (2 * rows_total)) for direction_BE in directions]
    return loss, [*gradients, _dot(sides[0].query_BE, directions[0]) / (2 * rows_total)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b).sum().float()


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a backward may ask for the gradient of any of them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def with_gradients(loss: Tensor, tensors: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """``loss`` as a function of ``tensors`` with these gradients; without any, ``loss`` as it is."""
    result: Tensor = _WithGradients.apply(loss, gradients, *tensors) if gradients else loss
    return result


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[2:]
        ctx.save_for_backward(*(g if need else None for g, need in zip(gradients, needed, strict=True)))
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (
            None,
            None,
            *(None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors),
        )
