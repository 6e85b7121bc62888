"""What a step reads: for every window the student's masked view, the teacher's view, and local crops.

Shapes: B rows of a micro-batch, X rows of its crops (crop by crop), L letters.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from trainer.data.windows import Windows
from trainer.views.config import ViewConfig, Views
from trainer.views.crops import local_windows
from trainer.views.masking import Masked, input_noise, mask
from trainer.views.view import INSERTED, View, make_view


@dataclass(frozen=True)
class ViewPair:
    """One direction: the student's masked view with its noise, and the teacher's view of the same rows."""

    name: str  # of the stream that the mask is drawn from, for whatever else is drawn for this direction
    student: View
    masked: Masked
    noise_BLC: Tensor | None
    teacher: View


@dataclass(frozen=True)
class ViewBatch:
    """One micro-batch: a pair for each direction, and all crops of its rows one after the other."""

    pairs: list[ViewPair]
    crops_XL: Tensor | None
    crop_length_X: Tensor | None  # None where no crop has padding

    @property
    def rows(self) -> int:
        """B, of one direction."""
        return len(self.pairs[0].masked.codes_BL)


def make_view_batch(windows: Windows, views: Views) -> ViewBatch:
    crops_XL, crop_length_X = _crops(windows, views)
    return ViewBatch(make_view_pairs(windows, views), crops_XL, crop_length_X)


def make_view_pairs(windows: Windows, views: Views) -> list[ViewPair]:
    """One pair, or with ``symmetric`` two, in which the networks change views.

    Where windows have partners, the teacher reads these, and the student the windows, in both pairs.
    """
    own = cache(lambda name: _view(windows, name, getattr(views, name)))
    taught = own if windows.partner is None else lambda name: _view_of_partners(windows, name, views)

    def pair(student: View, teacher: View, name: str) -> ViewPair:
        std, masking = views.student.noise, views.masking
        masked = mask(
            student,
            windows,
            name=name,
            rate=masking.rate,
            mask_share=masking.mask_share,
            random_share=masking.random_share,
        )
        noise_BLC = input_noise(student, windows, name=name, std=std) if std else None
        return ViewPair(name, student, masked, noise_BLC, teacher)

    pairs = [pair(own("student"), taught("teacher"), "student")]
    if views.symmetric:
        pairs.append(pair(own("teacher"), taught("student"), "teacher"))
    return pairs


def lengths(*views: View) -> Tensor | None:
    """The lengths of the views' rows, view after view, where any row has padding, else None (the faster path
    of the backbone)."""
    return None if all(view.is_full for view in views) else torch.cat([view.length_B for view in views])


def _view(windows: Windows, name: str, view: ViewConfig) -> View:
    return make_view(
        windows,
        name=name,
        operations=view.operations,
        substitution=view.substitution,
        reverse_complement=view.reverse_complement,
    )


def _view_of_partners(windows: Windows, name: str, views: Views) -> View:
    """The view ``name`` of the windows' partners. The letters of another window have no source in the row's
    own: they are as INSERTED."""
    assert windows.partner is not None, "these windows have no partners"
    view = _view(windows.partner, name, getattr(views, name))
    is_other_B = (windows.partner.place_B3 != windows.place_B3).any(1).int()
    source_BL = view.source_BL * (1 - is_other_B[:, None]) + INSERTED * is_other_B[:, None]
    return replace(view, source_BL=source_BL)


def _crops(windows: Windows, views: Views) -> tuple[Tensor | None, Tensor | None]:
    names = [f"crop {number}" for number in range(views.crops.number)]
    if not names:
        return None, None
    views_of_crops = [
        _view(local_windows(windows, name=name, length=views.crops.length), name, views.crops)
        for name in names
    ]
    crops_XL = torch.cat([view.codes_BL for view in views_of_crops])
    return crops_XL, lengths(*views_of_crops)
