"""Where blocks lie, in columns, and the index files in which the manifest of a large dataset keeps them.

A manifest of few blocks lists them itself. One of many names index files: a file holds the blocks of a group
of shards of one split, so that the ranks of a run read 78 Gbp of them in parts of a second. Standard library
and numpy only.

Index file (column_file.py), little-endian:
    head: {"blocks": n, "places": [[assembly, contig], ...]}
    u64[n] offset in the shard
    u64[n] start in the contig
    u32[n] bytes of the payload
    u32[n] bp
    u32[n] place: number in ``places``

Shapes: N blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from data_prep.column_file import Column, ColumnFile, read_columns

_FILE = ColumnFile(b"DNAI", 1, "index of blocks")
_KINDS = ("<u8", "<u8", "<u4", "<u4", "<u4")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, eq=False)
class BlockColumns(Sequence[Block]):
    """N blocks, a column for each of their numbers; ``places``: (assembly, contig), which ``place_N`` counts.

    It is a sequence of ``Block``; equal to any sequence of equal blocks.
    """

    offset_N: Column
    start_N: Column
    size_N: Column
    bp_N: Column
    place_N: Column
    places: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "BlockColumns":
        """The columns of ``blocks``; places are numbered as they come."""
        if isinstance(blocks, BlockColumns):
            return blocks
        numbers: dict[tuple[str, str], int] = {}
        place = [numbers.setdefault((block.assembly, block.contig), len(numbers)) for block in blocks]
        rows = ((b.offset, b.start, b.size, b.end - b.start) for b in blocks)
        columns = np.array(list(rows), np.int64).reshape(-1, 4).T
        return cls._made([*columns, np.array(place, np.int64)], tuple(numbers))

    @classmethod
    def _made(cls, columns: Iterable[Column], places: tuple[tuple[str, str], ...]) -> "BlockColumns":
        """Of columns in the order of the file."""
        kinds = zip(columns, _KINDS, strict=True)
        offset_N, start_N, size_N, bp_N, place_N = (column.astype(kind, copy=False) for column, kind in kinds)
        return cls(offset_N, start_N, size_N, bp_N, place_N, places)

    @classmethod
    def joined(cls, parts: Sequence["BlockColumns"]) -> "BlockColumns":
        """The blocks of ``parts``, one part after the other."""
        numbers: dict[tuple[str, str], int] = {}
        renumbered: dict[int, Column] = {}  # by the tuple of places, which all shards of an index file share
        places = []
        for part in parts:
            if id(part.places) not in renumbered:
                new = [numbers.setdefault(place, len(numbers)) for place in part.places]
                renumbered[id(part.places)] = np.array(new, "<u4")
            places.append(renumbered[id(part.places)][part.place_N])
        empty = [np.zeros(0, kind) for kind in _KINDS]
        columns = [
            np.concatenate([none, *(part._columns[number] for part in parts)])
            for number, none in enumerate(empty[:-1])
        ]
        return cls._made([*columns, np.concatenate([empty[-1], *places])], tuple(numbers))

    @property
    def _columns(self) -> tuple[Column, ...]:
        return self.offset_N, self.start_N, self.size_N, self.bp_N, self.place_N

    def part(self, first: int, stop: int) -> "BlockColumns":
        """Blocks ``first`` … ``stop`` - 1, without a copy."""
        return self._made((column[first:stop] for column in self._columns), self.places)

    def __len__(self) -> int:
        return len(self.bp_N)

    @overload
    def __getitem__(self, which: int) -> Block: ...
    @overload
    def __getitem__(self, which: slice) -> list[Block]: ...
    def __getitem__(self, which: int | slice) -> Block | list[Block]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        offset, start, size, bp, place = (int(column[which]) for column in self._columns)
        assembly, contig = self.places[place]
        return Block(offset, size, assembly, contig, start, start + bp)

    def __iter__(self) -> Iterator[Block]:
        rows = zip(*(column.tolist() for column in self._columns), strict=True)
        for offset, start, size, bp, place in rows:
            assembly, contig = self.places[place]
            yield Block(offset, size, assembly, contig, start, start + bp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def to_bytes(self) -> bytes:
        """The index file: equal blocks are equal bytes."""
        return _FILE.to_bytes({"blocks": len(self), "places": self.places}, self._columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> "BlockColumns":
        """The blocks of an index file. FormatError: damaged or foreign bytes, or another version."""
        head, offset = _FILE.read_head(data)
        columns, _ = read_columns(data, _KINDS, count=head["blocks"], offset=offset)
        return cls._made(columns, tuple((assembly, contig) for assembly, contig in head["places"]))
