"""data_prep.split.minimisers: against a naive loop, on both strands, in pieces; sketches and sets of
hashes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.alphabet import Codes, N, decode, encode, reverse_complement
from data_prep.split import minimisers as module
from data_prep.split.minimisers import ALL, WINDOW, K, Sketch, cover, find, minimisers, unique

WORD = (1 << 64) - 1


def kmer_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 4 + b"ACGT".index(letter)
    return number


def rank(kmer: int) -> int:
    return ((kmer ^ kmer >> 29) * 0x9E3779B97F4A7C15 & WORD) >> 33 ^ 0x35A3D1C7


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def naive(codes: Codes) -> list[tuple[int, int]]:
    """(hash, position) of the minimisers, window by window, from letters."""
    letters = decode(codes)
    kmers: list[int | None] = []
    for i in range(len(letters) - K + 1):
        kmer = letters[i : i + K]
        other = kmer[::-1].translate(bytes.maketrans(b"ACGT", b"TGCA"))
        kmers.append(None if b"N" in kmer else min(kmer_number(kmer), kmer_number(other)))
    found: dict[int, int] = {}
    for start in range(len(kmers) - WINDOW + 1):
        there = [
            (rank(kmer), i) for i, kmer in enumerate(kmers[start : start + WINDOW], start) if kmer is not None
        ]
        for value, i in there:
            if value == min(there)[0]:
                kmer_here = kmers[i]
                assert kmer_here is not None
                found[i] = mix(kmer_here)
    return [(found[i], i) for i in sorted(found)]


def as_pairs(codes: Codes) -> list[tuple[int, int]]:
    hashes, positions = minimisers(codes)
    assert hashes.dtype == np.uint64 and positions.dtype == np.int64
    return list(zip(hashes.tolist(), positions.tolist(), strict=True))


def some(seed: int, bp: int) -> Codes:
    return np.random.default_rng(seed).integers(0, 4, bp, dtype=np.uint8)


random_part = st.builds(some, st.integers(0, 1 << 32), st.integers(0, 120))
repeat_part = st.builds(
    lambda seed, unit, times: np.tile(some(seed, unit), times),
    st.integers(0, 1 << 32),
    st.integers(1, 9),
    st.integers(1, 20),
)
n_part = st.integers(1, 40).map(lambda bp: np.full(bp, N, np.uint8))
sequences = st.lists(st.one_of(random_part, repeat_part, n_part), max_size=6).map(
    lambda parts: np.concatenate([np.zeros(0, np.uint8), *parts])
)


@settings(deadline=None)
@given(sequences, st.sampled_from([1, 7, 31, 64, 1 << 20]))
def test_equal_to_the_naive_loop_in_pieces_of_any_size(codes: Codes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        assert as_pairs(codes) == naive(codes)


@settings(deadline=None)
@given(sequences)
def test_the_other_strand_has_the_mirrored_minimisers(codes: Codes) -> None:
    mirrored = [(value, len(codes) - K - position) for value, position in as_pairs(codes)]
    assert as_pairs(reverse_complement(codes)) == mirrored[::-1]


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_a_shared_stretch_of_61_shows_on_either_strand(seed: int, turn: bool) -> None:
    a, shared, b, c, d = (some(seed + i, bp) for i, bp in enumerate((100, 61, 90, 45, 130)))
    other = np.concatenate([c, reverse_complement(shared) if turn else shared, d])
    assert np.intersect1d(minimisers(np.concatenate([a, shared, b]))[0], minimisers(other)[0]).size


def test_pieces_of_the_shipped_size() -> None:
    codes = some(5, 300_000)
    codes[[40_000, 65_536, 65_537, 200_000]] = N
    codes[98_000:98_400] = 0
    hashes, positions = minimisers(codes)
    for cut in (
        0,
        1,
        32_768,
        131_071,
    ):  # windows inside the rest choose the same, those across its start are gone
        rest_hashes, rest_positions = minimisers(codes[cut:])
        inside = positions >= cut + WINDOW
        late = rest_positions >= WINDOW
        assert np.array_equal(positions[inside], rest_positions[late] + cut)
        assert np.array_equal(hashes[inside], rest_hashes[late])
    assert np.diff(positions[positions < 30_000]).max() <= WINDOW, "no hole without N"


def test_density_and_letters_do_not_matter() -> None:
    for shares in ((0.25, 0.25, 0.25, 0.25), (0.4, 0.1, 0.1, 0.4)):
        codes = np.random.default_rng(1).choice(4, 400_000, p=shares).astype(np.uint8)
        assert len(minimisers(codes)[0]) / 400_000 == pytest.approx(2 / (WINDOW + 1), rel=0.02)


def test_short_and_unknown_sequences_have_none() -> None:
    assert as_pairs(some(0, 60)) == [] != as_pairs(some(0, 61))
    assert as_pairs(np.full(500, N, np.uint8)) == [] == as_pairs(np.zeros(0, np.uint8))


def test_poly_a_is_no_favourite() -> None:
    flank = some(3, 60)
    codes = np.concatenate([flank, encode(b"A" * 31)[0], some(4, 60)])
    assert 60 not in minimisers(codes)[1], "k-mer 0 must not have the lowest rank"


def test_the_mixer_is_splitmix64() -> None:
    assert module._mix(np.array([0x9E3779B97F4A7C15], np.uint64)).tolist() == [0xE220A8397B1DCDAF]


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), unique=True).map(sorted))
def test_cover_against_sets(positions: list[int]) -> None:
    intervals = cover(np.array(positions, np.int64))
    assert {i for start, end in intervals for i in range(start, end)} == {
        p + i for p in positions for i in range(K)
    }
    assert all(left[1] < right[0] for left, right in itertools.pairwise(intervals))


hash_lists = st.lists(st.one_of(st.integers(0, 20), st.integers(0, WORD)), max_size=30)


@settings(deadline=None)
@given(st.lists(hash_lists, max_size=4), hash_lists)
def test_unique_and_find_against_sets(parts: list[list[int]], wanted: list[int]) -> None:
    among = unique(np.array(part, np.uint64) for part in parts)
    assert among.tolist() == sorted({value for part in parts for value in part})
    at, hit = find(among, np.array(wanted, np.uint64))
    assert hit.tolist() == [value in among.tolist() for value in wanted]
    assert among[at[hit]].tolist() == [value for value in wanted if value in among.tolist()]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), hash_lists), max_size=6), st.integers(1, 30), st.integers(0, 10)
)
def test_a_sketch_holds_the_lowest_hashes_in_any_order(
    added: list[tuple[str, list[int]]], room: int, slack: int
) -> None:
    every = sorted({(value, name) for name, values in added for value in values})
    below = every[room][0] if len(every) > room else ALL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLACK", slack)
        for order, cut in ((added, 0), (added[::-1], 0), (added, 2)):
            sketch, other = Sketch(room), Sketch(room)
            for i, (name, values) in enumerate(order):
                (other if i < cut else sketch).add(name, np.array(values, np.uint64))
            sketch.merge(other.result())
            threshold, sets = sketch.result()
            assert threshold == below
            assert {
                (int(value), name) for name, data in sets.items() for value in np.frombuffer(data, np.uint64)
            } == {pair for pair in every if pair[0] < below}
