"""Files of a JSON head and columns of numbers behind it, with a magic, a version and a checksum.

Standard library and numpy only.

File, little-endian:
    4s magic
    u16 format version
    u16 zero
    u32 crc32 of the rest
    u32 bytes of the head
    head: JSON
    columns, as whoever writes them says
"""

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Column = np.ndarray[Any, np.dtype[Any]]

_HEAD = struct.Struct("<4sHHII")


class FormatError(ValueError):
    """The bytes are not what this format version writes; the message says what was expected and found."""


@dataclass(frozen=True)
class ColumnFile:
    """A kind of file; ``what``: its name in messages; ``advice``: what to do about another version."""

    magic: bytes
    version: int
    what: str
    advice: str = ""

    def to_bytes(self, head: dict[str, Any], columns: Iterable[Column]) -> bytes:
        """The file: equal heads and columns are equal bytes. Columns have the type that is written."""
        text = json.dumps(head, separators=(",", ":")).encode()
        body = text + b"".join(column.tobytes() for column in columns)
        crc = zlib.crc32(struct.pack("<I", len(text)) + body)
        return _HEAD.pack(self.magic, self.version, 0, crc, len(text)) + body

    def read_head(self, data: bytes) -> tuple[dict[str, Any], int]:
        """The head, and the offset of the columns. FormatError: damaged or foreign bytes, another version."""
        if len(data) < _HEAD.size or data[:4] != self.magic:
            raise FormatError(f"{self.what} starts with {data[:4]!r}, not {self.magic!r}")
        _, version, _, crc, head_bytes = _HEAD.unpack_from(data)
        if version != self.version:
            raise FormatError(
                f"{self.what} has format version {version}, this code reads {self.version}{self.advice}"
            )
        if zlib.crc32(memoryview(data)[_HEAD.size - 4 :]) != crc:
            raise FormatError(f"{self.what} does not match its crc32")
        return json.loads(data[_HEAD.size : _HEAD.size + head_bytes]), _HEAD.size + head_bytes


def read_columns(data: bytes, kinds: Iterable[str], *, count: int, offset: int) -> tuple[list[Column], int]:
    """Columns of ``count`` numbers each from ``offset`` on, as views of ``data``, and where they end."""
    columns = list[Column]()
    for kind in kinds:
        columns.append(np.frombuffer(data, kind, count, offset))
        offset += columns[-1].nbytes
    return columns, offset
