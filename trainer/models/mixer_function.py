"""A mixer layer as one function with its own backward, by the kernels of mixer_kernels.py.

Beside its input it keeps only what expand gave, before the activation: 2 · (X + Y) bytes a position in bf16,
where the plain layer keeps the activation and the rotated update too.

Shapes: B circles, T positions, N = B·T, D hidden, X ≥ D with padding, H intermediate, Y ≥ H with padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.models import mixer_kernels as kernels
from trainer.models.mixer_rotation import Rotation

Options = Mapping[str, int]


@dataclass(frozen=True)
class Tiling:
    """How each kernel is cut into programs: sizes of a tile BM × BN and of a step BK along the sum, warps,
    stages of its pipeline; and how many programs add up the weights' gradients of slices of the rows."""

    expand: Options = field(default_factory=lambda: _options(128, 128, 64, 8, 3))
    contract: Options = field(default_factory=lambda: _options(128, 64, 64, 4, 4))
    slope: Options = field(default_factory=lambda: _options(128, 128, 64, 8, 3))
    restore: Options = field(default_factory=lambda: _options(128, 64, 64, 4, 4))
    grad_first: Options = field(default_factory=lambda: _options(128, 64, 64, 4, 4))
    grad_second: Options = field(default_factory=lambda: _options(64, 128, 64, 4, 4))
    programs: int = 264


def _options(rows: int, columns: int, depth: int, warps: int, stages: int) -> dict[str, int]:
    return {"BM": rows, "BN": columns, "BK": depth, "num_warps": warps, "num_stages": stages}


TILING = Tiling()


def padded(columns: int) -> int:
    """The columns that a row of so many takes."""
    return -(-columns // kernels.MULTIPLE) * kernels.MULTIPLE


def mixer_layer(
    x_BTX: Tensor,
    h_BTX: Tensor | None,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    rotation: Rotation,
    *,
    tiling: Tiling = TILING,
) -> Tensor:
    """x + rotate(contract(gelu(expand(h)))), [B, T, X], zeros in the padding.

    Args:
        x_BTX: fp32, fp16 or bf16, contiguous, with zeros from column D on.
        h_BTX: x after a norm, with zeros there too; None: x itself.
        weights: W₁ [H, D], b₁ [H], W₂ [D, H], b₂ [D], in the dtype of x.

    Raises:
        ValueError: there are more entries than int32 can number.
    """
    layer: Tensor = _MixerLayer.apply(x_BTX, h_BTX, *weights, rotation, tiling)
    return layer


class _MixerLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTX: Tensor,
        h_BTX: Tensor | None,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        rotation: Rotation,
        tiling: Tiling,
    ) -> Tensor:
        launch = _Launch(x_BTX, w1, rotation, tiling)
        h = x_BTX if h_BTX is None else h_BTX
        keep = any(ctx.needs_input_grad)
        s, a = launch.expand(h, w1, b1, keep=keep)
        out = launch.contract(a, w2, b2, x_BTX)
        if keep:
            ctx.save_for_backward(h, s, w1, w2)
            ctx.launch, ctx.is_same = launch, h_BTX is None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        h, s, w1, w2 = ctx.saved_tensors
        dy, launch = grads[0].contiguous(), ctx.launch
        ds, a = launch.slope(dy, w2, s)
        dw2, db2 = launch.grad_second(dy, a)
        dh = launch.restore(ds, w1, dy, add=ctx.is_same)
        dw1, db1 = launch.grad_first(ds, h)
        kind = w1.dtype
        grads_of_weights = (dw1.to(kind), db1.to(kind), dw2.to(kind), db2.to(kind))
        return (dh, None, *grads_of_weights, None, None) if ctx.is_same else (dy, dh, *grads_of_weights, None, None)


class _Launch:
    """The kernels for tensors of one shape."""

    def __init__(self, x_BTX: Tensor, w1: Tensor, rotation: Rotation, tiling: Tiling) -> None:
        self.N, self.T = x_BTX.shape[0] * x_BTX.shape[1], rotation.positions
        (self.H, self.D), self.X, self.Y = w1.shape, x_BTX.shape[2], padded(w1.shape[0])
        self.C, self.circle, self.tiling = rotation.group_channels, rotation.circle_B, tiling
        if self.N * max(self.X, self.Y) >= 1 << 31:
            raise ValueError(
                f"{self.N} positions of {max(self.X, self.Y)} columns are more entries than a kernel can number; "
                "set a smaller train.micro_batch"
            )

    def expand(self, h: Tensor, w1: Tensor, b1: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        a = h.new_empty(self.N, self.Y)
        s = torch.empty_like(a) if keep else a
        o = self.tiling.expand
        kernels.expand[self._grid(o, self.Y)](
            h, w1, b1, s, a, self.N, X=self.X, Y=self.Y, D=self.D, H=self.H, KEEP=keep, **o
        )
        return s, a

    def contract(self, a: Tensor, w2: Tensor, b2: Tensor, x_BTX: Tensor) -> Tensor:
        out, o = torch.empty_like(x_BTX), self.tiling.contract
        kernels.contract[self._grid(o, self.X)](
            a, w2, b2, x_BTX, out, self._circle(x_BTX), self.N, self.T, **self._rotated(), **o
        )
        return out

    def slope(self, dy: Tensor, w2: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        ds, a, o = torch.empty_like(s), torch.empty_like(s), self.tiling.slope
        kernels.slope[self._grid(o, self.Y)](
            dy, w2, s, ds, a, self._circle(dy), self.N, self.T, **self._rotated(), **o
        )
        return ds, a

    def restore(self, ds: Tensor, w1: Tensor, dy: Tensor, *, add: bool) -> Tensor:
        dh, o = torch.empty_like(dy), self.tiling.restore
        kernels.restore[self._grid(o, self.X)](
            ds, w1, dy, dh, self.N, X=self.X, Y=self.Y, D=self.D, H=self.H, ADD=add, **o
        )
        return dh

    def grad_first(self, ds: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        o = self.tiling.grad_first
        tiles, slices, rows = self._slices(o, self.H, self.X)
        dw, db = self._partial(ds, slices, self.H, self.D)
        kernels.grad_first[tiles, slices](
            ds, h, dw, db, self.N, rows, X=self.X, Y=self.Y, D=self.D, H=self.H, **o
        )
        return dw.sum(0), db.sum(0)

    def grad_second(self, dy: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        o = self.tiling.grad_second
        tiles, slices, rows = self._slices(o, self.D, self.Y)
        dw, db = self._partial(a, slices, self.D, self.H)
        kernels.grad_second[tiles, slices](
            dy, a, dw, db, self._circle(dy), self.N, self.T, rows, **self._rotated(), **o
        )
        return dw.sum(0), db.sum(0)

    def _circle(self, like: Tensor) -> Tensor:
        return like if self.circle is None else self.circle  # not read where all circles are whole

    def _rotated(self) -> dict[str, Any]:
        sizes = {"X": self.X, "Y": self.Y, "D": self.D, "H": self.H, "C": self.C}
        return sizes | {"RAGGED": self.circle is not None}

    def _grid(self, options: Options, columns: int) -> tuple[int]:
        return (_tiles(self.N, options["BM"]) * _tiles(columns, options["BN"]),)

    def _slices(self, options: Options, rows: int, columns: int) -> tuple[int, int, int]:
        """(tiles of the gradient, slices of the N rows, rows of a slice)."""
        tiles = _tiles(rows, options["BM"]) * _tiles(columns, options["BN"])
        wanted = max(1, self.tiling.programs // tiles)
        each = _tiles(_tiles(self.N, wanted), options["BK"]) * options["BK"]
        return tiles, _tiles(self.N, each), each

    def _partial(self, like: Tensor, slices: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        return (
            like.new_empty(slices, rows, columns, dtype=torch.float32),
            like.new_empty(slices, rows, dtype=torch.float32),
        )


def _tiles(whole: int, part: int) -> int:
    return -(-whole // part)
