"""The order of samples: which window of which block of which dataset a lane reads as its n-th sample. Pure
functions of a SamplingPlan and the sizes of the blocks.

Sample j of a phase (a range of steps with one length) belongs to lane j mod lanes. The samples of a lane are
divided among the datasets by weight (``Mixture``), and each dataset has its own sequence of samples for each
lane (``Sampler``); so have the regions of each BED file in it (``RegionSampler``). In each epoch of a dataset
its blocks are put in an order drawn from (seed, epoch) and dealt to the lanes in turn. A lane reads its
blocks in sets of at least OPEN_BLOCKS (or all it has) and shuffles the windows of a set, since neighbours
would be false negatives for the contrastive loss. Window offsets are drawn from (seed, epoch, block).

Shapes: N blocks of a dataset, n of them with windows, M samples of an open set, B samples of any kind.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.core import random
from trainer.data.config import Data
from trainer.data.mixture import Ints

OPEN_BLOCKS = 16
LARGEST_SET = 2 * OPEN_BLOCKS - 1
_FEW_WINDOWS = 8
EPOCHS_A_PHASE = 1 << 20  # epoch e of phase p has the number p · 2²⁰ + e, so that no two samples share an id
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Phase(NamedTuple):
    """Windows of ``length`` bp from step ``from_step`` on, steps counted from 0."""

    from_step: int
    length: int


@dataclass(frozen=True)
class SamplingPlan:
    """All settings that decide which windows each step reads; another value of any gives other samples.

    weights: share of each dataset, relative to the others.
    anywhere: share of the windows that no BED file chooses.
    phases: the length of windows by step; the first begins at step 0.
    flank: bp that are read on either side of a window.
    lanes: independent sequences of samples; the number of ranks must divide it.
    global_batch: windows that all ranks together read in a step.
    """

    weights: Sequence[float]
    phases: Sequence[Phase]
    seed: int
    flank: int
    lanes: int
    global_batch: int
    anywhere: float = 1.0

    @classmethod
    def of(cls, data: Data, *, seed: int, global_batch: int, flank: int) -> "SamplingPlan":
        """The plan of a ``data`` section."""
        return cls(
            weights=[part.weight for part in data.uri],
            phases=[Phase(part.from_step, part.length) for part in data.length],
            seed=seed,
            flank=flank,
            lanes=data.lanes,
            global_batch=global_batch,
            anywhere=data.regions.anywhere if data.regions.beds else 1.0,
        )

    def phase_at(self, step: int) -> int:
        """Index of the phase that ``step`` belongs to."""
        return bisect_right(self.phases, step, key=lambda phase: phase.from_step) - 1

    def samples_before(self, step: int) -> int:
        """How many samples all ranks have read when ``step`` begins, since its phase began."""
        return (step - self.phases[self.phase_at(step)].from_step) * self.global_batch

    def lane_counts(self, step: int) -> Ints:
        """int64 [lanes]: how many of these samples each lane has read."""
        return (self.samples_before(step) + self.lanes - 1 - np.arange(self.lanes)) // self.lanes


def lane_counts(samples: int, lanes: int) -> Ints:
    """int64 [lanes]: how many of a phase's first ``samples`` samples each lane has."""
    return (samples + lanes - 1 - np.arange(lanes)) // lanes


@dataclass(frozen=True)
class OpenSet:
    """Samples ``first`` … ``stop`` - 1 of a lane, which mix the windows of ``blocks``.

    Columns: block, window, start, end, key: [start, end) in the block, and the key of all views and masks.
    """

    epoch: int
    first: int
    stop: int
    blocks: list[int]
    samples_M5: Ints  # one array, since a run has two sets a lane in memory
    partners_M7: Ints | None = None  # what the reader chose for each: partners.Choice

    def in_order_of_use(self) -> list[int]:
        """The blocks, those of partners last."""
        partners = [] if self.partners_M7 is None else self.partners_M7[:, 0].tolist()
        found = dict.fromkeys(self.samples_M5[:, 0].tolist() + partners)
        return [number for number in found if number >= 0]


class Sampler:
    """(lane, count) -> sample, of one dataset in one phase; its windows lie side by side in whole blocks."""

    def __init__(
        self,
        bp_N: Ints,
        weight_N: Floats,
        *,
        plan: SamplingPlan,
        dataset: int,
        phase: int,
        windows_N: Ints | None = None,
    ) -> None:
        """Sampler of dataset (or leaf) number ``dataset`` in phase number ``phase`` of ``plan``.

        Args:
            bp_N: size of each block.
            weight_N: how often an epoch reads each block.
            windows_N: of each block each time that it is read; default: those that lie side by side in it.
        """
        self.bp_N, self.weight_N, self.seed, self.dataset = bp_N, weight_N, plan.seed, dataset
        self.length, self.flank, self.lanes = plan.phases[phase].length, plan.flank, plan.lanes
        self.first_epoch = phase * EPOCHS_A_PHASE
        self._order_key = int(random.fold(self.seed, dataset)) if dataset else self.seed
        # One window fewer than fit, so that the offset is free over a whole window; not where that costs
        # much.
        fit_N = (bp_N - 2 * self.flank) // self.length
        self.windows_N = np.maximum(1, fit_N - (fit_N > _FEW_WINDOWS)) if windows_N is None else windows_N
        self._read_n = np.flatnonzero(self.windows_N)  # the blocks that have windows
        self._ends: list[Ints] = []  # by epoch: the count of each lane when the epoch is over
        self._orders: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()

    @property
    def largest_set(self) -> int:
        """The most blocks that one set of a lane can have."""
        return min(LARGEST_SET, -(-len(self._read_n) // self.lanes))

    def open_set(self, lane: int, count: int) -> OpenSet:
        """The set that sample number ``count`` (from 0) of ``lane`` belongs to."""
        while not self._ends or self._ends[-1][lane] <= count:
            self._ends.append(self._lane_ends(len(self._ends)))
        turn = bisect_right(self._ends, count, key=lambda ends: int(ends[lane]))
        begun = int(self._ends[turn - 1][lane]) if turn else 0
        order_n, copies_N = self._order(turn)
        # Dealing goes on where the last epoch stopped, so that few blocks reach all of many lanes.
        mine = order_n[(lane - turn * len(order_n)) % self.lanes :: self.lanes]
        counts = self.windows_N[mine] * copies_N[mine]
        # The last set is joined to the one before, so that none is smaller than OPEN_BLOCKS.
        edges = np.arange(max(1, len(mine) // OPEN_BLOCKS) + 1) * OPEN_BLOCKS
        edges[-1] = len(mine)
        ends = np.concatenate([[0], np.cumsum(counts)])[edges]
        which = int(np.searchsorted(ends[1:], count - begun, "right"))
        part = slice(edges[which], edges[which + 1])
        first = begun + int(ends[which])
        return self._mixed(self.first_epoch + turn, first, mine[part], counts[part])

    def intervals(self, epoch: int, block_M: Ints, window_M: Ints) -> tuple[Ints, Ints]:
        """[start, end) of each window in its block; shorter than the length only where the block is."""
        bp_M = self.bp_N[block_M]
        copy_M, index_M = np.divmod(window_M, self.windows_N[block_M])
        margin_M = np.where(bp_M >= self.length + 2 * self.flank, self.flank, 0)
        free_M = np.maximum(0, bp_M - 2 * margin_M - self.windows_N[block_M] * self.length)
        key_M = random.fold(self._order_key, epoch, torch.from_numpy(block_M), torch.from_numpy(copy_M))
        draw_M = random.field(random.words(key_M, "offset", 1)[:, 0], 0, 32).numpy()
        start_M = margin_M + (draw_M * (free_M + 1) >> 32) + index_M * self.length
        return start_M, np.minimum(start_M + self.length, bp_M)

    def replacements(self, open_set: OpenSet, at: int) -> Iterator[tuple[int, int, int]]:
        """(block, start, end) to read instead of sample ``at`` of the set, should its block be damaged:
        first, second …

        A hash of (seed, epoch, block, window) chooses one of the set's other blocks and one of its windows.
        Should that block be damaged too, the set's next one takes its place, and at last, for small sets, one
        of the OPEN_BLOCKS blocks that follow the damaged one in the epoch's order.
        """
        block, window, *_ = open_set.samples_M5[at].tolist()
        key = random.fold(self._order_key, open_set.epoch, block, window).view(1)
        draw = random.words(key, "replacement", 1)[:, 0]
        others = [other for other in open_set.blocks if other != block]
        begin = int(random.field(draw, 0, 32)) * len(others) >> 32
        order_n, _ = self._order(open_set.epoch - self.first_epoch)
        after = np.roll(order_n, -1 - int(np.flatnonzero(order_n == block)[0]))[:OPEN_BLOCKS].tolist()
        for other in dict.fromkeys(others[begin:] + others[:begin] + after):
            if other != block:
                window = int(random.field(draw, 32, 31)) % int(self.windows_N[other])
                start, end = self.intervals(open_set.epoch, np.array([other]), np.array([window]))
                yield other, int(start[0]), int(end[0])

    def _mixed(self, epoch: int, first: int, blocks: Ints, counts: Ints) -> OpenSet:
        block_M = np.repeat(blocks, counts)
        window_M = np.arange(len(block_M)) - np.repeat(np.cumsum(counts) - counts, counts)
        drawn = random.fold(self._order_key, epoch, torch.from_numpy(block_M), torch.from_numpy(window_M))
        mixed = np.argsort(random.words(drawn, "window order", 1)[:, 0].numpy(), kind="stable")
        block_M, window_M = block_M[mixed], window_M[mixed]
        start_M, end_M = self.intervals(epoch, block_M, window_M)
        key_M = random.fold(
            self.seed, self.dataset, epoch, torch.from_numpy(block_M), torch.from_numpy(window_M)
        )
        samples_M5 = np.stack([block_M, window_M, start_M, end_M, key_M.numpy()], 1)
        return OpenSet(epoch, first, first + len(block_M), blocks[counts > 0].tolist(), samples_M5)

    def _order(self, turn: int) -> tuple[Ints, Ints]:
        """(the blocks that have windows, in the epoch's order; how often each block is read: its weight, the
        fraction drawn)."""
        if turn not in self._orders:
            read_n = self._read_n
            keys_n = random.fold(self._order_key, self.first_epoch + turn, torch.from_numpy(read_n))
            order_n = read_n[np.argsort(random.words(keys_n, "block order", 1)[:, 0].numpy(), kind="stable")]
            fraction_n = random.field(random.words(keys_n, "block copies", 1)[:, 0], 0, 32).numpy() / 2**32
            copies_N = np.floor(self.weight_N).astype(np.int64)
            copies_N[read_n] += fraction_n < self.weight_N[read_n] % 1
            self._orders[turn] = (order_n, copies_N)
            while len(self._orders) > 4:
                self._orders.popitem(last=False)
        return self._orders[turn]

    def _lane_ends(self, turn: int) -> Ints:
        order_n, copies_N = self._order(turn)
        lane_n = (np.arange(len(order_n)) + turn * len(order_n)) % self.lanes
        counts = np.bincount(lane_n, self.windows_N[order_n] * copies_N[order_n], self.lanes).astype(np.int64)
        return counts + self._ends[turn - 1] if turn else counts
