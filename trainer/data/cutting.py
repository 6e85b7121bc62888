"""The rows of a batch, cut out of their blocks; what is read where a block is damaged."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from cluster.storage import store
from cluster.storage.retry import TransientError
from data_prep import shards
from data_prep.blocks import PackedBlock
from trainer.data.batch import Batch
from trainer.data.dataset import Dataset
from trainer.data.leaves import Leaf
from trainer.data.partners import Choice, PartnerRows, choice_of
from trainer.data.sampling import OpenSet, Sampler
from trainer.data.windows import WindowBuilder

GetBlock = Callable[[int, int, int], PackedBlock]  # of dataset, block, and the lane that asks


class Place(NamedTuple):
    """Where a row comes from: number ``at`` of the samples of ``open_set``, which is of ``lane`` in
    ``leaf``."""

    leaf: Leaf
    lane: int
    open_set: OpenSet
    at: int


class _Source(NamedTuple):
    """The interval of a block that a row is cut from."""

    block: PackedBlock
    number: int
    start: int
    end: int


class Cutter:
    """Cuts the rows of batches, and names each damaged block once."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        get_block: GetBlock,
        *,
        flank: int,
        soft: bool,
        track: bool,
        partners: bool,
        on_skip: Callable[[str], None] | None,
    ) -> None:
        """``soft``, ``track``, ``partners``: windows bring their soft mask, the levels of their weights, what
        the teacher reads in their place.
        ``on_skip``: as the Reader's."""
        self._datasets, self._get_block = datasets, get_block
        self._flank, self._soft, self._track, self._partners = flank, soft, track, partners
        self._on_skip = on_skip
        self._reported: set[tuple[int, int]] = set()  # damaged blocks: dataset, block

    def cut(self, places: Sequence[Place], *, length: int, samplers: Mapping[int, Sampler]) -> Batch:
        """The batch of windows of ``length`` bp whose rows come from ``places``; ``samplers`` by the
        number of the leaf. StoreError or FormatError if a block is damaged and may not be skipped."""
        builder = WindowBuilder(len(places), length, self._flank, soft=self._soft, track=self._track)
        partners = PartnerRows(builder, len(places)) if self._partners else None
        ids, keys = [], []
        skipped: set[tuple[int, int, int]] = set()
        for row, place in enumerate(places):
            leaf, lane, current, at = place
            dataset = leaf.dataset
            number, window, start, end, key = current.samples_M5[at].tolist()
            ids.append((leaf.number, current.epoch, number, window))
            keys.append(key)
            choice = choice_of(current.partners_M7, at)
            try:
                block = self._get_block(dataset, number, lane)
            except (store.StoreError, shards.FormatError) as fault:
                block, number, start, end = self._replacement(fault, place, samplers[leaf.number])
                skipped.add(ids[-1][:3])
                choice = None  # it was chosen for the window that cannot be read
            builder.fill(row, block, start, end, locus=self._datasets[dataset].locus(number))
            if partners:
                partner = self._partner(choice, place, skipped)
                partners.fill(row, choice, partner, self._datasets[dataset])
        windows = builder.windows(torch.from_numpy(np.array(keys)))
        if partners:
            windows = partners.beside(windows)
        tags_B = torch.tensor([place.leaf.tag for place in places])
        return Batch(windows, torch.from_numpy(np.array(ids)), tags_B, frozenset(skipped))

    def _partner(
        self, choice: Choice | None, place: Place, skipped: set[tuple[int, int, int]]
    ) -> PackedBlock | None:
        """The block of the partner of ``place``; None if it has none, or if the block is damaged: then it is
        added to ``skipped``."""
        if choice is None or choice.block < 0:
            return None
        try:
            return self._get_block(place.leaf.dataset, choice.block, place.lane)
        except TransientError:
            raise
        except (store.StoreError, shards.FormatError) as fault:
            self._report(place.leaf.dataset, choice.block, fault)
            skipped.add((place.leaf.number, place.open_set.epoch, choice.block))
            return None

    def _replacement(self, fault: Exception, place: Place, sampler: Sampler) -> _Source:
        """What is read instead of ``place``, whose block has the ``fault``; raises it if blocks may not be
        skipped."""
        leaf, lane, current, at = place
        self._report(leaf.dataset, int(current.samples_M5[at, 0]), fault)
        for other, start, end in sampler.replacements(current, at):
            try:
                block = self._get_block(leaf.dataset, other, lane)
            except TransientError:
                raise  # two in a row: the store is down, and each further block would cost all the retries
            except (store.StoreError, shards.FormatError):
                continue  # it is reported when its own turn comes
            return _Source(block, other, start, end)
        raise fault

    def _report(self, dataset: int, number: int, fault: Exception) -> None:
        """Names a damaged block, once; raises its fault if blocks may not be skipped."""
        if self._on_skip is None:
            raise fault
        if (dataset, number) not in self._reported:
            self._reported.add((dataset, number))
            self._on_skip(f"skipped {self._datasets[dataset].where(number)}: {fault}")
