"""BED files -> regions: the pieces of each that lie in the train blocks of a dataset.

Positions count along all assemblies of a dataset, contig after contig, one apart, so that no interval of one
contig touches one of the next.

Shapes: M lines of a file, R regions of a dataset, P pieces, each within one block, N blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configs import ConfigError, redact
from data_prep.sources.aliases import Renamed
from trainer.data import region_lines
from trainer.data.block_cache import python_warning
from trainer.data.config import RegionBed
from trainer.data.config import Regions as RegionSettings
from trainer.data.dataset import Dataset
from trainer.data.mixture import Ints
from trainer.data.region_lines import ALL, KEY, Lines
from trainer.data.sampling import Floats


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one BED file in one dataset, cut at the edges of train blocks; in the order of blocks.

    A piece is [start, start + bp) of its block. ``region_P``: which region it is of, which has ``of_P`` bp in
    train, ``before_P`` of them in earlier pieces. ``weight_P``: how often the region is visited, relative to
    the others; None: by its length.
    """

    block_P: Ints
    start_P: Ints
    bp_P: Ints
    region_P: Ints
    before_P: Ints
    of_P: Ints
    weight_P: Floats | None


@dataclass(frozen=True, eq=False)
class RegionSet:
    """The regions of one BED file in each dataset (None where it has none), and the label of their windows.

    ``weight``: its share of the samples, relative to the other files.
    """

    uri: str
    sha256: str
    label: str
    weight: float
    by_dataset: tuple[Regions | None, ...]


class _Intervals(NamedTuple):
    """Intervals [start, end) by position, and the line that each is of."""

    start_R: Ints
    end_R: Ints
    line_R: Ints


class _Remarks:
    """What is to be said of the lines of one file, gathered over datasets and assemblies.

    ``hit_M``: which lie in a train block; ``late_M``: which end past the end of their contig; ``read_M``:
    which count for some assembly; ``unlifted_M``: which do not count for some of ``haplotypes``, although
    they have the contig; ``known``: contigs that some assembly has; ``renamed``: which were read as others,
    a sentence or "".
    """

    def __init__(self, lines: Lines) -> None:
        self.hit_M, self.late_M, self.read_M, self.unlifted_M = np.zeros((4, len(lines)), np.bool_)
        self.haplotypes = dict[str, None]()
        self.known = set[str]()
        self.renamed = ""


def open_regions(
    settings: RegionSettings, datasets: Sequence[Dataset], *, warn: Callable[[str], None] = python_warning
) -> tuple[RegionSet, ...]:
    """The regions of each BED file of ``settings`` in the train splits ``datasets``. ``warn`` gets a sentence
    for a file of which some lines give no window, or less than they name, or are read as other contigs.

    Raises:
        StoreError: a BED cannot be read. ConfigError: it is no BED, an interval lies beyond its contig, a
            score is missing, or no line lies in the train split.
    """
    if not settings.beds:
        return ()
    assemblies = list(dict.fromkeys(source.name for data in datasets for source in data.manifest.sources))
    places = [_Places(dataset, assemblies) for dataset in datasets]
    return tuple(_open(bed, places, assemblies, warn) for bed in settings.beds)


def _open(
    bed: RegionBed, places: Sequence["_Places"], assemblies: Sequence[str], warn: Callable[[str], None]
) -> RegionSet:
    lines = region_lines.read(bed, assemblies)
    remarks = _Remarks(lines)
    found = tuple(place.regions(lines, bed, remarks) for place in places)
    alone_M = remarks.unlifted_M & ~remarks.read_M
    missed = region_lines.not_in_train(lines, remarks.hit_M, alone_M, known=remarks.known)
    unlifted = region_lines.unlifted(lines, remarks.unlifted_M, [*remarks.haplotypes])
    if not remarks.hit_M.any():
        uris = ", ".join(place.uri for place in places)
        advice = region_lines.TO_HAPLOTYPES if unlifted else "give another BED file"
        raise ConfigError(f"{KEY}: no line lies in the train split of {uris}: {missed}; {advice}")
    for sentence in (missed, unlifted, region_lines.past_the_end(lines, remarks.late_M), remarks.renamed):
        if sentence:
            warn(f"{KEY}: {sentence}")
    return RegionSet(bed.uri, lines.sha256, bed.name, bed.weight, found)


class _Places:
    """The positions of a dataset: its contigs, and the blocks of its train split."""

    def __init__(self, dataset: Dataset, assemblies: Sequence[str]) -> None:
        self._contigs: dict[int, Mapping[str, int]] = {}  # number of the assembly -> its contigs' bp
        self._haplotypes = set[int]()  # the numbers of assemblies that are haplotypes of references
        self._starts: dict[tuple[str, str], int] = {}
        self.uri, at = redact(dataset.uri), 0
        for source in dataset.manifest.sources:
            self._contigs[assemblies.index(source.name)] = source.contigs
            if "haplotype" in source.filters:
                self._haplotypes.add(assemblies.index(source.name))
            for contig, bp in source.contigs.items():
                self._starts[source.name, contig] = at
                at += bp + 1
        self._names = assemblies
        blocks = dataset.blocks.columns
        contig_N = np.array([self._starts[place] for place in blocks.places], np.int64)[blocks.place_N]
        start_N = contig_N + blocks.start_N.astype(np.int64)
        self._block_N = np.argsort(start_N, kind="stable")
        self._start_N = start_N[self._block_N]
        self._end_N = self._start_N + dataset.bp()[self._block_N]

    def regions(self, lines: Lines, bed: RegionBed, remarks: _Remarks) -> Regions | None:
        """What of ``lines`` lies in the blocks; None if nothing does. ConfigError if a line begins beyond the
        end of its contig."""
        intervals = self._intervals(lines, remarks)
        remarks.hit_M[intervals.line_R[self._blocks_of(intervals)[1] > 0]] = True
        if bed.by == "bp":
            intervals = _merged(intervals)
        return self._cut(intervals, None if bed.by == "bp" else lines.score_M)

    def _intervals(self, lines: Lines, remarks: _Remarks) -> _Intervals:
        """Those of ``lines`` that are of this dataset's assemblies, once for each. A line without an assembly
        is in the coordinates of references, which a dataset cannot lift to haplotypes."""
        starts, ends, numbers = list[Ints](), list[Ints](), list[Ints]()
        for assembly, contigs in self._contigs.items():
            renamed = Renamed(contigs)
            found = [renamed.find(contig) for contig in lines.contigs]
            remarks.known |= {
                theirs for theirs, ours in zip(lines.contigs, found, strict=True) if ours is not None
            }
            remarks.renamed = remarks.renamed or renamed.sentence(lines.uri)
            name = self._names[assembly]
            first_C = np.array([-1 if contig is None else self._starts[name, contig] for contig in found])
            bp_C = np.array([0 if contig is None else contigs[contig] for contig in found])
            own_M, all_M = lines.assembly_M == assembly, lines.assembly_M == ALL
            there_M = (first_C[lines.contig_M] >= 0) & (lines.start_M < lines.end_M) & (lines.score_M > 0)
            if assembly not in self._haplotypes:
                own_M |= all_M
            elif (all_M & there_M).any():
                remarks.unlifted_M |= all_M & there_M
                remarks.haplotypes[name] = None
            at = np.flatnonzero(own_M & there_M)
            remarks.read_M[at] = True
            first, bp = first_C[lines.contig_M[at]], bp_C[lines.contig_M[at]]
            if len(beyond := np.flatnonzero(lines.start_M[at] >= bp)):
                raise ConfigError(_beyond(lines, int(at[beyond[0]]), name, int(bp[beyond[0]])))
            remarks.late_M[at[lines.end_M[at] > bp]] = True
            starts.append(first + lines.start_M[at])
            ends.append(first + np.minimum(lines.end_M[at], bp))
            numbers.append(at)
        return _Intervals(*(np.concatenate(parts).astype(np.int64) for parts in (starts, ends, numbers)))

    def _blocks_of(self, intervals: _Intervals) -> tuple[Ints, Ints]:
        """(the first block that each interval meets, how many), in the order of their positions."""
        first_R = np.searchsorted(self._end_N, intervals.start_R, "right")
        last_R = np.searchsorted(self._start_N, intervals.end_R, "left")
        return first_R, np.maximum(0, last_R - first_R)

    def _cut(self, intervals: _Intervals, weight_M: Floats | None) -> Regions | None:
        """The intervals that meet blocks, cut at their edges; ``weight_M``: of the lines."""
        first_R, count_R = self._blocks_of(intervals)
        meets_R = np.flatnonzero(count_R)
        start_R, end_R, line_R = (part[meets_R] for part in intervals)
        first_R, count_R = first_R[meets_R], count_R[meets_R]
        if not len(meets_R):
            return None
        region_P = np.repeat(np.arange(len(start_R)), count_R)
        until_R = np.cumsum(count_R)
        at_P = first_R[region_P] + np.arange(len(region_P)) - (until_R - count_R)[region_P]
        from_P = np.maximum(start_R[region_P], self._start_N[at_P])
        bp_P = np.minimum(end_R[region_P], self._end_N[at_P]) - from_P
        before_P = np.cumsum(bp_P) - bp_P
        before_P -= before_P[(until_R - count_R)[region_P]]
        of_R = np.add.reduceat(bp_P, until_R - count_R)
        weight_P = None if weight_M is None else weight_M[line_R][region_P]
        order = np.lexsort((from_P, self._block_N[at_P]))
        return Regions(
            block_P=self._block_N[at_P][order],
            start_P=(from_P - self._start_N[at_P])[order],
            bp_P=bp_P[order],
            region_P=region_P[order],
            before_P=before_P[order],
            of_P=of_R[region_P][order],
            weight_P=None if weight_P is None else weight_P[order],
        )


def _merged(intervals: _Intervals) -> _Intervals:
    """The union of the intervals; the line of each is the first of its part."""
    order = np.argsort(intervals.start_R, kind="stable")
    start_R, end_R, line_R = (part[order] for part in intervals)
    until_R = np.maximum.accumulate(end_R)
    apart_R = start_R[1:] > until_R[:-1]  # from the one before
    outermost = np.ones(min(1, len(start_R)), np.bool_)
    first_R = np.flatnonzero(np.concatenate([outermost, apart_R]))
    last_R = np.flatnonzero(np.concatenate([apart_R, outermost]))
    return _Intervals(start_R[first_R], until_R[last_R], line_R[first_R])


def _beyond(lines: Lines, at: int, assembly: str, bp: int) -> str:
    contig, start, end = lines.contigs[lines.contig_M[at]], lines.start_M[at], lines.end_M[at]
    return (
        f"{KEY}: {lines.uri}, line {lines.number_M[at]}: {contig}:{start}-{end} lies beyond the contig's "
        f"{bp} bp in {assembly}; is the BED of another genome? A fourth column with an assembly limits a "
        "line to it"
    )
