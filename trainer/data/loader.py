"""Shards -> batches of source windows, the same global batch at every step whatever the number of ranks.

Which window each sample is stands in order.py; how blocks come and stay in blocks.py. Lane l belongs to rank
l mod W, and there to worker (l div W) mod workers, so no lane is read by two. A batch is a pure function of
its step; caches, workers and prefetch change only the time it takes.

A sample's id is (dataset, epoch, block, window); its key, from which all its views and masks are drawn, is
their hash.
Shapes: B rows of a rank, S = L + 2·flank source positions.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.storage import store
from cluster.storage.retry import TransientError
from data_prep import shards
from trainer.core.collectives import Group
from trainer.data.block_cache import LATER, NOW, SOON, Blocks, Workers, warn
from trainer.data.config import OnCorrupt
from trainer.data.dataset import Dataset
from trainer.data.sampling import Mixture, OpenSet, Phase, Sampler, lane_counts, phase_at
from trainer.data.windows import WindowRows, Windows
from trainer.run.config import TrainConfig

_REMOTE_WORKERS = 4
_Place = tuple[int, int, OpenSet, int]  # dataset, lane, the lane's open set, place in its samples


@dataclass(frozen=True)
class Batch:
    """Rows of one rank for one step, in sample order; ``ids_B4`` are (dataset, epoch, block, window).

    ``skipped``: (dataset, epoch, block) of the damaged blocks that rows should have come from.
    """

    windows: Windows
    ids_B4: Tensor
    skipped: frozenset[tuple[int, int, int]] = frozenset()

    def split(self, rows: int) -> list[Windows]:
        """Micro-batches of ``rows`` rows."""
        firsts = range(0, len(self.ids_B4), rows)
        return [self.windows.each(itemgetter(slice(first, first + rows))) for first in firsts]


def open_reader(
    config: TrainConfig,
    datasets: Sequence[Dataset],
    *,
    flank: int,
    group: Group,
    say: Callable[[str], None] = warn,
    device: torch.device | None = None,
) -> "Reader":
    """The reader that ``config`` describes, of the train split of its datasets, for a student on ``device``.

    Raises:
        ValueError: windows and their flanks are longer than a dataset's blocks, so that all would be padded.
    """
    data = config.data
    longest = max(part.length for part in data.length) + 2 * flank
    for dataset in datasets:
        if longest > dataset.manifest.block_bp:
            raise ValueError(
                f"data.length {longest - 2 * flank} with {flank} bp on either side does not fit the "
                f"blocks of {dataset.manifest.block_bp} bp in {dataset.uri}; build it with a larger "
                "block_bp"
            )
    remote = not all(store.is_local(dataset.uri) for dataset in datasets)
    return Reader(
        datasets,
        weights=[part.weight for part in data.uri],
        seed=config.run.seed,
        phases=[Phase(part.from_step, part.length) for part in data.length],
        flank=flank,
        lanes=data.lanes,
        global_batch=config.train.global_batch,
        group=group,
        on_corrupt=data.on_corrupt,
        say=say,
        soft=config.loss.needs_soft_mask,
        device=device,
        workers=_REMOTE_WORKERS * remote if data.workers is None else data.workers,
    )


class Reader:
    """Batches of this rank, step after step, prepared one step ahead in a thread.

    ``on_corrupt``: with "fail" a block that is damaged or cannot be read ends the run. With "skip" it is told
    to ``say``, and each of its windows is replaced by a window of another block of the same open set, which a
    hash of (seed, epoch, block, window) chooses (Sampler.replacements): whoever meets the same damaged blocks
    reads the same. The sample keeps its id and its key. If none of the blocks to choose from can be read, or
    the store answers for none (TransientError), that ends the run after all. With ``soft``, windows bring
    their soft mask.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        weights: Sequence[float],
        phases: Sequence[Phase],
        seed: int,
        flank: int,
        lanes: int,
        global_batch: int,
        group: Group,
        workers: int = 0,
        on_corrupt: OnCorrupt = "fail",
        soft: bool = False,
        say: Callable[[str], None] = warn,
        device: torch.device | None = None,
    ) -> None:
        assert lanes % group.size == 0 and global_batch % group.size == 0, (
            "world_faults() should have refused this"
        )
        self.datasets, self.phases, self.group = datasets, phases, group
        self.seed, self.flank, self.lanes, self.global_batch = seed, flank, lanes, global_batch
        self.on_corrupt, self.soft, self._say = on_corrupt, soft, say
        self._pin_for = torch.cuda.current_device() if device and device.type == "cuda" else None
        self.mixture = Mixture(weights, seed=seed, lanes=lanes)
        self._workers = Workers(workers)
        self._phase = -1
        self._sets: list[dict[int, OpenSet]] = []  # by dataset: lane -> its open set
        self._next: list[dict[int, OpenSet]] = []
        self._named: set[tuple[int, int]] = set()  # damaged blocks that were said: dataset, block
        self.samplers: list[Sampler] = []
        self._enter(0)
        mine = lanes // group.size
        self._blocks = [
            Blocks(dataset.block, capacity=2 * mine * sampler.largest_set, workers=self._workers)
            for dataset, sampler in zip(datasets, self.samplers, strict=True)
        ]

    def worker_of(self, lane: int) -> int:
        """The worker that fetches all blocks of ``lane``, a lane of this rank."""
        return lane // self.group.size % max(1, self._workers.count)

    def position(self, step: int) -> dict[str, Any]:
        """Where the run stands before ``step``, to be saved: ``counts`` [dataset][lane] since the phase
        began."""
        phase = phase_at(self.phases, step)
        samples = (step - self.phases[phase].from_step) * self.global_batch
        return {
            "step": step,
            "phase": phase,
            "counts": self.mixture.counts(lane_counts(samples, self.lanes)).tolist(),
        }

    def step_of(self, position: dict[str, Any]) -> int:
        """The step at which a saved position goes on. ValueError if it was saved under another order of
        samples."""
        step = int(position["step"])
        here = self.position(step)
        for name, value in here.items():
            if position.get(name) != value:
                raise ValueError(
                    f"the position saved at step {step} does not fit this config: its {name} would be "
                    f"{value}, not {position.get(name)}; data.uri, data.length, data.lanes, run.seed and "
                    "train.global_batch must stay as they were"
                )
        return step

    def batch(self, step: int) -> Batch:
        """The rows of this rank in the global batch of ``step`` (from 0). To be called from one thread at a
        time."""
        phase = phase_at(self.phases, step)
        if phase != self._phase:
            self._enter(phase)
        samples = (step - self.phases[phase].from_step) * self.global_batch + np.arange(self.global_batch)
        samples = samples[samples % self.lanes % self.group.size == self.group.rank]
        lane_B = samples % self.lanes
        dataset_B, count_B = self.mixture.split(lane_B, samples // self.lanes)
        places: list[_Place] = []
        opened: list[tuple[int, int, OpenSet]] = []
        for dataset, lane, count in zip(dataset_B.tolist(), lane_B.tolist(), count_B.tolist(), strict=True):
            current = self._sets[dataset].get(lane)
            if current is None or not current.first <= count < current.stop:
                current = self._open(dataset, lane, count)
                opened.append((dataset, lane, current))
            places.append((dataset, lane, current, count - current.first))
        if opened:
            self._prefetch(places, opened)
        return self._cut(places)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` … ``stop`` - 1."""
        # Pinned memory belongs to a device: without a word from us, a thread's is the first of the host.
        begin = None if self._pin_for is None else partial(torch.cuda.set_device, self._pin_for)
        with ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=begin) as pool:
            coming = pool.submit(self.batch, start)
            for step in range(start, stop):
                current = coming.result()
                if step + 1 < stop:
                    coming = pool.submit(self.batch, step + 1)
                yield current

    def close(self) -> None:
        """End the workers; no batch can be read any more."""
        self._workers.close()
        for blocks in self._blocks:
            blocks.give_up()

    def _enter(self, phase: int) -> None:
        self._phase = phase
        self._sets, self._next = [{} for _ in self.datasets], [{} for _ in self.datasets]
        self.samplers = [
            Sampler(
                np.array([block.bp for _, block in dataset.blocks], np.int64),
                weight_N=dataset.weights(),
                seed=self.seed,
                length=self.phases[phase].length,
                flank=self.flank,
                lanes=self.lanes,
                dataset=number,
                phase=phase,
            )
            for number, dataset in enumerate(self.datasets)
        ]

    def _open(self, dataset: int, lane: int, count: int) -> OpenSet:
        found = self._next[dataset].pop(lane, None)
        if found is None or not found.first <= count < found.stop:
            found = self.samplers[dataset].open_set(lane, count)
        self._sets[dataset][lane] = found
        return found

    def _prefetch(self, places: list[_Place], opened: list[tuple[int, int, OpenSet]]) -> None:
        """This batch's blocks, then what the sets just opened still lack, in the order of use, then the next
        sets'."""
        for dataset, lane, current, at in places:
            self._blocks[dataset].want(
                int(current.samples_M5[at, 0]), worker=self.worker_of(lane), urgency=NOW
            )
        for dataset, lane, current in opened:
            wanted = [(current, SOON)]
            if self._workers.count:
                following = self._next[dataset][lane] = self.samplers[dataset].open_set(lane, current.stop)
                wanted.append((following, LATER))
            for open_set, urgency in wanted:
                for block in dict.fromkeys(open_set.samples_M5[:, 0].tolist()):
                    self._blocks[dataset].want(block, worker=self.worker_of(lane), urgency=urgency)

    def _cut(self, places: list[_Place]) -> Batch:
        cut = WindowRows(len(places), self.phases[self._phase].length, self.flank, soft=self.soft)
        ids, keys = [], []
        skipped: set[tuple[int, int, int]] = set()
        for row, (dataset, lane, current, at) in enumerate(places):
            number, window, start, end, key = current.samples_M5[at].tolist()
            ids.append((dataset, current.epoch, number, window))
            keys.append(key)
            try:
                block = self._blocks[dataset].get(number, worker=self.worker_of(lane))
            except (store.StoreError, shards.FormatError) as fault:
                block, number, start, end = self._instead(fault, places[row])
                skipped.add(ids[-1][:3])
            cut.fill(row, block, start, end, locus=self.datasets[dataset].locus(number))
        windows = cut.windows(torch.from_numpy(np.array(keys)))
        if self._pin_for is not None:  # only from there does a copy to the GPU run beside the step
            windows = windows.each(torch.Tensor.pin_memory)
        return Batch(windows, torch.from_numpy(np.array(ids)), frozenset(skipped))

    def _instead(self, fault: Exception, place: _Place) -> tuple[shards.PackedBlock, int, int, int]:
        """Block, its number, start and end of what is read instead of ``place``, whose block has the
        ``fault``."""
        if self.on_corrupt == "fail":
            raise fault
        dataset, lane, current, at = place
        number = int(current.samples_M5[at, 0])
        if (dataset, number) not in self._named:
            self._named.add((dataset, number))
            self._say(f"skipped {self.datasets[dataset].where(number)}: {fault}")
        for other, start, end in self.samplers[dataset].replacements(current, at):
            try:
                return self._blocks[dataset].get(other, worker=self.worker_of(lane)), other, start, end
            except (
                TransientError
            ):  # two in a row: the store is down, and each further block would cost all the retries
                raise
            except (store.StoreError, shards.FormatError):
                continue  # it is named when its own turn comes
        raise fault
