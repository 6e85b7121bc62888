"""Intervals of a text file as a table in the cache, of which a worker maps only the stretch that it reads.

A table, little-endian: u64 bytes of a JSON text, the text (padded to 8 bytes), then four columns of 8 bytes a
row: start, end, reach (the largest end up to this row), value. Rows are sorted by contig and start.

Shapes: N rows, L letters.
"""

import array
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cluster.storage import store
from data_prep.alphabet import Mask
from data_prep.levels import Values
from data_prep.sources.interval_lines import Interval, repeats, scores
from data_prep.sources.kept_file import KeptFile, keep, on_this_node

_SIZE = struct.Struct("<Q")
_Column = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Extent:
    """Rows [first, stop) are of one contig. The largest start and end in them, each with its line."""

    first: int
    stop: int
    start: int
    start_line: int
    end: int
    end_line: int


@dataclass(frozen=True)
class Content:
    """``contigs``: name -> where its rows are. ``empty``: how many lines of length 0 were left out, and the
    first of them."""

    contigs: dict[str, Extent]
    empty: int
    empty_line: int


class IntervalTable:
    """A table that ``write_table`` made, mapped into memory."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            (size,) = _SIZE.unpack(file.read(_SIZE.size))
            tree = json.loads(file.read(size))
        contigs = {name: Extent(*numbers) for name, numbers in tree.pop("contigs").items()}
        self.content = Content(contigs, **tree)
        rows = max((extent.stop for extent in contigs.values()), default=0)
        columns: Any = np.memmap(path, "<i8", "r", _SIZE.size + size, (4, rows)) if rows else np.zeros((4, 0))
        self._start_N, self._end_N, self._reach_N = columns[:3]
        self._value_N = columns[3].view("<f8")

    def mask(self, contig: str, start: int, end: int) -> Mask:
        """bool [L], True where an interval covers [start, end) of ``contig``."""
        first_N, stop_N, _ = self._rows(contig, start, end)
        steps_L = np.zeros(end - start + 1, np.int64)
        np.add.at(steps_L, first_N, 1)
        np.subtract.at(steps_L, stop_N, 1)
        return np.cumsum(steps_L[:-1]) > 0

    def values(self, contig: str, start: int, end: int) -> Values:
        """float64 [L], the greatest value of the intervals on each letter of [start, end); NaN: there is
        none."""
        first_N, stop_N, value_N = self._rows(contig, start, end)
        size_N = stop_N - first_N
        begin_N = np.cumsum(size_N) - size_N
        letters = np.arange(size_N.sum()) + np.repeat(first_N - begin_N, size_N)
        value_L = np.full(end - start, np.nan)
        np.fmax.at(value_L, letters, np.repeat(value_N, size_N))
        return value_L

    def _rows(self, contig: str, start: int, end: int) -> tuple[_Column, _Column, _Column]:
        """First and last letter, counted from ``start``, and value of each row that meets [start, end)."""
        extent = self.content.contigs[contig]
        own = slice(extent.first, extent.stop)
        low = extent.first + int(np.searchsorted(self._reach_N[own], start, "right"))
        high = extent.first + int(np.searchsorted(self._start_N[own], end, "left"))
        first_N = np.maximum(self._start_N[low:high], start) - start
        stop_N = np.minimum(self._end_N[low:high], end) - start
        meets_N = first_N < stop_N
        return first_N[meets_N], stop_N[meets_N], self._value_N[low:high][meets_N]


def keep_repeats(uri: str, classes: tuple[str, ...]) -> KeptFile:
    """The table of the repeats at ``uri``, on this machine. Raises as ``interval_lines.repeats``."""
    how = json.dumps(["repeats", sorted(classes)])
    return keep(uri, _make(how), how=how)


def keep_scores(uri: str, *, column: int) -> KeptFile:
    """The table of the values in a column of the file at ``uri``. Raises as ``interval_lines.scores``."""
    how = json.dumps(["scores", column])
    return keep(uri, _make(how), how=how)


@functools.lru_cache(maxsize=4)  # a shard is of one reference, which may have several files
def open_table(file: KeptFile) -> IntervalTable:
    """``file``, opened once for each process. Raises as ``on_this_node``."""
    return IntervalTable(on_this_node(file, _make(file.how)))


def _make(how: str) -> Callable[[str, Path], tuple[str, str]]:
    what, settings = json.loads(how)

    def make(uri: str, stem: Path) -> tuple[str, str]:
        path, digest = f"{stem}.intervals", hashlib.sha256()
        if what == "repeats":
            found = repeats(uri, classes=settings, digest=digest)
        else:
            found = scores(uri, column=settings, digest=digest)
        with store.publish(path) as target:
            write_table(target, found)
        return path, digest.hexdigest()

    return make


def write_table(target: IO[bytes], intervals: Iterable[Interval]) -> None:
    """Writes the table of ``intervals``, which come in any order; each takes about 100 bytes of memory."""
    numbers = dict[str, int]()
    contig, start, end, line = (array.array("q") for _ in range(4))
    value = array.array("d")
    empty = empty_line = 0
    for found in intervals:
        if found.start == found.end:
            empty, empty_line = empty + 1, empty_line or found.line
            continue
        contig.append(numbers.setdefault(found.contig, len(numbers)))
        start.append(found.start)
        end.append(found.end)
        value.append(found.value)
        line.append(found.line)
    contig_N, start_N, end_N, line_N = (np.frombuffer(part, np.int64) for part in (contig, start, end, line))
    order_N = np.lexsort((start_N, contig_N))
    edges = np.searchsorted(contig_N[order_N], np.arange(len(numbers) + 1)).tolist()
    contigs = {}
    reach_N = end_N[order_N]
    for name, number in numbers.items():
        own = slice(edges[number], edges[number + 1])
        rows = order_N[own]
        last, longest = rows[np.argmax(start_N[rows])], rows[np.argmax(end_N[rows])]
        places = (start_N[last], line_N[last], end_N[longest], line_N[longest])
        contigs[name] = Extent(own.start, own.stop, *map(int, places))
        np.maximum.accumulate(reach_N[own], out=reach_N[own])
    content = asdict(Content({}, empty, empty_line))
    content["contigs"] = {name: astuple(extent) for name, extent in contigs.items()}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    target.write(_SIZE.pack(len(text)) + text)
    for column_N in (start_N[order_N], end_N[order_N], reach_N, np.frombuffer(value, np.float64)[order_N]):
        target.write(column_N.astype(column_N.dtype.newbyteorder("<")).tobytes())
