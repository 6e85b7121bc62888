"""Weights of letters: quantised to levels, packed with a block, and read back. Standard library and numpy
only.

A level is 0 … 15 for a weight of 0 … 1. With fewer steps, 2 or 4, levels are 0 and 15, or 0, 5, 10 and 15:
what a level means does not depend on the steps.

Section of a payload, little-endian:
    u8 bits of a letter: 1, 2 or 4, for 2, 4 or 16 steps
    u8[] raw deflate (RFC 1951) of ceil(bases · bits / 8) bytes, first letter in the low bits

Shapes: L letters.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_LEVEL = 15

Levels = np.ndarray[Any, np.dtype[np.uint8]]
Values = np.ndarray[Any, np.dtype[np.float64]]

_STEPS = {1: 2, 2: 4, 4: 16}  # by bits
_WORD = {1: np.uint64, 2: np.uint32, 4: np.uint16}  # holds the levels of the letters of one byte
# Byte -> the levels of its letters as one word, so that unpacking is a single table look-up.
_UNPACK = {
    bits: np.ascontiguousarray(
        ((np.arange(256)[:, None] >> np.arange(0, 8, bits)) & (steps - 1)) * (MAX_LEVEL // (steps - 1)),
        np.uint8,
    )
    .view(_WORD[bits])
    .ravel()
    for bits, steps in _STEPS.items()
}


@dataclass(frozen=True)
class Scale:
    """How values become weights: ``low`` counts 0, ``high`` 1, no value ``missing``; ``steps`` levels are
    told apart: 2, 4 or 16."""

    low: float
    high: float
    missing: float
    steps: int

    def levels(self, value_L: Values) -> Levels:
        """uint8 [L], the level nearest to clip((value - low) / (high - low), 0, 1); NaN is no value."""
        weight_L = np.clip((value_L - self.low) / (self.high - self.low), 0, 1)
        weight_L = np.where(np.isnan(value_L), self.missing, weight_L)
        # Half a step up: np.rint would round halves to even steps.
        return (np.floor(weight_L * (self.steps - 1) + 0.5) * (MAX_LEVEL // (self.steps - 1))).astype(
            np.uint8
        )


def compress(level_L: Levels) -> bytes:
    """The section of a payload that holds ``level_L`` uint8 [L], in as few bits as its values need."""
    assert not level_L.size or level_L.max() <= MAX_LEVEL, f"level {level_L.max()} is above {MAX_LEVEL}"
    bits = next(
        bits for bits, steps in _STEPS.items() if not (level_L % np.uint8(MAX_LEVEL // (steps - 1))).any()
    )
    per_byte = 8 // bits
    symbols = np.zeros((-(-len(level_L) // per_byte), per_byte), np.uint8)
    symbols.ravel()[: len(level_L)] = level_L // np.uint8(MAX_LEVEL // (_STEPS[bits] - 1))
    packed = np.bitwise_or.reduce(symbols << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
    # Runs and Huffman codes alone: here zlib and zlib-ng write the same bytes, with other strategies not, and
    # a dataset's bytes must not depend on the machine. Noise gets no larger by it.
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return bytes([bits]) + stream.compress(packed.tobytes()) + stream.flush()


class PackedLevels:
    """A section that ``compress`` wrote, inflated: any stretch is unpacked alone."""

    def __init__(self, section: memoryview, letters: int) -> None:
        """ValueError: it is no section of so many ``letters``."""
        self._bits = section[0] if section else 0
        if self._bits not in _STEPS:
            raise ValueError(f"levels of {self._bits} bits a letter, not 1, 2 or 4")
        wanted = -(-letters * self._bits // 8)
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            packed = stream.decompress(section[1:], wanted + 1)
        except zlib.error as fault:
            raise ValueError(f"levels that cannot be inflated ({fault})") from fault
        if len(packed) != wanted or not stream.eof or stream.unused_data:
            raise ValueError(f"levels of another number of letters than {letters}")
        self._packed = np.frombuffer(packed, np.uint8)

    def read(self, start: int, end: int) -> Levels:
        """uint8 [end - start], the levels of [start, end)."""
        per_byte = 8 // self._bits
        first = start // per_byte
        packed = self._packed[first : -(-end // per_byte)]
        levels = _UNPACK[self._bits][packed].view(np.uint8)
        return levels[start - per_byte * first : end - per_byte * first]
