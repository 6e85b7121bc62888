"""Views and masks. Each fault that method.md lists of the published code has its test here, under its own
name."""

import dataclasses
import itertools
import operator
import sys
from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from data_prep import alphabet
from tests.bench import views as bench_views
from trainer.core import random
from trainer.data.windows import Windows
from trainer.views.edits import VIEWS, Edit, Operation, flank_for
from trainer.views.masking import Masked, input_noise, mask
from trainer.views.view import INSERTED, PADDED, View, make_view

ALL = {"deletion": 20, "insertion": 20, "shift": 20}
BASE_COMPLEMENT = {0: 3, 1: 2, 2: 1, 3: 0, 4: 4, 5: 5, 6: 6, 7: 7}


def windows(
    rows: int = 64, length: int = 200, *, seed: int = 0, flank: int = 60, letters: int = 4
) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    codes_BS = torch.randint(0, letters, (rows, length + 2 * flank), generator=generator, dtype=torch.uint8)
    low_B, high_B = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), length + 2 * flank)
    place_B3 = torch.stack(
        [torch.arange(rows), torch.full((rows,), 100), torch.full((rows,), 100 + length)], 1
    )
    return Windows(codes_BS, low_B, high_B, random.fold(seed, torch.arange(rows)), place_B3, flank)


def student_mask(view: View, source: Windows, *, name: str = "student", rate: float = 0.3) -> Masked:
    return mask(view, source, name=name, rate=rate, mask_share=0.8, random_share=0.1)


def letters_by_map(view: View, source: Windows) -> torch.Tensor:
    """The naive reading of a source map, letter by letter; -1 where the map names no source."""
    out = torch.full(view.codes_BL.shape, -1)
    for b in range(out.shape[0]):
        for position in range(out.shape[1]):
            at = int(view.source_BL[b, position])
            if at >= 0:
                letter = int(source.codes_BS[b, at])
                out[b, position] = BASE_COMPLEMENT[letter] if view.reversed_B[b] else letter
    return out


def recorded(source: Windows, operations: dict[str, int], **others: float) -> tuple[View, list[Edit]]:
    """A view and the edits that were drawn for it."""
    drawn: list[Edit] = []

    def recorder(operation: Operation) -> Operation:
        def draw(word_B1: torch.Tensor, limit: int, length: int) -> Edit:
            drawn.append(operation(word_B1, limit, length))
            return drawn[-1]

        return draw

    with mock.patch.dict(VIEWS, {name: recorder(operation) for name, operation in VIEWS.items()}):
        return make_view(source, name="v", operations=operations, **others), drawn


def naive_row(source: Windows, edits: list[Edit], row: int, *, backwards: bool) -> list[int]:
    """The source map of one row by editing a list: a stretch of an endless genome, of which the view is a
    window."""
    length, low, high = source.length, int(source.low_B[row]), int(source.high_B[row])
    reach = 1000
    genome, origin = list(range(source.flank - reach, source.flank + length + reach)), reach
    for edit in edits:
        skip = int(edit.skip_B1[row, 0])
        if edit.place_B1 is None:
            origin += skip
            continue
        at = origin + int(edit.place_B1[row, 0])
        inserted = 0 if edit.inserted_B1 is None else int(edit.inserted_B1[row, 0])
        genome[at : at + inserted + skip] = [INSERTED] * inserted
    # What is read must not depend on where, so a window that sticks out is moved with all its edits.
    new = [place == INSERTED for place in genome]
    window = [(genome[origin + x], new[origin + x]) for x in range(length)]
    real = [place for place, is_new in window if not is_new]
    moved = -max(0, max(real) - high + 1) if real else 0
    moved += max(0, low - (min(real) + moved)) if real else 0
    out: list[int] = []
    for place, is_new in window:
        if not is_new and place + moved >= high:
            break
        out.append(INSERTED if is_new else place + moved)
    if backwards:
        out.reverse()
    return out + [PADDED] * (length - len(out))


@dataclasses.dataclass
class Drawn:
    """A view of random windows: ``operations`` with one limit, sequence within ``edges`` (in %)."""

    seed: int
    length: int
    operations: list[str]
    limit: int
    edges: tuple[int, int]
    strand: float


def drawn_views(names: Sequence[str]) -> st.SearchStrategy[Drawn]:
    """Any of the operations ``names``, in any order, on windows of any kind."""
    return st.builds(
        Drawn,
        seed=st.integers(0, 1 << 30),
        length=st.integers(1, 60),
        operations=st.permutations(sorted(names)).flatmap(
            lambda order: st.integers(0, len(order)).map(lambda n: order[:n])
        ),
        limit=st.sampled_from([0, 1, 3, 20, 70]),
        edges=st.tuples(st.integers(0, 100), st.integers(0, 100)),
        strand=st.sampled_from([0.0, 0.5, 1.0]),
    )


def check_source_map(drawn: Drawn) -> None:
    """The whole view is what editing a list gives."""
    seed, length, operations = drawn.seed, drawn.length, drawn.operations
    limit, edges, strand = drawn.limit, drawn.edges, drawn.strand
    source = windows(8, length, seed=seed, flank=70 * max(3, len(operations)), letters=5)
    size = source.codes_BS.shape[1]
    low = edges[0] * size // 100
    high = low + edges[1] * (size - low) // 100
    source = dataclasses.replace(source, low_B=torch.full((8,), low), high_B=torch.full((8,), high))
    view, edits = recorded(source, dict.fromkeys(operations, limit), reverse_complement=strand)
    assert strand == 0.5 or bool((view.reversed_B == bool(strand)).all())
    for row in range(8):
        expected = naive_row(source, edits, row, backwards=bool(view.reversed_B[row]))
        assert view.source_BL[row].tolist() == expected
        assert int(view.length_B[row]) == length - expected.count(PADDED)
        for place, code, predictable in zip(
            expected, view.codes_BL[row].tolist(), view.predictable_BL[row].tolist(), strict=True
        ):
            if place == PADDED:
                assert code == alphabet.PAD
            elif place == INSERTED:
                assert code < alphabet.BASES
            else:
                letter = int(source.codes_BS[row, place])
                assert code == (BASE_COMPLEMENT[letter] if view.reversed_B[row] else letter)
            assert predictable == (place >= 0 and code < alphabet.BASES)
    assert not view.altered_BL.any()


@settings(max_examples=150, deadline=None)
@given(drawn_views(list(VIEWS)))
def test_the_whole_view_is_what_editing_a_list_gives(drawn: Drawn) -> None:
    check_source_map(drawn)


@pytest.mark.parametrize("operation", sorted(VIEWS))
def test_chained_operations_differ_from_any_one_and_keep_the_length(operation: str) -> None:
    source = windows()
    chained = make_view(source, name="teacher", operations=ALL)
    single = make_view(source, name="teacher", operations={operation: 20})
    assert chained.codes_BL.shape == single.codes_BL.shape == (64, 200)
    assert (chained.source_BL != single.source_BL).any(1).double().mean() > 0.8
    assert (chained.length_B == 200).all()


def test_each_operation_leaves_its_mark_on_the_source_map() -> None:
    source = windows(rows=256)
    steps = {name: make_view(source, name="t", operations={name: 20}).source_BL.diff(dim=1) for name in VIEWS}
    deleted = (steps["deletion"] - 1).clamp(min=0).sum(1)
    assert deleted.max() > 15  # a jump over what was cut out
    assert deleted.max() <= 20
    inserted = (make_view(source, name="t", operations={"insertion": 20}).source_BL == INSERTED).sum(1)
    assert inserted.max() > 15
    assert inserted.max() <= 20
    assert (steps["shift"] == 1).all()  # a shift along the genome, not a roll: no wrap-around anywhere
    first = make_view(source, name="t", operations={"shift": 20}).source_BL[:, 0] - source.flank
    assert first.min() < -15
    assert first.max() > 15
    assert (steps["neighbour"] == 1).all()
    beside = make_view(source, name="t", operations={"neighbour": 20}).source_BL[:, 0] - source.flank
    assert set(beside.tolist()) == {-20, 20}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), length=st.integers(1, 80), strand=st.booleans(), substitution=st.booleans()
)
def test_every_letter_is_what_its_source_map_says(
    seed: int, length: int, strand: bool, substitution: bool
) -> None:
    source = windows(8, length, seed=seed, letters=5)
    view = make_view(
        source, name="v", operations=ALL, reverse_complement=float(strand), substitution=0.2 * substitution
    )
    expected = letters_by_map(view, source)
    named = (expected >= 0) & ~view.altered_BL
    assert torch.equal(view.codes_BL[named].long(), expected[named])
    assert (view.codes_BL[view.altered_BL].long() != expected[view.altered_BL]).all()
    assert (view.codes_BL[view.source_BL == INSERTED] < 4).all()


def test_reverse_complement_is_an_involution_and_a_true_complement() -> None:
    for letter, complement in zip(b"ACGTN", b"TGCAN", strict=True):
        code, wanted = alphabet.LETTERS.index(letter), alphabet.LETTERS.index(complement)
        assert alphabet.COMPLEMENT[code] == wanted
    assert (alphabet.COMPLEMENT[alphabet.COMPLEMENT] == range(8)).all()
    source = windows()
    forward = make_view(source, name="v", operations={})
    backward = make_view(source, name="v", operations={}, reverse_complement=1.0)
    assert torch.equal(
        backward.codes_BL, torch.from_numpy(alphabet.reverse_complement(forward.codes_BL.numpy()))
    )
    assert torch.equal(backward.source_BL, forward.source_BL.flip(1))


def test_labels_and_mask_ride_along_with_the_strand() -> None:
    source = windows()
    view = make_view(source, name="v", operations=ALL, reverse_complement=1.0)
    masked = student_mask(view, source)
    expected = letters_by_map(view, source)
    assert torch.equal(masked.labels_BL[masked.target_BL].long(), expected[masked.target_BL])
    assert masked.target_BL.any()


def test_half_of_the_rows_are_reversed_at_probability_a_half() -> None:
    share = (
        make_view(windows(4000, 20), name="v", operations={}, reverse_complement=0.5)
        .reversed_B.double()
        .mean()
    )
    assert abs(share - 0.5) < 0.04


def test_augmentation_never_invents_n() -> None:
    source = windows(rows=500)
    view = make_view(source, name="v", operations=ALL, substitution=0.3, reverse_complement=0.5)
    assert (view.codes_BL < 4).all()
    masked = student_mask(view, source)
    assert not (masked.codes_BL == alphabet.N).any()


def test_inserted_and_random_letters_are_uniform() -> None:
    source = windows(rows=2000)
    view = make_view(source, name="v", operations={"insertion": 20})
    counts = torch.bincount(view.codes_BL[view.source_BL == INSERTED].long(), minlength=4).double()
    assert counts.numel() == 4
    assert (counts / counts.sum() - 0.25).abs().max() < 0.02


def test_views_and_masks_are_fresh_for_every_epoch_sample_and_name() -> None:
    source = windows()
    other_epoch = dataclasses.replace(source, key_B=random.fold(1, torch.arange(64)))
    first = make_view(source, name="v", operations=ALL)
    for again in (
        make_view(other_epoch, name="v", operations=ALL),
        make_view(source, name="w", operations=ALL),
    ):
        assert (first.source_BL != again.source_BL).any(1).double().mean() > 0.9
    plain = make_view(source, name="v", operations={})
    targets = [
        student_mask(plain, s, name=n).target_BL
        for s, n in ((source, "a"), (source, "b"), (other_epoch, "a"))
    ]
    for one, two in ((0, 1), (0, 2)):
        agreement = (targets[one] == targets[two]).double().mean()
        assert abs(agreement - (0.3 * 0.3 + 0.7 * 0.7)) < 0.02  # as independent masks agree
    rows = targets[0]
    assert (rows[0] != rows[1]).any()


def test_a_row_gets_the_same_view_and_mask_in_any_batch() -> None:
    source = windows()
    part = source.each(lambda tensor: tensor[10:20])
    whole, alone = (make_view(s, name="v", operations=ALL, reverse_complement=0.5) for s in (source, part))
    assert torch.equal(whole.codes_BL[10:20], alone.codes_BL)
    assert torch.equal(student_mask(whole, source).codes_BL[10:20], student_mask(alone, part).codes_BL)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30), cuts=st.sets(st.integers(1, 63)), length=st.integers(1, 70))
def test_any_split_of_the_batch_gives_the_same_rows(seed: int, cuts: set[int], length: int) -> None:
    def everything(part: Windows) -> list[torch.Tensor]:
        view = make_view(part, name="v", operations=ALL, substitution=0.1, reverse_complement=0.5)
        masked = student_mask(view, part)
        of_view = [tensor for tensor in vars(view).values() if isinstance(tensor, torch.Tensor)]
        return [*of_view, *vars(masked).values(), input_noise(view, part, name="v", std=0.2)]

    source = windows(64, length, seed=seed)
    source = dataclasses.replace(source, high_B=torch.randint(61, length + 121, (64,)))
    parts = [
        everything(source.each(operator.itemgetter(slice(a, b))))
        for a, b in itertools.pairwise([0, *sorted(cuts), 64])
    ]
    for whole, pieces in zip(everything(source), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def independent(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two small integers a place, each with its own distribution, are independent by chi-square at
    0.999."""
    kinds = int(max(first.max(), second.max())) + 1
    counts = torch.bincount((first.long() * kinds + second.long()).flatten(), minlength=kinds**2).double()
    table = counts.view(kinds, kinds)
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    used = expected > 0
    freedom = (int((table.sum(1) > 0).sum()) - 1) * (int((table.sum(0) > 0).sum()) - 1)
    return float(((table - expected)[used] ** 2 / expected[used]).sum()) < float(chi2.ppf(0.999, freedom))


def test_draws_at_a_position_are_independent_of_its_neighbours_and_of_other_draws() -> None:
    source = dataclasses.replace(windows(rows=1000), codes_BS=torch.zeros(1000, 320, dtype=torch.uint8))
    view = make_view(source, name="v", operations={}, substitution=0.3)
    plain = make_view(source, name="v", operations={})
    masked = student_mask(plain, source, name="v")
    fate_BL = torch.where(
        masked.target_BL, 1 + masked.codes_BL, 0
    )  # not asked, asked and kept, replaced by, hidden
    assert sorted(fate_BL.unique().tolist()) == [0, 1, 2, 3, 4, 6]
    for draws_BL in (fate_BL, view.codes_BL):
        for apart in (1, 2, 3, 4, 8):
            assert independent(draws_BL[:, :-apart], draws_BL[:, apart:]), apart
        assert independent(draws_BL[:-1], draws_BL[1:])
    assert independent(fate_BL, view.codes_BL)
    assert not independent(fate_BL, masked.target_BL)


def test_substituted_and_random_letters_are_uniform_over_the_other_letters() -> None:
    source = windows(rows=1000)
    view = make_view(source, name="v", operations={}, substitution=0.25)
    plain = make_view(source, name="v", operations={})
    assert abs(view.altered_BL.double().mean() - 0.25) < 0.005
    assert torch.equal(view.altered_BL, view.codes_BL != plain.codes_BL)
    step = (view.codes_BL ^ plain.codes_BL)[view.altered_BL].long()
    assert (step.bincount()[1:].double() / len(step) - 1 / 3).abs().max() < 0.01
    masked = mask(plain, source, name="v", rate=0.5, mask_share=0.0, random_share=1.0)
    counts = masked.codes_BL[masked.target_BL].long().bincount().double()
    assert counts.numel() == 4
    assert (counts / counts.sum() - 0.25).abs().max() < 0.01
    step = (masked.codes_BL ^ plain.codes_BL)[masked.target_BL].long()
    assert (step.bincount().double() / len(step) - 0.25).abs().max() < 0.01


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.7, 0.3)])
def test_shares_of_nothing_and_of_all_are_exact(mask_share: float, random_share: float) -> None:
    source = windows(rows=300)
    view = make_view(source, name="v", operations={})
    masked = mask(view, source, name="v", rate=0.3, mask_share=mask_share, random_share=random_share)
    hidden_BL, changed_BL = masked.codes_BL == alphabet.MASK, masked.codes_BL != view.codes_BL
    assert (
        torch.equal(hidden_BL, masked.target_BL)
        if mask_share == 1
        else bool(mask_share) == bool(hidden_BL.any())
    )
    assert bool((changed_BL & ~hidden_BL).any()) == bool(random_share)
    assert bool((masked.target_BL & ~changed_BL).any()) == (mask_share < 1)
    assert mask(view, source, name="v", rate=1.0, mask_share=1.0, random_share=0.0).target_BL.all()


def test_windows_that_cannot_be_indexed_are_refused() -> None:
    source = windows(rows=2)
    beyond = dataclasses.replace(source, high_B=source.high_B + 1)
    with pytest.raises(AssertionError, match="a window ends beyond its row"):
        make_view(beyond, name="v", operations={})
    rows = 1 << 20
    row_B = torch.zeros(1, dtype=torch.int64).expand(rows)
    codes_BS, place_B3 = (
        torch.zeros(1, 1, dtype=torch.uint8).expand(rows, 1 << 12),
        row_B[:, None].expand(-1, 3),
    )
    many = Windows(codes_BS, row_B, row_B, row_B, place_B3, (1 << 11) - 1)
    with pytest.raises(
        AssertionError, match="1048576 windows of 4098 letters need a larger index than int32"
    ):
        make_view(many, name="v", operations={})


def test_the_bench_says_what_it_needs_when_its_peer_is_not_installed() -> None:
    with (
        mock.patch.dict(sys.modules, {"evoaug": None}),
        pytest.raises(
            RuntimeError, match=r"evoaug is not installed; .*pip install --no-deps -r .*bench\.txt"
        ),
    ):
        bench_views.evoaug_views(substitution=0.0, both_strands=False)


def faults_of_mask(view: View, masked: Masked) -> list[str]:
    """What is wrong with a mask: 30 % targets, of which 80 % hidden and 10 % random; every other letter
    untouched."""
    target = masked.target_BL
    hidden = masked.codes_BL == alphabet.MASK
    changed = masked.codes_BL != view.codes_BL
    faults = []
    if abs(target.double().mean() - 0.3) > 0.01:
        faults.append("share of targets")
    if (hidden & ~target).any() or (changed & ~target).any():
        faults.append("touched without being a target")
    if abs(hidden[target].double().mean() - 0.8) > 0.01:
        faults.append("share hidden")
    if abs((changed & ~hidden)[target].double().mean() - 0.1 * 0.75) > 0.01:
        faults.append("share replaced by another letter")
    if not torch.equal(masked.labels_BL[target], view.codes_BL[target]):
        faults.append("labels")
    return faults


def test_mask_is_30_percent_80_10_10_and_touches_nothing_else() -> None:
    source = windows(rows=1000)
    view = make_view(source, name="v", operations={}, reverse_complement=0.5)
    assert faults_of_mask(view, student_mask(view, source)) == []


def test_a_shuffled_mask_is_caught() -> None:
    """The published code repeats, then reshapes the mask, so that scored and hidden positions part."""
    source = windows(rows=1000)
    view = make_view(source, name="v", operations={})
    masked = student_mask(view, source)
    scrambled = dataclasses.replace(
        masked, target_BL=masked.target_BL.flatten().roll(1).view_as(masked.target_BL)
    )
    assert "touched without being a target" in faults_of_mask(view, scrambled)
    assert "share hidden" in faults_of_mask(view, scrambled)


def test_n_inserted_and_substituted_letters_are_never_targets() -> None:
    source = windows(rows=300, letters=5)
    view = make_view(source, name="v", operations=ALL, substitution=0.2)
    masked = student_mask(view, source, rate=0.99)
    assert not masked.target_BL[(view.codes_BL == alphabet.N) | (view.source_BL < 0) | view.altered_BL].any()
    assert masked.target_BL.double().mean() > 0.4


def test_window_at_a_block_edge_moves_back_instead_of_reading_beyond_it() -> None:
    source = windows(rows=200)
    edge = dataclasses.replace(source, low_B=torch.full((200,), 60), high_B=torch.full((200,), 60 + 240))
    view = make_view(edge, name="v", operations=ALL)
    real = view.source_BL[view.source_BL >= 0]
    assert real.min() >= 60
    assert real.max() < 300
    assert (view.codes_BL != alphabet.PAD).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), available=st.integers(1, 220))
def test_short_block_is_padded_at_the_end_only(seed: int, available: int) -> None:
    source = windows(rows=16, seed=seed)
    short = dataclasses.replace(source, low_B=torch.full((16,), 60), high_B=torch.full((16,), 60 + available))
    view = make_view(short, name="v", operations=ALL, reverse_complement=0.5)
    place = torch.arange(200)
    assert torch.equal(view.codes_BL == alphabet.PAD, place >= view.length_B[:, None])
    assert torch.equal(view.source_BL == PADDED, view.codes_BL == alphabet.PAD)
    real = view.source_BL[view.source_BL >= 0]
    assert real.numel() == 0 or (int(real.min()) >= 60 and int(real.max()) < 60 + available)
    assert not student_mask(view, short).target_BL[view.codes_BL == alphabet.PAD].any()


def test_noise_is_normal_on_letters_and_absent_from_padding() -> None:
    source = windows(rows=100)
    short = dataclasses.replace(source, low_B=torch.full((100,), 60), high_B=torch.full((100,), 60 + 150))
    view = make_view(short, name="v", operations={})
    noise_BLC = input_noise(view, short, name="v", std=0.2)
    assert noise_BLC.shape == (100, 200, 4)
    assert (noise_BLC[:, 150:] == 0).all()
    assert abs(noise_BLC[:, :150].std() - 0.2) < 0.005
    assert not torch.equal(noise_BLC, input_noise(view, short, name="w", std=0.2))


def test_flank_covers_the_widest_view() -> None:
    assert flank_for({}, {"deletion": 20, "shift": 5}) == 25
    assert flank_for() == 0
