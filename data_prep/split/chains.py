"""Stretches of two genomes that are the same by descent: chains of shared minimisers in the same order.

An anchor is a k-mer that stands once in each of the two genomes, on either strand; it means the letter in its
middle. Two anchors are linked if each is the other's nearest that fits: not too far away, and at almost
the same distance in both genomes. So between two linked anchors an interpolated position is wrong by at most
the difference of the two distances. A chain is a path of links. One by chance is short: it must cover enough
letters. Of two chains for the same stretch, the one that covers more stays.

Positions count along a whole assembly, contig after contig with room between, so that no chain crosses from
one to the next.

Shapes: M minimisers of an assembly, N anchors of a pair, C chains.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.alphabet import Codes, N
from data_prep.partners import IDENTITY_UNIT, Numbers
from data_prep.split.minimisers import Hashes, forward, minimisers

_AHEAD = 16  # anchors among which the nearest that fits is looked for; those between are there by chance
_BUCKET = 1 << 15  # bp; an anchor at least in each, so that two are never more than 65,535 apart
MOST_GAP = _BUCKET - 1
_MAX_OVERLAP = 0.5  # of a chain with better ones

Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Chaining:
    """``max_gap``: bp between two linked anchors. ``max_shift``: by how many bp the distance may differ.

    ``min_anchors``: so many k-mers beside each other are as many letters as a chain must cover.
    """

    k: int
    window: int
    max_gap: int
    max_shift: int
    min_anchors: int


@dataclass(frozen=True, eq=False)
class Sketched:
    """The minimisers of an assembly that stand in it once, by hash, and its letters."""

    hash_M: Hashes
    middle_M: Numbers  # position of the letter in the middle
    forward_M: Bits  # the k-mer counts as it stands, not as its reverse complement
    codes: Codes  # of the whole assembly, N where nothing is known


@dataclass(frozen=True, eq=False)
class Chains:
    """Of a pair of assemblies; positions of both, anchors chain after chain. See partners.PartnerTable."""

    reversed_C: Numbers
    identity_C: Numbers
    anchors_C: Numbers
    at_N: Numbers
    partner_at_N: Numbers


def sketch(parts: Iterable[tuple[int, Codes]], bp: int, chaining: Chaining) -> Sketched:
    """The minimisers of an assembly of ``bp`` letters from ``parts`` of it: (position, letters) each."""
    codes_all = np.full(bp, N, np.uint8)
    hashes, middles, forwards = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    for start, codes in parts:
        codes_all[start : start + len(codes)] = codes
        found, positions = minimisers(codes, k=chaining.k, window=chaining.window)
        hashes.append(found)
        middles.append(positions + (start + chaining.k // 2))
        forwards.append(forward(codes, positions, k=chaining.k))
    hash_M, middle_M, forward_M = np.concatenate(hashes), np.concatenate(middles), np.concatenate(forwards)
    order = np.argsort(hash_M, kind="stable")
    differs = np.concatenate([[True], np.diff(hash_M[order]) != 0, [True]])
    kept = order[(differs[:-1] & differs[1:])[: len(order)]]  # in front and behind stands another one
    return Sketched(hash_M[kept], middle_M[kept], forward_M[kept], codes_all)


def chains(one: Sketched, other: Sketched, chaining: Chaining) -> Chains:
    """The chains of two assemblies, by position in ``one``."""
    _, at_1, at_2 = np.intersect1d(one.hash_M, other.hash_M, assume_unique=True, return_indices=True)
    x_N, y_N = one.middle_M[at_1], other.middle_M[at_2]
    turned_N = one.forward_M[at_1] != other.forward_M[at_2]
    found: list[tuple[int, int, bool, Numbers, Numbers]] = []  # letters covered, start
    for turned in (False, True):
        here = turned_N == turned
        order = np.argsort(x_N[here], kind="stable")
        x, y = x_N[here][order], y_N[here][order]
        for of in _paths(x, -y if turned else y, chaining):
            covered = chaining.k + int(np.minimum(np.diff(x[of]), chaining.k).sum())
            if covered >= chaining.min_anchors * chaining.k:
                found.append((covered, int(x[of[0]]), turned, x[of], y[of]))
    kept = _best(found)
    ends = [_ends_of_runs(x, -y if turned else y) for _, _, turned, x, y in kept]
    thin = [(turned, x[of], y[of]) for (_, _, turned, x, y), of in zip(kept, ends, strict=True)]
    return Chains(
        np.array([turned for turned, _, _ in thin], np.int64),
        np.array([_identity(one.codes, other.codes, *part) for part in thin], np.int64),
        np.array([len(x) for _, x, _ in thin], np.int64),
        np.concatenate([np.zeros(0, np.int64), *(x for _, x, _ in thin)]),
        np.concatenate([np.zeros(0, np.int64), *(y for _, _, y in thin)]),
    )


def _paths(x: Numbers, v: Numbers, chaining: Chaining) -> list[Numbers]:
    """The paths of links, as indices of ``x``, which ascends, and of ``v``, which has to."""
    count = len(x)
    following, before = np.full(count, -1), np.full(count, -1)
    for ahead in range(1, min(_AHEAD, count - 1) + 1):
        dx, dv = x[ahead:] - x[:-ahead], v[ahead:] - v[:-ahead]
        fits = (dv > 0) & (dx <= chaining.max_gap) & (dv <= chaining.max_gap)
        fits &= np.abs(dx - dv) <= chaining.max_shift
        index = np.flatnonzero(fits)
        index_on, index_back = index[following[index] < 0], index[before[index + ahead] < 0]
        following[index_on] = index_on + ahead
        before[index_back + ahead] = index_back
    start = np.arange(count)
    linked = np.flatnonzero((before >= 0) & (following[before] == start))
    start[linked] = before[linked]
    while (on := start[start]).tobytes() != start.tobytes():  # each round doubles the steps back
        start = on
    order = np.argsort(start, kind="stable")
    edges = np.flatnonzero(np.diff(start[order])) + 1
    return [path for path in np.split(order, edges) if len(path) > 1]


def _best(found: Sequence[tuple[int, int, bool, Numbers, Numbers]]) -> list[Any]:
    """Those of ``found`` that do not mostly lie where chains that cover more do, in either genome; by
    start."""
    kept, taken_x, taken_y = [], _Taken(), _Taken()
    for chain in sorted(found, key=lambda chain: (-chain[0], chain[1:3])):
        _, _, _, x, y = chain
        of_x, of_y = (int(x[0]), int(x[-1])), (int(y.min()), int(y.max()))
        if all(
            taken.overlap(*of) <= _MAX_OVERLAP * (of[1] - of[0])
            for taken, of in ((taken_x, of_x), (taken_y, of_y))
        ):
            taken_x.add(*of_x)
            taken_y.add(*of_y)
            kept.append(chain)
    return sorted(kept, key=lambda chain: chain[1:3])


class _Taken:
    """Intervals that are taken; they overlap little, so that the nearest few are those that matter."""

    _NEAR = 8

    def __init__(self) -> None:
        self._intervals: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        insort(self._intervals, (start, end))

    def overlap(self, start: int, end: int) -> int:
        """Letters of [start, end) that are taken, those that are taken twice counted twice."""
        first = max(0, bisect_left(self._intervals, (start, start)) - self._NEAR)
        near = self._intervals[first : bisect_right(self._intervals, (end, end))]
        return sum(max(0, min(end, b) - max(start, a)) for a, b in near)


def _ends_of_runs(x: Numbers, v: Numbers) -> Numbers:
    """Indices of the first and last anchor of each run of equal distance; those between follow from them."""
    run = np.flatnonzero((np.diff(v - x) != 0) | (np.diff(x // _BUCKET) != 0))
    return np.unique(np.concatenate([[0], run, run + 1, [len(x) - 1]]))


def _identity(one: Codes, other: Codes, turned: bool, x: Numbers, y: Numbers) -> int:
    """How many letters are equal, in 1/10,000, where both genomes have as many between two anchors."""
    steps, sign = np.diff(x), -1 if turned else 1
    equal = np.flatnonzero(steps == sign * np.diff(y))
    lengths = steps[equal]
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    here = one[np.repeat(x[equal], lengths) + inside]
    there = other[np.repeat(y[equal], lengths) + sign * inside]
    known = (here < N) & (there < N)
    same = (here == (3 - there if turned else there)) & known
    return int(same.sum()) * IDENTITY_UNIT // max(1, int(known.sum()))
