"""What source maps carry from a window to its views, and from one view to another.

Weights of letters, from the soft mask and the track of the reference, and pairs of positions of two views
that read the same place of the genome, for a loss between letters. Both use the source maps, so that strands
and edits may differ.

Shapes: B samples, S source positions, L view positions, N pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep import alphabet
from data_prep.levels import MAX_LEVEL
from trainer.core import random
from trainer.data.windows import Windows
from trainer.views.masking import Masked
from trainer.views.view import View

_NEITHER = 2  # columns before source 0, which PADDED (-2) and INSERTED (-1) read


@dataclass(frozen=True)
class Aligned:
    """Positions of the student's view and of the teacher's that read the same place; 0 where there is no
    pair."""

    student_BN: Tensor  # int64
    teacher_BN: Tensor  # int64
    valid_BN: Tensor  # bool


def letter_weights(
    view: View, windows: Windows, *, soft_weight: float, track_floor: float | None = None
) -> Tensor:
    """float32 [B, L]: ``soft_weight`` where a letter's source is soft-masked, else 1, times ``track_floor`` +
    (1 - ``track_floor``) · w, w the weight that the track gives its source. 1 at new letters and padding.

    The windows must have been read with their soft mask, or with their track, where these are asked for: a
    ``soft_weight`` other than 1, a ``track_floor``.
    """
    if track_floor is None:
        return _soft_weights(view, windows, soft_weight)
    weight_BL = _track_weights(view, windows, track_floor)
    return weight_BL if soft_weight == 1 else weight_BL.mul_(_soft_weights(view, windows, soft_weight))


def _track_weights(view: View, windows: Windows, floor: float) -> Tensor:
    assert windows.level_BS is not None, (
        "these windows were read without their track; open the reader with track"
    )
    level_BL = _at_source(torch.nn.functional.pad(windows.level_BS, (_NEITHER, 0), value=MAX_LEVEL), view)
    # The highest level counts exactly 1: 1 minus a multiple of 0.
    return torch.mul(MAX_LEVEL - level_BL, (floor - 1) / MAX_LEVEL).add_(1)


def _soft_weights(view: View, windows: Windows, soft_weight: float) -> Tensor:
    assert windows.soft_BS is not None, (
        "these windows were read without their soft mask; open the reader with soft"
    )
    soft_BL = _at_source(torch.nn.functional.pad(windows.soft_BS, (_NEITHER, 0)), view)
    return soft_BL.float().mul_(soft_weight).add_(1 - soft_BL)


def align(
    student: View, masked: Masked, teacher: View, windows: Windows, *, name: str, pairs: int
) -> Aligned:
    """``pairs`` pairs a row, drawn uniformly from the positions that are hidden from the student and that the
    teacher's view reads.

    If a row has fewer, all of them are taken and the rest is not valid. Both views, and ``masked``, which is
    the student's, are of these windows.
    """
    rows, length = masked.codes_BL.shape
    device = masked.codes_BL.device
    place_L = torch.arange(length, dtype=torch.int32, device=device)
    teacher_B2S = torch.full(
        (rows, _NEITHER + windows.codes_BS.shape[1]), -1, dtype=torch.int32, device=device
    )
    teacher_B2S.scatter_(1, teacher.source_BL.long().add_(_NEITHER), place_L.expand(rows, -1))
    # No new letter and no padding is ever hidden, so what its two columns hold does not matter.
    teacher_BL = _at_source(teacher_B2S, student)

    # The pairs with the greatest draws. The position in its low bits makes each draw unique, so that the
    # result does not depend on the sorting algorithm; it is permuted by a draw of the row (exclusive or), so
    # that no position wins ties. Positions that may not be drawn are -1.
    place_bits = (length - 1).bit_length()
    words_Bn = random.words(windows.key_B, f"{name} pairs", -(-length // 2) + 1)
    turn_B1 = random.field(words_Bn[:, -1:], 0, place_bits).int()
    rank_BL = words_Bn.view(torch.int32)[:, :length].bitwise_and_((1 << 31) - (1 << place_bits))
    rank_BL |= place_L ^ turn_B1
    rank_BL |= teacher_BL >> 31
    hidden_BL = torch.eq(masked.codes_BL, alphabet.MASK, out=masked.codes_BL.new_empty(0))
    rank_BL |= hidden_BL.int().sub_(1)
    best_BN = rank_BL.topk(min(pairs, length), dim=1).values
    best_BN = torch.nn.functional.pad(best_BN, (0, pairs - best_BN.shape[1]), value=-1)
    valid_BN = best_BN >= 0
    student_BN = best_BN.bitwise_and_((1 << place_bits) - 1).bitwise_xor_(turn_B1).long().mul_(valid_BN)
    return Aligned(student_BN, teacher_BL.gather(1, student_BN).long().mul_(valid_BN), valid_BN)


def _at_source(of_B2S: Tensor, view: View) -> Tensor:
    """[B, L]: the entry of ``of`` at the source of each letter; ``of`` has ``_NEITHER`` columns in front.

    make_view has refused windows that are too large for int32, with which index_select is several times as
    fast as gather.
    """
    rows, width = of_B2S.shape
    first_B1 = torch.arange(
        _NEITHER, _NEITHER + rows * width, width, dtype=torch.int32, device=of_B2S.device
    )[:, None]
    return of_B2S.view(-1).index_select(0, (view.source_BL + first_B1).view(-1)).view(view.source_BL.shape)
