"""Places of windows: content is one for both strands and for nothing else, and overlaps are what a naive loop
finds."""

import dataclasses
import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import alphabet
from tests.unit.test_views import windows
from trainer.data.locus import MIN_LETTERS, Loci, content_hash, loci, same_place

LETTERS = st.lists(st.sampled_from([0, 1, 2, 3, 0, 1, 2, 3, alphabet.N]), min_size=0, max_size=70)


def batch(sequences: list[list[int]], *, length: int | None = None) -> torch.Tensor:
    """The sequences as rows, PAD behind them."""
    length = max(1, *map(len, sequences)) if length is None else length
    rows = [row + [alphabet.PAD] * (length - len(row)) for row in sequences]
    return torch.tensor(rows, dtype=torch.uint8).view(len(rows), length)


def turned(sequence: list[int]) -> list[int]:
    other: list[int] = alphabet.reverse_complement(np.array(sequence, np.uint8)).tolist()
    return other


def canonical(sequence: list[int]) -> tuple[int, ...]:
    return min(tuple(sequence), tuple(turned(sequence)))


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=8), st.integers(0, 20))
def test_content_is_the_same_on_both_strands_whatever_the_padding_and_the_other_rows(
    sequences: list[list[int]], padding: int
) -> None:
    hashes = content_hash(batch(sequences))
    others = content_hash(
        batch([turned(row) for row in sequences], length=max(1, *map(len, sequences)) + padding)
    )
    assert torch.equal(hashes, others)
    for row, sequence in enumerate(sequences):
        assert int(content_hash(batch([sequence]))) == int(hashes[row])
        bases = sum(letter < alphabet.BASES for letter in sequence)
        assert (int(hashes[row]) == 0) == (bases < MIN_LETTERS)


@settings(max_examples=200, deadline=None)
@given(LETTERS.filter(lambda row: len(row) >= 20), st.data())
def test_content_is_another_after_any_edit(sequence: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(sequence) - 1))
    changed = [
        *sequence[:place],
        (sequence[place] + data.draw(st.integers(1, 4))) % 5,
        *sequence[place + 1 :],
    ]
    edits = [
        changed,
        sequence[:place] + sequence[place + 1 :],
        [*sequence, alphabet.N],
        [alphabet.N, *sequence],
        [*sequence, 0],
        sequence[:8] + turned(sequence[8:-8]) + sequence[-8:],
        sequence[1:] + sequence[:1],
        sequence[::-1],
        sequence[8:16] + sequence[:8] + sequence[16:],
    ]
    rows = [sequence, *edits]
    hashes = content_hash(batch(rows)).tolist()
    for (one, first), (two, second) in itertools.combinations(zip(rows, hashes, strict=True), 2):
        if first and second:
            assert (first == second) == (canonical(one) == canonical(two))


def test_no_two_of_many_sequences_share_content() -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 4, (50_000, 16), generator=generator, dtype=torch.uint8).tolist()
    repeats = [
        list(unit) * 20 for size in (1, 2, 3, 4, 5) for unit in itertools.product(range(4), repeat=size)
    ]
    rows = random + [unit[:length] for unit in repeats for length in (16, 17, 20)]
    hashes = content_hash(batch(rows))
    assert len(hashes.unique()) == len({canonical(row) for row in rows})
    # 63 bits, each of them used by half: what a truncated or a sparse hash would not do.
    bits = hashes.unique()[:, None] >> torch.arange(1, 64) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.02


def naive_same(a: list[int], b: list[int]) -> bool:
    overlap = a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])
    return overlap or (a[3] == b[3] and a[3] != 0)


PLACES = st.lists(
    st.tuples(
        st.sampled_from([-5, 7, 1 << 62]),
        st.integers(0, 12),
        st.integers(1, 5),
        st.sampled_from([0, 0, 1, 3, -7]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(PLACES, PLACES)
def test_same_place_is_what_a_naive_loop_finds(
    one: list[tuple[int, int, int, int]], two: list[tuple[int, int, int, int]]
) -> None:
    rows_a, rows_b = (
        [[block, start, start + size, content] for block, start, size, content in rows] for rows in (one, two)
    )
    a, b = Loci(torch.tensor(rows_a)), Loci(torch.tensor(rows_b))
    before = a.place_N4.clone()
    found = same_place(a, b)
    assert found.dtype == torch.bool
    assert found.tolist() == [[naive_same(row_a, row_b) for row_b in rows_b] for row_a in rows_a]
    assert torch.equal(found.T, same_place(b, a))
    assert torch.equal(a.place_N4, before)
    assert torch.equal(found[:, 1:], same_place(a, b.rows(slice(1, None))))
    assert torch.equal(found.flip(0), same_place(a.rows(torch.arange(len(a)).flip(0)), b))


def test_places_of_windows_leave_out_their_flanks() -> None:
    source = windows(rows=8)
    found = loci(source)
    assert len(found) == 8
    assert torch.equal(found.place_N4[:, :3], source.place_B3)
    assert same_place(found, found).equal(torch.eye(8, dtype=torch.bool))
    other_flanks = source.codes_BS.clone()
    other_flanks[:, : source.flank] = other_flanks[:, -source.flank :] = 2
    assert torch.equal(loci(dataclasses.replace(source, codes_BS=other_flanks)).place_N4, found.place_N4)
    # The same sequence at another place, on the other strand: one locus of two assemblies.
    strand = torch.from_numpy(alphabet.reverse_complement(source.codes_BS.numpy()))
    elsewhere = loci(dataclasses.replace(source, codes_BS=strand, place_B3=source.place_B3 + 1000))
    assert same_place(found, elsewhere).equal(torch.eye(8, dtype=torch.bool))
    # Rows of N are the same only where they are the same.
    nothing = loci(dataclasses.replace(source, codes_BS=torch.full_like(source.codes_BS, alphabet.N)))
    assert (nothing.place_N4[:, 3] == 0).all()
    assert same_place(nothing, nothing).equal(torch.eye(8, dtype=torch.bool))
