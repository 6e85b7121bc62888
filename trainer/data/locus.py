"""Where in the genome windows lie and what they contain, so that no loss uses a window as a negative of
itself.

Two windows are at the same place if their intervals overlap, or if they contain the same sequence, on either
strand: a locus that two assemblies share, or a repeat. Four integers a window decide that, so that they can
be gathered over ranks where the sequences would be too large. Int64 arithmetic alone: the same bits on CPU
and GPU.

Where the teacher reads windows of other genomes, two windows of the same descent are at the same place, too.

Shapes: B windows of a rank, N of any number of ranks, L letters, columns of 4: contig, start, end, content.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core import random
from trainer.data.windows import Windows

# Two unrelated windows agree in k letters with probability 4^-k. Where there are fewer than this (the window
# is N, or lies beyond the contig) equal content says nothing, and only the interval counts.
MIN_LETTERS = 16
_NO_CONTENT = 0
_STRETCH = 8  # letters that one int64 holds, a byte each
_STREAM = 0x10C1


@dataclass(frozen=True)
class Loci:
    """``place_N4`` int64: hash of (reference, contig), start and end there, and ``content_hash``.

    Rows that have partners have 12 columns: 4 of the row itself, of what the teacher reads, and of the place
    that all windows of the same descent share (without content).
    """

    place_N4: Tensor

    def __len__(self) -> int:
        return len(self.place_N4)

    def rows(self, which: slice | Tensor) -> "Loci":
        """Some of them: a slice, or int64 indices."""
        return Loci(self.place_N4[which])


def loci(windows: Windows) -> Loci:
    """The places of windows proper, without their flanks."""
    content_B = content_hash(windows.codes_BS[:, windows.flank : windows.flank + windows.length])
    own_B4 = torch.cat([windows.place_B3, content_B[:, None]], 1)
    if windows.partner is None or windows.root_B3 is None:
        return Loci(own_B4)
    root_B4 = torch.nn.functional.pad(windows.root_B3, (0, 1), value=_NO_CONTENT)
    return Loci(torch.cat([own_B4, loci(windows.partner).place_N4, root_B4], 1))


def same_place(a: Loci, b: Loci) -> Tensor:
    """bool [A, B]: True where intervals [start, end) of one contig overlap, or contents are equal on either
    strand. Of rows that have partners, any of one may overlap any of the other."""
    (one, *others), places_b = a.place_N4.split(4, 1), b.place_N4.split(4, 1)
    same_AB = _same(one, places_b[0])
    for mine, theirs in [(one, b4) for b4 in places_b[1:]] + list(product(others, places_b)):
        same_AB |= _same(mine, theirs)
    return same_AB


def _same(a_A4: Tensor, b_B4: Tensor) -> Tensor:
    contig_A1, start_A1, end_A1, content_A1 = a_A4[:, :, None].unbind(1)
    contig_1B, start_1B, end_1B, content_1B = b_B4.T[:, None].unbind(0)
    content_A1 = content_A1 + 2 * (content_A1 == _NO_CONTENT)  # which no other is: hashes are odd
    same_AB = contig_A1 == contig_1B
    same_AB &= start_A1 < end_1B
    same_AB &= start_1B < end_A1
    same_AB |= content_A1 == content_1B
    return same_AB


def content_hash(codes_BL: Tensor) -> Tensor:
    """int64 [B], the same for a sequence and its reverse complement; 0 where there are fewer than MIN_LETTERS
    letters.

    PAD, which stands at a row's end only, does not count; N does, as a letter of its own. A strand's hash is
    the sum of the hashes of its stretches of 8 letters and their places; both strands' are mixed again, or a
    stretch inverted in place would not show, and added. So two different sequences share one with a
    probability of about 2^-63.
    """
    rows, length = codes_BL.shape
    width = -(-length // _STRETCH) * _STRETCH
    letters_B1, length_B1 = (
        torch.lt(codes_BL, code, out=codes_BL.new_empty(0)).sum(1, keepdim=True, dtype=torch.int32)
        for code in (alphabet.BASES, alphabet.PAD)
    )
    # A base is 4 to 7, its complement value ^ 3; all else is 0, and so are 8 columns in front of each row,
    # which the other strand reads beyond its end.
    forward_BX = codes_BL.new_zeros(rows, _STRETCH + width)
    values_BL = forward_BX[:, _STRETCH : _STRETCH + length]
    torch.bitwise_or(codes_BL, 4, out=values_BL).mul_(
        torch.lt(codes_BL, alphabet.BASES, out=codes_BL.new_empty(0))
    )

    place_W = torch.arange(width, dtype=torch.int32, device=codes_BL.device)
    row_B1 = torch.arange(rows, dtype=torch.int32, device=codes_BL.device)[:, None]
    index_BW = torch.clamp_min(length_B1 - 1 - place_W, -1).add_(row_B1 * (_STRETCH + width) + _STRETCH)
    other_BW = forward_BX.view(-1).index_select(0, index_BW.view(-1)).view(rows, width)
    other_BW ^= (other_BW >> 2) * 3

    weight_J = random.read(torch.full((1,), _STREAM, device=codes_BL.device), 0, width // _STRETCH)[0]
    nothing = random.fold(
        weight_J
    ).sum()  # taken off, so that a stretch of 0 adds nothing and padding is free
    forward_B, other_B = (
        random.fold(random.fold(words_BJ + weight_J).sum(1) - nothing)
        for words_BJ in (forward_BX.view(torch.int64)[:, 1:], other_BW.view(torch.int64))
    )
    return forward_B.add_(other_B).bitwise_or_(1).mul_(letters_B1[:, 0] >= MIN_LETTERS)
