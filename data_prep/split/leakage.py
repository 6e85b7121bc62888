"""What val and test share with train, and assemblies with each other, by minimisers.

The hashes of the held-out splits go to the workers in partitions of about ``max_hashes``, since they must fit
in memory while the training data need not; each partition costs one more scan of everything. A scan of train
finds which of them occur there; a scan of the held-out splits, which bases their k-mers cover. K-mers are
compared whole, so everything that is counted stands in both. What is missed: at most 30 bases at each end of
a shared stretch, so all of a stretch below 61. An edge of a block, in either split, is such an end, since
each block is read by itself.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.tasks import jobs
from data_prep.shards import SPLITS
from data_prep.split import leakage_tasks
from data_prep.split.intervals import Span, by_place, cut_out
from data_prep.split.leakage_tasks import HELD_OUT_OF, TEST, TRAIN, VAL, Flags
from data_prep.split.minimisers import ALL, WINDOW, Hashes, K, Sketch, find, unique
from data_prep.split.passes import Gather, Partition, Passes, Read, Run, Scan

_WITHIN = {"val": {"train": TRAIN}, "test": {"train": TRAIN, "val": VAL}}  # the pairs of the report
MAX_HASHES = 32_000_000  # 256 MB
_WORST = 5  # pairs of species, and of clades, that the table shows
_SKETCHES = 4_000_000  # hashes of all sketches together


@dataclass(frozen=True)
class Pair:
    """``shared_bases`` of the ``bases`` (A, C, G and T) of split ``of`` also stand in split ``within``."""

    of: str
    within: str
    bases: int
    shared_bases: int

    @property
    def share(self) -> float:
        return self.shared_bases / self.bases if self.bases else 0.0


@dataclass(frozen=True)
class Between:
    """``containment[i][j]``: the share of the minimisers of what is held out of ``held_out[i]`` that the
    train part of ``train[j]`` has, too. Both are names of assemblies, or of clades.
    """

    held_out: tuple[str, ...]
    train: tuple[str, ...]
    containment: tuple[tuple[float, ...], ...]

    def worst(self, count: int) -> list[tuple[float, str, str]]:
        """The ``count`` largest shares: (share, held out of, in train of)."""
        shares = [
            (share, of, within)
            for of, row in zip(self.held_out, self.containment, strict=True)
            for within, share in zip(self.train, row, strict=True)
        ]
        return sorted(shares, key=lambda item: (-item[0], *item[1:]))[:count]


@dataclass(frozen=True)
class Leakage:
    """The report. ``stretches``: what of val and of test stands in train, merged, by assembly, contig and
    start.

    ``containment[i][j]``: the share of the minimisers of ``assemblies[i]`` that ``assemblies[j]`` also has,
    counted among the ``sampled`` share of all hashes: exact where that is 1. So are ``species``, between
    assemblies, and ``clades``, where some are known.
    """

    k: int
    window: int
    pairs: tuple[Pair, ...]
    stretches: Mapping[str, tuple[Span, ...]]
    assemblies: tuple[str, ...]
    containment: tuple[tuple[float, ...], ...]
    sampled: float
    species: Between
    clades: Between | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON. Of the stretches their number and the longest: ``bed_bytes`` writes them
        out."""
        return {
            "k": self.k,
            "window": self.window,
            "pairs": [asdict(pair) | {"share": pair.share} for pair in self.pairs],
            "stretches": {
                split: {"number": len(spans), "longest_bp": max((span.bp for span in spans), default=0)}
                for split, spans in self.stretches.items()
            },
            "assemblies": list(self.assemblies),
            "containment": [list(row) for row in self.containment],
            "sampled": self.sampled,
            "species": asdict(self.species),
        } | ({"clades": asdict(self.clades)} if self.clades else {})

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys) of ``to_dict``: equal reports are equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def leakage(
    parts: Mapping[str, Sequence[Any]],
    read: Read,
    *,
    run: Run = jobs.run,
    workers: int | None = None,
    on_scanned: Callable[[int], object] = lambda bp: None,
    max_hashes: int = MAX_HASHES,
    clades: Mapping[str, str] | None = None,
) -> Leakage:
    """The report on the splits ``parts``: split -> chunks, of which the module-level ``read`` gives spans and
    codes. ``clades``: of the assemblies that have one.

    A chunk is a task: with at most 256 Mbp a worker stays below 600 MB, beside the 9 ``max_hashes`` bytes
    that the workers of a machine share; the driver takes about 24 ``max_hashes`` bytes. The report does not
    depend on ``workers``, ``max_hashes``, or the order of the chunks. ``on_scanned(bp)`` is called as each
    task ends. Call it inside ``ray_session.session``, since each of its four or more passes is a ``run``.
    """
    assert set(parts) <= set(SPLITS), f"splits {sorted(parts)}, known are {SPLITS}"
    assert max_hashes > 0, f"max_hashes is {max_hashes}"
    passes = Passes(run, workers, on_scanned)
    train = list(parts.get("train", ()))
    held_out = [(split, chunk) for split in _WITHIN for chunk in parts.get(split, ())]
    splits = [split for split, _ in held_out]
    # Four times a chunk's part: chunks are not all alike.
    room = -(-4 * _SKETCHES // max(1, len(train) + len(held_out)))
    sketch = Sketch(_SKETCHES)
    survey = list(passes.scan([leakage_tasks.Survey(read, chunk, room) for _, chunk in held_out]))
    for scan in survey:
        sketch.merge(scan.sketch)
    covered = [Scan(0)] * len(held_out)
    count = _partitions(sum(scan.bp for scan in survey), max_hashes)
    for partition in (Partition(number, count) for number in range(count)):
        gather = [Gather(read, chunk, partition) for _, chunk in held_out]
        hashes, flags = _with_flags(splits, passes.scan(gather))
        occur = [
            leakage_tasks.Occur(read, chunk, partition, 0 if partition.number else room) for chunk in train
        ]
        for scan in passes.scan(occur, shared=(hashes,), result_bytes=len(hashes) // 8):
            bits = np.unpackbits(np.frombuffer(scan.data[0], np.uint8), count=len(hashes))
            flags |= bits * np.uint8(TRAIN)
            sketch.merge(scan.sketch)
        several = (flags & TRAIN > 0) | (flags & (VAL | TEST) == VAL | TEST)
        last = partition.number == count - 1
        cover = [
            leakage_tasks.Cover(read, chunk, tuple(_WITHIN[split].values()), before.data, last)
            for (split, chunk), before in zip(held_out, covered, strict=True)
        ]
        covered = list(passes.scan(cover, shared=(hashes[several], flags[several])))
    return _report(splits, survey, covered, sketch, clades or {})


def passes_bp(parts: Mapping[str, Sequence[Span]], *, max_hashes: int = MAX_HASHES) -> int:
    """What ``leakage`` scans of ``parts`` in all its passes, in bp: the sum of what ``on_scanned`` gets."""
    bp = {split: sum(span.bp for span in parts.get(split, ())) for split in SPLITS}
    held_out = sum(bp[split] for split in _WITHIN)
    return held_out + _partitions(held_out, max_hashes) * (2 * held_out + bp["train"])


def without(spans: Iterable[Span], stretches: Iterable[Span], *, min_bp: int) -> list[Span]:
    """What ``stretches`` leave of ``spans``, in their order, without pieces of less than ``min_bp``.

    Each span is cut by itself, so that pieces of two blocks stay two. After the stretches of a report are cut
    out, another report finds nothing in train: a piece has no window, and so no minimiser, that its span did
    not have.
    """
    return [piece for piece in cut_out(spans, by_place(stretches)) if piece.bp >= min_bp]


def table(report: Leakage) -> str:
    """``report`` as text for a terminal."""
    lines = [
        f"{pair.of}: {pair.shared_bases:,} of {pair.bases:,} bp ({pair.share:.2%}) also stand in "
        f"{pair.within}"
        for pair in report.pairs
        if pair.bases
    ]
    if len(report.assemblies) > 1:
        width = max(len(name) for name in report.assemblies)
        exact = "" if report.sampled == 1 else f", estimated on {report.sampled:.2g} of them"
        lines.append(f"share of an assembly's minimisers that another also has{exact}:")
        for name, row in zip(report.assemblies, report.containment, strict=True):
            shares = zip(report.assemblies, row, strict=True)
            near = sorted((-share, other) for other, share in shares if other != name)[:3]
            lines.append(
                f"  {name:{width}}  " + ", ".join(f"{-share:.2%} in {other}" for share, other in near)
            )
        lines += _worst(report.species, "an assembly")
    if report.clades:
        lines += _worst(report.clades, "a clade")
    return "\n".join(lines) or "nothing is held out, and there is one assembly: nothing to compare"


def _worst(between: Between, what: str) -> list[str]:
    shown = [item for item in between.worst(_WORST) if item[0]]
    if not shown:
        return []
    head = f"share of the minimisers of {what}'s held-out part that the train part of one has, largest first:"
    return [head, *(f"  {share:.2%} of {of} in {within}" for share, of, within in shown)]


def _with_flags(splits: Sequence[str], gathered: Iterable[Scan]) -> tuple[Hashes, Flags]:
    """Each hash of the held-out chunks once, sorted, and the flags of the held-out splits that have it."""
    found: dict[str, list[Hashes]] = {split: [] for split in _WITHIN}
    for split, scan in zip(splits, gathered, strict=True):
        found[split].append(np.frombuffer(scan.data[0], np.uint64))
    val, test = unique(found["val"]), unique(found["test"])
    hashes = unique([val, test])
    flags = np.zeros(len(hashes), np.uint8)
    for flag, own in ((VAL, val), (TEST, test)):
        flags[np.searchsorted(hashes, own)] |= np.uint8(flag)
    return hashes, flags


def _report(
    splits: Sequence[str],
    survey: Sequence[Scan],
    covered: Sequence[Scan],
    sketch: Sketch,
    clades: Mapping[str, str],
) -> Leakage:
    def total(scans: Iterable[Scan], split: str, index: int) -> int:
        return sum(scan.counts[index] for of, scan in zip(splits, scans, strict=True) if of == split)

    pairs = tuple(
        Pair(split, within, total(survey, split, 0), total(covered, split, i))
        for split, others in _WITHIN.items()
        for i, within in enumerate(others)
    )
    stretches = {}
    for split in _WITHIN:
        places = by_place(
            span for of, scan in zip(splits, covered, strict=True) if of == split for span in scan.spans
        )
        stretches[split] = tuple(Span(*place, *edges) for place in sorted(places) for edges in places[place])
    below, sketches = sketch.result()
    held_out, train = dict[str, list[Hashes]](), dict[str, list[Hashes]]()
    for name, data in sketches.items():
        into = held_out if name.startswith(HELD_OUT_OF) else train
        into[name.removeprefix(HELD_OUT_OF)] = [np.frombuffer(data, np.uint64)]
    whole = {name: held_out.get(name, []) + train.get(name, []) for name in held_out | train}
    every = _between(whole, whole)
    return Leakage(
        K,
        WINDOW,
        pairs,
        stretches,
        every.held_out,
        every.containment,
        below / ALL,
        _between(held_out, train),
        _between(_by_clade(held_out, clades), _by_clade(train, clades)) if clades else None,
    )


def _between(of: Mapping[str, list[Hashes]], within: Mapping[str, list[Hashes]]) -> Between:
    """The containment of the sets ``of`` (by name, in parts) in those of ``within``."""
    own, others = ({name: unique(parts) for name, parts in sorted(sets.items())} for sets in (of, within))
    return Between(
        tuple(own),
        tuple(others),
        tuple(
            tuple(int(find(other, hashes)[1].sum()) / max(1, len(hashes)) for other in others.values())
            for hashes in own.values()
        ),
    )


def _by_clade(sets: Mapping[str, list[Hashes]], clades: Mapping[str, str]) -> dict[str, list[Hashes]]:
    """The parts of ``sets`` by the clade of their assembly; without those that have none."""
    found: dict[str, list[Hashes]] = {}
    for name, parts in sets.items():
        if name in clades:
            found.setdefault(clades[name], []).extend(parts)
    return found


def _partitions(bp: int, max_hashes: int) -> int:
    # 2 / (w + 1) of the positions are minimisers, if none repeat.
    return -(-bp * 2 // ((WINDOW + 1) * max_hashes)) or 1
