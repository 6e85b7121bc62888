"""data_prep.split.families: links of blocks, what is held out whole, and balls of what is too large."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.alphabet import reverse_complement
from data_prep.split.block_sets import BlockSets, block_sets
from data_prep.split.families import Graph, _summed, canonical, components, draws, hold_out, links
from data_prep.split.intervals import Span
from data_prep.split.minimisers import Positions
from data_prep.split.passes import Passes
from tests.unit.test_homology import mutated
from tests.unit.test_leakage import Chunk, chunk, read, run, some

K, WINDOW = 15, 6


def sets_of(chunks: Sequence[Chunk], *, room: int = 1 << 40) -> BlockSets:
    bp = sum(span.bp for part in chunks for span, _ in part)
    passes = Passes(run, None, lambda bp: None)
    return block_sets(chunks, read, bp=bp, k=K, window=WINDOW, passes=passes, room=room)


def linked(graph: Graph, count: int) -> set[tuple[int, int]]:
    return {(i, j) for i in range(count) for j, _ in graph.neighbours(i) if i < j}


def test_blocks_of_one_descent_are_linked_and_others_not() -> None:
    ancestor = some(0, 6000)
    chunks = [
        chunk(ancestor, assembly="a", block=3000),
        chunk(reverse_complement(mutated(ancestor, 0.1, 1)), assembly="b", block=3000),
        chunk(some(9, 6000), assembly="c", block=3000),
    ]
    graph = links(sets_of(chunks), min_link=0.02, max_copies=5)
    assert linked(graph, 6) == {(0, 3), (1, 2)}, "the other strand turns the order of the blocks"
    assert components(graph, range(6)) == [[0, 3], [1, 2], [4], [5]]
    assert graph.repeats == 0
    assert linked(links(sets_of(chunks), min_link=0.9, max_copies=5), 6) == set()


def test_repeats_link_nothing_and_copies_count_less() -> None:
    repeat, gene = some(1, 200), some(2, 200)
    repeated = [chunk(np.concatenate([some(10 + i, 1000), repeat]), contig=f"c{i}") for i in range(6)]
    graph = links(sets_of(repeated), min_link=0.05, max_copies=5)
    assert linked(graph, 6) == set() and graph.repeats > 40
    many = links(sets_of(repeated), min_link=0.05, max_copies=6)
    assert linked(many, 6) == set() and many.repeats == 0, "a 216th of 14 % each"
    species = [
        chunk(np.concatenate([some(10 + i, 1000), gene]), assembly=f"a{i}", contig=f"c{i}") for i in range(6)
    ]
    orthologues = links(sets_of(species), min_link=0.05, max_copies=1)
    assert linked(orthologues, 6) == set(itertools.combinations(range(6), 2)) and not orthologues.repeats
    twice = [chunk(some(5, 1000), contig=f"c{i}") for i in range(2)]
    assert linked(links(sets_of(twice), min_link=0.1, max_copies=5), 2) == {(0, 1)}, "an eighth of all"


def test_a_sample_of_the_minimisers_links_the_same() -> None:
    ancestor = some(0, 40_000)
    chunks = [
        chunk(codes, assembly=name, block=10_000)
        for name, codes in (("a", ancestor), ("b", mutated(ancestor, 0.05, 1)), ("c", some(3, 40_000)))
    ]
    whole, sampled = sets_of(chunks), sets_of(chunks, room=8_000)
    assert whole.sampled == 1 and 0.1 < sampled.sampled < 0.5
    assert 6_000 < len(sampled.hash_M) < 10_000
    assert sampled.digests == whole.digests
    first, second = (links(sets, min_link=0.02, max_copies=5) for sets in (whole, sampled))
    assert linked(first, 12) == linked(second, 12) == {(i, i + 4) for i in range(4)}


def test_pairs_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ancestor = some(0, 5000)
    chunks = [chunk(mutated(ancestor, 0.05, i), assembly=f"a{i}", block=1000 + 100 * i) for i in range(5)]
    whole = links(sets_of(chunks), min_link=0.02, max_copies=5)
    monkeypatch.setattr("data_prep.split.families._PAIRS", 7)
    parts = links(sets_of(chunks), min_link=0.02, max_copies=5)
    for name in ("first_N1", "to_L", "weight_L"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    alone = links(sets_of([chunk(some(1, 3000), block=1000)]), min_link=0.02, max_copies=5)
    assert (alone.first_N1.tolist(), len(alone.to_L)) == ([0, 0, 0, 0], 0)


def test_a_pair_is_sorted_a_few_times_and_not_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [chunk(mutated(some(0, 5000), 0.02, i), assembly=f"a{i}", block=100) for i in range(4)]
    sets, lengths = sets_of(chunks), list[int]()

    def summed(parts: Sequence[tuple[Positions, Positions]]) -> tuple[Positions, Positions]:
        lengths.append(sum(len(pairs) for pairs, _ in parts))
        return _summed(parts)

    monkeypatch.setattr("data_prep.split.families._summed", summed)
    links(sets, min_link=0.02, max_copies=5)
    whole = sum(lengths[:3])  # of groups of 2, 3 and 4 blocks
    lengths.clear()
    monkeypatch.setattr("data_prep.split.families._PAIRS", 20)
    links(sets, min_link=0.02, max_copies=5)
    assert len(lengths) > 100 and sum(lengths) < 15 * whole, "about log2 of the parts, not half of them"


def graph_of(count: int, edges: dict[tuple[int, int], int]) -> Graph:
    both = sorted([(i, j, w) for (i, j), w in edges.items()] + [(j, i, w) for (i, j), w in edges.items()])
    source = np.array([i for i, _, _ in both], np.int64)
    return Graph(
        np.searchsorted(source, np.arange(count + 1)).astype(np.int64),
        np.array([j for _, j, _ in both], np.int64),
        np.array([w for _, _, w in both], np.int64),
        0,
    )


def path(count: int) -> dict[tuple[int, int], int]:
    return {(i, i + 1): 10 for i in range(count - 1)}


def test_a_family_that_fits_is_held_out_whole() -> None:
    graph = graph_of(7, {(0, 1): 5, (1, 2): 5, (3, 4): 5})
    held = hold_out(graph, [10] * 7, [4, 0, 5, 1, 2, 3, 6], wanted_bp=30)
    assert (held.blocks, held.families, held.cut, held.buffer) == ((3, 4, 5), 2, 0, frozenset())


def test_one_that_only_fitted_before_waits() -> None:
    graph = graph_of(7, {(0, 1): 5, (1, 2): 5, (3, 4): 5})
    held = hold_out(graph, [10] * 7, [0, 4, 6, 3, 1, 2, 5], wanted_bp=40)
    assert held.blocks == (0, 1, 2, 6)


def test_one_that_is_too_large_is_cut_around_the_drawn_block() -> None:
    held = hold_out(graph_of(20, path(20)), [10] * 20, [9, *range(9), *range(10, 20)], wanted_bp=50)
    assert len(held.blocks) == 5 and 9 in held.blocks and (held.families, held.cut) == (0, 1)
    low, high = held.blocks[0], held.blocks[-1]
    assert held.blocks == tuple(range(low, high + 1)) and held.buffer == {low - 1, high + 1}


def test_the_ball_takes_what_is_linked_with_it_most() -> None:
    """Two dense groups with a weak link between them: the ball stays in its own."""
    one = dict.fromkeys(itertools.combinations(range(5), 2), 10)
    two = dict.fromkeys(itertools.combinations(range(5, 12), 2), 10)
    held = hold_out(graph_of(12, one | two | {(0, 5): 1}), [10] * 12, [0, *range(1, 12)], wanted_bp=50)
    assert held.blocks == (0, 1, 2, 3, 4) and held.buffer == {5}


def test_a_block_larger_than_what_is_wanted_is_held_out_alone() -> None:
    held = hold_out(graph_of(3, path(3)), [100] * 3, [1, 0, 2], wanted_bp=20)
    assert (held.blocks, held.buffer) == ((1,), frozenset({0, 2}))
    assert hold_out(graph_of(1, {}), [100], [], wanted_bp=20).blocks == ()


@settings(deadline=None)
@given(
    st.integers(2, 25),
    st.sets(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=60),
    st.randoms(use_true_random=False),
    st.integers(1, 200),
)
def test_nothing_that_stays_is_linked_with_what_is_held_out(
    count: int, drawn: set[tuple[int, int]], random: "np.random.Generator", wanted: int
) -> None:
    edges = {(min(p), max(p)): 1 + sum(p) % 7 for p in drawn if p[0] != p[1] and max(p) < count}
    graph, bp = graph_of(count, edges), [1 + 3 * i % 20 for i in range(count)]
    order = list(range(count))
    random.shuffle(order)
    val = hold_out(graph, bp, order, wanted_bp=wanted)
    rest = [block for block in order if block not in {*val.blocks, *val.buffer}]
    test = hold_out(graph, bp, rest, wanted_bp=wanted)
    train = set(rest) - {*test.blocks, *test.buffer}
    assert not {*val.blocks} & {*val.buffer} and not {*test.blocks} & {*test.buffer}
    for of, others in ((val, train | {*test.blocks}), (test, train | {*val.blocks})):
        assert not {j for i in of.blocks for j, _ in graph.neighbours(i)} & others
        assert sum(bp[i] for i in of.blocks) <= wanted or len(of.blocks) == 1
        assert bool(of.buffer) <= bool(of.cut)
    assert val.blocks


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(5)), st.integers(0, 3))
def test_draws_depend_on_letters_alone(order: list[int], seed: int) -> None:
    """Other references, names and contigs: the same letters are held out."""
    ancestor = some(0, 3000)
    codes = [mutated(ancestor, 0.08, i) if i < 3 else some(i, 3000) for i in range(5)]

    def held(numbers: Sequence[int], names: str) -> set[bytes]:
        sets = sets_of([chunk(codes[i], assembly=names[i], block=700) for i in numbers])
        sets = sets.reordered(canonical(sets, dict.fromkeys(names, names)))
        ranks = draws(sets.digests, seed)
        free = sorted(range(len(ranks)), key=ranks.__getitem__)
        bp = [span.bp for span in sets.spans]
        found = hold_out(links(sets, min_link=0.02, max_copies=5), bp, free, wanted_bp=4000)
        return {sets.digests[i] for i in found.blocks} | {b"-" + sets.digests[i] for i in found.buffer}

    assert held(order, "vwxyz") == held(range(5), "edcba")


def test_seeds_draw_others() -> None:
    digests = [bytes([i]) for i in range(20)]
    firsts = {draws(digests, seed).index(min(draws(digests, seed))) for seed in range(20)}
    assert len(firsts) > 5


def test_blocks_come_back_in_any_order() -> None:
    sets = sets_of([chunk(some(i, 500), contig=f"c{i}", block=200) for i in range(3)])
    order = [3, 1, 0, 2, 8, 7, 6, 5, 4]
    again = sets.reordered(order)
    assert again.spans == tuple(sets.spans[i] for i in order)
    ends = np.cumsum(sets.size_N)
    first = sets.hash_M[ends[3] - sets.size_N[3] : ends[3]]
    assert np.array_equal(again.hash_M[: again.size_N[0]], first)
    assert again.spans[0] == Span("s", "c1", 0, 200)
