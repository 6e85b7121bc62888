"""A mixture of datasets and regions: which of them each sample of a lane comes from.

Shapes: B samples, N lanes.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.core import random

Ints = np.ndarray[Any, np.dtype[np.int64]]

_SHARE_BITS = 40
_HALF_BITS = _SHARE_BITS // 2


class _Node(NamedTuple):
    """A node of the tree: its first child has ``share`` of its samples, its second the others."""

    number: int
    first: int
    second: int
    share: int
    u: Ints  # of each lane


class Mixture:
    """Which leaf each sample of a lane comes from: exact shares at every step, not only on average.

    Datasets, and the regions of a BED in each, are the leaves of a Huffman tree over their weights. At a node
    that n samples of the lane reach, the first child has floor(n · share + u) of them, u in [0, 1) drawn from
    (seed, lane, node): the fractions of a Sturmian word, in integers (share and u in units of 2⁻⁴⁰, n < 2⁴⁰).
    So a lane's count of a leaf differs from count · weight by less than 1 with two leaves, and by less than
    the depth of its leaf with more; any count is reached directly.
    """

    def __init__(self, weights: Sequence[float | Fraction], *, seed: int, lanes: int) -> None:
        self.leaves = len(weights)
        heap: list[tuple[Fraction, int]] = [(Fraction(weight), leaf) for leaf, weight in enumerate(weights)]
        heapq.heapify(heap)
        self._nodes: list[_Node] = []
        lane_keys = random.fold(seed, torch.arange(lanes))
        while len(heap) > 1:
            (second_weight, second), (first_weight, first) = heapq.heappop(heap), heapq.heappop(heap)
            both, node = first_weight + second_weight, self.leaves + len(self._nodes)
            share = min(max(round(first_weight / both * (1 << _SHARE_BITS)), 1), (1 << _SHARE_BITS) - 1)
            u = random.field(random.words(lane_keys, f"mixture {node}", 1)[:, 0], 0, _SHARE_BITS).numpy()
            self._nodes.append(_Node(node, first, second, share, u))
            heapq.heappush(heap, (both, node))
        self._nodes.reverse()  # root first

    def split(self, lane_B: Ints, count_B: Ints) -> tuple[Ints, Ints]:
        """(leaf [B] of sample ``count_B`` of ``lane_B``, its number within that leaf and lane)."""
        if not self._nodes:
            return np.zeros_like(count_B), count_B
        at_B, count_B = np.full_like(count_B, self._nodes[0].number), count_B.copy()
        for node in self._nodes:
            here = np.flatnonzero(at_B == node.number)
            count, u = count_B[here], node.u[lane_B[here]]
            before, rest = _first_share(count, node.share, u)
            taken = rest + node.share >= 1 << _SHARE_BITS  # the first child's count grows with this sample
            count_B[here] = np.where(taken, before, count - before)
            at_B[here] = np.where(taken, node.first, node.second)
        return at_B, count_B

    def counts(self, count_N: Ints) -> Ints:
        """int64 [leaves, lanes]: how many of the first ``count_N`` samples of each lane come from each
        leaf."""
        reached: dict[int, Ints] = {self._nodes[0].number if self._nodes else 0: count_N}
        for node in self._nodes:
            count = reached.pop(node.number)
            reached[node.first], _ = _first_share(count, node.share, node.u)
            reached[node.second] = count - reached[node.first]
        return np.stack([reached[leaf] for leaf in range(self.leaves)])


def _first_share(count: Ints, share: int, u: Ints) -> tuple[Ints, Ints]:
    """(floor((count · share + u) / 2⁴⁰), what is left) where all three are below 2⁴⁰; the product of 80 bits
    is taken in halves."""
    high = (count >> _HALF_BITS) * share
    low = (count & ((1 << _HALF_BITS) - 1)) * share + ((high & ((1 << _HALF_BITS) - 1)) << _HALF_BITS) + u
    return (high >> _HALF_BITS) + (low >> _SHARE_BITS), low & ((1 << _SHARE_BITS) - 1)
