"""The windows of other genomes that the teacher reads in place of a sample's own: partners.

A dataset's partner table says which places are the same by descent. All that is drawn for a sample (whether
its teacher reads a partner, of which assembly) comes from the sample's key, so that it is the same on any
number of ranks. Only letters of train blocks are ever read.

Positions count along all assemblies of the table, contig after contig. Every chain gives a segment for each
two anchors that follow each other, once from either side.

Shapes: M samples, S assemblies of the table, N segments, P blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs import ConfigError
from data_prep.blocks import PackedBlock
from data_prep.partners import PartnerTable
from trainer.core import random
from trainer.data.config import Partners
from trainer.data.dataset import Dataset
from trainer.data.mixture import Ints
from trainer.data.windows import WindowBuilder, Windows

_NONE = -1


class Choice(NamedTuple):
    """What belongs to a sample: [start, end) of ``block`` for the teacher, to be read from the other strand
    if ``turned``; block -1: it reads the sample's own window. ``root_start``, ``root_end``: the interval of
    ``root_block`` that stands for all windows of the same descent; it may reach beyond the block."""

    block: int
    start: int
    end: int
    turned: int
    root_block: int
    root_start: int
    root_end: int


@dataclass(frozen=True, eq=False)
class _Segments:
    """Sorted by ``key_N``: number of the partner's assembly times all positions, plus where it starts."""

    key_N: Ints
    end_N: Ints
    bp_N: Ints
    there_N: Ints  # the partner of the first letter
    moves_N: Ints  # how far the partner moves over the segment: below 0 on the other strand

    @classmethod
    def of(cls, table: PartnerTable, start_of: Ints, assembly_of: Ints, total: int) -> "_Segments":
        """``start_of``, ``assembly_of``: by place of the table."""
        chain_N = table.chain_of
        here_N = start_of[table.place_C][chain_N] + table.at_N
        there_N = start_of[table.partner_C][chain_N] + table.partner_at_N
        first = np.flatnonzero(chain_N[1:] == chain_N[:-1])
        one, two = assembly_of[table.place_C][chain_N[first]], assembly_of[table.partner_C][chain_N[first]]
        a, b, c, d = here_N[first], here_N[first + 1], there_N[first], there_N[first + 1]
        turned = d < c
        start = np.concatenate([a, np.minimum(c, d)])
        end = np.concatenate([b, np.maximum(c, d)])
        there = np.concatenate([c, np.where(turned, b, a)])
        moves = np.concatenate([d - c, np.where(turned, a - b, b - a)])
        key = np.concatenate([two, one]) * total + start
        order = np.argsort(key, kind="stable")
        return cls(key[order], end[order], (end - start)[order], there[order], moves[order])


class PartnerIndex:
    """Where the windows of a dataset's train split have partners."""

    def __init__(self, dataset: Dataset, table: PartnerTable, settings: Partners) -> None:
        self._settings = settings
        assert dataset.manifest.partners, "the table is the dataset's"
        assemblies = {name: i for i, name in enumerate(dataset.manifest.partners["between"])}
        starts, at = dict[tuple[str, str], int](), 0
        for source in sorted(
            (source for source in dataset.manifest.sources if source.name in assemblies),
            key=lambda source: assemblies[source.name],
        ):
            for contig, bp in source.contigs.items():
                starts[source.name, contig] = at
                at += bp
        self._total, self._count = at, len(assemblies)
        self._segments = _Segments.of(
            table,
            np.array([starts[place] for place in table.places], np.int64),
            np.array([assemblies[assembly] for assembly, _ in table.places], np.int64),
            at,
        )
        blocks = dataset.blocks.columns
        of_place = [(assemblies.get(place[0], _NONE), starts.get(place, 0)) for place in blocks.places]
        self._assembly_P, first_P = np.array(of_place, np.int64)[blocks.place_N].T
        self._start_P = first_P + blocks.start_N.astype(np.int64)
        self._bp_P = dataset.bp()
        known = np.flatnonzero(self._assembly_P >= 0)
        self._by_start = known[np.argsort(self._start_P[known], kind="stable")]

    def choose(self, samples_M5: Ints, *, length: int, flank: int) -> Ints:
        """int64 [M, 7], a Choice for each sample (columns as OpenSet's). One that is shorter than ``length``,
        since its block is, has no partner."""
        block_M, start_M, end_M, key_M = samples_M5[:, [0, 2, 3, 4]].T
        middle_M = (start_M + end_M) // 2
        here_M, own_M = self._start_P[block_M] + middle_M, self._assembly_P[block_M]
        there_MS, turned_MS = self._mapped(here_M, own_M)
        words_M = random.words(torch.from_numpy(key_M.copy()), "partner", 2)
        found_M3 = self._drawn(there_MS, turned_MS, end_M - start_M, length, words_M)
        partner, at_M, turned_M = found_M3[:, 0], found_M3[:, 1], found_M3[:, 2]
        before_M = np.where(turned_M > 0, end_M - 1 - middle_M, middle_M - start_M)
        length_M = end_M - start_M
        bp_M = self._bp_P[partner]
        margin_M = np.where(bp_M >= length_M + 2 * flank, flank, 0)
        first_M = np.clip(at_M - before_M, margin_M, np.maximum(margin_M, bp_M - length_M - margin_M))
        root_M = self._root(here_M, own_M, there_MS)
        root_block_M = np.where(own_M < 0, block_M, self._block_at(root_M))
        root_at_M = np.where(own_M < 0, middle_M, root_M - self._start_P[root_block_M])
        columns = [
            partner,
            first_M,
            np.minimum(first_M + length_M, bp_M),
            turned_M,
            root_block_M,
            root_at_M - (middle_M - start_M),
            root_at_M + (end_M - middle_M),
        ]
        return np.stack(columns, 1)

    def _mapped(self, here_M: Ints, own_M: Ints) -> tuple[Ints, Ints]:
        """(the partner of each position in each assembly, or -1; whether on the other strand) [M, S]."""
        key_MS = np.arange(self._count) * self._total + here_M[:, None]
        segments = self._segments
        at_MS = np.searchsorted(segments.key_N, key_MS, "right") - 1
        is_first = at_MS < 0
        at_MS[is_first] = 0
        inside_MS = (segments.key_N[at_MS] // self._total == np.arange(self._count)) & ~is_first
        inside_MS &= (here_M[:, None] < segments.end_N[at_MS]) & (own_M[:, None] >= 0)
        steps_MS = here_M[:, None] - segments.key_N[at_MS] % self._total
        moves_MS = segments.moves_N[at_MS]
        # Rounded to the nearest in integers, so that it is the same everywhere.
        bp_MS = segments.bp_N[at_MS]
        moved_MS = (2 * steps_MS * np.abs(moves_MS) + bp_MS) // np.maximum(1, 2 * bp_MS) * np.sign(moves_MS)
        there_MS = np.where(inside_MS, segments.there_N[at_MS] + moved_MS, _NONE)
        there_MS[inside_MS & (self._block_at(there_MS) < 0)] = _NONE  # between two blocks: not in train
        return there_MS, (moves_MS < 0).astype(np.int64)

    def _block_at(self, position: Ints) -> Ints:
        """The block that holds each position, or -1."""
        starts = self._start_P[self._by_start]
        at = np.searchsorted(starts, position, "right") - 1
        block = self._by_start[np.maximum(at, 0)]
        inside = (at >= 0) & (position < self._start_P[block] + self._bp_P[block])
        return np.where(inside, block, _NONE)

    def _drawn(self, there_MS: Ints, turned_MS: Ints, length_M: Ints, length: int, words_M: Tensor) -> Ints:
        """int64 [M, 3]: (block or -1, position in it, strand) of the partner that each sample's key draws."""
        block_MS = self._block_at(there_MS)
        fits_MS = (there_MS >= 0) & (self._bp_P[block_MS] >= length) & (length_M[:, None] == length)
        count_M = fits_MS.sum(1)
        asked_M = random.below(words_M[:, 0], 0, self._settings.share).numpy() & (count_M > 0)
        pick_M = (random.field(words_M[:, 0], 24, 32).numpy() * count_M) >> 32
        chosen_M = np.argmax(np.cumsum(fits_MS, 1) > pick_M[:, None], 1)
        row_M = np.arange(len(chosen_M))
        block_M, there_M = block_MS[row_M, chosen_M], there_MS[row_M, chosen_M]
        turned_M, at_M = turned_MS[row_M, chosen_M], there_M - self._start_P[block_M]
        if self._settings.kind == "random":
            block_M, at_M = self._anywhere(chosen_M, length, random.field(words_M[:, 1], 0, 32).numpy())
            turned_M = random.field(words_M[:, 1], 32, 1).numpy()
        return np.stack(
            [np.where(asked_M, part, no) for part, no in ((block_M, _NONE), (at_M, 0), (turned_M, 0))], 1
        )

    def _anywhere(self, assembly_M: Ints, length: int, draw_M: Ints) -> tuple[Ints, Ints]:
        """(block, position in it), uniform over the blocks of an assembly that hold a window."""
        block_M, at_M = np.zeros_like(assembly_M), np.zeros_like(assembly_M)
        for assembly in np.unique(assembly_M).tolist():
            rows = np.flatnonzero(assembly_M == assembly)
            among = np.flatnonzero((self._assembly_P == assembly) & (self._bp_P >= length))
            if len(among):  # else no row of these has a partner
                until = np.cumsum(self._bp_P[among])
                at = draw_M[rows] * until[-1] >> 32
                which = np.searchsorted(until, at, "right")
                block_M[rows] = among[which]
                at_M[rows] = at - (until[which] - self._bp_P[among[which]])
        return block_M, at_M

    def _root(self, here_M: Ints, own_M: Ints, there_MS: Ints) -> Ints:
        """One position for all that are the same by descent: the partner in the first assembly that has one,
        and that one's, and so on."""
        at_M, of_M = here_M.copy(), own_M.copy()
        rows, found_MS = np.arange(len(at_M)), there_MS
        for _ in range(self._count):
            earlier_MS = (found_MS >= 0) & (np.arange(self._count) < of_M[rows, None])
            moves = earlier_MS.any(1)
            rows, found_MS = rows[moves], found_MS[moves]
            if not len(rows):
                break
            of_M[rows] = np.argmax(earlier_MS[moves], 1)
            at_M[rows] = found_MS[np.arange(len(rows)), of_M[rows]]
            found_MS = self._mapped(at_M[rows], of_M[rows])[0]
        return at_M


def open_partners(datasets: Sequence[Dataset], settings: Partners) -> list[PartnerIndex | None]:
    """The index of each dataset; None of one that has no partners, and of all where no sample is to have one.

    Raises:
        ConfigError: partners are asked for, and no dataset has any. FormatError, StoreError: a table cannot
            be read.
    """
    if not settings.share:
        return [None] * len(datasets)
    tables = [dataset.partners() for dataset in datasets]
    found = [
        PartnerIndex(dataset, table, settings) if table is not None and len(table.place_C) else None
        for dataset, table in zip(datasets, tables, strict=True)
    ]
    if not any(found):
        uris = ", ".join(dataset.uri for dataset in datasets)
        raise ConfigError(
            f"data.partners.share is {settings.share:g}, but the train split of {uris} has no partners; "
            "build it with partners.between, or set the share to 0"
        )
    return found


class PartnerRows:
    """Builds the windows that the teacher reads beside ``own``, row by row: partners, or the row's own."""

    def __init__(self, own: WindowBuilder, rows: int) -> None:
        self._own, self._builder = own, WindowBuilder(rows, own.length, own.flank)
        self._roots: list[tuple[int, int, int]] = [(0, 0, 0)] * rows

    def fill(self, row: int, choice: Choice | None, block: PackedBlock | None, dataset: Dataset) -> None:
        """Row ``row``, once ``own`` has it: from ``block``, which ``choice`` names; its own where there is no
        block. No choice: the dataset has no partners, or the row is another than was chosen for."""
        if choice is None or block is None:
            self._builder.copy(row, self._own)
        else:
            locus = dataset.locus(choice.block)
            self._builder.fill(row, block, choice.start, choice.end, locus=locus)
            if choice.turned:
                self._builder.turn(row)
        if choice is None:
            self._roots[row] = self._own.place(row)
        else:
            contig, offset = dataset.locus(choice.root_block)
            self._roots[row] = (contig, offset + choice.root_start, offset + choice.root_end)

    def beside(self, windows: Windows) -> Windows:
        """``windows``, which are those of ``own``, with their partners."""
        partners = self._builder.windows(windows.key_B)
        return replace(windows, partner=partners, root_B3=torch.from_numpy(np.array(self._roots)))


def choice_of(choices_M7: Ints | None, at: int) -> Choice | None:
    """Row ``at`` of what ``PartnerIndex.choose`` gave, if anything."""
    return None if choices_M7 is None else Choice(*choices_M7[at].tolist())
