"""Masks and input noise of the student's views.

Shapes: B samples, L view positions, C = 4 letters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep import alphabet
from trainer.core import random
from trainer.data.windows import Windows
from trainer.views.view import PADDED, View, choose


@dataclass(frozen=True)
class Masked:
    """A masked view: what the student reads, and what it has to predict."""

    codes_BL: Tensor  # uint8, what it reads
    labels_BL: Tensor  # uint8, the letters of the view; 0-3 at targets
    target_BL: Tensor  # bool, where it predicts


def mask(
    view: View, windows: Windows, *, name: str, rate: float, mask_share: float, random_share: float
) -> Masked:
    """The view with ``rate`` of its predictable letters as targets (Devlin et al. 2019, BERT).

    The mask is drawn after the view, on the view's positions. No N, no inserted and no substituted letter is
    a target.

    Args:
        name: masks of different names draw independently of each other.
        rate: probability that a predictable letter is a target. This and the shares are exact to 2⁻¹⁵.
        mask_share: of the targets, how many become MASK.
        random_share: of the targets, how many become a uniformly drawn letter; the others stay.
    """
    words_Bn = random.words(windows.key_B, f"{name} mask", -(-windows.length // random.SHORTS))
    draws_BL = random.shorts(words_Bn)[:, : windows.length]
    shares = (1.0, min(1.0, mask_share + random_share), mask_share)
    asked, replaced, hidden = (4 * round(rate * share * (1 << 14)) for share in shares)
    predictable_BL = view.predictable_BL.view(torch.uint8)
    # The cuts are multiples of 4, so the two lowest bits of a draw between two of them are a uniform letter.
    new_BL = draws_BL.to(torch.uint8).bitwise_and_(3)
    new_BL = torch.maximum(new_BL, random.below_short(draws_BL, hidden).mul_(alphabet.MASK))
    codes_BL = choose(random.below_short(draws_BL, replaced).mul_(predictable_BL), new_BL, view.codes_BL)
    target_BL = random.below_short(draws_BL, asked).mul_(predictable_BL).view(torch.bool)
    return Masked(codes_BL, view.codes_BL, target_BL)


def input_noise(view: View, windows: Windows, *, name: str, std: float) -> Tensor:
    """float32 [B, L, 4], normal with ``std``, for the A, C, G, T channels of the one-hot input; 0 at
    padding."""
    length = view.codes_BL.shape[1]
    noise_BN = random.normals(windows.key_B, f"{name} noise", length * alphabet.BASES)
    return noise_BN.view(-1, length, alphabet.BASES).mul_(std).mul_((view.source_BL != PADDED)[..., None])
