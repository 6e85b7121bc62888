"""The shard format: schema and manifest. Standard library only.

A shard is a WebDataset tar. A sample is one block, a contiguous stretch of one contig, in two members:
``KEY.json`` (BlockHeader: assembly, contig, start, end) and ``KEY.2bit`` (the payload, as ``blocks.pack``
writes it).
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
BUILD_INFO = "build.json"
PAYLOAD_EXT = "2bit"
HEADER_EXT = "json"


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
