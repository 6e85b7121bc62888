"""Which stretch of which contig goes to which split: BED files, filters, blocks. Pure, but for read_bed."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from cluster import store
from data_prep.config import HeldOut, Names
from data_prep.shards import SPLITS

Intervals = list[tuple[int, int]]  # 0-based half-open, sorted, disjoint, not touching


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
    data = store.read_bytes(uri)
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as fault:
        raise ValueError(f"{uri} is not a BED file: {fault}") from fault
    found: dict[str, Intervals] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        try:
            contig, start, end = words[0], int(words[1]), int(words[2])
        except (IndexError, ValueError):
            raise ValueError(f"{uri}, line {number}: needs contig, start and end, not {line[:60]!r}") from None
        if not 0 <= start <= end:
            raise ValueError(f"{uri}, line {number}: [{start}, {end}) is no interval; BED counts from 0, half-open")
        found.setdefault(contig, []).append((start, end))
    return {contig: merge(intervals) for contig, intervals in found.items()}


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


def assign(spans: Sequence[Span], *, val: HeldOut, test: HeldOut, seed: int, gap: int) -> dict[str, list[Span]]:
    """``spans`` by split. A list holds out whole contigs; a fraction, blocks drawn by sha256 of seed and place.

    No train base lies within ``gap`` of a held-out block of its contig: train blocks are cut there, or dropped.

    Raises:
        ValueError: a pattern that matches no contig, or a contig held out twice.
    """
    places = {(span.assembly, span.contig) for span in spans}
    named = {split: _match(places, wanted, split) for split, wanted in (("val", val), ("test", test))}
    if both := sorted(named["val"] & named["test"]):
        raise ValueError(f"split: {_some(f'{a}:{c}' for a, c in both)} in both val and test")
    parts: dict[str, list[Span]] = {split: [] for split in SPLITS}
    val_share, test_share = (share if isinstance(share, float) else 0.0 for share in (val, test))
    for span in spans:
        place = (span.assembly, span.contig)
        draw = _draw(seed, span)
        if place in named["val"]:
            parts["val"].append(span)
        elif place in named["test"]:
            parts["test"].append(span)
        else:
            parts["val" if draw < val_share else "test" if draw < val_share + test_share else "train"].append(span)
    near: dict[tuple[str, str], Intervals] = {}
    for span in parts["val"] + parts["test"]:
        near.setdefault((span.assembly, span.contig), []).append((max(0, span.start - gap), span.end + gap))
    zones = {place: merge(intervals) for place, intervals in near.items()}
    parts["train"] = [
        replace(span, start=start, end=end) for span in parts["train"]
        for start, end in subtract([(span.start, span.end)], _around(zones.get((span.assembly, span.contig), []), span))
    ]
    return parts


def group(spans: Iterable[Span], *, shard_bp: int) -> list[list[Span]]:
    """``spans`` in order, cut into shards of one assembly that close once they hold ``shard_bp``."""
    shards: list[list[Span]] = []
    filled = 0
    for span in spans:
        if not shards or filled + span.bp > shard_bp or shards[-1][0].assembly != span.assembly:
            shards.append([])
            filled = 0
        shards[-1].append(span)
        filled += span.bp
    return shards


def _around(zones: Intervals, span: Span) -> Intervals:
    return [zone for zone in zones if zone[0] < span.end and zone[1] > span.start]


def _draw(seed: int, span: Span) -> float:
    place = f"{seed}\t{span.assembly}\t{span.contig}\t{span.start}"
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "big") / (1 << 56)


def _match(places: set[tuple[str, str]], wanted: HeldOut, split: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for pattern in wanted if isinstance(wanted, tuple) else ():
        hits = {(a, c) for a, c in places if fnmatchcase(c, pattern) or fnmatchcase(f"{a}:{c}", pattern)}
        if not hits:
            raise ValueError(f"split.{split}: no contig matches {pattern!r}; there are {_some(c for _, c in places)}")
        found |= hits
    return found


def _some(names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
