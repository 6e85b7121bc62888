"""Views: augmented readings of a source window, each with a source map along which labels and masks ride.

A source window is a stretch of the genome with a flank on both sides, so that deletions and shifts bring in real
neighbours. A view is computed as one index map: each operation of VIEWS maps positions of its output to positions of
its input, the maps are composed from the last operation to the first, and the letters are gathered once.

Shapes: B samples, S = L + 2·flank source positions, L view positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep import alphabet
from trainer import counter

INSERTED, PADDED = -1, -2
_COMPLEMENT = torch.from_numpy(alphabet.COMPLEMENT)


@dataclass(frozen=True)
class Windows:
    """Source windows. Only [low, high) of a row is sequence; the rest lies beyond the block and is never read."""

    codes_BS: Tensor  # uint8
    low_B: Tensor  # int64
    high_B: Tensor  # int64
    key_B: Tensor  # int64, see counter.fold
    flank: int

    @property
    def length(self) -> int:
        return self.codes_BS.shape[1] - 2 * self.flank

    def to(self, device: torch.device) -> "Windows":
        tensors = (self.codes_BS, self.low_B, self.high_B, self.key_B)
        codes, low, high, key = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Windows(codes, low, high, key, self.flank)


@dataclass(frozen=True)
class View:
    """Letters of one view and where each comes from.

    ``source_BL`` is the position in the source window, or INSERTED, or PADDED (only at the end, after ``length_B``).
    On a reversed row, a letter is the complement of its source. ``altered_BL``: the letter is not its source's.
    """

    codes_BL: Tensor  # uint8
    source_BL: Tensor  # int32
    altered_BL: Tensor  # bool
    reversed_B: Tensor  # bool
    length_B: Tensor  # int64


@dataclass(frozen=True)
class Masked:
    """What a student reads, and what it is asked: ``target_BL`` says where, ``labels_BL`` (codes 0-3 there) what."""

    codes_BL: Tensor  # uint8
    labels_BL: Tensor  # uint8
    target_BL: Tensor  # bool


Positions = tuple[Tensor, Tensor]  # position int32 [B, L] in the operation's input; inserted bool [B, L]


def deletion(position_BL: Tensor, key_B: Tensor, limit: int, length: int) -> Positions:
    """Positions before 0 … ``limit`` letters are cut out at a random place; those behind them move up."""
    place_B1, count_B1 = _place_and_count(key_B, "deletion", limit, length)
    return position_BL + torch.where(position_BL >= place_B1, count_B1, 0), _nowhere(position_BL)


def insertion(position_BL: Tensor, key_B: Tensor, limit: int, length: int) -> Positions:
    """Positions before 0 … ``limit`` random letters are put in at a random place; those behind them move down."""
    place_B1, count_B1 = _place_and_count(key_B, "insertion", limit, length)
    inserted_BL = (position_BL >= place_B1) & (position_BL < place_B1 + count_B1)
    return position_BL - torch.where(position_BL >= place_B1 + count_B1, count_B1, 0), inserted_BL


def shift(position_BL: Tensor, key_B: Tensor, limit: int, length: int) -> Positions:
    """Positions before the window moves by -``limit`` … ``limit`` along the genome: a translocation, not a roll."""
    by_B = counter.integers(key_B, "shift", 2 * limit + 1) - limit
    return position_BL + by_B[:, None].int(), _nowhere(position_BL)


VIEWS: dict[str, Callable[[Tensor, Tensor, int, int], Positions]] = {
    "deletion": deletion,
    "insertion": insertion,
    "shift": shift,
}


def make_view(
    windows: Windows,
    *,
    name: str,
    operations: Mapping[str, int],
    substitution: float = 0.0,
    reverse_complement: float = 0.0,
) -> View:
    """The view ``name`` of each window: ``operations`` (of VIEWS: limit in bp) in their order, then the other two.

    Args:
        name: makes the draws of two views of one sample independent.
        substitution: probability that a letter becomes another one (never N).
        reverse_complement: probability that the row is read from the other strand.
    """
    length = windows.length
    key_B = counter.fold(windows.key_B, *name.encode())
    position_BL = torch.arange(length, dtype=torch.int32, device=key_B.device).expand(len(key_B), length)
    inserted_BL = torch.zeros_like(position_BL, dtype=torch.bool)
    for operation, limit in reversed(list(operations.items())):
        position_BL, new_BL = VIEWS[operation](position_BL, key_B, limit, length)
        inserted_BL = inserted_BL | new_BL
    source_BL, length_B = _into_window(position_BL + windows.flank, inserted_BL, windows)

    draws_BL = counter.words(key_B, "letters", length)
    codes_BL = windows.codes_BS.gather(1, source_BL.clamp(min=0).long())
    codes_BL = torch.where(source_BL == INSERTED, counter.field(draws_BL, 0, 2).byte(), codes_BL)
    altered_BL = (source_BL >= 0) & (codes_BL < alphabet.BASES) & counter.below(draws_BL, 8, substitution)
    other_BL = (codes_BL + 1 + (counter.field(draws_BL, 32, 16) * 3 >> 16).byte()) % alphabet.BASES
    codes_BL = torch.where(altered_BL, other_BL, codes_BL)
    codes_BL = torch.where(source_BL == PADDED, alphabet.PAD, codes_BL)

    reversed_B = counter.below(counter.words(key_B, "strand", 1)[:, 0], 0, reverse_complement)
    return _reverse(View(codes_BL, source_BL, altered_BL, reversed_B, length_B))


def mask(view: View, windows: Windows, *, name: str, rate: float, mask_share: float, random_share: float) -> Masked:
    """The view with ``rate`` of its predictable letters asked for: of these, shares become MASK, random, or stay.

    Predictable is a letter A, C, G or T that is its source's: no N, no inserted and no substituted letter is a target.
    Devlin et al. 2019 (BERT); the mask is drawn after the view, on its own positions.
    """
    draws_BL = counter.words(counter.fold(windows.key_B, *name.encode()), "mask", view.codes_BL.shape[1])
    predictable_BL = (view.source_BL >= 0) & ~view.altered_BL & (view.codes_BL < alphabet.BASES)
    target_BL = predictable_BL & counter.below(draws_BL, 0, rate)
    hide_BL = target_BL & counter.below(draws_BL, 24, mask_share)
    replace_BL = target_BL & ~hide_BL & counter.below(draws_BL, 24, mask_share + random_share)
    codes_BL = torch.where(replace_BL, counter.field(draws_BL, 48, 2).byte(), view.codes_BL)
    codes_BL = torch.where(hide_BL, alphabet.MASK, codes_BL)
    return Masked(codes_BL, view.codes_BL, target_BL)


def input_noise(view: View, windows: Windows, *, name: str, std: float) -> Tensor:
    """float32 [B, L, 4], normal with ``std``, for the A, C, G, T channels of the one-hot input; 0 at padding."""
    length = view.codes_BL.shape[1]
    noise_BLC = counter.normals(counter.fold(windows.key_B, *name.encode()), "noise", length * alphabet.BASES)
    real_BL = view.source_BL != PADDED
    return noise_BLC.view(-1, length, alphabet.BASES) * std * real_BL[..., None]


def flank_for(*operations: Mapping[str, int]) -> int:
    """The flank in bp that the widest of these operation lists can reach into."""
    return max((sum(limits.values()) for limits in operations), default=0)


def _nowhere(position_BL: Tensor) -> Tensor:
    return torch.zeros_like(position_BL, dtype=torch.bool)


def _place_and_count(key_B: Tensor, stream: str, limit: int, length: int) -> tuple[Tensor, Tensor]:
    place_B = counter.integers(key_B, f"{stream} place", length)
    count_B = counter.integers(key_B, f"{stream} count", limit + 1)
    return place_B[:, None].int(), count_B[:, None].int()


def _into_window(source_BL: Tensor, inserted_BL: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Source map inside [low, high): a map that sticks out is moved back, what still does not fit is padding."""
    low_B1, high_B1 = windows.low_B[:, None].int(), windows.high_B[:, None].int()
    far = torch.iinfo(torch.int32).max
    last_B1 = source_BL.masked_fill(inserted_BL, -far).amax(1, keepdim=True)
    source_BL = source_BL - (last_B1 - high_B1 + 1).clamp(min=0)
    first_B1 = source_BL.masked_fill(inserted_BL, far).amin(1, keepdim=True)
    source_BL = source_BL + (low_B1 - first_B1).clamp(min=0)
    beyond_BL = (~inserted_BL & (source_BL >= high_B1)).int().cummax(1).values.bool()
    source_BL = source_BL.masked_fill(inserted_BL, INSERTED).masked_fill(beyond_BL, PADDED)
    return source_BL, (~beyond_BL).sum(1)


def _reverse(view: View) -> View:
    """``view`` with its reversed rows read backwards and complemented; padding stays at the end."""
    place_L = torch.arange(view.codes_BL.shape[1], device=view.codes_BL.device)
    mirror_BL = view.length_B[:, None] - 1 - place_L
    turn_BL = view.reversed_B[:, None] & (mirror_BL >= 0)
    order_BL = torch.where(turn_BL, mirror_BL, place_L)
    codes_BL = view.codes_BL.gather(1, order_BL)
    complement_BL = _COMPLEMENT.to(codes_BL.device)[codes_BL.int()]
    return View(
        codes_BL=torch.where(turn_BL, complement_BL, codes_BL),
        source_BL=view.source_BL.gather(1, order_BL),
        altered_BL=view.altered_BL.gather(1, order_BL),
        reversed_B=view.reversed_B,
        length_B=view.length_B,
    )
