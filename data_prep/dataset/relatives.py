"""Haplotypes in a plan: the same places are held out in each as in its reference.

A place is given in the coordinates of the reference, and lifted by the exact map. Names of contigs mean the
contig in the reference and in each haplotype. A share of the blocks is drawn among those of the reference.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.config import Names
from data_prep.shards import SPLITS
from data_prep.sources.survey import Reference
from data_prep.split.contigs import having
from data_prep.split.intervals import (
    Intervals,
    Place,
    Span,
    Zones,
    assign,
    by_place,
    intersect,
    merge,
    subtract,
)

HeldOut = Names | float | Zones


@dataclass(frozen=True)
class Splitting:
    """What val and test hold out, of all assemblies; and as for ``assign``."""

    held_out: Mapping[str, HeldOut]
    seed: int
    gap: int

    def of(self, spans: Sequence[Span], held_out: Mapping[str, HeldOut]) -> dict[str, list[Span]]:
        return assign(spans, val=held_out["val"], test=held_out["test"], seed=self.seed, gap=self.gap)


def lifted(reference: Reference, zones: Mapping[str, Intervals]) -> dict[str, Intervals]:
    """``zones`` (contig -> intervals) of the reference of a haplotype, in the haplotype; of another reference
    as they are."""
    return {contig: reference.lift(contig, intervals) for contig, intervals in zones.items()}


def assigned(
    spans: Sequence[Span],
    splitting: Splitting,
    references: Mapping[str, Reference],
    of_base: Mapping[str, str],
    tiled: Callable[[str], Sequence[Span]],
) -> dict[str, list[Span]]:
    """``spans`` by split. ``of_base``: haplotype -> the name of its reference. ``tiled`` gives the blocks of
    a reference that is in the dataset by its haplotypes alone.

    Raises: as ``assign``.
    """
    if not of_base:
        return splitting.of(spans, splitting.held_out)
    plain = [span for span in spans if span.assembly not in of_base]
    others = [span for span in spans if span.assembly in of_base]
    there = {span.place for span in spans}
    parts = splitting.of(plain, _among(plain, splitting.held_out, there, strict=bool(plain)))
    held_out = dict(_among(others, splitting.held_out, there, strict=not plain))
    if any(isinstance(value, float) and value for value in held_out.values()):
        drawn = {span.assembly: parts for span in plain}
        for base in set(of_base.values()) - drawn.keys():
            blocks = tiled(base)
            drawn[base] = splitting.of(blocks, _among(blocks, splitting.held_out, there, strict=False))
        for split, other in (("val", "test"), ("test", "val")):
            if isinstance(held_out[split], float):
                zones = _drawn(split, drawn, references, of_base)
                held_out[split] = _not_in(held_out[other], zones)
    own = splitting.of(others, held_out)
    order = {name: number for number, name in enumerate(dict.fromkeys(span.assembly for span in spans))}
    return {
        split: sorted(parts[split] + own[split], key=lambda span: order[span.assembly]) for split in SPLITS
    }


def _drawn(
    split: str,
    drawn: Mapping[str, Mapping[str, Sequence[Span]]],
    references: Mapping[str, Reference],
    of_base: Mapping[str, str],
) -> Zones:
    """What is drawn for ``split`` in the reference of each haplotype, in the haplotype."""
    zones: Zones = {}
    for name, base in of_base.items():
        for (assembly, contig), intervals in by_place(drawn[base][split]).items():
            if assembly == base:
                zones[name, contig] = references[name].lift(contig, intervals)
    return zones


def _not_in(held_out: HeldOut, zones: Zones) -> Zones:
    """What ``held_out`` leaves of ``zones``. It may hold out what it does not in the reference: zones of a
    reference that is not in the dataset are not known, and some are of one haplotype alone."""
    if isinstance(held_out, float):
        return zones
    if isinstance(held_out, tuple):
        named = {place for pattern in held_out for place in having(pattern, zones)}
        return {place: intervals for place, intervals in zones.items() if place not in named}
    return {place: subtract(intervals, held_out.get(place, [])) for place, intervals in zones.items()}


def _among(
    spans: Iterable[Span], held_out: Mapping[str, HeldOut], there: set[Place], *, strict: bool
) -> dict[str, HeldOut]:
    """``held_out`` as far as it is of the assemblies of ``spans``; with ``strict`` also names that no place
    ``there`` has, which ``assign`` refuses."""
    own = {span.place for span in spans}

    def among(value: HeldOut) -> HeldOut:
        if isinstance(value, float):
            return value
        if isinstance(value, dict):
            return {place: intervals for place, intervals in value.items() if place in own}
        return tuple(p for p in value if having(p, own) or (strict and not having(p, there)))

    return {split: among(value) for split, value in held_out.items()}


def leak(
    parts: Mapping[str, Sequence[Span]], references: Mapping[str, Reference], of_base: Mapping[str, str]
) -> str:
    """A sentence where train has, in a haplotype or its reference, a place that another of them holds out; ""
    where it has not."""
    held: dict[Place, list[tuple[str, Intervals]]] = {}
    for place, intervals in by_place([*parts["val"], *parts["test"]]).items():
        if base := _base(place[0], of_base):
            held.setdefault((base, place[1]), []).append((place[0], _unlifted(references, place, intervals)))
    bp, first = 0, ""
    for place, intervals in by_place(parts["train"]).items():
        found = held.get((_base(place[0], of_base), place[1]), [])
        own = _unlifted(references, place, intervals) if found else []
        shared = intersect(own, merge(i for _, others in found for i in others))
        bp += sum(end - start for start, end in shared)
        if shared and not first:
            start, end = shared[0]
            by = next(name for name, others in found if intersect([shared[0]], others))
            base = _base(place[0], of_base)
            first = f"{place[0]}:{place[1]}, what is {start}-{end} of {base}; {by} holds it out"
    if not bp:
        return ""
    return (
        f"train has {bp:,} bp of places that another haplotype of the same reference, or the reference, "
        f"holds out (the first: {first}); names without an assembly, and BED files without names, hold out "
        "the same place in all"
    )


def _base(assembly: str, of_base: Mapping[str, str]) -> str:
    """The reference of the family that ``assembly`` is of; "" of one without haplotypes."""
    return of_base.get(assembly) or (assembly if assembly in of_base.values() else "")


def _unlifted(references: Mapping[str, Reference], place: Place, intervals: Intervals) -> Intervals:
    """``intervals`` of ``place`` in the coordinates of its reference."""
    reference = references[place[0]]
    if reference.base is None:
        return intervals
    edits = reference.edits(place[1])
    start, end = np.array(intervals, np.int64).reshape(-1, 2).T
    # A deletion at an end is not within.
    until = np.minimum(edits.unlift(end), edits.unlift(end - 1) + 1)
    pairs = zip(edits.unlift(start).tolist(), until.tolist(), strict=True)
    return merge((a, b) for a, b in pairs if a < b)
