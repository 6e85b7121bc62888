"""A block's payload: letters, soft mask and weights, packed and read back. Standard library and numpy only.

Payload, little-endian:
    4s magic b"DNAB"
    u16 version of the payload: 1, or 2 if its letters have weights
    u16 zero
    u32 bases
    u32 count of N deltas
    u32 count of soft-mask deltas
    u32 crc32 of the rest
    u16[] N deltas
    u16[] soft-mask deltas
    u8[ceil(bases / 4)] four bases a byte, first base in the low bits
    u8[] in version 2: the levels of the letters' weights (levels.py), up to the end
Deltas are the lengths of alternating runs, the first one of False; a run over 65,535 is written as 65535, 0,
rest.
"""

import struct
import zlib
from typing import Any

import numpy as np

from data_prep.alphabet import Codes, Mask, N
from data_prep.levels import Levels, PackedLevels, compress
from data_prep.shards import FormatError

PAYLOAD_VERSIONS = (1, 2)  # without and with weights

_Runs = np.ndarray[Any, np.dtype[np.int64]]

_HEAD = struct.Struct("<4sHHIIII")
_MAGIC = b"DNAB"
_RUN_MAX = 65535
# A uint32 of four codes times this has them in its top byte: c0 | c1 << 2 | c2 << 4 | c3 << 6.
_PACK = np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)
# Byte -> its four codes, as one uint32, so that unpacking is a single table look-up.
_UNPACK = (
    np.ascontiguousarray((np.arange(256)[:, None] >> (2 * np.arange(4))) & 3, np.uint8)
    .view(np.uint32)
    .ravel()
)


def pack(codes: Codes, soft_mask: Mask, levels: Levels | None = None) -> bytes:
    """The payload of one block: ``codes`` uint8 [n] of A, C, G, T, N, ``soft_mask`` bool [n], and the
    ``levels`` uint8 [n] of the letters' weights, if they have any."""
    assert codes.shape == soft_mask.shape, (
        f"codes {codes.shape} and soft mask {soft_mask.shape} differ in shape"
    )
    assert levels is None or levels.shape == codes.shape, "a level for each letter"
    assert not codes.size or codes.max() <= N, f"code {codes.max()} has no letter and cannot be packed"
    quads = np.zeros(-(-len(codes) // 4), "<u4")
    quads.view(np.uint8)[: len(codes)] = codes
    quads &= np.uint32(0x03030303)  # N is code 4: its two low bits are 0, as the format wants
    packed = ((quads * _PACK) >> np.uint32(24)).astype(np.uint8)
    n_deltas, soft_deltas = _to_deltas(codes == N), _to_deltas(soft_mask)
    body = n_deltas.tobytes() + soft_deltas.tobytes() + packed.tobytes()
    version = PAYLOAD_VERSIONS[levels is not None]
    if levels is not None:
        body += compress(levels)
    head = _HEAD.pack(_MAGIC, version, 0, len(codes), len(n_deltas), len(soft_deltas), zlib.crc32(body))
    return head + body


class PackedBlock:
    """A payload written by ``pack``, checked once. Any stretch can be read without unpacking the rest."""

    def __init__(self, payload: bytes) -> None:
        """FormatError: damaged or foreign bytes (length, magic, version, crc32 and runs are checked)."""
        if len(payload) < _HEAD.size:
            raise FormatError(f"block payload has {len(payload)} bytes, less than its {_HEAD.size}-byte head")
        magic, version, _, bases, n_count, soft_count, crc = _HEAD.unpack_from(payload)
        if magic != _MAGIC:
            raise FormatError(f"block payload starts with {magic!r}, not {_MAGIC!r}")
        if version not in PAYLOAD_VERSIONS:
            versions = " and ".join(map(str, PAYLOAD_VERSIONS))
            raise FormatError(f"block payload has format version {version}, this code reads {versions}")
        expected = _HEAD.size + 2 * (n_count + soft_count) + -(-bases // 4)
        if len(payload) != expected and not (version == 2 and len(payload) > expected):
            more = " or more" * (version == 2)
            raise FormatError(f"block payload has {len(payload)} bytes, its head says {expected}{more}")
        body = memoryview(payload)[_HEAD.size :]
        if zlib.crc32(body) != crc:
            raise FormatError("block payload does not match its crc32")
        self.bases: int = bases
        self._n_runs = _from_deltas(np.frombuffer(body, "<u2", n_count), bases)
        self._soft_runs = _from_deltas(np.frombuffer(body, "<u2", soft_count, offset=2 * n_count), bases)
        self._packed = np.frombuffer(body, np.uint8, -(-bases // 4), offset=2 * (n_count + soft_count))
        self._section = body[expected - _HEAD.size :] if version == 2 else None
        self._levels: PackedLevels | None = None  # of the section, once they are asked for

    @property
    def has_weights(self) -> bool:
        """Whether the letters have weights; else each counts 1."""
        return self._section is not None

    def codes(self, start: int, end: int) -> Codes:
        """uint8 [end - start], the codes of [start, end), which must lie inside the block."""
        first = start >> 2
        codes = _UNPACK[self._packed[first : (end + 3) >> 2]].view(np.uint8)[
            start - 4 * first : end - 4 * first
        ]
        _mark(codes, self._n_runs, start, end, N)
        return codes

    def soft_mask(self, start: int, end: int) -> Mask:
        """bool [end - start], True where the reference has lower case."""
        mask = np.zeros(end - start, np.bool_)
        _mark(mask, self._soft_runs, start, end, True)
        return mask

    def weights(self, start: int, end: int) -> Levels | None:
        """uint8 [end - start], the levels of the letters' weights: 0 … 15 for 0 … 1; None: they have none.

        FormatError: there are not as many levels as letters.
        """
        if self._section is None:
            return None
        if self._levels is None:
            try:
                self._levels = PackedLevels(self._section, self.bases)
            except ValueError as fault:
                raise FormatError(f"block payload has {fault}") from fault
        return self._levels.read(start, end)


def unpack(payload: bytes) -> tuple[Codes, Mask]:
    """``codes`` uint8 [n] and ``soft_mask`` bool [n] of a payload written by ``pack``.

    Raises:
        FormatError: damaged or foreign bytes.
    """
    block = PackedBlock(payload)
    return block.codes(0, block.bases), block.soft_mask(0, block.bases)


def _to_deltas(mask: Mask) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Lengths of the alternating runs of ``mask`` [n], the first of False; empty if nothing is True."""
    if not mask.any():
        return np.zeros(0, "<u2")
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=len(mask))
    if mask[0]:
        lengths = np.concatenate([[0], lengths])
    if lengths.max() <= _RUN_MAX:
        return lengths.astype("<u2")
    out: list[int] = []
    for length in lengths.tolist():
        while length > _RUN_MAX:
            out += [_RUN_MAX, 0]
            length -= _RUN_MAX
        out.append(length)
    return np.array(out, "<u2")


def _from_deltas(deltas: np.ndarray[Any, np.dtype[np.uint16]], bases: int) -> _Runs:
    """int64 [r, 2], the runs of True as [start, end); a run over 65,535 is several that touch."""
    edges = np.cumsum(deltas, dtype=np.int64)
    if len(edges) and edges[-1] != bases:
        raise FormatError(f"runs of the block cover {edges[-1]} bases, its head says {bases}")
    runs = edges[: len(edges) // 2 * 2].reshape(-1, 2)  # a last run of False has no end to keep
    return runs[runs[:, 0] < runs[:, 1]]


def _mark(out: np.ndarray[Any, Any], runs: _Runs, start: int, end: int, value: int) -> None:
    """Sets ``out``, which is of [start, end), to ``value`` where ``runs`` cover it."""
    if len(runs):
        first, last = np.searchsorted(runs[:, 1], start, "right"), np.searchsorted(runs[:, 0], end, "left")
        for left, right in (runs[first:last] - start).tolist():
            out[max(0, left) : right] = value
