"""Source windows, and how they are cut out of blocks.

Shapes: B windows, S = L + 2·flank source positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet
from data_prep.blocks import PackedBlock
from data_prep.levels import MAX_LEVEL
from trainer.core import random


@dataclass(frozen=True)
class Windows:
    """Source windows with a flank on both sides. Only [low, high) of a row is sequence; the rest lies beyond
    the block and is never read."""

    codes_BS: Tensor  # uint8
    low_B: Tensor  # int64
    high_B: Tensor  # int64
    key_B: Tensor  # int64, see random.fold
    # int64: hash of (reference, contig), and where the window without its flank starts and ends there
    place_B3: Tensor
    flank: int
    # uint8, 1 where the reference is lower case (soft-masked); None: not read
    soft_BS: Tensor | None = None
    # uint8, the level of each letter's weight, 0 … 15 for 0 … 1, 15 where it has none; None: not read
    level_BS: Tensor | None = None
    # What the teacher reads in place of each row: a window of another genome, or the row itself; None: the
    # rows themselves. ``root_B3``, as place_B3: one place for all windows of the same descent.
    partner: "Windows | None" = None
    root_B3: Tensor | None = None

    @property
    def length(self) -> int:
        return self.codes_BS.shape[1] - 2 * self.flank

    def each(self, change: Callable[[Tensor], Tensor]) -> "Windows":
        """The windows with ``change`` applied to each tensor, for example to take some of the rows."""
        changed: Any = {name: change(of) for name, of in vars(self).items() if isinstance(of, Tensor)}
        if self.partner is not None:
            changed["partner"] = self.partner.each(change)
        return replace(self, **changed)

    def to(self, device: torch.device) -> "Windows":
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


def make_windows(sequences: Sequence[str], *, seed: int = 0, flank: int = 0) -> Windows:
    """Windows of strings, with a key each from ``seed`` and its number, for ``make_view`` and ``mask``.

    Args:
        sequences: A, C, G, T, N in either case (lower case is soft-masked); other IUPAC letters become N.
            A shorter one than the longest ends in padding.
        flank: letters at both ends of each string that are not of the window itself, but that its views may
            read where letters were deleted or the window is shifted.

    Raises:
        ValueError: there is no sequence, one has another letter, or none is longer than both flanks.
    """
    if isinstance(sequences, str) or not sequences:
        raise ValueError("give a list of at least one sequence")
    size = max(len(sequence) for sequence in sequences)
    if size <= 2 * flank or flank < 0:
        raise ValueError(f"the longest sequence has {size} letters, no more than two flanks of {flank}")
    codes_BS = np.full((len(sequences), size), alphabet.PAD, np.uint8)
    soft_BS = np.zeros_like(codes_BS)
    for row, sequence in enumerate(sequences):
        try:
            codes, soft, _ = alphabet.encode(sequence.encode())
        except ValueError as fault:
            raise ValueError(f"sequence {row + 1}: {fault}") from fault
        codes_BS[row, : len(codes)] = codes
        soft_BS[row, : len(codes)] = soft
    number_B = torch.arange(len(sequences))
    high_B = torch.tensor([len(sequence) for sequence in sequences])
    return Windows(
        torch.from_numpy(codes_BS),
        torch.zeros_like(high_B),
        high_B,
        random.fold(seed, number_B),
        torch.stack([number_B, torch.full_like(high_B, flank), (high_B - flank).clamp(min=flank)], 1),
        flank,
        torch.from_numpy(soft_BS),
    )


def to_strings(codes_BL: Tensor) -> list[str]:
    """The rows of ``codes`` uint8 [B, L] as strings: ? for MASK, and padding left out."""
    letters = np.frombuffer(b"ACGTN?^", np.uint8)
    return [letters[row[row != alphabet.PAD]].tobytes().decode() for row in codes_BL.cpu().numpy()]


class WindowBuilder:
    """Builds ``rows`` windows, row by row: PAD where a block ends, with ``soft`` their soft mask too, with
    ``track`` the levels of their weights."""

    def __init__(
        self, rows: int, length: int, flank: int, *, soft: bool = False, track: bool = False
    ) -> None:
        self.length, self.flank = length, flank
        self._codes_BS = np.empty((rows, length + 2 * flank), np.uint8)
        self._soft_BS = np.zeros_like(self._codes_BS) if soft else None
        self._level_BS = np.full_like(self._codes_BS, MAX_LEVEL) if track else None
        # low, high, contig, start, end. A list, since storing in an array costs more than all the rest.
        self._numbers_B5 = [(0, 0, 0, 0, 0)] * rows

    def fill(self, row: int, block: PackedBlock, start: int, end: int, *, locus: tuple[int, int]) -> None:
        """Make row ``row`` [start, end) of ``block``, with as much flank as the block has.

        ``locus``: what Dataset.locus returns for the block.
        """
        flank = self.flank
        first, last = max(0, start - flank), min(block.bases, end + flank)
        low = first - start + flank
        high = low + last - first
        if high - low < self.length + 2 * flank:
            self._codes_BS[row] = alphabet.PAD
        self._codes_BS[row, low:high] = block.codes(first, last)
        if self._soft_BS is not None:
            self._soft_BS[row, low:high] = block.soft_mask(first, last)
        if self._level_BS is not None:
            level_L = block.weights(first, last)
            if level_L is not None:
                self._level_BS[row, low:high] = level_L
        contig, offset = locus
        self._numbers_B5[row] = (low, high, contig, offset + start, offset + end)

    def copy(self, row: int, other: "WindowBuilder") -> None:
        """Make row ``row`` that of ``other``, but for its soft mask and weights."""
        self._codes_BS[row] = other._codes_BS[row]
        self._numbers_B5[row] = other._numbers_B5[row]

    def turn(self, row: int) -> None:
        """Make row ``row``, which has no soft mask nor weights, its other strand. Its place stays."""
        assert self._soft_BS is None and self._level_BS is None, "soft mask and weights are not turned"
        self._codes_BS[row] = alphabet.reverse_complement(self._codes_BS[row])
        low, high, *place = self._numbers_B5[row]
        width = self._codes_BS.shape[1]
        self._numbers_B5[row] = (width - high, width - low, place[0], place[1], place[2])

    def place(self, row: int) -> tuple[int, int, int]:
        """Contig, start and end of a row."""
        return self._numbers_B5[row][2:]

    @property
    def codes(self) -> alphabet.Codes:
        """uint8 [B, S]."""
        return self._codes_BS

    def windows(self, key_B: Tensor) -> Windows:
        """The windows, once all rows are filled; ``key_B`` int64, their keys (random.fold)."""
        numbers_B5 = torch.from_numpy(np.array(self._numbers_B5))
        soft_BS = None if self._soft_BS is None else torch.from_numpy(self._soft_BS)
        return Windows(
            torch.from_numpy(self._codes_BS),
            numbers_B5[:, 0],
            numbers_B5[:, 1],
            key_B,
            numbers_B5[:, 2:],
            self.flank,
            soft_BS,
            None if self._level_BS is None else torch.from_numpy(self._level_BS),
        )


def choose_windows(
    block_bp: list[int], length: int, count: int, *, margin: int
) -> list[tuple[int, int, int]]:
    """At most ``count`` (block, start, end), evenly spaced over all windows that tile the blocks.

    Windows keep ``margin`` from a block's edge, so that they have real neighbours, where the block allows.
    """
    places = []
    for block, bp in enumerate(block_bp):
        if bp < length + 2 * margin:
            places.append((block, 0, min(bp, length)))
        else:
            places += [(block, s, s + length) for s in range(margin, bp - length - margin + 1, length)]
    picked = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))
    return [places[i] for i in picked]
