"""The shard format: schema, manifest, and pack/unpack of one block. Standard library and numpy only.

A shard is a WebDataset tar. A sample is one block, a contiguous stretch of one contig, in two members:
``KEY.json`` (BlockHeader: assembly, contig, start, end) and ``KEY.2bit`` (the payload below, as ``pack``
writes it).

Payload, little-endian:
    4s magic b"DNAB"
    u16 format version
    u16 zero
    u32 bases
    u32 count of N deltas
    u32 count of soft-mask deltas
    u32 crc32 of the rest
    u16[] N deltas
    u16[] soft-mask deltas
    u8[ceil(bases / 4)] four bases a byte, first base in the low bits
Deltas are the lengths of alternating runs, the first one of False; a run over 65,535 is written as 65535, 0,
rest.
"""

import json
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from data_prep.alphabet import Codes, Mask, N

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
BUILD_INFO = "build.json"
PAYLOAD_EXT = "2bit"
HEADER_EXT = "json"

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


class FormatError(ValueError):
    """The bytes are not what this format version writes; the message says what was expected and found."""


@dataclass(frozen=True)
class BlockHeader:
    """Where a block lies: 0-based half-open interval [start, end) of one contig of one assembly."""

    format_version: int
    assembly: str
    contig: str
    start: int
    end: int

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Block:
    """One block in its shard: payload bytes [offset, offset + size) of the tar, interval [start, end) of the
    contig."""

    offset: int
    size: int
    assembly: str
    contig: str
    start: int
    end: int

    @property
    def bp(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Shard:
    name: str
    bytes: int
    sha256: str
    blocks: tuple[Block, ...]

    @property
    def bp(self) -> int:
        return sum(block.bp for block in self.blocks)


@dataclass(frozen=True)
class Source:
    """One reference: ``sha256`` of its decompressed bytes, its contigs' lengths, and the filters applied to
    it."""

    name: str
    sha256: str
    contigs: dict[str, int]
    iupac_to_n: int
    filters: dict[str, Any]
    weight: float


@dataclass(frozen=True)
class Manifest:
    """What determines the dataset's bytes, and where every block lies. It is written last: without it there
    is no dataset."""

    format_version: int
    sources: tuple[Source, ...]
    block_bp: int
    shard_bp: int
    max_n_fraction: float
    split: dict[str, Any]
    seed: int
    shards: dict[str, tuple[Shard, ...]]
    # How the partner table was made, its ``bytes`` and ``sha256``; None, and no key, where there is none.
    partners: dict[str, Any] | None = None

    def blocks(self, split: str) -> list[tuple[Shard, Block]]:
        """Every block of ``split`` with its shard, in the order of the manifest; the index is the block's
        id."""
        return [(shard, block) for shard in self.shards[split] for block in shard.blocks]

    def bp(self, split: str) -> int:
        return sum(block.bp for _, block in self.blocks(split))

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys), so that equal manifests are equal bytes."""
        tree = asdict(self)
        if self.partners is None:
            del tree["partners"]
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The manifest in ``data``. FormatError if it is not one, or of a version that this code cannot
        read."""
        try:
            tree = json.loads(data)
            version = tree["format_version"]
        except (ValueError, KeyError, TypeError) as fault:
            missing = " is missing" * isinstance(fault, KeyError)
            raise FormatError(f"not a dataset manifest: {fault}{missing}") from fault
        if version != FORMAT_VERSION:
            raise FormatError(
                f"manifest has format version {version}, this code reads {FORMAT_VERSION}; rebuild it"
            )
        try:
            tree["sources"] = tuple(_strict(Source, source) for source in tree["sources"])
            tree["shards"] = {
                split: tuple(
                    _strict(
                        Shard, shard | {"blocks": tuple(_strict(Block, block) for block in shard["blocks"])}
                    )
                    for shard in tree["shards"][split]
                )
                for split in SPLITS
            }
            return _strict(cls, {"partners": None} | tree)
        except (KeyError, TypeError, AttributeError) as fault:
            raise FormatError(f"damaged dataset manifest: {fault}") from fault


def _strict(kind: Any, values: dict[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        raise TypeError(f"{kind.__name__} has keys {sorted(values)}, needs {sorted(names)}")
    return kind(**values)


def pack(codes: Codes, soft_mask: Mask) -> bytes:
    """The payload of one block: ``codes`` uint8 [n] of A, C, G, T, N and ``soft_mask`` bool [n]."""
    assert codes.shape == soft_mask.shape, (
        f"codes {codes.shape} and soft mask {soft_mask.shape} differ in shape"
    )
    assert not codes.size or codes.max() <= N, f"code {codes.max()} has no letter and cannot be packed"
    quads = np.zeros(-(-len(codes) // 4), "<u4")
    quads.view(np.uint8)[: len(codes)] = codes
    quads &= np.uint32(0x03030303)  # N is code 4: its two low bits are 0, as the format wants
    packed = ((quads * _PACK) >> np.uint32(24)).astype(np.uint8)
    n_deltas, soft_deltas = _to_deltas(codes == N), _to_deltas(soft_mask)
    body = n_deltas.tobytes() + soft_deltas.tobytes() + packed.tobytes()
    head = _HEAD.pack(
        _MAGIC, FORMAT_VERSION, 0, len(codes), len(n_deltas), len(soft_deltas), zlib.crc32(body)
    )
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
        if version != FORMAT_VERSION:
            raise FormatError(f"block payload has format version {version}, this code reads {FORMAT_VERSION}")
        expected = _HEAD.size + 2 * (n_count + soft_count) + -(-bases // 4)
        if len(payload) != expected:
            raise FormatError(f"block payload has {len(payload)} bytes, its head says {expected}")
        body = memoryview(payload)[_HEAD.size :]
        if zlib.crc32(body) != crc:
            raise FormatError("block payload does not match its crc32")
        self.bases: int = bases
        self._n_runs = _from_deltas(np.frombuffer(body, "<u2", n_count), bases)
        self._soft_runs = _from_deltas(np.frombuffer(body, "<u2", soft_count, offset=2 * n_count), bases)
        self._packed = np.frombuffer(body, np.uint8, offset=2 * (n_count + soft_count))

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
