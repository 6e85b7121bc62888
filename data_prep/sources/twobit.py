"""UCSC .2bit files on a local disk, read in ranges with their soft mask. The only user of py2bit.

py2bit reads little-endian files and checks nothing, so the layout is checked here: every byte must belong to
the header, the index or one sequence. Big-endian files are copied with the bytes of their numbers reversed.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cluster.storage import store

_SIGNATURE = 0x1A412743  # the first number of a .2bit
_PIECE = 1 << 22  # bytes copied at once


@dataclass(frozen=True)
class _Record:
    """A sequence of the file, which lies in bytes [start, end); ``numbers``: (offset, count) of its 4-byte
    numbers."""

    name: str
    numbers: tuple[tuple[int, int], ...]
    start: int
    end: int


@dataclass(frozen=True)
class _Layout:
    """``order``: struct's letter for the byte order. ``places``: (offset, width) of each number of the
    index."""

    order: str
    places: tuple[tuple[int, int], ...]
    records: tuple[_Record, ...]


class TwoBit:
    """An open .2bit file of little-endian numbers. Handles belong to one process."""

    def __init__(self, path: str | Path, *, uri: str) -> None:
        """ValueError, naming ``uri``, for a file that py2bit cannot open."""
        import py2bit  # only who reads a .2bit needs it

        self._uri = uri
        try:
            self._file = py2bit.open(str(path), True)
        except RuntimeError as fault:
            raise _damaged(uri, " ".join(str(fault).split())) from None

    def contigs(self) -> dict[str, int]:
        """name -> length of every sequence, in the file's order."""
        return {str(name): int(bp) for name, bp in self._file.chroms().items()}

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig``, lower case where soft-masked (N is upper case always).

        Raises:
            ValueError: the file is cut short.
        """
        try:
            letters: str = self._file.sequence(contig, start, end)
        except RuntimeError as fault:
            raise ValueError(
                f"{self._uri}: contig {contig} cannot be read ({' '.join(str(fault).split())}); get it again"
            ) from None
        return letters.encode()


def readable(path: str, copy: str, *, uri: str) -> str:
    """``path``, if py2bit can read the .2bit file there, else ``copy``, where it now is with little-endian
    numbers.

    Raises:
        ValueError: damaged, cut short, a name twice, or bytes that belong to no sequence; it names ``uri``.
        StoreError: ``copy`` cannot be written.
    """
    layout = _check(path, uri=uri)
    if layout.order == "<":
        return path
    with store.publish(copy) as target, open(path, "rb") as source:
        _copy_little_endian(source, target, layout)
    return copy


def _copy_little_endian(source: IO[bytes], target: IO[bytes], layout: _Layout) -> None:
    """Writes ``source`` with the bytes of every number reversed; names and packed bases stay."""
    numbers = [(0, 4, 4)] + [(at, 1, size) for at, size in layout.places]
    numbers += [(at, count, 4) for record in layout.records for at, count in record.numbers]
    for at, count, size in sorted(numbers):
        target.write(source.read(at - source.tell()))
        for done in range(0, count, _PIECE // size):
            part = min(_PIECE // size, count - done)
            target.write(np.frombuffer(source.read(part * size), f">u{size}").astype(f"<u{size}").tobytes())
    while piece := source.read(_PIECE):
        target.write(piece)


def _check(path: str, *, uri: str) -> _Layout:
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        try:
            layout = _layout(_Cursor(file, size), uri=uri)
        except EOFError:
            raise _damaged(uri, f"it ends early, after {size} bytes") from None
        for gap, end in _gaps(layout, size, uri=uri):
            file.seek(gap)
            if any(file.read(min(_PIECE, end - at)).strip(b"\0") for at in range(gap, end, _PIECE)):
                raise _damaged(
                    uri, f"bytes {gap} to {end} belong to none of its {len(layout.records)} sequences"
                )
    return layout


class _Cursor:
    """Reads a .2bit file of ``size`` bytes, from its start. EOFError past its end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.order = "<" if int.from_bytes(self.take(4), "little") == _SIGNATURE else ">"

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> None:
        self._file.seek(min(offset, self._size))

    def take(self, length: int) -> bytes:
        if length > self._size - self._file.tell():
            raise EOFError
        return self._file.read(length)

    def number(self, width: int = 4) -> int:
        return int(struct.unpack(f"{self.order}{'I' if width == 4 else 'Q'}", self.take(width))[0])

    def numbers(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.frombuffer(self.take(4 * count), f"{self.order}u4").astype(np.int64)


def _layout(cursor: _Cursor, *, uri: str) -> _Layout:
    """By UCSC's description: header, index, and for each sequence its length, runs of N, runs of lower case,
    bases."""
    version, count, _ = cursor.number(), cursor.number(), cursor.number()
    if version > 1:
        raise _damaged(uri, f"its version is {version}, known are 0 and 1")
    width = 8 if version else 4  # of an offset in the index
    names, places, starts = list[str](), list[tuple[int, int]](), list[int]()
    for number in range(1, count + 1):
        names.append(_name(cursor.take(cursor.take(1)[0]), number, uri=uri))
        places.append((cursor.tell(), width))
        starts.append(cursor.number(width))
    name, times = Counter(names).most_common(1)[0] if names else ("", 1)
    if times > 1:
        raise ValueError(f"{uri}: two sequences have the name {name}; rename or remove one")
    records = [_record(cursor, name, start, uri=uri) for name, start in zip(names, starts, strict=True)]
    return _Layout(cursor.order, tuple(places), tuple(records))


def _name(raw: bytes, number: int, *, uri: str) -> str:
    name = raw.decode(errors="replace")
    if not name or not name.isprintable() or " " in name or "\ufffd" in name:
        raise _damaged(uri, f"the name of sequence {number}, {raw!r}, is not readable text")
    return name


def _record(cursor: _Cursor, name: str, start: int, *, uri: str) -> _Record:
    cursor.seek(start)
    bases, numbers = cursor.number(), [(start, 1)]
    for what in ("N", "lower case"):
        at, runs = cursor.tell(), cursor.number()
        edges = cursor.numbers(2 * runs)
        if runs and int((edges[:runs] + edges[runs:]).max()) > bases:
            raise _damaged(uri, f"the runs of {what} of {name} do not fit into its {bases} bases")
        numbers.append((at, 1 + 2 * runs))
    numbers.append((cursor.tell(), 1))
    cursor.number()  # reserved
    return _Record(name, tuple(numbers), start, cursor.tell() + -(-bases // 4))


def _gaps(layout: _Layout, size: int, *, uri: str) -> Iterator[tuple[int, int]]:
    """[start, end) of the bytes between the index, the sequences and the end of the file; ValueError where
    those overlap."""
    at = layout.places[-1][0] + layout.places[-1][1] if layout.places else 16
    for record in sorted(layout.records, key=lambda record: record.start):
        if record.end > size:
            raise _damaged(uri, f"it ends early, after {size} of {record.end} bytes")
        if record.start < at:
            raise _damaged(uri, f"sequence {record.name} overlaps another part")
        if record.start > at:
            yield at, record.start
        at = record.end
    if size > at:
        yield at, size


def _damaged(uri: str, why: str) -> ValueError:
    return ValueError(f"{uri}: damaged .2bit file ({why}); get it again")
