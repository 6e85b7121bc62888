"""What needs no network: the most frequent letter, and a two-sided Markov model counted from the training
split.

The Markov model predicts a letter from the 4 letters on each side. A context letter that is hidden, N, or off
the contig is summed over: the counts back off to the letters that are visible. Shapes: n positions, 8 context
letters.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_prep import alphabet

REACH = 4
WIDTH = 2 * REACH + 1
ANY = 4  # a context letter that is not visible
Counts = np.ndarray[Any, np.dtype[np.int64]]
_MIXED_TOTAL = 1 << 50  # k-mers that a mixture is scaled to: far from both overflow and rounding


def count_letters_and_contexts(blocks: Iterable[alphabet.Codes]) -> tuple[Counts, Counts]:
    """Counts of A, C, G, T [4] on the given strand, and of all N-free 9-mers [4⁹] on both strands."""
    letters = np.zeros(alphabet.BASES, np.int64)
    kmers = np.zeros(alphabet.BASES**WIDTH, np.int64)
    for codes in blocks:
        letters += np.bincount(codes, minlength=alphabet.SIZE)[: alphabet.BASES]
        if len(codes) < WIDTH:
            continue
        count = len(codes) - WIDTH + 1
        index = np.zeros(count, np.int32)
        valid = np.ones(count, np.bool_)
        for i in range(WIDTH):
            column = codes[i : i + count]
            index = index * alphabet.BASES + (column & 3)
            valid &= column < alphabet.BASES
        kmers += np.bincount(index[valid], minlength=len(kmers))
    cube = kmers.reshape((alphabet.BASES,) * WIDTH)
    return letters, (cube + np.flip(cube.transpose(range(WIDTH)[::-1]))).reshape(-1)


def mix_counts(counts: Sequence[tuple[Counts, Counts]], weights: Sequence[float]) -> tuple[Counts, Counts]:
    """Letters and k-mers, summed over datasets by weight; those of a single dataset unchanged."""
    if len(counts) == 1:
        return counts[0]
    total = sum(weight * float(kmers.sum()) for (_, kmers), weight in zip(counts, weights, strict=True))
    scale = _MIXED_TOTAL / (total or 1.0)

    def mixed(kind: int) -> Counts:
        scaled = [
            np.rint(both[kind] * (weight * scale)) for both, weight in zip(counts, weights, strict=True)
        ]
        return np.sum(scaled, 0).astype(np.int64)

    return mixed(0), mixed(1)


class Markov:
    """Predicts a letter from its neighbours by the counts of ``count_letters_and_contexts``."""

    def __init__(self, kmers: Counts) -> None:
        table = np.moveaxis(kmers.reshape((alphabet.BASES,) * WIDTH), REACH, -1)
        for axis in range(2 * REACH):
            table = np.concatenate([table, table.sum(axis, keepdims=True)], axis)
        self._table = table.reshape(-1, alphabet.BASES)

    def predict(self, context_n8: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The likeliest letter [n] given the letters at -4 … -1, 1 … 4 (codes 0-3, anything above is not
        visible).

        A context that training never showed loses its outermost letters until it was seen; ties go to the
        first letter.
        """
        context_n8 = np.minimum(context_n8, ANY).astype(np.int64)
        counts_n4 = self._table[self._row(context_n8)]
        for outer in range(REACH):
            unseen = counts_n4.sum(1) == 0
            if not unseen.any():
                break
            context_n8[unseen, outer] = context_n8[unseen, 2 * REACH - 1 - outer] = ANY
            counts_n4[unseen] = self._table[self._row(context_n8[unseen])]
        return counts_n4.argmax(1)

    @staticmethod
    def _row(context_n8: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return context_n8 @ ((ANY + 1) ** np.arange(2 * REACH)[::-1])


def contexts(visible_L: alphabet.Codes) -> np.ndarray[Any, Any]:
    """[L - 8, 8] neighbours of positions 4 … L - 5 of ``visible_L`` (hidden letters: any code above 3)."""
    around = np.lib.stride_tricks.sliding_window_view(visible_L, WIDTH)
    return np.delete(around, REACH, axis=1)
