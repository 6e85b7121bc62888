"""Pairs of positions of two views, and weights of letters, against naive loops over the source maps."""

import dataclasses
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from data_prep import alphabet
from tests.datasets import levels_at
from tests.unit.test_views import ALL, windows
from trainer.data.windows import Windows
from trainer.views.alignment import Aligned, align, letter_weights
from trainer.views.masking import Masked, mask
from trainer.views.view import View, make_view

N_PAIRS = 8


def both(
    source: Windows, *, operations: dict[str, int] | None = None, strand: float = 0.5, rate: float = 0.4
) -> tuple[View, Masked, View]:
    student = make_view(source, name="student", operations={"shift": 7}, reverse_complement=strand)
    teacher = make_view(
        source,
        name="teacher",
        operations=ALL if operations is None else operations,
        reverse_complement=strand,
    )
    return (
        student,
        mask(student, source, name="student", rate=rate, mask_share=0.8, random_share=0.1),
        teacher,
    )


def naive(student: View, masked: Masked, teacher: View, row: int) -> dict[int, int]:
    """Position of the student's view -> that of the teacher's, wherever a hidden letter's source is read by
    both."""
    where = {place: at for at, place in enumerate(teacher.source_BL[row].tolist()) if place >= 0}
    hidden = [at for at, code in enumerate(masked.codes_BL[row].tolist()) if code == alphabet.MASK]
    assert all(masked.target_BL[row, at] for at in hidden)
    places = student.source_BL[row].tolist()
    return {at: where[places[at]] for at in hidden if places[at] in where}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 70),
    pairs=st.integers(1, 30),
    limit=st.sampled_from([0, 3, 20]),
    high=st.integers(0, 190),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_pairs_are_among_those_of_a_naive_loop_and_as_many_as_there_are(
    seed: int, length: int, pairs: int, limit: int, high: int, rate: float
) -> None:
    source = windows(8, length, seed=seed, letters=5)
    source = dataclasses.replace(source, high_B=torch.full((8,), min(high, length + 120)))
    student, masked, teacher = both(source, operations=dict.fromkeys(ALL, limit), rate=rate)
    found = align(student, masked, teacher, source, name="p", pairs=pairs)
    assert found.student_BN.shape == found.teacher_BN.shape == found.valid_BN.shape == (8, pairs)
    assert found.valid_BN.dtype == torch.bool
    assert found.student_BN.dtype == found.teacher_BN.dtype == torch.int64
    assert not found.student_BN[~found.valid_BN].any()
    assert not found.teacher_BN[~found.valid_BN].any()
    for row in range(8):
        possible = naive(student, masked, teacher, row)
        valid = found.valid_BN[row]
        chosen = list(
            zip(found.student_BN[row, valid].tolist(), found.teacher_BN[row, valid].tolist(), strict=True)
        )
        assert len(set(chosen)) == len(chosen) == min(pairs, len(possible))
        assert set(chosen) <= set(possible.items())


def test_a_teacher_that_reads_nothing_of_what_is_hidden_gives_no_pair() -> None:
    source = windows(rows=16, length=100)
    student = make_view(source, name="student", operations={})
    masked = mask(student, source, name="student", rate=1.0, mask_share=1.0, random_share=0.0)
    elsewhere = dataclasses.replace(
        student, source_BL=student.source_BL - source.flank
    )  # 60 places further left
    found = align(student, masked, elsewhere, source, name="p", pairs=100)
    assert (found.valid_BN.sum(1) == 40).all()
    nowhere = dataclasses.replace(student, source_BL=torch.full_like(student.source_BL, -2))
    assert not align(student, masked, nowhere, source, name="p", pairs=5).valid_BN.any()
    plain = dataclasses.replace(masked, codes_BL=student.codes_BL)
    assert not align(student, plain, student, source, name="p", pairs=5).valid_BN.any()


def test_letters_of_a_pair_are_each_other_s_or_the_complement() -> None:
    source = windows(rows=128)
    student, masked, teacher = both(source)
    found = align(student, masked, teacher, source, name="p", pairs=N_PAIRS)
    assert found.valid_BN.all()
    turned_B1 = (student.reversed_B ^ teacher.reversed_B)[:, None]
    assert turned_B1.any()
    labels_BN = masked.labels_BL.gather(1, found.student_BN)
    assert torch.equal(
        teacher.codes_BL.gather(1, found.teacher_BN), torch.where(turned_B1, 3 - labels_BN, labels_BN)
    )


def test_every_position_is_as_likely_as_any_other_and_every_pair_of_them() -> None:
    length, rows = 6, 20_000
    source = windows(rows=rows, length=length)
    student = make_view(source, name="student", operations={})
    masked = mask(student, source, name="student", rate=1.0, mask_share=1.0, random_share=0.0)
    found = align(student, masked, student, source, name="p", pairs=2)
    assert torch.equal(found.student_BN, found.teacher_BN)
    table = torch.bincount(found.student_BN[:, 0] * length + found.student_BN[:, 1], minlength=length**2)
    assert (table.view(length, length).diagonal() == 0).all()
    drawn = table[torch.arange(length**2) % (length + 1) != 0]
    assert chisquare(drawn.numpy()).pvalue > 0.001
    other = align(student, masked, student, source, name="q", pairs=2)
    agree = (other.student_BN[:, 0] == found.student_BN[:, 0]).double().mean()
    assert abs(agree - 1 / length) < 0.015


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 63))
def test_a_row_gets_the_same_pairs_in_any_batch(seed: int, size: int) -> None:
    def pairs(part: Windows) -> Aligned:
        return align(*both(part), part, name="p", pairs=N_PAIRS)

    source = windows(64, 40, seed=seed)
    parts = [
        pairs(source.each(operator.itemgetter(slice(first, first + size)))) for first in range(0, 64, size)
    ]
    for name, whole in vars(pairs(source)).items():
        assert torch.equal(whole, torch.cat([vars(part)[name] for part in parts]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 60),
    high=st.integers(0, 180),
    weight=st.floats(0, 2, width=32),
)
def test_letter_weights_are_those_of_their_sources(seed: int, length: int, high: int, weight: float) -> None:
    source = windows(8, length, seed=seed)
    source = dataclasses.replace(
        source,
        high_B=torch.full((8,), min(high, length + 120)),
        soft_BS=(source.codes_BS < 2).to(torch.uint8),
    )
    assert source.soft_BS is not None
    view = make_view(source, name="v", operations=ALL, reverse_complement=0.5)
    found = letter_weights(view, source, soft_weight=weight)
    assert found.dtype == torch.float32
    expected = [
        [weight if place >= 0 and source.soft_BS[row, place] else 1.0 for place in places]
        for row, places in enumerate(view.source_BL.tolist())
    ]
    assert found.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 60),
    floor=st.floats(0, 1, width=32),
    soft=st.sampled_from([1.0, 0.25]),
)
def test_a_track_weighs_letters_by_their_sources(seed: int, length: int, floor: float, soft: float) -> None:
    source = windows(8, length, seed=seed)
    source = dataclasses.replace(
        source,
        soft_BS=(source.codes_BS < 2).to(torch.uint8),
        level_BS=torch.from_numpy(levels_at(np.arange(source.codes_BS.numel()))).view(source.codes_BS.shape),
    )
    assert source.soft_BS is not None
    assert source.level_BS is not None
    view = make_view(source, name="v", operations=ALL, reverse_complement=0.5)
    found = letter_weights(view, source, soft_weight=soft, track_floor=floor)
    assert found.dtype == torch.float32
    for row, places in enumerate(view.source_BL.tolist()):
        for at, place in enumerate(places):
            wanted = 1.0
            if place >= 0:
                wanted = floor + (1 - floor) * int(source.level_BS[row, place]) / 15
                wanted *= soft if source.soft_BS[row, place] else 1
            assert float(found[row, at]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert found[view.source_BL < 0].eq(1).all()


def test_weights_need_the_soft_mask_and_the_track() -> None:
    source = windows()
    with pytest.raises(AssertionError, match="read without their track; open the reader with track"):
        letter_weights(make_view(source, name="v", operations={}), source, soft_weight=1, track_floor=0.5)
    with pytest.raises(AssertionError, match="read without their soft mask; open the reader with soft"):
        letter_weights(make_view(source, name="v", operations={}), source, soft_weight=0.5)
