"""Chains of a reference and its haplotypes: from their edits, and not searched.

Both are aligned wherever neither has an insertion or deletion, letter by letter. A chain is a run of such
stretches that lie in train in both. It has an anchor at either end of each, so that positions are exact, and
only those of letters that the other does not have are interpolated.

Shapes: P aligned pieces, C chains, N anchors, S substituted letters. A row of pieces: where it starts in the
reference, in the one and in the other, and its letters.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.partners import IDENTITY_UNIT, MOST_APART, Numbers
from data_prep.sources.survey import Reference
from data_prep.split.chains import Chains
from data_prep.split.intervals import Intervals, Span, count_covered

_STEP = 1 << 15  # bp between two anchors of a stretch
_CASE = np.uint8(0x20)


@dataclass(frozen=True, eq=False)
class Member:
    """A contig of a reference or of a haplotype: what of it is in train, and where it begins along the
    assembly."""

    reference: Reference
    contig: str
    train: Intervals
    start: int


def related(one: Reference, other: Reference) -> bool:
    """Whether they are haplotypes of the same reference, or one is that reference."""
    return (one.base or one).handle == (other.base or other).handle


def exact_chains(one: Member, other: Member) -> Chains:
    """The chains of a contig of two ``related`` references, with positions along their assemblies. Identity
    is counted by the substitutions, over the letters but N of ``one``."""
    pieces_P4 = _cut(_cut(_aligned(one, other), 1, one.train), 2, other.train)
    chain_P = _chain_of(pieces_P4, one.train, other.train)
    anchors_P = 1 + -(-(pieces_P4[:, 3] - 1) // _STEP)
    # Of one letter alone there is no stretch between two anchors.
    kept_P = (np.bincount(chain_P, anchors_P) > 1)[chain_P]
    pieces_P4, anchors_P = pieces_P4[kept_P], anchors_P[kept_P]
    chain_P = np.unique(chain_P[kept_P], return_inverse=True)[1].astype(np.int64)
    within_N = np.arange(anchors_P.sum()) - np.repeat(np.cumsum(anchors_P) - anchors_P, anchors_P)
    inside_N = np.minimum(within_N * _STEP, np.repeat(pieces_P4[:, 3] - 1, anchors_P))
    anchors_C = np.bincount(chain_P, anchors_P).astype(np.int64)
    return Chains(
        np.zeros(len(anchors_C), np.int64),
        _identity(one, other, pieces_P4, chain_P),
        anchors_C,
        one.start + np.repeat(pieces_P4[:, 1], anchors_P) + inside_N,
        other.start + np.repeat(pieces_P4[:, 2], anchors_P) + inside_N,
    )


def joined(parts: list[Chains]) -> Chains:
    """The chains of all ``parts``, one after another."""
    empty = np.zeros(0, np.int64)
    columns = ("reversed_C", "identity_C", "anchors_C", "at_N", "partner_at_N")
    return Chains(*(np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in columns))


def _aligned(one: Member, other: Member) -> Numbers:
    """int64 [P, 4]: all that is aligned in the two, in order."""
    bp = (one.reference.base or one.reference).contigs[one.contig]
    first, second = (member.reference.edits(member.contig).aligned(bp) for member in (one, other))
    pieces_P4 = np.stack([first[:, 0], first[:, 1], first[:, 0], first[:, 2]], 1)
    starts, ends = second[:, 0], second[:, 0] + second[:, 2]
    pieces_P4 = _cut(pieces_P4, 2, list(zip(starts.tolist(), ends.tolist(), strict=True)))
    shift = second[:, 1] - second[:, 0]
    pieces_P4[:, 2] += shift[np.searchsorted(starts, pieces_P4[:, 2], "right") - 1]
    return pieces_P4


def _cut(pieces_P4: Numbers, column: int, intervals: Intervals) -> Numbers:
    """What of the pieces lies in ``intervals`` of ``column``, cut at their edges."""
    low, high = np.array(intervals, np.int64).reshape(-1, 2).T
    start_P = pieces_P4[:, column]
    first_P = np.searchsorted(high, start_P, "right")
    count_P = np.maximum(0, np.searchsorted(low, start_P + pieces_P4[:, 3], "left") - first_P)
    piece = np.repeat(np.arange(len(pieces_P4)), count_P)
    which = np.arange(count_P.sum()) - np.repeat(np.cumsum(count_P) - count_P, count_P) + first_P[piece]
    start = np.maximum(start_P[piece], low[which])
    end = np.minimum((start_P + pieces_P4[:, 3])[piece], high[which])
    found = pieces_P4[piece]
    found[:, :3] += (start - start_P[piece])[:, None]
    found[:, 3] = end - start
    return found


def _chain_of(pieces_P4: Numbers, train: Intervals, other_train: Intervals) -> Numbers:
    """The chain of each piece: one ends where something between two pieces is not in train, or where they are
    too far apart."""
    if not len(pieces_P4):
        return np.zeros(0, np.int64)
    apart = np.diff(pieces_P4[:, 1:3], axis=0) - (pieces_P4[:-1, 3:] - 1)
    ends = (apart > MOST_APART).any(1)
    for column, intervals in ((1, train), (2, other_train)):
        low = np.array(intervals, np.int64).reshape(-1, 2)[:, 0]
        ends |= np.diff(np.searchsorted(low, pieces_P4[:, column], "right")) != 0
    return np.concatenate([[0], np.cumsum(ends)])


def _identity(one: Member, other: Member, pieces_P4: Numbers, chain_P: Numbers) -> Numbers:
    """int64 [C], in 1/10,000."""
    if not len(pieces_P4):
        return np.zeros(0, np.int64)
    edges = np.flatnonzero(np.diff(chain_P)) + 1
    first_C, last_C = np.concatenate([[0], edges]), np.concatenate([edges, [len(chain_P)]]) - 1
    starts, ends = pieces_P4[first_C, 1], pieces_P4[last_C, 1] + pieces_P4[last_C, 3]
    spans = [
        Span("", one.contig, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    n_runs = one.reference.n_runs.get(one.contig)
    unknown_C = count_covered(spans, {} if n_runs is None else {("", one.contig): n_runs})
    known_C = np.maximum(1, np.bincount(chain_P, pieces_P4[:, 3]).astype(np.int64) - unknown_C)
    place_S = _different(one, other)
    piece_S = np.searchsorted(pieces_P4[:, 0], place_S, "right") - 1
    inside_S = (piece_S >= 0) & (place_S < (pieces_P4[:, 0] + pieces_P4[:, 3])[piece_S])
    different_C = np.bincount(chain_P[piece_S[inside_S]], minlength=len(known_C))
    return np.asarray(np.maximum(0, known_C - different_C) * IDENTITY_UNIT // known_C)


def _different(one: Member, other: Member) -> Numbers:
    """Places of the reference, sorted, where one has another letter than the other, neither an insertion nor
    a deletion."""
    (place_1, letter_1), (place_2, letter_2) = (
        member.reference.edits(member.contig).substituted() for member in (one, other)
    )
    both, at_1, at_2 = np.intersect1d(place_1, place_2, assume_unique=True, return_indices=True)
    same = both[(letter_1[at_1] | _CASE) == (letter_2[at_2] | _CASE)]
    return np.asarray(np.setdiff1d(np.union1d(place_1, place_2), same, assume_unique=True))
