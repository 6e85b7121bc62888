"""Which rows of a file become which split, where a task has no file for it; the same on every machine."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.evaluation.tasks.kinds.kind import Array

SPLIT_SALT, SUBSAMPLE_SALT = 0, 1
_BINS = 10  # of equal numbers of rows, for a truth that is a real number
_RARE = 10  # rows: sets of labels that fewer have are one stratum
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def uniform(letters: str, salt: int) -> float:
    """u in [0, 1): the first 8 bytes of sha256("SALT:" + letters)."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{letters}".encode()).digest()[:8], "big") / 2**64


def strandless(letters: str) -> str:
    """The same text for a sequence and its reverse complement."""
    return min(letters, letters.translate(_COMPLEMENT)[::-1])


def by_hash(letters: Sequence[str], shares: Mapping[str, float], *, rest: str) -> dict[str, list[int]]:
    """The rows of each split: the first of ``shares`` takes the lowest u, the next what follows."""
    found: dict[str, list[int]] = {role: [] for role in [*shares, rest]}
    for row, text in enumerate(letters):
        u, limit = uniform(text, SPLIT_SALT), 0.0
        for role, share in shares.items():
            limit += share
            if u < limit:
                found[role].append(row)
                break
        else:
            found[rest].append(row)
    return found


def stratified(
    letters: Sequence[str], truth_N: Array, shares: Mapping[str, float], *, rest: str
) -> dict[str, list[int]]:
    """The rows of each split, with the same share of each class; equal sequences and reverse complements fall
    into one split.

    Within a class, sequences are ranked by u of the lesser of the sequence and its reverse complement, and
    cut where the share is reached. A class of enough sequences has one at least in each split.
    """
    stratum_N = _strata(truth_N)
    rows_of: dict[str, list[int]] = {}  # by sequence, which is never ""
    for row, text in enumerate(letters):
        rows_of.setdefault(strandless(text), []).append(row)
    classes: dict[int, list[str]] = {}
    for key, rows in rows_of.items():
        classes.setdefault(min(int(stratum_N[row]) for row in rows), []).append(key)
    found: dict[str, list[int]] = {role: [] for role in [*shares, rest]}
    for keys in classes.values():
        ranked = iter(sorted(keys, key=lambda key: (uniform(key, SPLIT_SALT), key)))
        total = sum(len(rows_of[key]) for key in keys)
        for role, share in shares.items():
            wanted, taken = max(round(share * total), int(len(keys) > len(shares))), 0
            while taken < wanted and (chosen := rows_of.get(next(ranked, ""))):
                found[role] += chosen
                taken += len(chosen)
        found[rest] += [row for key in ranked for row in rows_of[key]]
    return {role: sorted(rows) for role, rows in found.items()}


def _strata(truth_N: Array) -> Array:
    """A number for each row: its class, its tenth of the real numbers, or its set of labels."""
    if truth_N.ndim == 1 and np.issubdtype(truth_N.dtype, np.floating):
        edges = np.quantile(truth_N, np.arange(1, _BINS) / _BINS)
        return np.searchsorted(edges, truth_N, side="right")
    _, of_row_N, counts = np.unique(truth_N, axis=0, return_inverse=True, return_counts=True)
    of_row_N = of_row_N.reshape(-1)
    return of_row_N if truth_N.ndim == 1 else np.where(counts[of_row_N] < _RARE, -1, of_row_N)
