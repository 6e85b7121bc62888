"""Shards -> batches of source windows: the same global batch at every step, on any number of ranks.

sampling.py and region_sampling.py decide which window each sample is; prefetch.py holds and fetches the
blocks. Lane l belongs to rank l mod W, and there to thread (l div W) mod threads, so no lane is read by two.
A batch is a pure function of its step: caches, threads and prefetch change only the time it takes.

A sample's id is (leaf, epoch, block, window): the leaf of the mixture is a dataset, or the regions of a BED
in one (leaves.py). Its key, from which all its views and masks are drawn, is
the hash of the seed and the id.

Shapes: B rows of a rank, S = L + 2·flank source positions.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cluster.storage import store
from trainer.core.collectives import Group
from trainer.data.batch import Batch
from trainer.data.block_cache import python_warning
from trainer.data.config import Data
from trainer.data.cutting import Cutter, Place
from trainer.data.dataset import Dataset, check_tracks
from trainer.data.leaves import Leaf, leaves_of
from trainer.data.mixture import Mixture
from trainer.data.partners import PartnerIndex, open_partners
from trainer.data.prefetch import LATER, NOW, SOON, BlockBuffer, FetchThreads
from trainer.data.region_sampling import RegionSampler
from trainer.data.regions import RegionSet, open_regions
from trainer.data.sampling import OpenSet, Sampler, SamplingPlan

_REMOTE_THREADS = 4
_PARTNER_BP = 1 << 30  # of blocks that partners are in, kept in memory at a quarter byte each


def open_reader(
    data: Data,
    datasets: Sequence[Dataset],
    *,
    plan: SamplingPlan,
    group: Group,
    soft: bool = False,
    track: bool = False,
    device: torch.device | None = None,
    prepare: Callable[[Batch], Any] | None = None,
    regions: Sequence[RegionSet] | None = None,
    warn: Callable[[str], None] = python_warning,
) -> "Reader":
    """The reader that the ``data`` section describes, of the opened train splits of its datasets.

    Args:
        soft: whether windows bring their soft mask.
        track: whether they bring the levels of their weights.
        device: where the batches will be copied to.
        prepare: what each batch is to bring as ``prepared``; it is called in the reader's thread.
        regions: those of ``data.regions``, where they are open already.
        warn: called with a sentence for each damaged block that is skipped, and for assemblies without track.

    Raises:
        ValueError: windows and their flanks are longer than a dataset's blocks, so that all would be padded.
        ConfigError, StoreError: as ``open_regions`` and ``open_partners``, and as ``check_tracks``.
    """
    longest = max(phase.length for phase in plan.phases)
    for dataset in datasets:
        if longest + 2 * plan.flank > dataset.manifest.block_bp:
            raise ValueError(
                f"data.length {longest} with {plan.flank} bp on either side does not fit the "
                f"blocks of {dataset.manifest.block_bp} bp in {dataset.uri}; build it with a larger "
                "block_bp"
            )
    if track:
        check_tracks(datasets, warn=warn if group.rank == 0 else lambda text: None)
    remote = not all(store.is_local(dataset.uri) for dataset in datasets)
    return Reader(
        datasets,
        plan=plan,
        group=group,
        threads=_REMOTE_THREADS * remote if data.workers is None else data.workers,
        on_skip=warn if data.on_corrupt == "skip" else None,
        soft=soft,
        track=track,
        device=device,
        prepare=prepare,
        partners=open_partners(datasets, data.partners),
        regions=open_regions(data.regions, datasets, warn=warn) if regions is None else regions,
    )


class Reader:
    """Batches of this rank, step after step, prepared one step ahead in a thread.

    A block that is damaged or cannot be read ends the run if ``on_skip`` is None. Else ``on_skip`` is called
    with a sentence, once a block, and each window of the block is replaced by a window of another block of
    the same open set. A hash of (seed, epoch, block, window) chooses it (Sampler.replacements): all who meet
    the same damaged blocks read the same replacements. The sample keeps its id and its key. If no block to
    choose from can be read, or the store answers for none (TransientError), that ends the run after all.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        plan: SamplingPlan,
        group: Group,
        threads: int = 0,
        on_skip: Callable[[str], None] | None = None,
        soft: bool = False,
        track: bool = False,
        device: torch.device | None = None,
        prepare: Callable[[Batch], Any] | None = None,
        partners: Sequence[PartnerIndex | None] = (),
        regions: Sequence[RegionSet] = (),
    ) -> None:
        """A reader of the rank ``group.rank``; ``threads`` fetch blocks, and with 0 the caller reads them.

        ``soft``, ``track``: windows bring their soft mask, the levels of their weights. ``device``: on a GPU,
        batches are pinned for it, unless ``prepare`` makes of them what is copied there. ``partners``: of
        each dataset, where windows are to bring partners. ``regions``: of each BED file on which windows are
        centred.
        """
        assert plan.lanes % group.size == 0 and plan.global_batch % group.size == 0, (
            "world_faults() should have refused this"
        )
        self.datasets, self.plan, self.group, self.soft = datasets, plan, group, soft
        self._prepare = prepare
        self._pin_for = torch.cuda.current_device() if device and device.type == "cuda" else None
        self.leaves = leaves_of(plan.weights, regions, anywhere=plan.anywhere)
        self._mixture = Mixture([leaf.weight for leaf in self.leaves], seed=plan.seed, lanes=plan.lanes)
        self._threads = FetchThreads(threads)
        self._partners = [*partners] or [None] * len(datasets)
        self._phase = 0
        self.samplers = self._samplers()
        self._current: dict[tuple[int, int], OpenSet] = {}  # (leaf, lane) -> the set being read
        self._next: dict[tuple[int, int], OpenSet] = {}  # the one after it
        lanes = plan.lanes // group.size
        self._blocks = [
            BlockBuffer(
                dataset.block,
                capacity=2 * lanes * self._largest_sets(number)
                + bool(index) * _PARTNER_BP // dataset.manifest.block_bp,
                threads=self._threads,
            )
            for number, (dataset, index) in enumerate(zip(datasets, self._partners, strict=True))
        ]
        self._cutter = Cutter(
            datasets,
            lambda dataset, number, lane: self._blocks[dataset].get(number, thread=self.thread_of(lane)),
            flank=plan.flank,
            soft=soft,
            track=track,
            partners=any(self._partners),
            on_skip=on_skip,
        )

    def thread_of(self, lane: int) -> int:
        """The thread that fetches all blocks of ``lane``, a lane of this rank."""
        return lane // self.group.size % max(1, self._threads.count)

    def position(self, step: int) -> dict[str, Any]:
        """The position before ``step``, to be saved: ``counts`` [leaf][lane] since the phase began."""
        return {
            "step": step,
            "phase": self.plan.phase_at(step),
            "counts": self._mixture.counts(self.plan.lane_counts(step)).tolist(),
        }

    def step_of(self, position: dict[str, Any]) -> int:
        """The step at which a saved position goes on. ValueError if it was saved under another plan."""
        step = int(position["step"])
        for name, value in self.position(step).items():
            if position.get(name) != value:
                raise ValueError(
                    f"the position saved at step {step} does not fit this config: its {name} would be "
                    f"{value}, not {position.get(name)}; data.uri, data.regions, data.length, data.lanes, "
                    "run.seed and train.global_batch must stay as they were"
                )
        return step

    def batch(self, step: int) -> Batch:
        """The rows of this rank in the global batch of ``step`` (from 0). Call it from one thread at a
        time."""
        phase = self.plan.phase_at(step)
        if phase != self._phase:
            self._phase, self._current, self._next = phase, {}, {}
            self.samplers = self._samplers()
        batch = self._cutter.cut(
            self._places(step), length=self.plan.phases[phase].length, samplers=self.samplers
        )
        if self._prepare is not None:
            return replace(batch, prepared=self._prepare(batch))
        if self._pin_for is not None:  # only from pinned memory does a copy to the GPU run beside the step
            batch = replace(batch, windows=batch.windows.each(torch.Tensor.pin_memory))
        return batch

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` … ``stop`` - 1."""
        # Pinned memory belongs to a device; that of a new thread would be the first of the host.
        begin = None if self._pin_for is None else partial(torch.cuda.set_device, self._pin_for)
        with ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=begin) as pool:
            following = pool.submit(self.batch, start)
            for step in range(start, stop):
                current = following.result()
                if step + 1 < stop:
                    following = pool.submit(self.batch, step + 1)
                yield current

    def close(self) -> None:
        """End the threads; no batch can be read any more."""
        self._threads.close()
        for blocks in self._blocks:
            blocks.cancel()

    def shares(self, step: int) -> dict[int, float]:
        """tag (Batch.tags_B) -> its share of the samples that all ranks have read before ``step``, since the
        phase began; empty if that is ``step``."""
        counts = self._mixture.counts(self.plan.lane_counts(step)).sum(1)
        total, found = counts.sum(), dict.fromkeys((leaf.tag for leaf in self.leaves), 0.0)
        for leaf, count in zip(self.leaves, counts.tolist(), strict=True):
            found[leaf.tag] += count / max(1, total)
        return found if total else {}

    def _samplers(self) -> dict[int, Sampler]:
        """A sampler of each leaf for the current phase, by its number."""
        each = [(dataset.bp(), dataset.weights()) for dataset in self.datasets]
        found: dict[int, Sampler] = {}
        for leaf in self.leaves:
            blocks = each[leaf.dataset]
            if leaf.regions is None:
                found[leaf.number] = Sampler(*blocks, plan=self.plan, dataset=leaf.number, phase=self._phase)
            else:
                found[leaf.number] = RegionSampler(*blocks, leaf, plan=self.plan, phase=self._phase)
        return found

    def _largest_sets(self, dataset: int) -> int:
        """The most blocks that the sets of a lane in ``dataset`` have, one set for each leaf."""
        return sum(self.samplers[leaf.number].largest_set for leaf in self.leaves if leaf.dataset == dataset)

    def _places(self, step: int) -> list[Place]:
        """Where the rows of this rank come from; their blocks are requested."""
        plan = self.plan
        sample_B = plan.samples_before(step) + np.arange(plan.global_batch)
        sample_B = sample_B[sample_B % plan.lanes % self.group.size == self.group.rank]
        lane_B = sample_B % plan.lanes
        leaf_B, count_B = self._mixture.split(lane_B, sample_B // plan.lanes)
        places: list[Place] = []
        opened: list[Place] = []
        for which, lane, count in zip(leaf_B.tolist(), lane_B.tolist(), count_B.tolist(), strict=True):
            leaf = self.leaves[which]
            current = self._current.get((leaf.number, lane))
            is_new = current is None or not current.first <= count < current.stop
            if current is None or is_new:
                current = self._open(leaf, lane, count)
            places.append(Place(leaf, lane, current, count - current.first))
            if is_new:
                opened.append(places[-1])
        if opened:
            self._prefetch(places, opened)
        return places

    def _open(self, leaf: Leaf, lane: int, count: int) -> OpenSet:
        found = self._next.pop((leaf.number, lane), None)
        if found is None or not found.first <= count < found.stop:
            found = self._open_set(leaf, lane, count)
        self._current[leaf.number, lane] = found
        return found

    def _open_set(self, leaf: Leaf, lane: int, count: int) -> OpenSet:
        sampler, index = self.samplers[leaf.number], self._partners[leaf.dataset]
        found = sampler.open_set(lane, count)
        if index is None:
            return found
        choices_M7 = index.choose(found.samples_M5, length=sampler.length, flank=sampler.flank)
        return replace(found, partners_M7=choices_M7)

    def _prefetch(self, places: list[Place], opened: list[Place]) -> None:
        """Request the blocks of this batch, then the rest of the sets just opened, then the sets after
        them."""
        for leaf, lane, current, at in places:
            number = int(current.samples_M5[at, 0])
            self._blocks[leaf.dataset].request(number, thread=self.thread_of(lane), urgency=NOW)
        for leaf, lane, current, _ in opened:
            wanted = [(current, SOON)]
            if self._threads.count:
                following = self._next[leaf.number, lane] = self._open_set(leaf, lane, current.stop)
                wanted.append((following, LATER))
            for open_set, urgency in wanted:
                for number in open_set.in_order_of_use():
                    self._blocks[leaf.dataset].request(number, thread=self.thread_of(lane), urgency=urgency)
