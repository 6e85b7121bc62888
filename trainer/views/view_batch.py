"""What a step shows: for every window the student's masked view, the teacher's view, and local crops.

Shapes: B rows of a micro-batch, X rows of its crops (crop by crop), L letters, N pairs of letters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.locus import Loci, loci
from trainer.data.windows import Windows
from trainer.losses.config import Loss
from trainer.views.alignment import Aligned, align, letter_weights
from trainer.views.config import ViewConfig, Views
from trainer.views.crops import local_windows
from trainer.views.masking import Masked, input_noise, mask
from trainer.views.view import View, make_view


@dataclass(frozen=True)
class Pair:
    """One direction: the student's masked view with its noise, and the teacher's view of the same rows."""

    student: View
    masked: Masked
    noise_BLC: Tensor | None
    teacher: View
    weight_BL: Tensor | None  # of each letter in the masked loss; None: 1
    aligned: Aligned | None  # letters for the patch loss


@dataclass(frozen=True)
class Shown:
    """One micro-batch: a pair for each direction, all crops of its rows one after the other, and where the
    rows lie."""

    pairs: list[Pair]
    crops_XL: Tensor | None
    crop_length_X: Tensor | None  # None where no crop has padding
    loci: Loci | None


def show(windows: Windows, views: Views, loss: Loss) -> Shown:
    """The views of ``windows`` that the losses in use need."""
    crops_XL, crop_length_X = _crops(windows, views)
    wanted = loss.contrastive.weight and loss.contrastive.mask_same_place
    return Shown(make_pairs(windows, views, loss), crops_XL, crop_length_X, loci(windows) if wanted else None)


def make_pairs(windows: Windows, views: Views, loss: Loss | None = None) -> list[Pair]:
    """One pair, or with ``symmetric`` two, in which the networks change views; with what ``loss`` asks of
    letters."""
    first, second = (_view(windows, "student", views.student), _view(windows, "teacher", views.teacher))

    def pair(student: View, teacher: View, name: str) -> Pair:
        std, masking = views.student.noise, views.masking
        masked = mask(
            student,
            windows,
            name=name,
            rate=masking.rate,
            mask_share=masking.mask_share,
            random_share=masking.random_share,
        )
        weight_BL = aligned = None
        if loss and loss.needs_soft_mask:
            weight_BL = letter_weights(student, windows, soft_weight=loss.mlm.soft_weight)
        if loss and loss.patch.weight:
            aligned = align(student, masked, teacher, windows, name=name, pairs=loss.patch.pairs)
        return Pair(
            student,
            masked,
            input_noise(student, windows, name=name, std=std) if std else None,
            teacher,
            weight_BL,
            aligned,
        )

    pairs = [pair(first, second, "student")]
    if views.symmetric:
        pairs.append(pair(second, first, "teacher"))
    return pairs


def lengths(view: View) -> Tensor | None:
    """The view's lengths where any row has padding, else None (the faster path of the backbone)."""
    return ragged(view.length_B, view.codes_BL)


def ragged(length_B: Tensor, codes_BL: Tensor) -> Tensor | None:
    """``length_B``, or None if every row is full."""
    return None if bool((length_B == codes_BL.shape[1]).all()) else length_B


def _view(windows: Windows, name: str, view: ViewConfig) -> View:
    return make_view(
        windows,
        name=name,
        operations=view.operations,
        substitution=view.substitution,
        reverse_complement=view.reverse_complement,
    )


def _crops(windows: Windows, views: Views) -> tuple[Tensor | None, Tensor | None]:
    names = [f"crop {number}" for number in range(views.crops.number)]
    if not names:
        return None, None
    shown = [
        _view(local_windows(windows, name=name, length=views.crops.length), name, views.crops)
        for name in names
    ]
    crops_XL = torch.cat([view.codes_BL for view in shown])
    return crops_XL, ragged(torch.cat([view.length_B for view in shown]), crops_XL)
