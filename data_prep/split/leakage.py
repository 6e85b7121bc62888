"""What val and test share with train, and assemblies with each other: minimisers of every split, on workers.

The hashes of the held-out splits are the yardstick. They go to the workers in partitions of about
``max_hashes``, since they must fit in memory while the training data need not; each partition costs one more
scan of everything. A scan of train finds which of them stand there; a scan of the held-out splits, which
bases their k-mers cover. K-mers are compared whole, so nothing is counted that does not stand in both. What
is missed: at most 30 bases at each end of a shared stretch, thus all of one below 61. An edge of a block, of
either split, is such an end: each is read by itself.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cluster.tasks import jobs
from data_prep.alphabet import Codes, N
from data_prep.shards import SPLITS
from data_prep.split.intervals import Intervals, Span, merge, subtract
from data_prep.split.minimisers import ALL, WINDOW, Hashes, K, Sketch, cover, find, minimisers, unique

Read = Callable[[Any], Iterable[tuple[Span, Codes]]]
Run = Callable[..., list[Any]]  # as jobs.run
_Flags = np.ndarray[Any, np.dtype[np.uint8]]

_TRAIN, _VAL, _TEST = 1, 2, 4  # where a hash stands
_WITHIN = {"val": {"train": _TRAIN}, "test": {"train": _TRAIN, "val": _VAL}}  # the pairs of the report
MAX_HASHES = 32_000_000  # 256 MB
_BATCH = 1 << 21  # hashes looked up together: in order, those of 2 M cost a sixth of what they cost by 16,000
_SKETCHES = 4_000_000  # hashes of all sketches together
_RESULTS_BYTES = 512 << 20  # of one batch of tasks, at the driver


@dataclass(frozen=True)
class Pair:
    """``shared_bases`` of the ``bases`` (A, C, G and T) of split ``of`` stand in split ``within``, too."""

    of: str
    within: str
    bases: int
    shared_bases: int

    @property
    def share(self) -> float:
        return self.shared_bases / self.bases if self.bases else 0.0


@dataclass(frozen=True)
class Leakage:
    """The report. ``stretches``: what of val and of test stands in train, merged, by assembly, contig and
    start.

    ``containment[i][j]`` is the share of the minimisers of ``assemblies[i]`` that ``assemblies[j]`` has, too,
    counted among the ``sampled`` share of all hashes: exact where that is 1.
    """

    k: int
    window: int
    pairs: tuple[Pair, ...]
    stretches: Mapping[str, tuple[Span, ...]]
    assemblies: tuple[str, ...]
    containment: tuple[tuple[float, ...], ...]
    sampled: float

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
        }

    def to_bytes(self) -> bytes:
        """Canonical JSON (sorted keys) of ``to_dict``: equal reports are equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class _Scan:
    """What a task sends back. Arrays come as bytes: views of Ray's store would hold their place there."""

    bp: int
    data: tuple[bytes, ...] = ()
    counts: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    sketch: tuple[int, dict[str, bytes]] = (ALL, {})  # all hashes below, by assembly


def leakage(
    parts: Mapping[str, Sequence[Any]],
    read: Read,
    *,
    run: Run = jobs.run,
    workers: int | None = None,
    on_result: Callable[[int, int], None] | None = None,
    max_hashes: int = MAX_HASHES,
) -> Leakage:
    """The report on the splits ``parts``: split -> chunks, of which the module-level ``read`` gives spans and
    codes.

    A chunk is a task: with at most 256 Mbp a worker stays below 600 MB, beside the 9 ``max_hashes`` bytes
    that those of a machine share; the driver takes about 24 ``max_hashes`` bytes. The report depends neither
    on ``workers``, nor on ``max_hashes``, nor on the order of the chunks. ``on_result(ended, bp)``: how many
    tasks have ended, and what the last one scanned. Call it inside ``ray_session.session``, since each of its
    four or more passes is a ``run``.
    """
    assert set(parts) <= set(SPLITS), f"splits {sorted(parts)}, known are {SPLITS}"
    assert max_hashes > 0, f"max_hashes is {max_hashes}"
    train, ended = list(parts.get("train", ())), 0
    held_out = [(split, chunk) for split in _WITHIN for chunk in parts.get(split, ())]
    room = -(
        -4 * _SKETCHES // max(1, len(train) + len(held_out))
    )  # four times its part: chunks are not all alike
    sketch = Sketch(_SKETCHES)

    def sweep(task: Callable[..., _Scan], tasks: Sequence[Any], *, each: int, **more: Any) -> Iterator[_Scan]:
        """Results in order, of ``each`` bytes beside sketches; in batches, since the runner keeps all of
        them."""

        def count(_: int, scan: _Scan) -> None:
            nonlocal ended
            ended += 1
            if on_result:
                on_result(ended, scan.bp)

        step = max(1, _RESULTS_BYTES // max(1, each))
        for i in range(0, len(tasks), step):
            yield from run(task, tasks[i : i + step], workers=workers, on_result=count, **more)

    survey = list(sweep(_survey, [(read, chunk, room) for _, chunk in held_out], each=1))
    for scan in survey:
        sketch.merge(scan.sketch)
    partitions = _partitions(sum(scan.bp for scan in survey), max_hashes)
    covered = [_Scan(0)] * len(held_out)
    for part in range(partitions):
        gathered = sweep(_gather, [(read, chunk, part, partitions) for _, chunk in held_out], each=1)
        hashes, flags = _yardstick([split for split, _ in held_out], gathered)
        tasks = [(read, chunk, part, partitions, 0 if part else room) for chunk in train]
        for scan in sweep(_occur, tasks, each=len(hashes) // 8, shared=(hashes,)):
            flags |= np.unpackbits(np.frombuffer(scan.data[0], np.uint8), count=len(hashes)) * np.uint8(
                _TRAIN
            )
            sketch.merge(scan.sketch)
        shared = (flags & _TRAIN > 0) | (flags & (_VAL | _TEST) == _VAL | _TEST)
        covered = list(
            sweep(
                _cover,
                [
                    (read, chunk, tuple(_WITHIN[split].values()), before.data, part == partitions - 1)
                    for (split, chunk), before in zip(held_out, covered, strict=True)
                ],
                each=1,
                shared=(hashes[shared], flags[shared]),
            )
        )
    return _report([split for split, _ in held_out], survey, covered, sketch)


def passes_bp(parts: Mapping[str, Sequence[Span]], *, max_hashes: int = MAX_HASHES) -> int:
    """What ``leakage`` scans of ``parts`` in all its passes, in bp: the sum of what ``on_result`` hears."""
    bp = {split: sum(span.bp for span in parts.get(split, ())) for split in SPLITS}
    held_out = sum(bp[split] for split in _WITHIN)
    return held_out + _partitions(held_out, max_hashes) * (2 * held_out + bp["train"])


def without(spans: Iterable[Span], stretches: Iterable[Span], *, min_bp: int) -> list[Span]:
    """What ``stretches`` leave of ``spans``, in their order; pieces of less than ``min_bp`` go, too.

    Each span is cut by itself, so that pieces of two blocks stay two. Cut by the stretches of a report,
    nothing is left for another report to find in train: a piece has no window, and so no minimiser, that its
    span had not.
    """
    cuts, left = _by_place(stretches), list[Span]()
    for span in spans:
        there = cuts.get((span.assembly, span.contig), [])
        first = bisect_right(there, span.start, key=lambda cut: cut[1])
        last = bisect_left(there, span.end, key=lambda cut: cut[0])
        rest = subtract([(span.start, span.end)], there[first:last])
        left += [replace(span, start=start, end=end) for start, end in rest if end - start >= min_bp]
    return left


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
        lines.append(f"share of an assembly's minimisers that another has, too{exact}:")
        for name, row in zip(report.assemblies, report.containment, strict=True):
            near = sorted(
                (
                    (share, other)
                    for other, share in zip(report.assemblies, row, strict=True)
                    if other != name
                ),
                key=lambda pair: (-pair[0], pair[1]),
            )[:3]
            lines.append(
                f"  {name:{width}}  " + ", ".join(f"{share:.2%} in {other}" for share, other in near)
            )
    return "\n".join(lines) or "nothing is held out, and there is one assembly: nothing to compare"


def _survey(task: tuple[Read, Any, int]) -> _Scan:
    """The bases, counted, and the sketch of a held-out chunk."""
    read, chunk, room = task
    sketch, bp, bases = Sketch(room), 0, 0
    for span, codes in read(chunk):
        sketch.add(span.assembly, minimisers(codes)[0])
        bp, bases = bp + len(codes), bases + int(np.count_nonzero(codes < N))
    return _Scan(bp, counts=(bases,), sketch=sketch.result())


def _gather(task: tuple[Read, Any, int, int]) -> _Scan:
    """The hashes of a held-out chunk that belong to the partition."""
    read, chunk, part, partitions = task
    bp, hashes = 0, [np.zeros(0, np.uint64)]
    for _, codes in read(chunk):
        bp += len(codes)
        hashes.append(_share(minimisers(codes)[0], part, partitions))
    return _Scan(bp, (unique(hashes).tobytes(),))


def _occur(task: tuple[Read, Any, int, int, int], shared: tuple[Hashes]) -> _Scan:
    """One bit for each hash of the yardstick: whether this training chunk has it. A sketch, if there is
    room."""
    (read, chunk, part, partitions, room), (yardstick,) = task, shared
    sketch, bp, there, waiting = Sketch(room), 0, np.zeros(len(yardstick), np.bool_), list[Hashes]()
    for span, codes in read(chunk):
        hashes, _ = minimisers(codes)
        if room:
            sketch.add(span.assembly, hashes)
        waiting.append(_share(hashes, part, partitions))
        bp += len(codes)
        if sum(map(len, waiting)) >= _BATCH:
            _tick(there, yardstick, waiting)
    _tick(there, yardstick, waiting)
    return _Scan(bp, (np.packbits(there).tobytes(),), sketch=sketch.result())


def _tick(there: np.ndarray[Any, np.dtype[np.bool_]], yardstick: Hashes, waiting: list[Hashes]) -> None:
    """Sets ``there`` [m] for each hash of ``yardstick`` [m] among those that wait, and empties the list."""
    at, hit = find(yardstick, unique(waiting))
    there[at[hit]] = True
    waiting.clear()


def _cover(
    task: tuple[Read, Any, tuple[int, ...], tuple[bytes, ...], bool], shared: tuple[Hashes, _Flags]
) -> _Scan:
    """A held-out chunk's minimisers that stand in the other splits, one bit each and split, with those known
    before.

    The last partition's task knows all of them: it counts the bases covered for each split, and lists the
    first's.
    """
    (read, chunk, wanted, before, last), (yardstick, flags) = task, shared
    known = [np.unpackbits(np.frombuffer(bits, np.uint8)) for bits in before]
    marks: list[list[_Flags]] = [[np.zeros(0, np.uint8)] for _ in wanted]
    bp, done, spans, counts = 0, 0, list[Span](), [0] * len(wanted)
    for span, codes in read(chunk):
        hashes, positions = minimisers(codes)
        order = np.argsort(hashes)  # in order they are found faster
        at, hit = find(yardstick, hashes[order])
        place = np.zeros(len(hashes), np.uint8)
        place[order[hit]] = flags[at[hit]]
        for i, flag in enumerate(wanted):
            mark = (place & flag > 0).view(np.uint8)
            if known:
                mark |= known[i][done : done + len(hashes)]
            if last:
                covered = cover(positions[mark > 0])
                counts[i] += sum(end - start for start, end in covered)
                if not i:
                    spans += [
                        Span(span.assembly, span.contig, span.start + a, span.start + b) for a, b in covered
                    ]
            marks[i].append(mark)
        bp, done = bp + len(codes), done + len(hashes)
    bits = () if last else tuple(np.packbits(np.concatenate(mark)).tobytes() for mark in marks)
    return _Scan(bp, bits, tuple(counts), tuple(spans))


def _yardstick(splits: Sequence[str], gathered: Iterable[_Scan]) -> tuple[Hashes, _Flags]:
    """Each hash that a held-out chunk has, once, sorted, and the flags of its splits."""
    found: dict[str, list[Hashes]] = {split: [] for split in _WITHIN}
    for split, scan in zip(splits, gathered, strict=True):
        found[split].append(np.frombuffer(scan.data[0], np.uint64))
    val, test = unique(found["val"]), unique(found["test"])
    hashes = unique([val, test])
    flags = np.zeros(len(hashes), np.uint8)
    for flag, some in ((_VAL, val), (_TEST, test)):
        flags[np.searchsorted(hashes, some)] |= np.uint8(flag)
    return hashes, flags


def _report(
    splits: Sequence[str], survey: Sequence[_Scan], covered: Sequence[_Scan], sketch: Sketch
) -> Leakage:
    def total(scans: Iterable[_Scan], split: str, index: int) -> int:
        return sum(scan.counts[index] for of, scan in zip(splits, scans, strict=True) if of == split)

    pairs = tuple(
        Pair(split, within, total(survey, split, 0), total(covered, split, i))
        for split, others in _WITHIN.items()
        for i, within in enumerate(others)
    )
    stretches = {}
    for split in _WITHIN:
        places = _by_place(
            span for of, scan in zip(splits, covered, strict=True) if of == split for span in scan.spans
        )
        stretches[split] = tuple(Span(*place, *edges) for place in sorted(places) for edges in places[place])
    below, sketches = sketch.result()
    names = tuple(sorted(sketches))
    sets = [np.frombuffer(sketches[name], np.uint64) for name in names]
    containment = tuple(tuple(int(find(of, own)[1].sum()) / max(1, len(own)) for of in sets) for own in sets)
    return Leakage(K, WINDOW, pairs, stretches, names, containment, below / ALL)


def _partitions(bp: int, max_hashes: int) -> int:
    return (
        -(-bp * 2 // ((WINDOW + 1) * max_hashes)) or 1
    )  # 2 / (w + 1) of the positions are minimisers, if none repeat


def _share(hashes: Hashes, part: int, partitions: int) -> Hashes:
    return hashes[hashes % np.uint64(partitions) == part] if partitions > 1 else hashes


def _by_place(spans: Iterable[Span]) -> dict[tuple[str, str], Intervals]:
    """(assembly, contig) -> merged intervals of ``spans``."""
    found: dict[tuple[str, str], Intervals] = {}
    for span in spans:
        found.setdefault((span.assembly, span.contig), []).append((span.start, span.end))
    return {place: merge(intervals) for place, intervals in found.items()}
