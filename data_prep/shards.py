"""The shard format: schema and manifest. Standard library and numpy only.

A shard is a WebDataset tar. A sample is one block, a contiguous stretch of one contig, in two members:
``KEY.json`` (BlockHeader: assembly, contig, start, end) and ``KEY.2bit`` (the payload, as ``blocks.pack``
writes it).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, overload

import numpy as np

from data_prep.block_index import Block, BlockColumns
from data_prep.column_file import FormatError

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
        tree = vars(self) | {"sources": [vars(source) for source in self.sources]}
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
