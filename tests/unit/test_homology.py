"""data_prep.split.homology: held-out windows against the naive definition."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.tasks import jobs
from data_prep.alphabet import Codes, N, decode, reverse_complement
from data_prep.split.homology import Trimmed, passes_bp, refuse_chance, trim
from data_prep.split.homology_tasks import Rule, left_of
from data_prep.split.intervals import Span
from data_prep.split.minimisers import kmers, minimisers, reach
from data_prep.split.passes import Passes
from tests.unit.test_leakage import Chunk, chunk, planted, read, run, some

K, WINDOW = 15, 6
RULE = Rule(K, WINDOW, window_bp=100, max_shared=0.1, min_bp=120)


def mutated(codes: Codes, share: float, seed: int) -> Codes:
    """``codes`` with ``share`` of its letters replaced by others."""
    rng = np.random.default_rng(seed)
    hit = rng.random(len(codes)) < share
    return np.where(hit, (codes + rng.integers(1, 4, len(codes))) % 4, codes).astype(np.uint8)


def words(codes: Codes) -> set[bytes]:
    """All k-mers of ``codes`` and of its reverse complement, those with an N left out."""
    return {
        letters[i : i + K]
        for letters in (decode(codes), decode(reverse_complement(codes)))
        for i in range(len(letters) - K + 1)
        if b"N" not in letters[i : i + K]
    }


def worst_share(pieces: list[Codes], elsewhere: set[bytes], window_bp: int, *, step: int = 1) -> float:
    """The naive definition: of every window of every piece, cut out and looked at alone, the share of its
    minimisers that are a k-mer elsewhere; the largest."""
    worst = 0.0
    for codes in pieces:
        bp = min(window_bp, len(codes))
        for start in range(0, len(codes) - bp + 1, step):
            window = codes[start : start + bp]
            _, positions = minimisers(window, k=K, window=WINDOW)
            found = [decode(window[at : at + K]) in elsewhere for at in positions.tolist()]
            worst = max(worst, sum(found) / max(1, len(found)))
    return worst


def letters_of(spans: tuple[Span, ...], chunks: list[Chunk]) -> list[Codes]:
    whole = {(span.contig, span.start, span.end): codes for part in chunks for span, codes in part}
    return [
        codes[span.start - start : span.end - start]
        for span in spans
        for (contig, start, end), codes in whole.items()
        if contig == span.contig and start <= span.start and span.end <= end
    ]


def trimmed(parts: dict[str, list[Chunk]], *, rule: Rule = RULE, **how: int) -> dict[str, Trimmed]:
    bp = {split: sum(span.bp for part in parts.get(split, []) for span, _ in part) for split in SPLITS}
    scanned: list[int] = []
    found = trim(parts, read, rule=rule, passes=Passes(run, None, scanned.append), bp=bp, **how)
    assert sum(scanned) == passes_bp(bp, rule, **how)
    return found


SPLITS = ("train", "val", "test")


def family(seed: int, share: float) -> dict[str, list[Chunk]]:
    """Three splits of about 700 bp with mutated copies of each other's stretches, on both strands."""
    genes = [some(seed + i, 160) for i in range(3)]
    train = planted(planted(some(seed + 10, 800), genes[0], 100), genes[1], 500)
    turned = mutated(reverse_complement(genes[0]), share, seed)
    val = planted(planted(some(seed + 11, 800), turned, 250), genes[2], 550)
    test = planted(planted(some(seed + 12, 600), mutated(genes[1], share, seed), 100), genes[2], 400)
    val[420:430] = N
    return {
        "train": [chunk(train, block=450)],
        "val": [chunk(val, contig="v", block=520)],
        "test": [chunk(test, contig="t", block=600)],
    }


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1 << 20), st.sampled_from([0.0, 0.03, 0.08, 0.3]))
def test_no_window_breaks_the_rule_by_the_naive_definition(seed: int, share: float) -> None:
    parts = family(seed, share)
    train, val = (
        set().union(*(words(codes) for part in parts[split] for _, codes in part))
        for split in ("train", "val")
    )
    before = [codes for _, codes in parts["val"][0]]
    found = trimmed(parts)
    kept = {split: letters_of(found[split].spans, parts[split]) for split in ("val", "test")}
    assert worst_share(kept["val"], train, RULE.window_bp) <= RULE.max_shared
    assert worst_share(kept["test"], train | val, RULE.window_bp) <= RULE.max_shared
    assert (worst_share(before, train, RULE.window_bp) <= RULE.max_shared) == (not found["val"].broken)
    assert all(len(codes) >= RULE.min_bp for codes in kept["val"])
    lost = {split: sum(s.bp for s, _ in parts[split][0]) - sum(map(len, kept[split])) for split in kept}
    assert lost["val"] < 160 + 3 * RULE.min_bp and lost["test"] < 2 * (160 + 2 * RULE.min_bp), "not too much"
    assert trimmed(parts, max_hashes=50) == found, "partitions change nothing"


def test_the_share_of_broken_windows_is_counted() -> None:
    gene = some(1, 400)
    parts = {"train": [chunk(planted(some(2, 2000), gene, 900))], "val": [chunk(gene, contig="v")]}
    found = trimmed(parts)["val"]
    assert found == Trimmed((), 301, 301)
    alone = trimmed({"train": [chunk(some(2, 2000))], "val": [chunk(gene, contig="v")]})["val"]
    assert alone == Trimmed((Span("s", "v", 0, 400),), 301, 0)


def test_a_short_block_is_one_window() -> None:
    gene = some(1, 80)
    parts = {
        "train": [chunk(planted(some(2, 2000), gene, 900))],
        "val": [chunk(gene, contig="v"), chunk(some(3, 80), contig="w"), chunk(some(4, 10), contig="x")],
    }
    assert {span.contig for span in trimmed(parts)["val"].spans} == {"w", "x"}


def test_nothing_shared_is_allowed_with_zero() -> None:
    parts = family(5, 0.1)
    rule = Rule(K, WINDOW, window_bp=100, max_shared=0.0, min_bp=100)
    train = set().union(*(words(codes) for part in parts["train"] for _, codes in part))
    kept = letters_of(trimmed(parts, rule=rule)["val"].spans, parts["val"])
    assert kept and worst_share(kept, train, 100) == 0


def test_order_and_ray_change_nothing(local_ray: int) -> None:
    parts = family(3, 0.03)
    bp = {split: sum(span.bp for span, _ in chunks[0]) for split, chunks in parts.items()}
    turned = parts | {"train": [part[::-1] for part in parts["train"]]}
    passes = Passes(jobs.run, local_ray, lambda bp: None)
    assert trim(turned, read, rule=RULE, passes=passes, bp=bp) == trimmed(parts)


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=0, max_size=120), st.integers(1, 9), st.sampled_from([1, 3, 5]))
def test_reach_says_of_which_windows_a_k_mer_is_a_minimiser(data: bytes, window: int, k: int) -> None:
    codes = np.frombuffer(data, np.uint8) % 5
    _, positions = minimisers(codes, k=k, window=window)
    first, last = reach(codes, positions, k=k, window=window)
    wide = window + k - 1
    alone: dict[int, list[int]] = {}
    for start in range(len(codes) - wide + 1):
        for at in minimisers(codes[start : start + wide], k=k, window=window)[1].tolist():
            alone.setdefault(start + at, []).append(start)
    assert sorted(alone) == positions.tolist()
    for at, a, b in zip(positions.tolist(), first.tolist(), last.tolist(), strict=True):
        assert alone[at] == list(range(a, b + 1))


def test_reach_across_the_pieces_that_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 5, 3000, dtype=np.uint8)
    _, positions = minimisers(codes, k=5, window=7)
    whole = reach(codes, positions, k=5, window=7)
    all_kmers = kmers(codes, k=5)
    monkeypatch.setattr("data_prep.split.minimisers._PIECE", 50)
    assert np.array_equal(reach(codes, positions, k=5, window=7), whole)
    assert np.array_equal(kmers(codes, k=5), all_kmers)


def test_k_mers_are_hashed_as_minimisers_are() -> None:
    codes = some(0, 500)
    codes[100] = N
    hashes, positions = minimisers(codes, k=K, window=1)
    assert np.array_equal(kmers(codes, k=K), hashes)
    assert len(positions) == 500 - K + 1 - K
    assert np.array_equal(np.sort(kmers(reverse_complement(codes), k=K)), np.sort(hashes))
    assert not len(kmers(codes[:10], k=K))


def pieces_by_definition(bp: int, bad: set[int], window_bp: int, intervals: list[tuple[int, int]]) -> bool:
    return not any(start in bad for a, b in intervals for start in range(a, b - window_bp + 1))


@given(st.sets(st.integers(0, 80)), st.integers(1, 30))
def test_what_is_left_has_no_bad_window(bad: set[int], window_bp: int) -> None:
    bp = 80 + window_bp
    runs: Iterator[tuple[int, int]] = (
        (a, next(b for b in range(a, bp + 1) if b + 1 not in bad)) for a in sorted(bad) if a - 1 not in bad
    )
    left = left_of(bp, list(runs), window_bp)
    assert pieces_by_definition(bp, bad, window_bp, left)
    if not bad:
        assert left == [(0, bp)]


def test_too_small_a_k_is_refused() -> None:
    refuse_chance(19, 3_000_000_000)
    with pytest.raises(
        ValueError, match=r"k 15 is too small for 50,000,000 bp of train: by chance alone 9.3% of"
    ):
        refuse_chance(15, 50_000_000)
    with pytest.raises(ValueError, match=r"take k 23 or more"):
        refuse_chance(19, 78_000_000_000)
