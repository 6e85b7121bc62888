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

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any, overload

import numpy as np

from data_prep.alphabet import Codes, Mask, N
from data_prep.block_index import Block, BlockColumns, FormatError

FORMAT_VERSION = 1
WITH_INDEX = 2  # of a manifest whose blocks stand in index files
MOST_INLINE = 16_384  # blocks that a manifest lists itself: 2 MB
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
BUILD_INFO = "build.json"
PAYLOAD_EXT = "2bit"
HEADER_EXT = "json"
INDEX_STEM, INDEX_SUFFIX = "blocks-", ".idx"
_GROUP = 128  # shards whose blocks stand in one index file

Read = Callable[[str], bytes]  # name of a file of the dataset -> its bytes

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
class Shard:
    name: str
    bytes: int
    sha256: str
    blocks: Sequence[Block]

    @property
    def bp(self) -> int:
        return int(BlockColumns.of(self.blocks).bp_N.sum(dtype=np.int64))


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

    def blocks(self, split: str) -> "SplitBlocks":
        """Every block of ``split`` with its shard, in the order of the manifest; the index is the block's
        id."""
        return SplitBlocks(self.shards[split])

    def bp(self, split: str) -> int:
        return sum(shard.bp for shard in self.shards[split])

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys), so that equal manifests are equal bytes; with all blocks."""
        return _canonical(self._tree())

    def to_files(self, *, most_inline: int = MOST_INLINE) -> dict[str, bytes]:
        """name -> bytes of the files that the manifest is written as, itself last. One of more blocks than
        ``most_inline`` lists them in index files, which have their hash in their name."""
        if sum(len(shard.blocks) for split in SPLITS for shard in self.shards[split]) <= most_inline:
            return {MANIFEST: self.to_bytes()}
        files, index = dict[str, bytes](), []
        for split in SPLITS:
            for first in range(0, len(self.shards[split]), _GROUP):
                group = self.shards[split][first : first + _GROUP]
                data = BlockColumns.joined([BlockColumns.of(shard.blocks) for shard in group]).to_bytes()
                digest = hashlib.sha256(data).hexdigest()
                name = f"{INDEX_STEM}{digest[:16]}{INDEX_SUFFIX}"
                index.append({"name": name, "sha256": digest, "split": split, "shards": len(group)})
                files[name] = data
        tree = self._tree(lambda shard: len(shard.blocks)) | {"format_version": WITH_INDEX, "index": index}
        return files | {MANIFEST: _canonical(tree)}

    def _tree(self, blocks_of: Callable[[Shard], Any] | None = None) -> dict[str, Any]:
        """As JSON; ``blocks_of`` says what stands for the blocks of a shard."""
        tree = asdict(replace(self, shards={}))
        tree["shards"] = {
            split: [
                {
                    "name": shard.name,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                    "blocks": blocks_of(shard) if blocks_of else [asdict(block) for block in shard.blocks],
                }
                for shard in shards
            ]
            for split, shards in self.shards.items()
        }
        if self.partners is None:
            del tree["partners"]
        return tree

    @classmethod
    def from_bytes(cls, data: bytes, read: Read | None = None) -> "Manifest":
        """The manifest in ``data``; ``read`` gives the bytes of an index file beside it.

        Raises:
            FormatError: it is none, of a version that this code cannot read, or an index file is not what it
                says. What ``read`` raises.
        """
        try:
            tree = json.loads(data)
            version = tree["format_version"]
        except (ValueError, KeyError, TypeError) as fault:
            missing = " is missing" * isinstance(fault, KeyError)
            raise FormatError(f"not a dataset manifest: {fault}{missing}") from fault
        if version not in (FORMAT_VERSION, WITH_INDEX):
            raise FormatError(
                f"manifest has format version {version}, this code reads {FORMAT_VERSION} and {WITH_INDEX}; "
                "rebuild it"
            )
        try:
            tree["sources"] = tuple(_strict(Source, source) for source in tree["sources"])
            if version == WITH_INDEX:
                if read is None:
                    raise FormatError("its blocks stand in index files beside it, which were not given")
                _put_blocks(tree["shards"], tree.pop("index"), read)
                tree["format_version"] = FORMAT_VERSION
            tree["shards"] = {split: tuple(map(_shard, tree["shards"][split])) for split in SPLITS}
            return _strict(cls, {"partners": None} | tree)
        except (KeyError, TypeError, AttributeError) as fault:
            raise FormatError(f"damaged dataset manifest: {fault}") from fault


class SplitBlocks(Sequence[tuple[Shard, Block]]):
    """All blocks of the shards of a split, each with its shard; the number of a block is its id.

    ``columns``: the blocks alone, in the same order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard.blocks) for shard in shards])
        self.columns = BlockColumns.joined([BlockColumns.of(shard.blocks) for shard in shards])

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, which: int) -> tuple[Shard, Block]: ...
    @overload
    def __getitem__(self, which: slice) -> list[tuple[Shard, Block]]: ...
    def __getitem__(self, which: int | slice) -> tuple[Shard, Block] | list[tuple[Shard, Block]]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        which = range(len(self))[which]
        return self._shards[int(np.searchsorted(self._ends, which, "right"))], self.columns[which]

    def __iter__(self) -> Iterator[tuple[Shard, Block]]:
        return ((shard, block) for shard in self._shards for block in shard.blocks)


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _put_blocks(shards: dict[str, list[dict[str, Any]]], index: list[dict[str, Any]], read: Read) -> None:
    """Puts the blocks that the files of ``index`` list in place of their number in each of ``shards``."""
    waiting = {split: iter(shards[split]) for split in SPLITS}
    for entry in index:
        data = read(entry["name"])
        if (found := hashlib.sha256(data).hexdigest()) != entry["sha256"]:
            raise FormatError(f"{entry['name']} has sha256 {found[:12]}, not {entry['sha256'][:12]}")
        blocks, first = BlockColumns.from_bytes(data), 0
        for shard in islice(waiting[entry["split"]], entry["shards"]):
            stop = first + shard["blocks"]
            shard["blocks"], first = blocks.part(first, stop), stop
        if first != len(blocks):
            raise FormatError(f"{entry['name']} lists {len(blocks)} blocks, its shards have {first}")


def _shard(tree: dict[str, Any]) -> Shard:
    blocks = tree["blocks"]
    if not isinstance(blocks, BlockColumns):
        blocks = tuple(_strict(Block, block) for block in blocks)
    return _strict(Shard, tree | {"blocks": blocks})


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
