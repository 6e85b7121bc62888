"""Minimisers of a sequence, the same on both strands, by which stretches are found that also stand elsewhere.

A k-mer and its reverse complement count as one: the smaller of the two, packed 2 bits a base. Of each window
of w neighbouring k-mers, those of the lowest rank are minimisers (Schleimer et al., SIGMOD 2003; Roberts et
al., Bioinformatics 20, 2004), all of them where several are equal. Ranks are a hash, so that no composition
is preferred. They depend on the window alone: two sequences that share a stretch of w + k - 1 = 61 bases
share a minimiser, on whichever strand. Neighbouring minimisers of a stretch without N are at most w = k
apart, so their k-mers cover all of it but at most w - 1 = 30 bases at each end. About 2 of w + 1 = 32
positions are minimisers.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.alphabet import Codes, N

K = 31  # odd: no k-mer is its own reverse complement
WINDOW = 31  # k-mers; above K, the k-mers of a shared stretch would leave holes

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Positions = np.ndarray[Any, np.dtype[np.int64]]
_Ranks = np.ndarray[Any, np.dtype[np.uint32]]

ALL = 1 << 64  # above every hash
_SLACK = 1 << 20  # hashes that a sketch may hold above its room before it is cut
_KINDS = (np.uint8, np.uint16, np.uint32, np.uint64)
_PIECE = 32_768  # positions at a time: its arrays of 64 bits stay in the cache
_NONE = np.uint32(0xFFFFFFFF)  # the rank of a k-mer with an N; others have 31 bits
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_RANK = np.uint64(0x9E3779B97F4A7C15)
_RANK_ZERO = np.uint32(0x35A3D1C7)  # poly-A is k-mer 0 and, without it, would be the lowest rank


def minimisers(codes: Codes, *, k: int = K, window: int = WINDOW) -> tuple[Hashes, Positions]:
    """Hashes uint64 [m] and start positions int64 [m], ascending, of the minimisers of ``codes`` uint8 [n] (A
    to N): k-mers (``k`` odd, at most 31), of each ``window`` neighbours those of the lowest rank.

    Equal hashes are equal k-mers: the mixer, SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014), is a
    bijection. A sequence of less than ``window + k - 1`` = 61 bases has no window and no minimiser; a k-mer
    with an N is none.
    """
    assert k % 2 and k <= K and window >= 1, f"k-mers of {k}, one of {window}"
    count = len(codes) - k + 1
    hashes, positions = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    if count >= window:
        for start in range(0, count, _PIECE):
            end = min(start + _PIECE, count)
            # All windows that hold a position of [start, end).
            first, last = max(0, start - window + 1), min(end + window - 1, count)
            canonical, chosen = _choose(codes[first : last + k - 1], k, window)
            chosen = chosen[np.searchsorted(chosen, start - first) : np.searchsorted(chosen, end - first)]
            hashes.append(_mix(canonical[chosen]))
            positions.append(chosen + first)
    return np.concatenate(hashes), np.concatenate(positions)


def reach(codes: Codes, positions: Positions, *, k: int, window: int) -> tuple[Positions, Positions]:
    """int64 [m] and int64 [m]: the first and the last of the windows of neighbouring k-mers, by the position
    of their first k-mer, in which each of ``positions`` [m] of ``minimisers(codes)`` has the lowest rank.

    The windows between them are such windows, too. So the k-mer is a minimiser of the letters [a, b) alone if
    and only if one of these windows, ``window + k - 1`` letters, lies in [a, b).
    """
    first_M, last_M = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.int64)
    count = len(codes) - k + 1
    for start in range(0, count, _PIECE):
        chosen = slice(*np.searchsorted(positions, [start, min(start + _PIECE, count)]))
        at = positions[chosen]
        low, high = max(0, start - window + 1), min(start + _PIECE + window - 1, count)
        rank = _ranks(codes[low : high + k - 1], k)[1]
        lowest = _slide(np.minimum, rank, window)
        offsets = at[:, None] - low - window + 1 + np.arange(window)  # of all windows that hold the k-mer
        there = (offsets >= 0) & (offsets < len(lowest))
        has_it = there & (lowest[np.where(there, offsets, 0)] == rank[at - low][:, None])
        first_M[chosen] = at - window + 1 + has_it.argmax(1)
        last_M[chosen] = at - has_it[:, ::-1].argmax(1)
    return first_M, last_M


def kmers(codes: Codes, *, k: int) -> Hashes:
    """Hashes uint64 of all k-mers of ``codes`` uint8 [n] without N, in order: equal to those of
    ``minimisers``."""
    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(codes) - k + 1, _PIECE):
        canonical, rank = _ranks(codes[start : start + _PIECE + k - 1], k)
        found.append(_mix(canonical[rank != _NONE]))
    return np.concatenate(found)


def forward(codes: Codes, positions: Positions, *, k: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [m]: whether the k-mer at each of ``positions`` [m] counts as it stands, and not as its reverse
    complement. None of them holds an N."""
    larger = np.zeros(len(positions), np.int8)  # -1 where it is the smaller of the two, 1 the larger
    for i in range(k // 2 + 1):  # no k-mer of odd length equals its reverse complement: the middle decides
        difference = codes[positions + i].astype(np.int8) - (3 - codes[positions + k - 1 - i]).astype(np.int8)
        larger += np.sign(difference) * (larger == 0)
    return larger < 0


def cover(positions: Positions) -> list[tuple[int, int]]:
    """The intervals that the k-mers at ``positions`` [m], ascending, cover: sorted, disjoint, not
    touching."""
    if not len(positions):
        return []
    breaks = np.flatnonzero(np.diff(positions) > K)
    starts = positions[np.concatenate([[0], breaks + 1])]
    ends = positions[np.concatenate([breaks, [len(positions) - 1]])] + K
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def unique(parts: Iterable[Hashes]) -> Hashes:
    """Each hash of ``parts`` once, sorted."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
    hashes.sort()  # in place: np.unique would hold a copy more
    return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])] if len(hashes) else hashes


def find(among: Hashes, hashes: Hashes) -> tuple[Positions, np.ndarray[Any, np.dtype[np.bool_]]]:
    """int64 [m], the place of each of ``hashes`` [m] in the sorted ``among``, and bool [m], whether it is
    there."""
    if not len(among):
        return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.bool_)
    at = np.searchsorted(among, hashes)
    np.minimum(at, len(among) - 1, out=at)
    return at, among[at] == hashes


class Sketch:
    """A sample of named hash sets, of bounded size: of all hashes, the lowest ``room``, thus all below one
    threshold.

    A hash is in the sample of every set that has it or of none: so samples can be compared.
    """

    def __init__(self, room: int) -> None:
        self._room, self._below, self._size = room, ALL, 0
        self._sets: dict[str, list[Hashes]] = {}

    def add(self, name: str, hashes: Hashes) -> None:
        kept = hashes if self._below == ALL else hashes[hashes < np.uint64(self._below)]
        self._sets.setdefault(name, []).append(kept)
        self._size += len(kept)
        if self._size > self._room + _SLACK:
            self._shrink()

    def merge(self, other: tuple[int, dict[str, bytes]]) -> None:
        """Adds the result of another sketch."""
        self._below = min(self._below, other[0])
        for name, data in other[1].items():
            self.add(name, np.frombuffer(data, np.uint64))

    def result(self) -> tuple[int, dict[str, bytes]]:
        """The threshold (ALL: nothing was left out); and of each set, the hashes below it, each once,
        sorted."""
        self._shrink()
        return self._below, {name: hashes.tobytes() for name, (hashes,) in self._sets.items()}

    def _shrink(self) -> None:
        sets = {name: self._cut(unique(hashes)) for name, hashes in self._sets.items()}
        every = np.concatenate([np.zeros(0, np.uint64), *sets.values()])
        if len(every) > self._room:
            self._below = int(np.partition(every, self._room)[self._room])
        self._sets = {name: [self._cut(hashes)] for name, hashes in sets.items()}
        self._size = sum(len(hashes) for (hashes,) in self._sets.values())

    def _cut(self, hashes: Hashes) -> Hashes:
        return (
            hashes if self._below == ALL else hashes[: np.searchsorted(hashes, np.uint64(self._below))].copy()
        )


def _choose(codes: Codes, k: int, window: int) -> tuple[Hashes, Positions]:
    """The canonical k-mers uint64 [n - k + 1] of ``codes`` [n], and where the minimisers of its windows
    stand."""
    canonical, rank = _ranks(codes, k)
    # The lowest rank of each window; 0 where there is no window, which the maximum ignores.
    lowest = np.zeros(len(rank) + window - 1, np.uint32)
    lowest[window - 1 : len(rank)] = _slide(np.minimum, rank, window)
    chosen = _slide(np.maximum, lowest, window) == rank  # the lowest of some window that holds it
    if codes.max() >= N:
        chosen &= rank != _NONE
    return canonical, np.flatnonzero(chosen)


def _ranks(codes: Codes, k: int) -> tuple[Hashes, _Ranks]:
    """The canonical k-mers uint64 [n - k + 1] of ``codes`` [n] and their ranks; _NONE: it holds an N."""
    known = codes.max() < N
    canonical = _canonical(codes if known else codes & np.uint8(3), k)
    rank = _rank(canonical)
    if not known:
        rank[_slide(np.logical_or, codes == N, k)] = _NONE
    return canonical, rank


def _canonical(codes: Codes, k: int) -> Hashes:
    """The smaller of each k-mer and its reverse complement. Widths double in the narrowest type; the last
    two overlap, but for powers of 2: letters that both have are the same bits."""
    forward: np.ndarray[Any, Any] = codes
    reverse: np.ndarray[Any, Any] = codes ^ np.uint8(3)
    width = 1
    while width < k:
        step = min(width, k - width)
        kind = next(kind for kind in _KINDS if 8 * kind().itemsize >= 2 * (width + step))
        forward, reverse = forward.astype(kind, copy=False), reverse.astype(kind, copy=False)
        left, right = forward[:-step] << kind(2 * step), reverse[step:] << kind(2 * step)
        left |= forward[step:]
        right |= reverse[:-step]
        forward, reverse, width = left, right, width + step
    return np.minimum(forward, reverse).astype(np.uint64, copy=False)


def _rank(kmers: Hashes) -> _Ranks:
    """31 bits of a multiplicative hash. It need not be a bijection: equal ranks only give more
    minimisers."""
    spread = kmers >> np.uint64(29)
    spread ^= kmers
    spread *= _RANK
    rank = spread.astype("<u8", copy=False).view("<u4")[1::2] >> np.uint32(1)  # the high half
    rank ^= _RANK_ZERO
    return rank


def _slide(ufunc: np.ufunc, values: np.ndarray[Any, Any], width: int) -> Any:
    """``ufunc`` over each ``width`` neighbours of ``values`` [n], as [n - width + 1], by doubling."""
    done = 1
    while done < width:
        step = min(done, width - done)
        values = ufunc(values[:-step], values[step:])
        done += step
    return values


def _mix(x: Hashes) -> Hashes:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
