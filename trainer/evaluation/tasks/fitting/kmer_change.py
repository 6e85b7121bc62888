"""How much rarer or more common an alternate allele makes the k-mers that it touches: the floor of variants.

It knows the composition of the windows, and neither an encoder nor conservation.

Shapes: N variants, K = 4^k k-mers.
"""

from collections.abc import Sequence

import numpy as np

from data_prep import alphabet
from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.rows.variant import VariantRow


def log_frequencies(windows: Sequence[str], *, k: int) -> Array:
    """float64 [K]: the log of each k-mer's share of all k-mers of both strands; each counts once more than it
    occurs."""
    count_K = np.ones(alphabet.BASES**k)
    for letters in windows:
        codes = alphabet.encode(letters.encode())[0]
        for strand in (codes, alphabet.reverse_complement(codes)):
            count_K += np.bincount(_kmers(strand, k=k), minlength=len(count_K))
    return np.log(count_K / count_K.sum())


def kmer_changes(rows: Sequence[VariantRow], log_frequency_K: Array, *, k: int) -> Array:
    """float64 [N]: the mean log frequency of the k-mers that hold the alternate allele, less that of those
    that hold the reference allele; 0 where either has none, as beside N."""
    return np.array([_change(row, log_frequency_K, k=k) for row in rows])


def _change(row: VariantRow, log_frequency_K: Array, *, k: int) -> float:
    site, alt = row.placed.site, row.placed.alt
    before = site.codes[max(0, site.start - k + 1) : site.start]
    behind = site.codes[site.end : site.end + k - 1]
    means = []
    for allele in (site.codes[site.start : site.end], alt):
        found = _kmers(np.frombuffer(before + allele + behind, np.uint8), k=k)
        if not len(found):
            return 0.0
        means.append(float(log_frequency_K[found].mean()))
    return means[1] - means[0]


def _kmers(codes: alphabet.Codes, *, k: int) -> Array:
    """int64: the number of each k-mer of A, C, G and T."""
    if len(codes) < k:
        return np.zeros(0, np.int64)
    place = alphabet.BASES ** np.arange(k)[::-1]
    windows = np.lib.stride_tricks.sliding_window_view(codes, k)
    known = (windows < alphabet.BASES).all(1)
    return np.asarray(windows[known].astype(np.int64) @ place)
