"""Which windows an epoch reads of the regions of one BED file: each centred on a position of its region.

A block is read for all of its regions at once, and opening it costs as much as some windows. So an epoch
visits every region several times, as often as makes WINDOWS_A_BLOCK windows a block on average, each time at
another position. The number is one for all regions, so that none is preferred.

Shapes: R regions, P pieces of regions (see Regions), N blocks, M samples.
"""

import math

import numpy as np
import torch

from trainer.core import random
from trainer.data.leaves import Leaf
from trainer.data.mixture import Ints
from trainer.data.regions import Regions
from trainer.data.sampling import Floats, Sampler, SamplingPlan

WINDOWS_A_BLOCK = 64
SMALLEST_EPOCH = 4096  # windows; a file of few regions would otherwise begin an epoch with nearly every batch


class RegionSampler(Sampler):
    """(lane, count) -> sample, of the regions of one BED file in one dataset, in one phase.

    The windows of a region lie in as many strata of it, one in each, so that an epoch covers a long region
    evenly.
    """

    def __init__(self, bp_N: Ints, weight_N: Floats, leaf: Leaf, *, plan: SamplingPlan, phase: int) -> None:
        """Arguments as Sampler's; ``leaf`` has regions."""
        assert leaf.regions is not None, "a leaf from anywhere has a Sampler"
        self._regions = leaf.regions
        self._windows_P = windows_of(leaf.regions, plan.phases[phase].length, key=plan.seed)
        self._until_P = np.cumsum(self._windows_P)
        windows_N = np.zeros(len(bp_N), np.int64)
        np.add.at(windows_N, leaf.regions.block_P, self._windows_P)
        super().__init__(bp_N, weight_N, plan=plan, dataset=leaf.number, phase=phase, windows_N=windows_N)
        self._before_N = np.cumsum(windows_N) - windows_N  # pieces are in the order of blocks

    def intervals(self, epoch: int, block_M: Ints, window_M: Ints) -> tuple[Ints, Ints]:
        """[start, end) of each window in its block: its centre in the middle, and moved only where it would
        leave the block, or its flank would."""
        bp_M, centre_M = self.bp_N[block_M], self.centres(epoch, block_M, window_M)
        margin_M = np.where(bp_M >= self.length + 2 * self.flank, self.flank, 0)
        last_M = np.maximum(margin_M, bp_M - self.length - margin_M)
        start_M = np.clip(centre_M - self.length // 2, margin_M, last_M)
        return start_M, np.minimum(start_M + self.length, bp_M)

    def centres(self, epoch: int, block_M: Ints, window_M: Ints) -> Ints:
        """int64 [M], the position in its block that each window is centred on: drawn from (seed, epoch,
        block, window) within the window's stratum of its region."""
        at_M = self._before_N[block_M] + window_M % self.windows_N[block_M]
        piece_M = np.searchsorted(self._until_P, at_M, "right")
        windows_M, bp_M = self._windows_P[piece_M], self._regions.bp_P[piece_M]
        stratum_M = at_M - (self._until_P[piece_M] - windows_M)
        key_M = random.fold(self._order_key, epoch, torch.from_numpy(block_M), torch.from_numpy(window_M))
        draw_M = random.field(random.words(key_M, "centre", 1)[:, 0], 0, 32).numpy()
        # (stratum + u) · bp / windows in integers: over all strata each position is as probable as any other.
        inside_M = (stratum_M * bp_M + (draw_M * bp_M >> 32)) // windows_M
        centre_M: Ints = self._regions.start_P[piece_M] + inside_M
        return centre_M


def windows_of(regions: Regions, length: int, *, key: int) -> Ints:
    """int64 [P], how many windows of ``length`` bp an epoch reads of each piece.

    A region of bp letters has max(1, bp / length) windows, rounded, or as many as its weight says (1 on
    average), and all of them the same multiple of that. What is left after the point decides by a hash of
    ``key`` and the region whether there is one more: so the mean is exact. A region's windows are divided
    among its pieces by their bp, so that a region that is cut counts as one.
    """
    of_P, is_last_P = regions.of_P, regions.before_P + regions.bp_P == regions.of_P
    if regions.weight_P is None:
        weight_P = np.maximum(1, (2 * of_P + length) // (2 * length)).astype(np.float64)
    else:
        weight_P = regions.weight_P / (math.fsum(regions.weight_P[is_last_P].tolist()) / is_last_P.sum())
    total = math.fsum(weight_P[is_last_P].tolist())  # fsum is exact, so that it is the same on every machine
    blocks = len(np.unique(regions.block_P))
    times = max(1, math.ceil(max(WINDOWS_A_BLOCK * blocks, SMALLEST_EPOCH) / total))
    keys_P = random.fold(key, torch.from_numpy(regions.region_P))
    u_P = random.field(random.words(keys_P, "region windows", 1)[:, 0], 0, 32).numpy() / 2**32
    all_P = times * weight_P
    before_P = np.floor(all_P * (regions.before_P / of_P) + u_P)
    until_P = np.floor(all_P * ((regions.before_P + regions.bp_P) / of_P) + u_P)
    return (until_P - before_P).astype(np.int64)
