"""The rotation of a mixer: groups of channels, each turned by its own number of positions on a circle.

Group i reads the i-th of 0, 1, 2, 4, … positions further on. One read by index does it for all groups, and
one by the inverse index turns the gradient back, with the bits that rolls would give.

Shapes: B circles, T positions, D columns in K pieces of E channels.
"""

import math
from typing import Any

import torch
from torch import Tensor


def shifts_of(num_groups: int) -> list[int]:
    """0, 1, 2, 4, …: positions by which each group is turned."""
    return [(1 << group) >> 1 for group in range(num_groups)]


class Rotation:
    """Of hidden states [B, T, D] that are whole circles or padded behind them."""

    def __init__(
        self, x_BTD: Tensor, *, num_groups: int, group_channels: int, circle_B: Tensor | None = None
    ) -> None:
        """``circle_B``: int [B], positions of each circle; those behind stand still. None: all are whole.

        Columns behind those of the groups are padding, and stand still.
        """
        self.positions, self.group_channels = x_BTD.shape[1], group_channels
        self.circle_B = None if circle_B is None else circle_B.int()
        rows, positions, columns = x_BTD.shape
        # As many channels as divide both a group and a padded row are read at once.
        self.channels = math.gcd(group_channels, columns)
        self._pieces = columns // self.channels
        self._in_group, self._num_groups = group_channels // self.channels, num_groups
        self._first_B11 = (
            torch.arange(rows, device=x_BTD.device, dtype=torch.int32)[:, None, None] * positions
        )
        self._reads: Tensor | None = None  # torch.compile does not trace a cached_property
        self._read_by: Tensor | None = None

    @property
    def reads(self) -> Tensor:
        """int32 [B·T·K]: the piece that each piece reads."""
        if self._reads is None:
            self._reads = self._pieces_at(1)
        return self._reads

    @property
    def read_by(self) -> Tensor:
        """int32 [B·T·K]: the piece that each is read by."""
        if self._read_by is None:
            self._read_by = self._pieces_at(-1)
        return self._read_by

    def _pieces_at(self, sign: int) -> Tensor:
        device = self._first_B11.device
        piece_K = torch.arange(self._pieces, device=device, dtype=torch.int32)
        group_K = piece_K // self._in_group
        shift_K = ((1 << group_K) >> 1) * (group_K < self._num_groups)
        place_T1 = torch.arange(self.positions, device=device, dtype=torch.int32)[:, None]
        moved_TK = place_T1 + sign * shift_K
        if self.circle_B is None:
            place = moved_TK.remainder(self.positions)[None]
        else:
            circle_B11 = self.circle_B[:, None, None]
            place = torch.where(place_T1 < circle_B11, moved_TK.remainder(circle_B11), place_T1)
        return (self._first_B11 * self._pieces + (place * self._pieces + piece_K)).flatten()

    def __call__(self, update_BTD: Tensor) -> Tensor:
        """Each piece from where it is read."""
        back = self.read_by if torch.is_grad_enabled() else self.reads  # which then nobody reads
        rotated_BTD: Tensor = _Permute.apply(update_BTD, self.channels, self.reads, back)
        return rotated_BTD


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of_BTD: Tensor, channels: int, reads: Tensor, read_by: Tensor) -> Tensor:
        ctx.channels = channels
        ctx.save_for_backward(read_by)
        return _read(of_BTD, channels, reads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (read_by,) = ctx.saved_tensors
        return _read(grads[0], ctx.channels, read_by), None, None, None


def _read(of_BTD: Tensor, channels: int, index: Tensor) -> Tensor:
    return of_BTD.reshape(-1, channels).index_select(0, index).view(of_BTD.shape)
