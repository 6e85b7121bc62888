"""Masked log-likelihood ratios: what the network thinks of an alternate allele against the reference's.

The letters of the allele are masked. For alleles of one length the window is then the same with either:

    llr = sum over its letters i of log p(alt_i) - log p(ref_i)

so that of a substitution of one letter it is log p(alt) - log p(ref), at one masked letter (Benegas et al.,
PNAS 2023, GPN). An insertion or deletion changes the window. There the FLANK letters on both sides are masked
with the allele, in the window with each allele, and with m the number of letters of the longer span

    llr = m · (mean over the masked letters of log p in the alternate window - the same in the reference's)

in the manner of the pseudo-log-likelihood ratios of Brandes et al. (Nature Genetics 2023). The mean, since
more letters have less probability. A network that has learned nothing gives 0. p is over A, C, G, T; N has
none. There is a letter that is known: an allele is one, or the letter that VCF puts before it.

Shapes: N variants, W masked windows, T masked letters of all of them, R rows and L columns of a tile.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from data_prep import alphabet
from trainer.inference.sequences import EncodedSequences
from trainer.inference.variants.forward import Forward
from trainer.inference.variants.windows import FLANK, Placed, Site

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def log_ratios(forward: Forward, placed: Sequence[Placed]) -> Numbers:
    """fp64 [N]: the masked log-likelihood ratio of each variant, the mean of the strands that are read."""
    masked: dict[Site, int] = {}  # a window and its masked letters -> number
    spans: list[tuple[int, bytes, int, bytes]] = []  # number and letters of the alternate, of the reference
    for each in placed:
        codes, start, end = each.site
        if each.is_substitution:
            number = masked.setdefault(each.site, len(masked))
            spans.append((number, each.alt, number, codes[start:end]))
        else:
            alt = _with_flanks(Site(each.window, start, start + len(each.alt)))
            ref = _with_flanks(each.site)
            numbers = [masked.setdefault(site, len(masked)) for site in (alt, ref)]
            spans.append((numbers[0], _letters(alt), numbers[1], _letters(ref)))
    first_W, log_p_TV = _log_probabilities(forward, list(masked))
    alt_N, alt_count_N = _sums(log_p_TV, first_W, [span[:2] for span in spans])
    ref_N, ref_count_N = _sums(log_p_TV, first_W, [span[2:] for span in spans])
    ratio_N: Numbers = np.maximum(alt_count_N, ref_count_N) * (alt_N / alt_count_N - ref_N / ref_count_N)
    return ratio_N


def _with_flanks(site: Site) -> Site:
    return Site(site.codes, max(0, site.start - FLANK), min(len(site.codes), site.end + FLANK))


def _letters(site: Site) -> bytes:
    return site.codes[site.start : site.end]


def _sums(log_p_TV: Numbers, first_W: Indices, spans: Sequence[tuple[int, bytes]]) -> tuple[Numbers, Indices]:
    """[N]: the sum of log p of the letters of each span, and how many of them are known.

    Added one after the other: the order of numpy's own sums depends on how many rows there are.
    """
    length_N = np.array([len(letters) for _, letters in spans])
    row_T = np.repeat(np.arange(len(spans)), length_N)
    first_N = first_W[[number for number, _ in spans]]
    place_T = np.arange(len(row_T)) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    letter_T = np.frombuffer(b"".join(letters for _, letters in spans), np.uint8)
    is_known_T = letter_T < alphabet.BASES
    row_T, place_T, letter_T = row_T[is_known_T], place_T[is_known_T], letter_T[is_known_T]
    log_p_T = log_p_TV[first_N[row_T] + place_T, letter_T]
    count = len(spans)
    sum_N = np.bincount(row_T, log_p_T, minlength=count).astype(np.float64)
    return sum_N, np.bincount(row_T, minlength=count).astype(np.int64)


def _log_probabilities(forward: Forward, masked: Sequence[Site]) -> tuple[Indices, Numbers]:
    """int64 [W]: where each window's letters begin in fp64 [T, 4]: log p of A, C, G, T at all masked
    letters, the mean of the strands."""
    start_W, end_W = (np.array(edge) for edge in list(zip(*masked, strict=True))[1:])
    count_W = end_W - start_W
    first_W = np.cumsum(count_W) - count_W
    windows = _hidden_from_view(masked, start_W, count_W)
    log_p_TV = np.zeros((int(count_W.sum()), alphabet.BASES))

    def read(index_B: Tensor) -> None:
        numbers_B = index_B.numpy()
        count_B, length_B = count_W[numbers_B], windows.length_N[index_B].numpy()
        row_T = np.repeat(np.arange(len(numbers_B)), count_B)
        step_T = np.arange(len(row_T)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        place_T = start_W[numbers_B][row_T] + step_T
        to_T = first_W[numbers_B][row_T] + step_T
        for strand, tile in enumerate(forward.tiles(windows, index_B)):
            read_RLV = forward.log_probabilities(tile).cpu().numpy()
            if strand:  # the complement of letter v is 3 - v
                log_p_TV[to_T] += read_RLV[row_T, length_B[row_T] - 1 - place_T, ::-1]
            else:
                log_p_TV[to_T] += read_RLV[row_T, place_T]

    forward.each(read, forward.groups(windows.length_N), windows.length_N)
    return first_W, log_p_TV / forward.strands_read


def _hidden_from_view(masked: Sequence[Site], start_W: Indices, count_W: Indices) -> EncodedSequences:
    """The windows with MASK in the place of their masked letters; an N stays one."""
    windows = EncodedSequences.from_codes([np.frombuffer(site.codes, np.uint8) for site in masked])
    row_T = np.repeat(np.arange(len(masked)), count_W)
    step_T = np.arange(len(row_T)) - np.repeat(np.cumsum(count_W) - count_W, count_W)
    place_T = windows.start_N.numpy()[row_T] + start_W[row_T] + step_T
    windows.codes_M[place_T[windows.codes_M[place_T] < alphabet.BASES]] = alphabet.MASK
    return windows
