"""The vocabulary: nucleotide letters <-> uint8 codes. The only definition of it."""

from typing import Any

import numpy as np

A, C, G, T, N, MASK, CLS, PAD = range(8)
SIZE = 8
BASES = 4
LETTERS = b"ACGTN"

Codes = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_IUPAC = b"RYSWKMBDHV"
_INVALID = 255

_ENCODE = np.full(256, _INVALID, np.uint8)
for _code, _letter in enumerate(LETTERS):
    _ENCODE[_letter] = _ENCODE[_letter + 32] = _code
for _letter in _IUPAC:
    _ENCODE[_letter] = _ENCODE[_letter + 32] = N
_ENCODE[ord("U")] = _ENCODE[ord("u")] = T

_ENCODE_TABLE = _ENCODE.tobytes()  # bytes.translate is the fastest table look-up there is

COMPLEMENT = np.array([T, G, C, A, N, MASK, CLS, PAD], np.uint8)
_DECODE = np.frombuffer(b"ACGTN???", np.uint8)


def encode(letters: bytes, *, origin: int = 0) -> tuple[Codes, Mask, int]:
    """Codes uint8 [n] (read-only), soft-mask bool [n] (lower case), and how many IUPAC ambiguity letters
    became N.

    Raises:
        ValueError: a byte that is no nucleotide letter, with the byte and its 0-based position, counted from
            ``origin``.
    """
    codes = np.frombuffer(letters.translate(_ENCODE_TABLE), np.uint8)
    highest = int(codes.max()) if codes.size else 0
    if highest == _INVALID:
        at = int(np.argmax(codes == _INVALID))
        raise ValueError(f"byte {letters[at : at + 1]!r} at position {origin + at} is no nucleotide letter")
    ambiguous = 0
    if highest == N:
        ambiguous = int(np.count_nonzero(codes == N)) - letters.count(b"N") - letters.count(b"n")
    return codes, np.frombuffer(letters, np.uint8) >= ord("a"), ambiguous


def decode(codes: Codes, soft_mask: Mask | None = None) -> bytes:
    """Letters of ``codes`` uint8 [n] (A, C, G, T, N only), lower case where ``soft_mask`` bool [n].

    Raises:
        ValueError: a code that is no letter (MASK, CLS, PAD or above).
    """
    if codes.size and codes.max() > N:
        raise ValueError(f"code {int(codes.max())} is no letter; letters are codes 0 to {N}")
    letters = _DECODE[codes]
    if soft_mask is not None:
        letters = letters + (soft_mask.astype(np.uint8) << 5)
    return letters.tobytes()


def reverse_complement(codes: Codes) -> Codes:
    """The other strand of ``codes`` [..., n], read 5' to 3'; special codes keep their value."""
    return COMPLEMENT[codes[..., ::-1]]
