"""A mixer layer as one function with its own backward, by the kernels of mixer_kernels.py.

Beside its input it keeps only what expand gave, before the activation: X + Y numbers a position, where the
plain layer keeps the activation and the rotated update too.

Shapes: B circles, T positions, N = B·T, D hidden, X ≥ D with padding, H intermediate, Y ≥ H with padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from trainer.models import mixer_kernels as kernels
from trainer.models.mixer_kernels import tiled
from trainer.models.mixer_rotation import Rotation

Options = Mapping[str, int]


def _options(rows: int, columns: int, depth: int, warps: int, stages: int) -> Options:
    return {"BM": rows, "BN": columns, "BK": depth, "num_warps": warps, "num_stages": stages}


@dataclass(frozen=True)
class Tiling:
    """How each kernel is cut into programs: tiles of BM × BN, steps of BK along the sum, warps, stages of the
    pipeline. The defaults are the fastest of a few dozen on an H200, for 308 and 512 columns."""

    expand: Options = field(default_factory=lambda: _options(128, 128, 64, 8, 3))
    contract: Options = field(default_factory=lambda: _options(128, 64, 64, 4, 3))
    unrotate: Options = field(default_factory=lambda: _options(64, 64, 0, 4, 1))
    slope: Options = field(default_factory=lambda: _options(128, 64, 64, 8, 3))
    restore: Options = field(default_factory=lambda: _options(128, 64, 64, 4, 3))


TILING = Tiling()
_TINY = Tiling(*[_options(32, 32, 16, 4, 2)] * 5)  # interpreted, a tile costs by its edges


def padded(columns: int) -> int:
    """The columns that a row of so many takes."""
    return _parts(columns, kernels.MULTIPLE) * kernels.MULTIPLE


def mixer_layer(
    x_BTX: Tensor, h_BTX: Tensor | None, weights: tuple[Tensor, Tensor, Tensor, Tensor], rotation: Rotation
) -> Tensor:
    """x + rotate(contract(gelu(expand(h)))), [B, T, X], zeros in the padding.

    Args:
        x_BTX: bf16 or fp16 (fp32 too where the kernels are interpreted), with zeros from column D on.
        h_BTX: x after a norm, with zeros there too; None: x itself.
        weights: W₁ [H, D], b₁ [H], W₂ [D, H], b₂ [D], in the dtype of x.

    Raises:
        ValueError: there are more entries than int32 can number.
    """
    learns = torch.is_grad_enabled()
    arguments = (x_BTX, h_BTX, *weights, rotation.circle_B, rotation.group_channels, learns)
    if torch.compiler.is_compiling():  # which traces the operator as one; called, it costs 50 µs more
        out_BTX: Tensor = _operator(*arguments)[0]
        return out_BTX
    layer: Tensor = _MixerLayer.apply(*arguments)
    return layer


def _forward(
    x_BTX: Tensor,
    h_BTX: Tensor | None,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    circle_B: Tensor | None,
    group_channels: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(out, S); S is empty unless ``keep``."""
    launch = _Launch(x_BTX, w1, circle_B, group_channels)
    x = _whole_lines(x_BTX).view(-1, launch.X)
    h = x if h_BTX is None else _whole_lines(h_BTX).view(-1, launch.X)
    s, a = launch.expand(h, _aligned(w1, launch.X), b1, keep=keep)
    out = launch.contract(a, _aligned(w2, launch.Y), b2, x)
    return out.view(x_BTX.shape), s if keep else x.new_empty(0)


def _backward(
    dy_BTX: Tensor,
    h_BTX: Tensor,
    s: Tensor,
    w1: Tensor,
    w2: Tensor,
    circle_B: Tensor | None,
    group_channels: int,
    add: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dh, dW₁, db₁, dW₂, db₂); ``add``: h is x, so that dy is a part of its gradient."""
    launch = _Launch(dy_BTX, w1, circle_B, group_channels)
    dy, h = (_whole_lines(rows).view(-1, launch.X) for rows in (dy_BTX, h_BTX))
    du, db2 = launch.unrotate(dy)
    ds, a, db1 = launch.slope(du, _aligned(w2, launch.Y), s)
    dw2 = (du.t() @ a)[: launch.D, : launch.H]
    dh = launch.restore(ds, _aligned(w1, launch.X), dy, add=add)
    dw1 = (ds.t() @ h)[: launch.H, : launch.D]
    kind = h.dtype
    return dh.view(h_BTX.shape), dw1.contiguous(), db1.to(kind), dw2.contiguous(), db2.to(kind)


class _MixerLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *others, learns = arguments
        keep = learns and any(ctx.needs_input_grad)
        out, s = _forward(*(*others, keep))
        _keep(ctx, arguments, (out, s))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _gradients(ctx, grads[0], _backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_BTX, h_BTX, w1, _, w2, _, circle_B, group_channels, *_ = inputs
    ctx.save_for_backward(x_BTX if h_BTX is None else h_BTX, output[1], w1, w2, circle_B)
    ctx.group_channels, ctx.is_same = group_channels, h_BTX is None


def _gradients(ctx: Any, dy_BTX: Tensor, backward: Any) -> tuple[Tensor | None, ...]:
    """Of every argument of ``_MixerLayer``."""
    h_BTX, s, w1, w2, circle_B = ctx.saved_tensors
    dh_BTX, *of_weights = backward(dy_BTX, h_BTX, s, w1, w2, circle_B, ctx.group_channels, ctx.is_same)
    first = (dh_BTX, None) if ctx.is_same else (dy_BTX, dh_BTX)
    return (*first, *of_weights, None, None, None)


_operator = library.custom_op("dna_distill::mixer_layer", _forward, mutates_args=())
_backward_operator = library.custom_op("dna_distill::mixer_layer_backward", _backward, mutates_args=())


@_operator.register_fake
def _(x_BTX, h_BTX, w1, b1, w2, b2, circle_B, group_channels, keep):  # type: ignore[no-untyped-def]
    positions = x_BTX.shape[0] * x_BTX.shape[1]
    s = x_BTX.new_empty(positions, padded(w1.shape[0])) if keep else x_BTX.new_empty(0)
    return torch.empty_like(x_BTX, memory_format=torch.contiguous_format), s


@_backward_operator.register_fake
def _(dy_BTX, h_BTX, s, w1, w2, circle_B, group_channels, add):  # type: ignore[no-untyped-def]
    dh_BTX = torch.empty_like(h_BTX, memory_format=torch.contiguous_format)
    hidden, intermediate = w2.shape
    of_weights = (
        torch.empty_like(w1),
        w1.new_empty(intermediate),
        torch.empty_like(w2),
        w2.new_empty(hidden),
    )
    return (dh_BTX, *of_weights)


_operator.register_autograd(
    lambda ctx, dy_BTX, _: _gradients(ctx, dy_BTX, _backward_operator), setup_context=_keep
)


class _Launch:
    """The kernels for tensors of one shape."""

    def __init__(self, x_BTX: Tensor, w1: Tensor, circle_B: Tensor | None, group_channels: int) -> None:
        rows, self.T, self.X = x_BTX.shape
        (self.H, self.D), self.N, self.Y = w1.shape, rows * self.T, padded(w1.shape[0])
        self.circle_B, self.fast = circle_B, not kernels.INTERPRETED
        self.tiling = TILING if self.fast else _TINY
        self.rotated = {"X": self.X, "D": self.D, "C": group_channels, "RAGGED": circle_B is not None}
        if self.N * max(self.X, self.Y) >= 1 << 31:
            raise ValueError(
                f"{self.N} positions of {max(self.X, self.Y)} columns are more entries than a kernel can "
                "number; set a smaller train.micro_batch"
            )

    def expand(self, h: Tensor, w1: Tensor, b1: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        """(S, or A where it is not kept; A)."""
        o = self.tiling.expand
        rows, columns, depth = o["BM"], o["BN"], o["BK"]
        a = h.new_empty(self.N, self.Y)
        s = torch.empty_like(a) if keep else a
        kernels.expand[self._programs(o, self.Y)](
            tiled(h, rows, depth),
            tiled(w1, columns, depth),
            b1,
            tiled(s, rows, columns),
            tiled(a, rows, columns),
            X=self.X,
            Y=self.Y,
            H=self.H,
            KEEP=keep,
            FAST=self.fast,
            **o,
        )
        return s, a

    def contract(self, a: Tensor, w2: Tensor, b2: Tensor, x: Tensor) -> Tensor:
        o, out = self.tiling.contract, torch.empty_like(x)
        kernels.contract[self._programs(o, self.X)](
            tiled(a, o["BM"], o["BK"]),
            tiled(w2, o["BN"], o["BK"]),
            b2,
            x,
            out,
            self._circle(x),
            self.N,
            self.T,
            Y=self.Y,
            **self.rotated,
            **o,
        )
        return out

    def unrotate(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """(dU, fp32 [D] the sums of its columns)."""
        o = {name: value for name, value in self.tiling.unrotate.items() if name != "BK"}
        tiles, du = _parts(self.N, o["BM"]), torch.empty_like(dy)
        sums = dy.new_empty(tiles, self.X, dtype=torch.float32)
        kernels.unrotate[tiles, _parts(self.X, o["BN"])](
            dy, du, sums, self._circle(dy), self.N, self.T, **self.rotated, **o
        )
        return du, _summed(sums)[: self.D]

    def slope(self, du: Tensor, w2: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dS, A, fp32 [H] the sums of dS's columns)."""
        o = self.tiling.slope
        rows, columns, depth = o["BM"], o["BN"], o["BK"]
        ds, a = torch.empty_like(s), torch.empty_like(s)
        sums = s.new_empty(_parts(self.N, rows), self.Y, dtype=torch.float32)
        kernels.slope[self._programs(o, self.Y)](
            tiled(du, rows, depth),
            tiled(w2, depth, columns),
            tiled(s, rows, columns),
            tiled(ds, rows, columns),
            tiled(a, rows, columns),
            sums,
            X=self.X,
            Y=self.Y,
            FAST=self.fast,
            **o,
        )
        return ds, a, _summed(sums)[: self.H]

    def restore(self, ds: Tensor, w1: Tensor, dy: Tensor, *, add: bool) -> Tensor:
        o, dh = self.tiling.restore, torch.empty_like(dy)
        rows, columns, depth = o["BM"], o["BN"], o["BK"]
        kernels.restore[self._programs(o, self.X)](
            tiled(ds, rows, depth),
            tiled(w1, depth, columns),
            tiled(dy, rows, columns),
            tiled(dh, rows, columns),
            X=self.X,
            Y=self.Y,
            ADD=add,
            **o,
        )
        return dh

    def _circle(self, like: Tensor) -> Tensor:
        return like if self.circle_B is None else self.circle_B  # not read where all circles are whole

    def _programs(self, options: Options, columns: int) -> tuple[int]:
        return (_parts(self.N, options["BM"]) * _parts(columns, options["BN"]),)


def _summed(parts: Tensor) -> Tensor:
    """The sum over the first dimension; as a product, since torch's sum takes five times as long on a GPU."""
    return torch.mv(parts.t(), parts.new_ones(len(parts)))


def _aligned(weight: Tensor, columns: int) -> Tensor:
    """The weight with zeros behind its rows, where they are shorter than ``columns``."""
    more = columns - weight.shape[1]
    return pad(weight, (0, more)) if more else _whole_lines(weight)


def _whole_lines(tensor: Tensor) -> Tensor:
    """Contiguous and beginning at whole 16 bytes, as the copy engine wants it: a weight that is a view into a
    flat buffer may not."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)
