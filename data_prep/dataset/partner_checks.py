"""The partner table of a dataset: its faults, and what it holds in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cluster.storage import store
from data_prep.partners import IDENTITY_UNIT, PARTNERS, Numbers, PartnerTable, file_of, load
from data_prep.shards import FormatError, Manifest
from data_prep.split.chains import Bits
from data_prep.split.intervals import Place, Span, by_place, intersect, merge

_SHOWN = 5  # assemblies of a line
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class PairStats:
    """Of assembly ``of``: ``bp`` of its train split have a partner in ``within``, and how alike the two are:
    quantiles over these bp (0.05, 0.25, 0.5, 0.75, 0.95) of the identity of their chains."""

    of: str
    within: str
    bp: int
    share: float
    identity: tuple[float, ...]


@dataclass(frozen=True)
class PartnerStats:
    """``any_share``: by assembly, the share of its train split that has a partner in any other."""

    chains: int
    anchors: int
    any_share: dict[str, float]
    pairs: tuple[PairStats, ...]


def read_table(uri: str, manifest: Manifest) -> PartnerTable | None:
    """The partner table of the dataset at ``uri``; None if it has none. FormatError or StoreError if it
    cannot be used."""
    if manifest.partners is None:
        return None
    return load(manifest, store.read_bytes(store.join(uri, file_of(manifest.partners))))


def partner_faults(uri: str, manifest: Manifest, there: set[str], *, earlier: set[str]) -> list[str]:
    """The faults of the partner table, a sentence each. ``earlier``: the files of earlier manifests."""
    if manifest.partners is None:
        stray = f"{PARTNERS} is not in the manifest; another build left it"
        return [stray] if PARTNERS in there - earlier else []
    name = file_of(manifest.partners)
    if name not in there:
        return [f"{name} is missing"]
    try:
        table = read_table(uri, manifest)
    except (FormatError, store.StoreError) as fault:
        return [str(fault)]
    assert table, "the manifest has one"
    faults = []
    train = by_place(Span.of(block) for _, block in manifest.blocks("train"))
    for number_C, at_N in ((table.place_C, table.at_N), (table.partner_C, table.partner_at_N)):
        place_N = number_C[table.chain_of]
        for number in np.unique(number_C).tolist():
            place = table.places[number] if 0 <= number < len(table.places) else ("?", str(number))
            positions = at_N[place_N == number]
            if outside := int((~_inside(positions, train.get(place, []))).sum()):
                faults.append(
                    f"{name}: {outside} anchors in {place[0]}:{place[1]} are not in the train split"
                )
    return faults


def _inside(positions: Numbers, intervals: list[tuple[int, int]]) -> Bits:
    edges = np.array([edge for interval in intervals for edge in interval], np.int64)
    return np.searchsorted(edges, positions, "right") % 2 == 1


def partner_stats(table: PartnerTable, manifest: Manifest) -> PartnerStats:
    """The numbers of ``table``, which is of the dataset of ``manifest``."""
    train = by_place(Span.of(block) for _, block in manifest.blocks("train"))
    assemblies = list(dict.fromkeys(assembly for assembly, _ in table.places))
    bp = {
        name: sum(end - start for place, parts in train.items() if place[0] == name for start, end in parts)
        for name in assemblies
    }
    spans = _spans(table)
    pairs = []
    for of in assemblies:
        for within in assemblies:
            own = [span for span in spans if (span.place[0], span.within) == (of, within)]
            if own:
                covered = _covered(own, train)
                weights = np.array([span.end - span.start for span in own], np.int64)
                identity = _quantiles(np.array([span.identity for span in own], np.int64), weights)
                pairs.append(PairStats(of, within, covered, covered / bp[of], identity))
    any_share = {
        name: _covered([span for span in spans if span.place[0] == name], train) / bp[name]
        for name in assemblies
    }
    return PartnerStats(len(table.place_C), len(table.at_N), any_share, tuple(pairs))


@dataclass(frozen=True)
class _Side:
    """One side of a chain: [start, end) of ``place``, and the assembly of its partner."""

    place: Place
    within: str
    start: int
    end: int
    identity: int


def _spans(table: PartnerTable) -> list[_Side]:
    first_C, last_C = table.firsts, table.firsts + table.anchors_C - 1
    sides = []
    for here_C, there_C, at_N in (
        (table.place_C, table.partner_C, table.at_N),
        (table.partner_C, table.place_C, table.partner_at_N),
    ):
        ends_C2 = np.sort(np.stack([at_N[first_C], at_N[last_C]], 1), axis=1)
        rows = zip(
            here_C.tolist(), there_C.tolist(), ends_C2.tolist(), table.identity_C.tolist(), strict=True
        )
        sides += [
            _Side(table.places[here], table.places[there][0], start, last + 1, identity)
            for here, there, (start, last), identity in rows
        ]
    return sides


def _covered(sides: list[_Side], train: Mapping[Place, list[tuple[int, int]]]) -> int:
    """bp of train that ``sides`` cover, each counted once."""
    parts: dict[Place, list[tuple[int, int]]] = {}
    for side in sides:
        parts.setdefault(side.place, []).append((side.start, side.end))
    return sum(
        end - start
        for place, intervals in parts.items()
        for start, end in intersect(merge(intervals), train.get(place, []))
    )


def _quantiles(values: Numbers, weights: Numbers) -> tuple[float, ...]:
    order = np.argsort(values, kind="stable")
    until = np.cumsum(weights[order])
    at = np.searchsorted(until, [share * until[-1] for share in _QUANTILES])
    return tuple(float(value) / IDENTITY_UNIT for value in values[order][at])


def partner_table_text(numbers: PartnerStats) -> str:
    """``numbers`` as text for a terminal: a line for each assembly, those it has most partners in first."""
    width = max(map(len, numbers.any_share), default=0)
    lines = [
        f"partners: {numbers.chains:,} chains of {numbers.anchors:,} anchors; bp of train with a partner"
    ]
    for name, share in numbers.any_share.items():
        own = sorted((-pair.share, pair.within, pair) for pair in numbers.pairs if pair.of == name)
        named = [f"{within} {pair.share:.1%} ({pair.identity[2]:.0%} alike)" for _, within, pair in own]
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        lines.append(f"  {name:{width}} {share:>6.1%}: {', '.join(named[:_SHOWN]) or 'none'}{more}")
    alike = [f"{low:.0%} to {high:.0%}: {bp:,}" for low, high, bp in _histogram(numbers)]
    return "\n".join([*lines, f"  bp by identity of the pair (median): {', '.join(alike)}"])


def _histogram(numbers: PartnerStats) -> list[tuple[float, float, int]]:
    edges = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
    return [
        (low, high, sum(pair.bp for pair in numbers.pairs if low <= pair.identity[2] < high + (high == 1)))
        for low, high in pairwise(edges)
    ]
