"""What the workers of a check of held-out windows do. A window is held against all k-mers of the other
splits, not their minimisers alone, since two sequences that differ choose other ones.

Shapes: H minimisers of the held-out splits, sorted; F places of a filter; m minimisers of a block.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.alphabet import Codes
from data_prep.split.intervals import Intervals, Span, merge, subtract
from data_prep.split.minimisers import Hashes, Positions, find, kmers, minimisers, reach, unique
from data_prep.split.passes import Read, Scan

Flags = np.ndarray[Any, np.dtype[np.uint8]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Rule:
    """No window of ``window_bp`` bp has more than ``max_shared`` of its minimisers elsewhere; of a block that
    is shorter, the whole is the window. Pieces of less than ``min_bp`` are dropped.
    """

    k: int
    window: int
    window_bp: int
    max_shared: float
    min_bp: int


@dataclass(frozen=True)
class Occur:
    """Task: which held-out minimisers are a k-mer of a chunk of another split, a bit each."""

    read: Read
    chunk: Any
    rule: Rule

    def scan(self, hashes_H: Hashes, filter_F: Bits) -> Scan:
        bp, occurs_H = 0, np.zeros(len(hashes_H), np.bool_)
        for _, codes in self.read(self.chunk):
            bp += len(codes)
            hashes = kmers(codes, k=self.rule.k)
            at, hit = find(hashes_H, unique([hashes[filter_F[places(hashes, len(filter_F))]]]))
            occurs_H[at[hit]] = True
        return Scan(bp, (np.packbits(occurs_H).tobytes(),))


def places(hashes: Hashes, size: int) -> Positions:
    """The place of each of ``hashes`` in a filter of ``size``, a power of 2: most k-mers are told from all
    held-out minimisers by it, without a search."""
    return (hashes & np.uint64(size - 1)).astype(np.int64)


@dataclass(frozen=True)
class Trim:
    """Task: what the rule leaves of the blocks of a held-out chunk, which are held against the splits of the
    flags ``wanted``. Counts: starts of windows, and those that broke the rule.
    """

    read: Read
    chunk: Any
    rule: Rule
    wanted: int

    def scan(self, hashes_H: Hashes, flags_H: Flags) -> Scan:
        bp, windows, broken, kept = 0, 0, 0, list[Span]()
        for span, codes in self.read(self.chunk):
            starts = bad_starts(codes, self.rule, hashes_H, (flags_H & self.wanted) > 0)
            bp += len(codes)
            windows += max(1, len(codes) - self.rule.window_bp + 1)
            broken += sum(last + 1 - first for first, last in starts)
            if not starts:
                kept.append(span)
                continue
            kept += [
                Span(span.assembly, span.contig, span.start + start, span.start + end)
                for start, end in left_of(len(codes), starts, self.rule.window_bp)
                if end - start >= max(self.rule.min_bp, self.rule.window_bp)
            ]
        return Scan(bp, counts=(windows, broken), spans=tuple(kept))


def bad_starts(codes: Codes, rule: Rule, hashes_H: Hashes, elsewhere_H: Bits) -> list[tuple[int, int]]:
    """(first, last) of each run of starts of windows of ``codes`` that break ``rule``; ``elsewhere_H``: which
    of ``hashes_H`` stand elsewhere.

    A window has the minimisers of its own letters, as if it stood alone.
    """
    bp = min(rule.window_bp, len(codes))
    slack = bp - (rule.window + rule.k - 1)  # by which a window is longer than one of neighbouring k-mers
    if slack < 0:
        return []
    hashes, positions = minimisers(codes, k=rule.k, window=rule.window)
    first_m, last_m = reach(codes, positions, k=rule.k, window=rule.window)
    at, hit = find(hashes_H, hashes)
    if not hit.any():
        return []
    shared = np.zeros(len(hashes), np.bool_)
    shared[hit] = elsewhere_H[at[hit]]
    starts = len(codes) - bp + 1
    low, high = np.maximum(0, first_m - slack), np.minimum(starts - 1, last_m)
    total, common = (
        np.cumsum(
            np.bincount(low[chosen], minlength=starts + 1)
            - np.bincount(high[chosen] + 1, minlength=starts + 1)
        )[:starts]
        for chosen in (slice(None), shared)
    )
    bad = common > rule.max_shared * total
    edges = np.flatnonzero(np.diff(bad, prepend=False, append=False)).reshape(-1, 2)
    return [(first, end - 1) for first, end in edges.tolist()]


def left_of(bp: int, starts: list[tuple[int, int]], window_bp: int) -> Intervals:
    """Pieces of a block of ``bp`` that have none of the windows at ``starts`` (first and last of each run).

    Of a short run, what all its windows share is cut out: there is the stretch that stands elsewhere. Of a
    long one, its middle. A base at least, so that no window lies across.
    """
    cuts = []
    for first, last in starts:
        low, high = sorted((last + 1, first + min(window_bp, bp) - 1))
        cuts.append((low, max(high, low + 1)))
    return subtract([(0, bp)], merge(cuts))
