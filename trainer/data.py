"""Shards -> batches of source windows, in an order that is a pure function of (seed, sample number).

Sample j of a run belongs to lane j mod lanes, and lane l to rank l mod W, so the global batch of a step is the same at
any number of ranks. In each epoch the blocks are put in an order drawn from (seed, epoch) and dealt to the lanes like
cards; a lane takes its blocks in sets of at least OPEN_BLOCKS (or all it has) and mixes the windows of a set, since
neighbours would be false negatives for the contrastive loss. Window offsets are drawn from (seed, epoch, block).

A sample's id is (dataset, epoch, block, window); its key, from which all its views and masks are drawn, is their hash.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster import store
from data_prep import alphabet, shards
from trainer import counter
from trainer.collectives import Group
from trainer.views import Windows

OPEN_BLOCKS = 16
_Int = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Rows of one rank for one step, in sample order; ``ids_B4`` are (dataset, epoch, block, window)."""

    windows: Windows
    ids_B4: Tensor

    def split(self, rows: int) -> list[Windows]:
        """Micro-batches of ``rows`` rows."""
        w = self.windows
        parts = zip(*(t.split(rows) for t in (w.codes_BS, w.low_B, w.high_B, w.key_B)), strict=True)
        return [Windows(codes, low, high, key, w.flank) for codes, low, high, key in parts]


class Dataset:
    """One split of a dataset: its manifest and its blocks, each read by one range request and kept decoded."""

    def __init__(self, uri: str, split: str, *, cached_blocks: int = 1024) -> None:
        """Raises: StoreError or FormatError (no manifest there, or not one); ValueError (the split is empty)."""
        self.uri, self.split = uri, split
        if not store.exists(store.join(uri, shards.MANIFEST)):
            raise store.StoreError(f"no dataset at {uri}: {shards.MANIFEST} is missing there; build it with data_prep")
        self.manifest_bytes = store.read_bytes(store.join(uri, shards.MANIFEST))
        try:
            self.manifest = shards.Manifest.from_bytes(self.manifest_bytes)
        except shards.FormatError as fault:
            raise shards.FormatError(f"{store.join(uri, shards.MANIFEST)}: {fault}") from fault
        self.blocks = self.manifest.blocks(split)
        if not self.blocks:
            raise ValueError(f"dataset {uri} has no block in its {split} split; give split.{split} and build it again")
        self._cache: OrderedDict[int, alphabet.Codes] = OrderedDict()
        self._cached_blocks = cached_blocks

    def codes(self, block: int) -> alphabet.Codes:
        """uint8 [bp] of block number ``block``. StoreError or FormatError, naming shard and block, if it is damaged."""
        found = self._cache.get(block)
        if found is None:
            shard, entry = self.blocks[block]
            uri = store.join(self.uri, shard.name)
            try:
                payload = store.read_bytes(uri, entry.offset, entry.offset + entry.size)
                found, _ = shards.unpack(payload)
            except shards.FormatError as fault:
                where = f"shard {uri}, block {entry.contig}:{entry.start}-{entry.end}"
                raise shards.FormatError(f"{where}: {fault}") from fault
            if len(found) != entry.bp:
                raise shards.FormatError(f"shard {uri}: a block has {len(found)} bases, its manifest says {entry.bp}")
            self._cache[block] = found
        self._cache.move_to_end(block)
        while len(self._cache) > self._cached_blocks:
            self._cache.popitem(last=False)
        return found


@dataclass
class _LaneEpoch:
    """The samples of one lane in one epoch, in their order; ``first`` is the lane's count before them."""

    epoch: int
    first: int
    block_N: _Int
    window_N: _Int


class Sampler:
    """(lane, count) -> sample id: which window of which block a lane reads as its count-th sample."""

    def __init__(self, dataset: Dataset, *, seed: int, length: int, flank: int, lanes: int) -> None:
        self.seed, self.length, self.flank, self.lanes = seed, length, flank, lanes
        self.bp_N = np.array([block.bp for _, block in dataset.blocks], np.int64)
        weights = {source.name: source.weight for source in dataset.manifest.sources}
        self.weight_N = np.array([weights[block.assembly] for _, block in dataset.blocks])
        # One window fewer than fit, so that the offset is free over a whole window.
        inner = (self.bp_N - 2 * flank) // length
        self.windows_N = np.maximum(1, inner - 1)
        self._lane_epochs: dict[int, _LaneEpoch] = {}
        self._orders: OrderedDict[int, tuple[_Int, _Int]] = OrderedDict()

    def sample(self, lane: int, count: int) -> tuple[int, int, int]:
        """(epoch, block, window) of sample number ``count`` (from 0) of ``lane``."""
        current = self._lane_epochs.get(lane)
        if current is None or count < current.first:
            current = self._lane_epoch(lane, 0, 0)
        while count >= current.first + len(current.block_N):
            current = self._lane_epoch(lane, current.epoch + 1, current.first + len(current.block_N))
        self._lane_epochs[lane] = current
        at = count - current.first
        return current.epoch, int(current.block_N[at]), int(current.window_N[at])

    def interval(self, epoch: int, block: int, window: int) -> tuple[int, int]:
        """[start, end) of the window in its block; shorter than the length only where the block is."""
        bp, windows = int(self.bp_N[block]), int(self.windows_N[block])
        copy, index = divmod(window, windows)
        margin = self.flank if bp >= self.length + 2 * self.flank else 0
        free = max(0, bp - 2 * margin - windows * self.length)
        key = counter.fold(self.seed, epoch, block, copy).view(1)
        start = margin + int(counter.integers(key, "offset", free + 1)) + index * self.length
        return start, min(start + self.length, bp)

    def _order(self, epoch: int) -> tuple[_Int, _Int]:
        """Blocks in the epoch's order, and how often each is read (its weight, the fraction drawn)."""
        if epoch not in self._orders:
            keys_N = counter.fold(self.seed, epoch, torch.arange(len(self.bp_N)))
            order_N = np.argsort(counter.words(keys_N, "block order", 1)[:, 0].numpy(), kind="stable")
            fraction_N = counter.field(counter.words(keys_N, "block copies", 1)[:, 0], 0, 32).numpy() / 2**32
            copies_N = np.floor(self.weight_N).astype(np.int64) + (fraction_N < self.weight_N % 1)
            self._orders[epoch] = (order_N, copies_N)
            while len(self._orders) > 4:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _lane_epoch(self, lane: int, epoch: int, first: int) -> _LaneEpoch:
        order_N, copies_N = self._order(epoch)
        # Dealing goes on where the last epoch stopped, so that few blocks reach all of many lanes.
        mine = order_N[(lane - epoch * len(order_N)) % self.lanes :: self.lanes]
        counts = self.windows_N[mine] * copies_N[mine]
        # The last set is joined to the one before, so that none is smaller than OPEN_BLOCKS.
        open_set = np.minimum(np.arange(len(mine)) // OPEN_BLOCKS, max(0, len(mine) // OPEN_BLOCKS - 1))
        block_M, set_M = np.repeat(mine, counts), np.repeat(open_set, counts)
        window_M = np.arange(len(block_M)) - np.repeat(np.cumsum(counts) - counts, counts)
        key_M = counter.fold(self.seed, epoch, torch.from_numpy(block_M), torch.from_numpy(window_M))
        mixed = np.lexsort((counter.words(key_M, "window order", 1)[:, 0].numpy(), set_M))
        return _LaneEpoch(epoch, first, block_M[mixed], window_M[mixed])


class Reader:
    """Batches of this rank, step after step, prepared one step ahead in a thread."""

    def __init__(
        self, dataset: Dataset, *, seed: int, length: int, flank: int, lanes: int, global_batch: int, group: Group
    ) -> None:
        assert lanes % group.size == 0 and global_batch % group.size == 0, "world_faults() should have refused this"
        self.dataset, self.group, self.global_batch = dataset, group, global_batch
        self.sampler = Sampler(dataset, seed=seed, length=length, flank=flank, lanes=lanes)

    def batch(self, step: int) -> Batch:
        """The rows of this rank among samples [step·G, (step + 1)·G), steps counted from 0."""
        sampler = self.sampler
        numbers = range(step * self.global_batch, (step + 1) * self.global_batch)
        mine = [j for j in numbers if j % sampler.lanes % self.group.size == self.group.rank]
        ids = [(0, *sampler.sample(j % sampler.lanes, j // sampler.lanes)) for j in mine]
        cut = [cut_window(self.dataset.codes(b), *sampler.interval(e, b, w), sampler.length, sampler.flank)
               for _, e, b, w in ids]  # fmt: skip
        ids_B4 = torch.tensor(ids)
        return Batch(stack_windows(cut, counter.fold(sampler.seed, *ids_B4.T), sampler.flank), ids_B4)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` … ``stop`` - 1."""
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
            coming = pool.submit(self.batch, start)
            for step in range(start, stop):
                current = coming.result()
                if step + 1 < stop:
                    coming = pool.submit(self.batch, step + 1)
                yield current


def cut_window(
    codes: alphabet.Codes, start: int, end: int, length: int, flank: int
) -> tuple[alphabet.Codes, int, int]:
    """(codes [length + 2·flank], low, high): [start, end) of a block with what flank the block has on either side."""
    first, last = max(0, start - flank), min(len(codes), end + flank)
    row = np.full(length + 2 * flank, alphabet.PAD, np.uint8)
    low = first - (start - flank)
    row[low : low + last - first] = codes[first:last]
    return row, low, low + last - first


def stack_windows(cut: list[tuple[alphabet.Codes, int, int]], key_B: Tensor, flank: int) -> Windows:
    rows, lows, highs = zip(*cut, strict=True)
    return Windows(
        torch.from_numpy(np.stack(rows)), torch.tensor(lows), torch.tensor(highs), key_B, flank
    )


def choose_windows(block_bp: list[int], length: int, count: int, *, margin: int) -> list[tuple[int, int, int]]:
    """At most ``count`` (block, start, end), evenly spaced over all windows that tile the blocks.

    Windows keep ``margin`` from a block's edge, so that they have real neighbours, where the block allows.
    """
    places = []
    for block, bp in enumerate(block_bp):
        if bp < length + 2 * margin:
            places.append((block, 0, min(bp, length)))
        else:
            places += [(block, s, s + length) for s in range(margin, bp - length - margin + 1, length)]
    picked = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))
    return [places[i] for i in picked]
