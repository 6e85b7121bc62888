"""Which stretch of which contig goes to which split: BED files, filters, blocks. Pure, but for read_bed."""

import gzip
import hashlib
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from cluster import store
from data_prep.config import Names
from data_prep.shards import SPLITS

_MOST_BLOCKS = 8192  # of a shard: a draft of short contigs makes many, and a worker holds a record of each

Intervals = list[tuple[int, int]]  # 0-based half-open, sorted, disjoint, not touching
Place = tuple[str, str]  # assembly, contig
Zones = dict[Place, Intervals]


@dataclass(frozen=True)
class Span:
    """The stretch [start, end) of one contig of one assembly."""

    assembly: str
    contig: str
    start: int
    end: int

    @property
    def bp(self) -> int:
        return self.end - self.start


def read_bed(uri: str) -> dict[str, Intervals]:
    """contig -> merged intervals of the BED file (plain or gzip) at ``uri``.

    Raises:
        ValueError: a line that is no interval, with its number.
    """
    found: dict[str, Intervals] = {}
    for contig, start, end, _ in _bed_lines(uri):
        found.setdefault(contig, []).append((start, end))
    return {contig: merge(intervals) for contig, intervals in found.items()}


def read_zones(uris: Sequence[str], places: Mapping[Place, int], *, where: str) -> Zones:
    """What the BED files at ``uris`` cover of ``places`` (with their bp): a line counts for every assembly that has its
    contig. In a file of which some line names an assembly of ``places`` in its fourth column, as those that a build
    writes do, a line with a name counts for the assembly of that name alone.

    Raises:
        ValueError: a line that is no interval or lies beyond its contig, or a file that names no contig of ``places``.
    """
    by_contig: dict[str, list[Place]] = {}
    for place in places:
        by_contig.setdefault(place[1], []).append(place)
    assemblies = {assembly for there in by_contig.values() for assembly, _ in there}
    zones: Zones = {}
    for uri in uris:
        lines = list(_bed_lines(uri))
        labelled = any(name in assemblies for *_, name in lines)
        hit = False
        for contig, start, end, name in lines:
            for place in by_contig.get(contig, ()):
                if not labelled or name in ("", place[0]):
                    refuse_beyond([(start, end)], contig, places[place], uri=uri)
                    zones.setdefault(place, []).append((start, end))
                    hit = True
        if not hit:
            names = _some(line[0] for line in lines) or "nothing"
            raise ValueError(f"{where}: {uri} names no contig of the references (the BED has {names}; "
                             f"they have {_some(by_contig)})")
    return {place: merge(intervals) for place, intervals in zones.items()}


def refuse_beyond(intervals: Iterable[tuple[int, int]], contig: str, bp: int, *, uri: str) -> None:
    """ValueError for an interval that starts past the end of its contig: the BED is of another version, most likely."""
    for start, end in intervals:
        if start >= bp and end > start:
            raise ValueError(f"{uri}: {contig}:{start}-{end} lies beyond the contig's {bp} bp; is the BED of another "
                             "version of the genome?")


def _bed_lines(uri: str) -> Iterator[tuple[str, int, int, str]]:
    data = store.read_bytes(uri)
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as fault:
        raise ValueError(f"{uri} is not a BED file: {fault}") from fault
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.startswith("#") or line.split()[0] in ("track", "browser"):
            continue
        try:
            contig, start, end = words[0], int(words[1]), int(words[2])
        except (IndexError, ValueError):
            raise ValueError(f"{uri}, line {number}: needs contig, start and end, not {line[:60]!r}") from None
        if not 0 <= start <= end:
            raise ValueError(f"{uri}, line {number}: [{start}, {end}) is no interval; BED counts from 0, half-open")
        yield contig, start, end, words[3] if len(words) > 3 else ""


def bed_bytes(spans: Iterable[Span]) -> bytes:
    """The BED file of ``spans``, a line each in the order given: contig, start, end, assembly."""
    return "".join(f"{s.contig}\t{s.start}\t{s.end}\t{s.assembly}\n" for s in spans).encode()


def merge(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """The union of ``intervals``, sorted; overlapping and touching ones become one, empty ones go."""
    merged: Intervals = []
    for start, end in sorted(intervals):
        if start == end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def intersect(left: Intervals, right: Intervals) -> Intervals:
    """What lies in both ``left`` and ``right``."""
    out: Intervals = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            out.append((start, end))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return out


def subtract(left: Intervals, right: Intervals) -> Intervals:
    """What lies in ``left`` but not in ``right``."""
    edges = [0, *(edge for interval in right for edge in interval), 1 << 62]
    return intersect(left, [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b])


def choose_contigs(contigs: Mapping[str, int], patterns: Names | None, *, where: str) -> dict[str, int]:
    """The ``contigs`` that some pattern matches, in their order. ValueError for a pattern that matches none."""
    if patterns is None:
        return dict(contigs)
    for pattern in patterns:
        if not any(fnmatchcase(contig, pattern) for contig in contigs):
            raise ValueError(f"{where}: no contig matches {pattern!r}; there are {_some(contigs)}")
    return {contig: bp for contig, bp in contigs.items() if any(fnmatchcase(contig, p) for p in patterns)}


def tile(assembly: str, contigs: Mapping[str, int], *, block_bp: int, include: Sequence[Mapping[str, Intervals]] = (),
         exclude: Sequence[Mapping[str, Intervals]] = ()) -> list[Span]:
    """Blocks of ``block_bp`` over what the filters leave of each contig, in order; a stretch's last may be short."""
    spans = []
    for contig, bp in contigs.items():
        kept: Intervals = [(0, bp)]
        if include:
            kept = intersect(kept, merge(i for bed in include for i in bed.get(contig, ())))
        kept = subtract(kept, merge(i for bed in exclude for i in bed.get(contig, ())))
        for start, end in kept:
            spans += [Span(assembly, contig, at, min(at + block_bp, end)) for at in range(start, end, block_bp)]
    return spans


def assign(spans: Sequence[Span], *, val: Names | float | Zones, test: Names | float | Zones, seed: int,
           gap: int) -> dict[str, list[Span]]:
    """``spans`` by split. Names hold out whole contigs; a fraction, blocks drawn by sha256 of seed and place; zones,
    what lies in them (blocks are cut at their edges).

    No train base lies within ``gap`` of a held-out block of its contig: train blocks are cut there, or dropped.

    Raises:
        ValueError: a pattern that matches no contig, or something held out twice.
    """
    places = {(span.assembly, span.contig) for span in spans}
    named = {split: _match(places, wanted, split) for split, wanted in (("val", val), ("test", test))}
    if both := sorted(named["val"] & named["test"]):
        raise ValueError(f"split: {_some(f'{a}:{c}' for a, c in both)} in both val and test")
    val_zones, test_zones = (wanted if isinstance(wanted, dict) else {} for wanted in (val, test))
    for place in sorted(val_zones.keys() & test_zones.keys()):
        if twice := intersect(val_zones[place], test_zones[place]):
            raise ValueError(f"split: {':'.join(place)}:{twice[0][0]}-{twice[0][1]} in both val and test")
    parts: dict[str, list[Span]] = {split: [] for split in SPLITS}
    val_share, test_share = (share if isinstance(share, float) else 0.0 for share in (val, test))
    for span in spans:
        place = (span.assembly, span.contig)
        if place in named["val"] or place in named["test"]:
            parts["val" if place in named["val"] else "test"].append(span)
            continue
        rest: Intervals = [(span.start, span.end)]
        for split, zones in (("val", val_zones), ("test", test_zones)):
            near = _around(zones.get(place, []), span)
            parts[split] += _pieces(span, intersect(rest, near))
            rest = subtract(rest, near)
        draw = _draw(seed, span) if val_share or test_share else 1.0
        split = "val" if draw < val_share else "test" if draw < val_share + test_share else "train"
        parts[split] += _pieces(span, rest)
    near_held_out: Zones = {}
    for span in parts["val"] + parts["test"]:
        place = (span.assembly, span.contig)
        near_held_out.setdefault(place, []).append((max(0, span.start - gap), span.end + gap))
    zones = {place: merge(intervals) for place, intervals in near_held_out.items()}
    parts["train"] = [
        piece for span in parts["train"]
        for piece in _pieces(span, subtract([(span.start, span.end)],
                                            _around(zones.get((span.assembly, span.contig), []), span)))
    ]
    return parts


def count_covered(spans: Sequence[Span], runs: Mapping[Place, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """int64: how many bases of each span lie in ``runs`` (per place int64 [r, 2], sorted and disjoint)."""
    counts = np.zeros(len(spans), np.int64)
    by_place: dict[Place, list[int]] = {}
    for i, span in enumerate(spans):
        by_place.setdefault((span.assembly, span.contig), []).append(i)
    for place, indices in by_place.items():
        if place in runs:
            starts, ends = runs[place].T
            total = np.concatenate([[0], np.cumsum(ends - starts)])

            def below(at: np.ndarray[Any, Any], starts: Any = starts, ends: Any = ends, total: Any = total) -> Any:
                before = np.searchsorted(starts, at, "right")  # runs that start at or before it; the last may stick out
                return total[before] - np.maximum(0, ends[np.maximum(0, before - 1)] - at) * (before > 0)

            edges = np.array([(spans[i].start, spans[i].end) for i in indices])
            counts[indices] = below(edges[:, 1]) - below(edges[:, 0])
    return counts


def group(spans: Iterable[Span], *, shard_bp: int) -> list[list[Span]]:
    """``spans`` in order, cut into shards of one assembly that close once they hold ``shard_bp``, or _MOST_BLOCKS."""
    shards: list[list[Span]] = []
    filled = 0
    for span in spans:
        full = not shards or filled + span.bp > shard_bp or len(shards[-1]) == _MOST_BLOCKS
        if full or shards[-1][0].assembly != span.assembly:
            shards.append([])
            filled = 0
        shards[-1].append(span)
        filled += span.bp
    return shards


def _around(zones: Intervals, span: Span) -> Intervals:
    """Those of ``zones`` that meet ``span``."""
    first = bisect_right(zones, span.start, key=lambda zone: zone[1])
    return zones[first : bisect_left(zones, span.end, key=lambda zone: zone[0])]


def _pieces(span: Span, intervals: Intervals) -> list[Span]:
    return [replace(span, start=start, end=end) for start, end in intervals]


def _draw(seed: int, span: Span) -> float:
    place = f"{seed}\t{span.assembly}\t{span.contig}\t{span.start}"
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "big") / (1 << 56)


def _match(places: set[Place], wanted: Names | float | Zones, split: str) -> set[Place]:
    found: set[Place] = set()
    for pattern in wanted if isinstance(wanted, tuple) else ():
        hits = {(a, c) for a, c in places if fnmatchcase(c, pattern) or fnmatchcase(f"{a}:{c}", pattern)}
        if not hits:
            raise ValueError(f"split.{split}: no contig matches {pattern!r}; there are {_some(c for _, c in places)}")
        found |= hits
    return found


def _some(names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
