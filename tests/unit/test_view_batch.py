"""What a step shows: directions, masks and noise of their own, crops in order, letters aligned and
weighed."""

import dataclasses
import operator
from typing import Any

import pytest
import torch

from data_prep import alphabet
from tests.unit.test_views import ALL, windows
from trainer.data.locus import loci
from trainer.data.windows import Windows
from trainer.losses.config import loss_section
from trainer.views.alignment import align, letter_weights
from trainer.views.config import Views
from trainer.views.crops import local_windows
from trainer.views.masking import input_noise, mask
from trainer.views.view import PADDED, View, make_view
from trainer.views.view_batch import (
    ViewBatch,
    ViewPair,
    lengths,
    make_view_batch,
    make_view_pairs,
)

STUDENT: dict[str, Any] = {
    "operations": {"shift": 3},
    "substitution": 0.05,
    "reverse_complement": 0.5,
    "noise": 0.2,
}
TEACHER: dict[str, Any] = {"operations": ALL, "reverse_complement": 0.5}
CROPS = {"number": 3, "length": 40, "operations": {"deletion": 5}, "reverse_complement": 0.5}
ALL_LOSSES = {"mlm": {"soft_weight": 0.25}, "patch": {"weight": 1, "pairs": 6}, "contrastive": {"weight": 1}}


def soft(rows: int = 16) -> Windows:
    source = windows(rows, letters=5)
    return dataclasses.replace(source, soft_BS=(source.codes_BS % 2).to(torch.uint8))


def short(source: Windows, high: int) -> Windows:
    """Sequence from the window's first letter up to ``high`` alone, as of a block that is shorter than a
    window."""
    codes_BS = source.codes_BS.clone()
    codes_BS[:, : source.flank] = codes_BS[:, high:] = alphabet.PAD
    return dataclasses.replace(
        source,
        codes_BS=codes_BS,
        low_B=torch.full_like(source.low_B, source.flank),
        high_B=torch.full_like(source.high_B, high),
    )


def views(**changes: Any) -> Views:
    return Views.model_validate({"student": STUDENT, "teacher": TEACHER} | changes)


def expected_view(source: Windows, name: str, keys: dict[str, Any]) -> View:
    return make_view(
        source,
        name=name,
        operations=keys["operations"],
        substitution=keys.get("substitution", 0.0),
        reverse_complement=keys["reverse_complement"],
    )


def same(one: Any, two: Any) -> None:
    """Equal tensor by tensor, through dataclasses and lists."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, list):
        for pair in zip(one, two, strict=True):
            same(*pair)
    else:
        assert one == two


def check_student(pair: ViewPair, source: Windows, name: str) -> None:
    same(pair.masked, mask(pair.student, source, name=name, rate=0.3, mask_share=0.8, random_share=0.1))
    assert pair.noise_BLC is not None
    same(pair.noise_BLC, input_noise(pair.student, source, name=name, std=0.2))


def test_one_direction_is_the_student_s_view_against_the_teacher_s() -> None:
    source = windows(16)
    (pair,) = make_view_pairs(source, views())
    same(pair.student, expected_view(source, "student", STUDENT))
    same(pair.teacher, expected_view(source, "teacher", TEACHER))
    check_student(pair, source, "student")
    assert pair.name == "student"


def test_two_directions_change_views_with_masks_and_noise_of_their_own() -> None:
    source = windows(16)
    first, second = make_view_pairs(source, views(symmetric=True))
    same(first, make_view_pairs(source, views())[0])
    same(second.student, first.teacher)
    same(second.teacher, first.student)
    check_student(second, source, "teacher")
    assert first.noise_BLC is not None and second.noise_BLC is not None
    assert not torch.equal(first.noise_BLC, second.noise_BLC)
    plain = views(symmetric=True, student={}, teacher={})  # the same letters: only the draws can differ
    one, two = make_view_pairs(source, plain)
    same(one.student.codes_BL, two.student.codes_BL)
    both = (one.masked.target_BL & two.masked.target_BL).double().mean()
    assert abs(float(both) - 0.09) < 0.02, "masks of the two directions are drawn apart"


def test_no_noise_is_no_tensor() -> None:
    assert make_view_pairs(windows(4), views(student={}))[0].noise_BLC is None
    (pair,) = make_view_pairs(short(windows(4), 130), views())
    assert pair.noise_BLC is not None
    assert (pair.noise_BLC[pair.student.source_BL == PADDED] == 0).all()


def test_the_masking_is_the_config_s() -> None:
    masking = {"rate": 0.6, "mask_share": 0.0, "random_share": 0.0}
    (pair,) = make_view_pairs(windows(64), views(student={}, masking=masking))
    assert torch.equal(pair.masked.codes_BL, pair.student.codes_BL), "every letter asked for is kept"
    assert abs(float(pair.masked.target_BL.double().mean()) - 0.6) < 0.02


def prepared(loss: dict[str, Any], source: Windows) -> dict[str, Any]:
    """What the losses in use make of a micro-batch of both directions, by name."""
    batch = make_view_batch(source, views(symmetric=True))
    return {term.name: term.prepare(source, batch) for term in loss_section(loss).terms()}


def test_letters_are_aligned_and_weighed_for_the_losses_that_ask() -> None:
    source = soft()
    found = prepared(ALL_LOSSES, source)
    for d, pair in enumerate(make_view_pairs(source, views(symmetric=True))):
        weight_BL, aligned = found["mlm"][d], found["patch"][d]
        same(weight_BL, letter_weights(pair.student, source, soft_weight=0.25))
        assert {0.25, 1.0} == set(weight_BL.unique().tolist())
        name = ("student", "teacher")[d]
        same(aligned, align(pair.student, pair.masked, pair.teacher, source, name=name, pairs=6))
        assert aligned.valid_BN.any()
    same(found["contrastive"], loci(source))


@pytest.mark.parametrize(
    ("loss", "made"),
    [
        ({}, set()),
        ({"mlm": {"soft_weight": 0.5}}, {"mlm"}),
        ({"mlm": {"soft_weight": 0.5, "weight": 0}}, set()),
        ({"mlm": {"soft_weight": 1}, "patch": {"weight": 0.1}}, {"patch"}),
        ({"contrastive": {"weight": 0.1}}, {"contrastive"}),
        ({"contrastive": {"weight": 0.1, "mask_same_place": False}}, set()),
        ({"contrastive": {"mask_same_place": True}, "koleo": {"weight": 1}}, set()),
    ],
)
def test_nothing_is_made_that_no_loss_in_use_asks_for(loss: dict[str, Any], made: set[str]) -> None:
    found = prepared(loss, soft(4))
    assert {name for name, extra in found.items() if extra not in (None, [None, None])} == made
    batch = make_view_batch(windows(4), views())
    assert batch.crops_XL is batch.crop_length_X is None


def test_soft_weights_need_windows_with_their_soft_mask() -> None:
    with pytest.raises(AssertionError, match="read without their soft mask; open the reader with soft"):
        prepared(ALL_LOSSES, windows(2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_crops_come_one_after_the_other_each_of_all_rows(symmetric: bool) -> None:
    source = windows(8)
    batch = make_view_batch(source, views(crops=CROPS, symmetric=symmetric))
    assert batch.crops_XL is not None and batch.crops_XL.shape == (24, 40)
    assert batch.crop_length_X is None, "no crop has padding"
    for number in range(3):
        name = f"crop {number}"
        view = expected_view(local_windows(source, name=name, length=40), name, CROPS)
        assert torch.equal(batch.crops_XL[8 * number : 8 * number + 8], view.codes_BL)
    assert not torch.equal(batch.crops_XL[:8], batch.crops_XL[8:16])
    assert len(batch.pairs) == 1 + symmetric, "crops are the same for both directions"


def test_crops_of_short_windows_say_how_long_they_are() -> None:
    source = windows(8)
    high = source.flank + 25  # less than a crop
    batch = make_view_batch(short(source, high), views(crops=CROPS | {"operations": {}}))
    assert batch.crops_XL is not None and batch.crop_length_X is not None
    assert batch.crop_length_X.tolist() == [25] * 24
    assert (batch.crops_XL[:, 25:] == alphabet.PAD).all()
    assert (batch.crops_XL[:, :25] != alphabet.PAD).all()


def test_rows_read_the_same_in_any_micro_batch() -> None:
    source = soft(12)
    config = views(symmetric=True, crops=CROPS)
    whole = make_view_batch(source, config)
    parts = [
        make_view_batch(source.each(operator.itemgetter(slice(i, i + 4))), config) for i in range(0, 12, 4)
    ]

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        if isinstance(values[0], list):
            return [joined(list(column)) for column in zip(*values, strict=True)]
        if dataclasses.is_dataclass(values[0]):
            names = [field.name for field in dataclasses.fields(values[0])]
            return type(values[0])(
                **{name: joined([getattr(value, name) for value in values]) for name in names}
            )
        return values[0]

    same(joined([part.pairs for part in parts]), whole.pairs)
    by_crop = [part.crops_XL.unflatten(0, (3, 4)) for part in parts if part.crops_XL is not None]
    assert whole.crops_XL is not None and torch.equal(torch.cat(by_crop, 1).flatten(0, 1), whole.crops_XL)
    assert isinstance(whole, ViewBatch)


def test_full_rows_have_no_lengths() -> None:
    source = windows(4)
    full = make_view(source, name="v", operations={})
    assert lengths(full) is None
    cut = make_view(short(source, 150), name="v", operations={})
    assert torch.equal(lengths(cut), torch.full((4,), 90))
    assert torch.equal(lengths(full, cut), torch.cat([full.length_B, cut.length_B]))
