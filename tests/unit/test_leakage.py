"""data_prep.split.leakage: planted duplicates, partitions, orders, assemblies, dropping, real genomes."""

import gzip
import itertools
import json
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.tasks import jobs
from data_prep.alphabet import Codes, N, decode, encode, reverse_complement
from data_prep.split import leakage as module
from data_prep.split import leakage_tasks, passes
from data_prep.split.intervals import Span
from data_prep.split.leakage import Leakage, leakage, passes_bp, table, without
from data_prep.split.minimisers import WINDOW, K

Chunk = tuple[tuple[Span, Codes], ...]
EDGE = WINDOW - 1  # bases that may be missed at each end of a shared stretch


def read(chunk: Chunk) -> Iterator[tuple[Span, Codes]]:
    return iter(chunk)


def run(
    function: Callable[..., Any],
    tasks: Sequence[Any],
    *,
    workers: int | None = None,
    on_result: Callable[[int, Any], None] | None = None,
    shared: Any = None,
) -> list[Any]:
    """As jobs.run, here: all goes through pickle, shared arrays are read-only, tasks run in an order of their
    own."""
    for array in shared or ():
        array.setflags(write=False)
    results: dict[int, Any] = {}
    order = list(range(len(tasks)))
    random.Random(workers).shuffle(order)
    for index in order:
        handed = pickle.loads(pickle.dumps((function, tasks[index])))
        results[index] = pickle.loads(
            pickle.dumps(handed[0](handed[1], *([] if shared is None else [shared])))
        )
        if on_result:
            on_result(index, results[index])
    return [results[index] for index in range(len(tasks))]


def some(seed: int, bp: int) -> Codes:
    return np.random.default_rng(seed).integers(0, 4, bp, dtype=np.uint8)


def chunk(codes: Codes, *, contig: str = "c", assembly: str = "s", block: int = 1 << 20) -> Chunk:
    return tuple(
        (Span(assembly, contig, at, min(at + block, len(codes))), codes[at : at + block])
        for at in range(0, len(codes), block)
    )


def planted(host: Codes, guest: Codes, at: int) -> Codes:
    return np.concatenate([host[:at], guest, host[at + len(guest) :]])


def truth(of: Iterable[Chunk], within: Iterable[Chunk]) -> set[tuple[str, str, int]]:
    """Places of ``of`` that a 31-mer covers which stands in ``within`` on either strand: all that can be
    shared."""
    there = {
        letters[i : i + K]
        for some_chunk in within
        for _, codes in some_chunk
        for letters in (decode(codes), decode(reverse_complement(codes)))
        for i in range(len(letters) - K + 1)
    }
    return {
        (span.assembly, span.contig, span.start + i + j)
        for some_chunk in of
        for span, codes in some_chunk
        for letters in [decode(codes)]
        for i in range(len(codes) - K + 1)
        if letters[i : i + K] in there and b"N" not in letters[i : i + K]
        for j in range(K)
    }


def places(stretches: Iterable[Span]) -> list[tuple[str, str, int]]:
    return [(s.assembly, s.contig, i) for s in stretches for i in range(s.start, s.end)]


def shared_bases(report: Leakage) -> dict[tuple[str, str], int]:
    return {(pair.of, pair.within): pair.shared_bases for pair in report.pairs}


def shared(
    guest_in_train: Codes, guest_in_val: Codes, *, blocks: tuple[int, int] = (1 << 20, 1 << 20)
) -> int:
    """Bases found shared, all of them truly so, and the report's figures consistent."""
    train = [chunk(planted(some(1, 6000), guest_in_train, 2500), block=blocks[0])]
    val = [chunk(planted(some(2, 6000), guest_in_val, 3100), contig="v", block=blocks[1])]
    report = leakage({"train": train, "val": val}, read, run=run)
    found = places(report.stretches["val"])
    assert len(found) == len(set(found)) == shared_bases(report)["val", "train"]
    assert set(found) <= truth(val, train)
    assert report.pairs[0].bases == 6000 - int((guest_in_val == N).sum())
    return len(found)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("bp", [61, 62, 100, 1000])
def test_a_planted_stretch_is_found_but_for_its_edges(bp: int, turn: bool) -> None:
    for seed in range(5):
        guest = some(seed + 10, bp)
        found = shared(guest, reverse_complement(guest) if turn else guest)
        assert max(K, bp - 2 * EDGE) <= found <= bp + 20  # a letter or two beside it may be equal by chance


def test_nothing_below_a_k_mer_and_nothing_by_chance() -> None:
    assert shared(some(10, 30)[:25], some(10, 30)[:25]) == 0
    assert all(shared(guest, guest) <= 70 for guest in (some(seed, 60) for seed in range(10, 15)))
    parts = {
        "train": [chunk(some(1, 300_000))],
        "val": [chunk(some(2, 300_000), contig="v")],
        "test": [chunk(some(3, 300_000), contig="t")],
    }
    assert set(shared_bases(leakage(parts, read, run=run)).values()) == {0}


def test_a_stretch_with_n_inside() -> None:
    guest = some(10, 400)
    guest[200:203] = N
    assert 397 - 4 * EDGE <= shared(guest, guest) <= 420
    other = guest.copy()
    other[200:203] = 0  # N on one side only
    assert 397 - 4 * EDGE <= shared(guest, other) <= 420


@pytest.mark.parametrize("blocks", [(3000, 1 << 20), (1 << 20, 3600), (3000, 3600), (300, 300)])
def test_what_an_edge_of_a_block_costs(blocks: tuple[int, int]) -> None:
    inside = [
        len(range(-(-at // block) * block, at + 999, block))
        for at, block in zip((2500, 3100), blocks, strict=True)
    ]
    costs = []
    for seed in range(10, 20):
        guest = some(seed, 1000)
        costs.append(shared(guest, guest) - shared(guest, guest, blocks=blocks))
    assert 0 < max(costs) <= 2 * EDGE * sum(inside), f"{sum(inside)} edges lie in the stretch"


@settings(deadline=None)
@given(
    st.integers(0, 1 << 20), st.integers(61, 300), st.integers(200, 900), st.integers(200, 900), st.booleans()
)
def test_against_the_truth_and_nothing_left_after_dropping(
    seed: int, bp: int, train_block: int, val_block: int, turn: bool
) -> None:
    guest = some(seed, bp)
    train = [chunk(planted(some(seed + 1, 1500), guest, 600), block=train_block)]
    codes = planted(some(seed + 2, 1500), reverse_complement(guest) if turn else guest, 300)
    val = [chunk(codes, contig="v", block=val_block)]
    stretches = leakage({"train": train, "val": val}, read, run=run).stretches["val"]
    assert set(places(stretches)) <= truth(val, train)
    spans = [span for span, _ in val[0]]
    left = without(spans, stretches, min_bp=1)
    again = [tuple((span, codes[span.start : span.end]) for span in left)]
    assert leakage({"train": train, "val": again}, read, run=run).stretches["val"] == ()


def three_splits() -> dict[str, list[Chunk]]:
    """Several chunks a split, with duplicates between each two, of two assemblies."""
    both, in_val, in_test, held_out = (some(seed, 700) for seed in range(10, 14))
    train = [
        chunk(
            planted(planted(some(i, 8000), both, 500), in_val if i % 2 else in_test, 3000),
            contig=f"c{i}",
            assembly="st"[i % 2],
            block=3300,
        )
        for i in range(4)
    ]
    val = [
        chunk(planted(planted(planted(some(20, 6000), in_val, 100), both, 2000), held_out, 4000), contig="v"),
        chunk(some(21, 3000), contig="w", block=1000),
    ]
    test = [
        chunk(planted(some(22, 1000), in_val, 100), contig="x"),
        chunk(
            planted(
                planted(planted(some(23, 6000), reverse_complement(in_test), 0), held_out, 1000), both, 3000
            ),
            contig="y",
            assembly="t",
            block=2500,
        ),
    ]
    return {"train": train, "val": val, "test": test}


def test_pairs_of_three_splits() -> None:
    parts = three_splits()
    report = leakage(parts, read, run=run)
    for (of, within), found in shared_bases(report).items():
        true = truth(parts[of], parts[within])
        assert 1000 < len(true) - 300 < found <= len(true), f"{of} in {within}"
    assert {span.contig for span in report.stretches["val"]} == {"v"}
    assert {span.contig for span in report.stretches["test"]} == {"x", "y"}
    for split, stretches in report.stretches.items():
        assert places(stretches) == sorted(set(places(stretches)))
        assert set(places(stretches)) <= truth(parts[split], parts["train"]), (
            "what stands in val alone is no stretch"
        )


@pytest.mark.parametrize("max_hashes", [1, 40, 700])
def test_partitions_change_nothing(max_hashes: int) -> None:
    parts, scanned = three_splits(), list[int]()
    if max_hashes == 1:  # a partition for each minimiser: of less
        parts = {split: [some_chunk[:1] for some_chunk in chunks[:2]] for split, chunks in parts.items()}
    whole = leakage(parts, read, run=run)
    report = leakage(parts, read, run=run, max_hashes=max_hashes, on_scanned=scanned.append)
    assert report == whole and report.to_bytes() == whole.to_bytes()
    spans = {
        split: [span for some_chunk in chunks for span, _ in some_chunk] for split, chunks in parts.items()
    }
    assert sum(scanned) == passes_bp(spans, max_hashes=max_hashes) > 1.5 * passes_bp(spans)


def test_order_workers_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = three_splits()
    whole = leakage(parts, read, run=run)
    turned = {split: chunks[::-1] for split, chunks in reversed(parts.items())}
    scanned: list[int] = []
    report = leakage(turned, read, run=run, workers=7, on_scanned=scanned.append)
    assert report == whole and len(scanned) == 4 + 3 * 4
    monkeypatch.setattr(passes, "_RESULTS_BYTES", 1)
    monkeypatch.setattr(leakage_tasks, "_BATCH", 1)
    assert leakage(parts, read, run=run, workers=2) == whole


def test_on_ray(local_ray: int) -> None:
    parts = three_splits()
    assert leakage(parts, read, run=jobs.run, workers=local_ray) == leakage(parts, read, run=run)


@pytest.mark.parametrize("there", [("train", "val"), ("train", "test"), ("val", "test"), ("train",), ()])
def test_empty_splits(there: tuple[str, ...]) -> None:
    parts = three_splits()
    report = leakage({split: parts[split] if split in there else [] for split in parts}, read, run=run)
    assert report == leakage({split: parts[split] for split in there}, read, run=run)
    for pair in report.pairs:
        assert (pair.bases > 0) == (pair.of in there)
        assert (pair.share > 0.05) == (pair.of in there and pair.within in there)
    assert report.assemblies == (("s", "t") if there else ())


def test_containment_of_assemblies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, z = (some(seed, 60_000) for seed in range(3))
    parts = {
        "train": [chunk(x, assembly="a"), chunk(y, assembly="a", contig="d"), chunk(x, assembly="b")],
        "val": [chunk(z, assembly="c"), chunk(reverse_complement(y[:30_000]), assembly="b", contig="d")],
    }
    report = leakage(parts, read, run=run)
    expected = np.array([[1, 0.75, 0], [1, 1, 0], [0, 0, 1]])
    assert report.assemblies == ("a", "b", "c") and report.sampled == 1
    assert np.abs(np.array(report.containment) - expected).max() < 0.005
    monkeypatch.setattr(module, "_SKETCHES", 6000)  # of about 17,000
    sampled = leakage(parts, read, run=run)
    assert 0.1 < sampled.sampled < 0.5
    assert np.abs(np.array(sampled.containment) - expected).max() < 0.05
    assert sampled == leakage(
        {split: chunks[::-1] for split, chunks in parts.items()}, read, run=run, workers=3
    )
    assert (sampled.pairs, sampled.stretches) == (report.pairs, report.stretches), (
        "only the matrix is an estimate"
    )
    assert f"estimated on {sampled.sampled:.2g} of them" in table(sampled)


def test_figures_for_people_and_programs() -> None:
    report = leakage(three_splits(), read, run=run)
    tree = json.loads(report.to_bytes())
    assert tree == json.loads(json.dumps(report.to_dict()))
    assert tree["pairs"][0] == {
        "of": "val",
        "within": "train",
        "bases": 9000,
        "share": report.pairs[0].share,
        "shared_bases": report.pairs[0].shared_bases,
    }
    # Three of two planted ones: an edge of a training block at 3,300 leaves a hole in the first.
    assert tree["stretches"]["val"]["number"] == 3 and 640 <= tree["stretches"]["val"]["longest_bp"] <= 720
    lines = table(report).splitlines()
    assert lines[0] == (
        f"val: {report.pairs[0].shared_bases:,} of 9,000 bp ({report.pairs[0].share:.2%}) also stand in train"
    )
    assert [line.split()[0] for line in lines][:7] == ["val:", "test:", "test:", "share", "s", "t", "share"]
    assert lines[6].endswith("held-out part that the train part of one has, largest first:")
    assert lines[4] == f"  s  {report.containment[0][1]:.2%} in t"
    assert (
        table(leakage({}, read, run=run))
        == "nothing is held out, and there is one assembly: nothing to compare"
    )


edges = st.lists(st.integers(0, 80), max_size=12, unique=True).map(sorted)


@settings(deadline=None)
@given(edges, st.lists(st.tuples(st.integers(0, 80), st.integers(0, 9)), max_size=5), st.integers(1, 12))
def test_without_against_sets(cuts: list[int], drawn: list[tuple[int, int]], min_bp: int) -> None:
    spans = [Span("s", "c", a, b) for a, b in itertools.pairwise(cuts)]  # blocks that touch
    stretches = [Span("s", "c", at, at + bp) for at, bp in drawn]
    left = without(spans, [*stretches, Span("s", "d", 0, 80), Span("t", "c", 0, 80)], min_bp=min_bp)
    gone = set(places(stretches))
    expected = []
    for span in spans:
        kept = [i for i in range(span.start, span.end) if ("s", "c", i) not in gone]
        runs: list[list[int]] = []
        for i in kept:
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        expected += [Span("s", "c", run_[0], run_[-1] + 1) for run_ in runs if len(run_) >= min_bp]
    assert left == expected


def genome(path: Path) -> Chunk:
    records = gzip.decompress(path.read_bytes()).split(b">")[1:]
    return tuple(
        (Span(path.name, name, 0, len(codes)), codes)
        for record in records
        for head, _, body in [record.partition(b"\n")]
        for name in [head.split()[0].decode()]
        for codes in [encode(body.replace(b"\n", b""))[0]]
    )


def test_real_genomes(dna_data: Path) -> None:
    salmonella, coli, yeast = (
        genome(dna_data / "genomes" / name)
        for name in ("sm_GCF_000006945.1.fna.gz", "ecoli_K12_MG1655.fna.gz", "sacCer_R64.fa.gz")
    )
    again = [(Span("copy", span.contig, 0, span.bp), codes) for span, codes in salmonella]
    again[0] = (again[0][0], reverse_complement(again[0][1]))
    report = leakage({"train": [salmonella, yeast], "val": [tuple(again)], "test": [coli]}, read, run=run)
    shares = {
        (a, b): share
        for a, row in zip(report.assemblies, report.containment, strict=True)
        for b, share in zip(report.assemblies, row, strict=True)
    }
    names = [genome_[0][0].assembly for genome_ in (salmonella, coli, yeast)]
    assert shares["copy", names[0]] == shares[names[0], "copy"] == 1 == report.sampled
    assert 0.01 < shares[names[1], names[0]] < 0.02, "genes that the two have kept, letter by letter"
    assert max(shares[names[1], names[2]], shares[names[2], names[1]]) < 0.0005
    val, test, _ = report.pairs
    assert val.bases - 2 * EDGE * len(again) <= val.shared_bases <= val.bases
    assert 0.02 < test.share < 0.03
