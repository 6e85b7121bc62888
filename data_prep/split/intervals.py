"""Intervals of contigs, and which of them go to which split: filters, blocks, splits. No input or output."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from data_prep.config import Names
from data_prep.shards import SPLITS, Block

_MOST_BLOCKS = 8192  # of a shard: a draft assembly has many short ones, and a worker keeps an entry for each

Intervals = list[tuple[int, int]]  # 0-based half-open, sorted, disjoint, not touching
Place = tuple[str, str]  # assembly, contig
Zones = dict[Place, Intervals]
HELD_OUT = ("val", "test")  # the splits beside train


@dataclass(frozen=True)
class Span:
    """The stretch [start, end) of one contig of one assembly."""

    assembly: str
    contig: str
    start: int
    end: int

    @classmethod
    def of(cls, block: Block) -> "Span":
        """Where ``block`` lies."""
        return cls(block.assembly, block.contig, block.start, block.end)

    @property
    def bp(self) -> int:
        return self.end - self.start

    @property
    def place(self) -> Place:
        return self.assembly, self.contig


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


def tile(
    assembly: str,
    contigs: Mapping[str, int],
    *,
    block_bp: int,
    include: Sequence[Mapping[str, Intervals]] = (),
    exclude: Sequence[Mapping[str, Intervals]] = (),
) -> list[Span]:
    """Blocks of ``block_bp`` over what the filters leave of each contig, in order; a stretch's last may be
    short."""
    spans = []
    for contig, bp in contigs.items():
        kept: Intervals = [(0, bp)]
        if include:
            kept = intersect(kept, merge(i for bed in include for i in bed.get(contig, ())))
        kept = subtract(kept, merge(i for bed in exclude for i in bed.get(contig, ())))
        for start, end in kept:
            spans += [
                Span(assembly, contig, at, min(at + block_bp, end)) for at in range(start, end, block_bp)
            ]
    return spans


def assign(
    spans: Sequence[Span], *, val: Names | float | Zones, test: Names | float | Zones, seed: int, gap: int
) -> dict[str, list[Span]]:
    """``spans`` by split. Held out are whole contigs, by names; a fraction of the blocks, drawn by sha256
    of seed and place; or what lies in zones (blocks are cut at their edges).

    No train base lies within ``gap`` of a held-out block of its contig: train blocks are cut there, or
    dropped.

    Raises:
        ValueError: a pattern that matches no contig, or something held out twice.
    """
    places = {span.place for span in spans}
    named = {split: _match(places, wanted, split) for split, wanted in (("val", val), ("test", test))}
    zones = {split: w if isinstance(w, dict) else {} for split, w in (("val", val), ("test", test))}
    _refuse_both(named, zones)
    val_share, test_share = (share if isinstance(share, float) else 0.0 for share in (val, test))
    parts: dict[str, list[Span]] = {split: [] for split in SPLITS}
    for span in spans:
        if whole := next((split for split in HELD_OUT if span.place in named[split]), ""):
            parts[whole].append(span)
            continue
        rest: Intervals = [(span.start, span.end)]
        for split in HELD_OUT:
            near = _around(zones[split].get(span.place, []), span)
            parts[split] += _pieces(span, intersect(rest, near))
            rest = subtract(rest, near)
        draw = _draw(seed, span) if val_share or test_share else 1.0
        drawn = "val" if draw < val_share else "test" if draw < val_share + test_share else "train"
        parts[drawn] += _pieces(span, rest)
    parts["train"] = cut_out(parts["train"], with_gap(parts["val"] + parts["test"], gap))
    return parts


def _refuse_both(named: Mapping[str, set[Place]], zones: Mapping[str, Zones]) -> None:
    """ValueError if something is in both val and test."""
    if both := sorted(named["val"] & named["test"]):
        raise ValueError(f"split: {some(map(':'.join, both))} in both val and test")
    for split, other in (("val", "test"), ("test", "val")):
        if both := sorted(place for place in named[split] & zones[other].keys() if zones[other][place]):
            raise ValueError(
                f"split: {some(map(':'.join, both))} in both val and test: held out whole by name,"
                f" and the BED of {other} has intervals there"
            )
    for place in sorted(zones["val"].keys() & zones["test"].keys()):
        if twice := intersect(zones["val"][place], zones["test"][place]):
            raise ValueError(f"split: {':'.join(place)}:{twice[0][0]}-{twice[0][1]} in both val and test")


def with_gap(spans: Iterable[Span], gap: int) -> Zones:
    """(assembly, contig) -> ``spans`` with ``gap`` bp on either side, merged."""
    return by_place(replace(span, start=max(0, span.start - gap), end=span.end + gap) for span in spans)


def by_place(spans: Iterable[Span]) -> Zones:
    """(assembly, contig) -> merged intervals of ``spans``."""
    zones: Zones = {}
    for span in spans:
        zones.setdefault(span.place, []).append((span.start, span.end))
    return {place: merge(intervals) for place, intervals in zones.items()}


def cut_out(spans: Iterable[Span], zones: Zones) -> list[Span]:
    """What ``zones`` leave of ``spans``, in their order; each span is cut by itself."""
    return [
        piece
        for span in spans
        for piece in _pieces(
            span, subtract([(span.start, span.end)], _around(zones.get(span.place, []), span))
        )
    ]


def count_covered(spans: Sequence[Span], runs: Mapping[Place, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """int64: how many bases of each span lie in ``runs`` (per place int64 [r, 2], sorted and disjoint)."""
    counts = np.zeros(len(spans), np.int64)
    indices: dict[Place, list[int]] = {}
    for i, span in enumerate(spans):
        if span.place in runs:
            indices.setdefault(span.place, []).append(i)
    for place, chosen in indices.items():
        edges = np.array([(spans[i].start, spans[i].end) for i in chosen])
        counts[chosen] = _covered_below(runs[place], edges[:, 1]) - _covered_below(runs[place], edges[:, 0])
    return counts


def _covered_below(runs: np.ndarray[Any, Any], at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int64 [m]: how many bases of ``runs`` [r, 2] lie before each position of ``at`` [m]."""
    starts, ends = runs.T
    total = np.concatenate([[0], np.cumsum(ends - starts)])
    before = np.searchsorted(starts, at, "right")  # runs that start at or before it; the last may go past it
    return total[before] - np.maximum(0, ends[np.maximum(0, before - 1)] - at) * (before > 0)


def group(spans: Iterable[Span], *, shard_bp: int) -> list[list[Span]]:
    """``spans`` in order, in shards of one assembly each; a shard is full with ``shard_bp`` or
    _MOST_BLOCKS."""
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
    """Those of ``zones`` that overlap ``span``."""
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
        hits = {(a, c) for a, c in places if pattern in (c, f"{a}:{c}")} or {
            (a, c) for a, c in places if fnmatchcase(c, pattern) or fnmatchcase(f"{a}:{c}", pattern)
        }
        if not hits:
            there = some(c for _, c in places) or "none that contigs, include and exclude leave"
            raise ValueError(f"split.{split}: no contig matches {pattern!r}; there are {there}")
        found |= hits
    return found


def some(names: Iterable[str]) -> str:
    """The first eight ``names`` in order and how many more there are, for a message."""
    ordered = sorted(set(names))
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")
