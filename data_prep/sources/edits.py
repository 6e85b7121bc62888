"""A genome as edits of another: its letters, and the exact map between the coordinates of the two.

An edit replaces letters [start, end) of a contig by others; end == start is an insertion. Edits are sorted
and do not overlap. The file of them is read by memory map, so that a process holds what it touches.

Shapes: E edits of a contig, S aligned stretches.

File: b"DNAEDIT1"; for each contig i64[E] start, i64[E] end, i64[E + 1] place of its letters, letters, zeros
up to a multiple of 8; then JSON {"sha256", "contigs": {name: [offset, edits, letters]}, "counts", "notes"};
then u64, the bytes of the JSON. Little-endian.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Letters = np.ndarray[Any, np.dtype[np.uint8]]
Fetch = Callable[[str, int, int], bytes]  # letters [start, end) of a contig

_MAGIC = b"DNAEDIT1"
_END = struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class ContigEdits:
    """Those of one contig; edit i puts ``letters[at[i]:at[i + 1]]`` in place of [start[i], end[i])."""

    start_E: Numbers
    end_E: Numbers
    at: Numbers  # [E + 1]
    letters: Letters

    @classmethod
    def none(cls) -> "ContigEdits":
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, np.zeros(1, np.int64), np.zeros(0, np.uint8))

    @cached_property
    def sizes(self) -> Numbers:
        """Letters that each edit brings."""
        return np.diff(self.at)

    @cached_property
    def shift(self) -> Numbers:
        """[E + 1]: by how much what stands before edit i is moved."""
        return np.concatenate([[0], np.cumsum(self.sizes - (self.end_E - self.start_E))])

    @cached_property
    def new_starts(self) -> Numbers:
        """Where the letters of each edit begin in the edited contig."""
        return np.asarray(self.start_E + self.shift[:-1])

    @cached_property
    def new_ends(self) -> Numbers:
        return np.asarray(self.new_starts + self.sizes)

    def lift(self, edges: Numbers) -> Numbers:
        """Edges between letters -> the same edges in the edited contig; ascending stays ascending.

        Inserted letters belong to the letter before them. An edge inside of replaced letters stays as many
        letters behind the edit's start, as far as there are any.
        """
        return _moved(edges, (self.start_E, self.end_E), (self.new_starts, self.new_ends), self.shift)

    def unlift(self, edges: Numbers) -> Numbers:
        """Edges in the edited contig -> the same edges in the contig as it was; as ``lift``."""
        return _moved(edges, (self.new_starts, self.new_ends), (self.start_E, self.end_E), -self.shift)

    def origin(self, start: int, end: int) -> Numbers:
        """int64 [end - start]: for each letter of [start, end) of the edited contig the letter of the contig
        as it was that it stands for; for an inserted one, the letter before it."""
        place = self.unlift(np.arange(start, end))
        first = int(np.searchsorted(self.new_ends, start, "right"))
        last = int(np.searchsorted(self.new_starts, end, "left"))
        kept = np.minimum(self.sizes, self.end_E - self.start_E)[first:last]
        rows = zip(
            self.new_starts[first:last] + kept, self.new_ends[first:last], self.end_E[first:last], strict=True
        )
        for low, high, old_end in rows:
            place[max(0, low - start) : max(0, high - start)] = max(0, old_end - 1)
        return place

    def aligned(self, bp: int) -> Numbers:
        """int64 [S, 3]: (start, start in the edited contig, letters) of each stretch of a contig of ``bp``
        letters in which nothing is inserted or deleted."""
        changes = self.sizes != self.end_E - self.start_E
        start = np.concatenate([[0], self.end_E[changes]])
        until = np.concatenate([self.start_E[changes], [bp]])
        found = np.stack([start, np.concatenate([[0], self.new_ends[changes]]), until - start], 1)
        return found[found[:, 2] > 0]

    def substituted(self) -> tuple[Numbers, Letters]:
        """(place, letter) of each letter that stands for another one: of edits that change no length."""
        same = np.flatnonzero((self.sizes == self.end_E - self.start_E) & (self.sizes > 0))
        count = self.sizes[same]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        place = np.repeat(self.start_E[same], count) + within
        return place, np.asarray(self.letters[np.repeat(self.at[same], count) + within])

    def fetch(self, fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
        """Letters [start, end) of the edited contig; ``fetch(start, end)`` gives those of the contig as it
        was."""
        first = int(np.searchsorted(self.new_ends, start, "right"))
        last = int(np.searchsorted(self.new_starts, end, "left"))
        at = start - int(self.shift[first])  # in the contig as it was
        parts: list[tuple[int, int] | bytes] = []
        here, edits = start, slice(first, last)
        low = int(self.at[first])
        letters = self.letters[low : int(self.at[last])].tobytes()
        rows = zip(
            self.new_starts[edits].tolist(),
            self.new_ends[edits].tolist(),
            self.end_E[edits].tolist(),
            (self.at[edits] - low).tolist(),
            strict=True,
        )
        for new, until, old_end, place in rows:
            if here < new:
                parts.append((at, at + new - here))
            parts.append(letters[place + max(0, here - new) : place + min(end, until) - new])
            at, here = old_end, min(end, until)
        if here < end:
            parts.append((at, at + end - here))
        return b"".join(_read(parts, fetch, 2 * (end - start)))


def _moved(
    edges: Numbers, of: tuple[Numbers, Numbers], to: tuple[Numbers, Numbers], shift: Numbers
) -> Numbers:
    edges = np.asarray(edges, np.int64)
    done = np.searchsorted(of[1], edges, "right")
    moved = np.asarray(edges + shift[done])
    if len(of[0]):
        edit = np.minimum(done, len(of[0]) - 1)
        inside = (done < len(of[0])) & (of[0][edit] < edges)
        within = np.minimum(edges - of[0][edit], to[1][edit] - to[0][edit])
        moved = np.where(inside, to[0][edit] + within, moved)
    return np.where(edges <= 0, edges, moved)


def _read(parts: list[tuple[int, int] | bytes], fetch: Callable[[int, int], bytes], most: int) -> list[bytes]:
    """``parts`` with letters for intervals: of one read, unless a large deletion makes that too much."""
    intervals = [part for part in parts if isinstance(part, tuple)]
    if not intervals:
        return [part for part in parts if isinstance(part, bytes)]
    low, high = intervals[0][0], intervals[-1][1]
    if high - low > most:
        return [fetch(*part) if isinstance(part, tuple) else part for part in parts]
    text = fetch(low, high)
    return [text[part[0] - low : part[1] - low] if isinstance(part, tuple) else part for part in parts]


class Edits:
    """The file of edits at a path."""

    def __init__(self, path: str) -> None:
        """ValueError: it is damaged. OSError: it cannot be read."""
        data = np.memmap(path, np.uint8, "r")
        if len(data) < len(_MAGIC) + _END.size or data[: len(_MAGIC)].tobytes() != _MAGIC:
            raise ValueError(f"{path} is no file of edits")
        (size,) = _END.unpack(data[-_END.size :].tobytes())
        head = json.loads(data[-_END.size - size : -_END.size].tobytes())
        self._data: Letters = data
        self._contigs: dict[str, list[int]] = head["contigs"]
        self.sha256: str = head["sha256"]
        self.counts: dict[str, int] = head["counts"]
        self.notes: list[str] = head["notes"]

    def of(self, contig: str) -> ContigEdits:
        """The edits of ``contig``."""
        if contig not in self._contigs:
            return ContigEdits.none()
        at, count, letters = self._contigs[contig]
        columns = []
        for length in (count, count, count + 1):
            columns.append(self._data[at : at + 8 * length].view("<i8"))
            at += 8 * length
        return ContigEdits(columns[0], columns[1], columns[2], self._data[at : at + letters])

    def contigs(self, contigs: Mapping[str, int]) -> dict[str, int]:
        """``contigs`` (name -> bp) with the lengths that the edits give them."""
        return {name: bp + int(self.of(name).shift[-1]) for name, bp in contigs.items()}


class EditedGenome:
    """A genome read through its edits. Belongs to one process."""

    def __init__(self, edits: Edits, fetch: Fetch) -> None:
        self._edits, self._fetch = edits, fetch
        self._contig: tuple[str, ContigEdits] = ("", ContigEdits.none())

    def of(self, contig: str) -> ContigEdits:
        """The edits of ``contig``."""
        if self._contig[0] != contig:
            self._contig = contig, self._edits.of(contig)
        return self._contig[1]

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig``."""
        return self.of(contig).fetch(lambda low, high: self._fetch(contig, low, high), start, end)


@dataclass
class Columns:
    """The edits of a contig while they are found."""

    start: "array[int]" = field(default_factory=lambda: array("q"))
    end: "array[int]" = field(default_factory=lambda: array("q"))
    at: "array[int]" = field(default_factory=lambda: array("q", [0]))
    letters: bytearray = field(default_factory=bytearray)

    def add(self, start: int, end: int, letters: bytes) -> None:
        self.start.append(start)
        self.end.append(end)
        self.letters += letters
        self.at.append(len(self.letters))


class Writer:
    """Writes a file of edits, contig after contig. Call ``finish`` at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._contigs: dict[str, list[int]] = {}
        self._digests: dict[str, str] = {}
        file.write(_MAGIC)

    def write(self, contig: str, columns: Columns) -> None:
        """Adds the edits of ``contig``, unless there are none."""
        if not columns.start:
            return
        parts = [np.array(part, "<i8").tobytes() for part in (columns.start, columns.end, columns.at)]
        body = b"".join([*parts, bytes(columns.letters)])
        self._contigs[contig] = [self._file.tell(), len(columns.start), len(columns.letters)]
        self._digests[contig] = hashlib.sha256(body).hexdigest()
        self._file.write(body + bytes(-len(body) % 8))

    def finish(self, *, reference_sha256: str, counts: Mapping[str, int], notes: Sequence[str] = ()) -> None:
        """Writes the end. The file's sha256 is that of the reference and of the edits, whatever the order of
        contigs."""
        named = "".join(f"{name} {self._digests[name]}\n" for name in sorted(self._digests))
        digest = hashlib.sha256(f"{reference_sha256}\n{named}".encode()).hexdigest()
        head = {"sha256": digest, "contigs": self._contigs, "counts": dict(counts), "notes": [*notes]}
        data = json.dumps(head, separators=(",", ":")).encode()
        self._file.write(data + _END.pack(len(data)))
