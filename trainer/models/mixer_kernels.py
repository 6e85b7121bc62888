"""Triton kernels of a mixer layer, out = x + rotate(contract(gelu(expand(h)))), forward and backward.

Products of matrices, each with what stands beside it in its epilogue, so that no tensor is read or written
for a bias, an activation, a rotation or an addition alone:

    expand    S = h W₁ᵀ + b₁, written in a training; A = gelu(S)
    contract  out = x + rotate(A W₂ᵀ + b₂): each entry is written to where the rotation takes it
    unrotate  dU = rotate⁻¹(dy), and its sums, which are db₂
    slope     dS = (dU W₂) · gelu′(S), its sums, which are db₁, and A again, which the forward did not keep
    restore   dh = dS W₁, plus dy where h is x

dW₁ = dSᵀ h and dW₂ = dUᵀ A are left to cuBLAS, which is as fast as a kernel of ours was (LOG.md).

The rotation takes entry (p, c) of a circle of n positions to ((p - shift(c)) mod n, c), with shifts 0, 1, 2,
4, … by groups of C channels; positions behind the circle stand still. It is a bijection, so that writing by
it needs no atomics.

Rows are padded with zeros to a multiple of ``MULTIPLE`` columns, and every kernel leaves zeros there. Tiles
come and go by Hopper's copy engine (``_desc``: a tensor and the shape of its tiles), which reads zeros and
writes nothing beyond a tensor's ends. Sums are fp32, offsets int32.

Shapes: N = B·T rows of positions, D hidden, X ≥ D with padding, H intermediate, Y ≥ H with padding, C
channels of a group; tiles are BM × BN with steps of BK along the sum.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    jit = triton.jit
    has_triton = True
except ImportError:  # torch for CPUs brings none
    has_triton = False

    def jit(function: Any) -> Any:
        return function


MULTIPLE = 64  # columns: 128 bytes in half precision, a whole line of memory
_LEAST = (9, 0)  # Hopper: its copy engine


@torch.compiler.assume_constant_result
def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels are not for ``device`` and ``dtype``, in words; None if they are."""
    if not has_triton:
        return "Triton is not installed"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return "there is no NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < _LEAST:
        return f"the kernels need an H100 or a later chip, not a {torch.cuda.get_device_name(device)}"
    return None if dtype in (torch.bfloat16, torch.float16) else "weights are in fp32"


def tiled(tensor: torch.Tensor, rows: int, columns: int) -> Any:
    """What a kernel takes as ``_desc``: ``tensor``, 2-D with rows of whole 16 bytes, in such tiles."""
    return TensorDescriptor.from_tensor(tensor, [rows, columns])


@jit
def _normal(s, FAST: tl.constexpr):
    """Of the normal distribution: Φ(s), to 8·10⁻⁸, and √(2π) times its density. gelu(s) = s Φ(s).

    Abramowitz and Stegun 1964, 7.1.26: one exponential for both, where erf alone takes 90 instructions.
    FAST: by the GPU's own exponential and reciprocal, to 2 units in the last place; not "pure", or the
    compiler gathers all of a tile's in registers, which leaves room for half as many programs.
    """
    power, scaled = s * s * -0.72134752044, 1.0 + 0.23164190 * tl.abs(s)
    if FAST:
        density = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=r,r", [power], dtype=tl.float32, is_pure=False, pack=1
        )
        t = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [scaled], dtype=tl.float32, is_pure=False, pack=1
        )
    else:
        density, t = tl.exp2(power), 1.0 / scaled
    fourth = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
    tail = t * (0.127414796 + t * (-0.142248368 + t * fourth)) * density
    return tl.where(s < 0, tail, 1.0 - tail), density


@jit
def _rotated(
    row, c, circle_ptr, N, T, X: tl.constexpr, D: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr
):
    """The offset of where the rotation takes the entry (row, c)."""
    group = c // C
    shift = tl.where((group == 0) | (c >= D), 0, 1 << tl.maximum(group - 1, 0))
    first = row // T * T
    place = row - first
    if RAGGED:
        circle = tl.load(circle_ptr + row // T, mask=row < N, other=1)[:, None]
        there = place[:, None] - shift[None, :] % circle
        there = tl.where(there < 0, there + circle, there)
        there = tl.where(place[:, None] < circle, there, place[:, None])
    else:
        there = place[:, None] - (shift % T)[None, :]
        there = tl.where(there < 0, there + T, there)
    at = (first[:, None] + there) * X + c[None, :]
    return tl.max_contiguous(tl.multiple_of(at, (1, 4)), (1, 4)) if C % 4 == 0 else at


@jit
def _tile(columns, BM: tl.constexpr, BN: tl.constexpr):
    """The first row and column of this program's tile; tiles of the same rows stand beside each other."""
    across = tl.cdiv(columns, BN)
    return tl.program_id(0) // across * BM, tl.program_id(0) % across * BN


@jit
def expand(
    h_desc,
    w_desc,
    bias_ptr,
    s_desc,
    a_desc,
    X: tl.constexpr,
    Y: tl.constexpr,
    H: tl.constexpr,
    KEEP: tl.constexpr,
    FAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    row, column = _tile(Y, BM, BN)
    s = tl.zeros([BM, BN], tl.float32)
    for k in range(0, X, BK):
        s = tl.dot(h_desc.load([row, k]), w_desc.load([column, k]).T, s, input_precision="ieee")
    n = column + tl.arange(0, BN)
    s += tl.load(bias_ptr + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
    kept = s.to(a_desc.dtype)
    if KEEP:
        s_desc.store([row, column], kept)
    s = kept.to(tl.float32)  # as the backward will read it
    below, _ = _normal(s, FAST)
    a_desc.store([row, column], (s * below).to(a_desc.dtype))


@jit
def contract(
    a_desc,
    w_desc,
    bias_ptr,
    x_ptr,
    out_ptr,
    circle_ptr,
    N,
    T,
    X: tl.constexpr,
    Y: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    RAGGED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    row, column = _tile(X, BM, BN)
    u = tl.zeros([BM, BN], tl.float32)
    for k in range(0, Y, BK):
        u = tl.dot(a_desc.load([row, k]), w_desc.load([column, k]).T, u, input_precision="ieee")
    m, c = row + tl.arange(0, BM), column + tl.arange(0, BN)
    u += tl.load(bias_ptr + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    at = _rotated(m, c, circle_ptr, N, T, X, D, C, RAGGED)
    mask = (m < N)[:, None] & (c < X)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (x + u).to(out_ptr.dtype.element_ty), mask=mask)


@jit
def unrotate(
    dy_ptr,
    du_ptr,
    sums_ptr,
    circle_ptr,
    N,
    T,
    X: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    RAGGED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """sums: fp32 [row tiles, X], of dU's columns in each row tile."""
    m, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    at = _rotated(m, c, circle_ptr, N, T, X, D, C, RAGGED)
    mask = (m < N)[:, None] & (c < X)[None, :]
    du = tl.load(dy_ptr + at, mask=mask, other=0.0)
    tl.store(du_ptr + m[:, None] * X + c[None, :], du, mask=mask)
    tl.store(sums_ptr + tl.program_id(0) * X + c, tl.sum(du.to(tl.float32), 0), mask=c < X)


@jit
def slope(
    du_desc,
    w_desc,
    s_desc,
    ds_desc,
    a_desc,
    sums_ptr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """sums: fp32 [row tiles, Y], of dS's columns in each row tile."""
    row, column = _tile(Y, BM, BN)
    da = tl.zeros([BM, BN], tl.float32)
    for k in range(0, X, BK):
        da = tl.dot(du_desc.load([row, k]), w_desc.load([k, column]), da, input_precision="ieee")
    s = s_desc.load([row, column]).to(tl.float32)
    below, density = _normal(s, FAST)
    ds = da * (below + s * 0.3989422804014327 * density)
    ds_desc.store([row, column], ds.to(ds_desc.dtype))
    # Without a part of ``da`` in it, the compiler lays A out otherwise and computes Φ twice, with spills.
    a_desc.store([row, column], (s * below + 0.0 * da).to(a_desc.dtype))
    n = column + tl.arange(0, BN)
    tl.store(sums_ptr + row // BM * Y + n, tl.sum(ds, 0), mask=n < Y)


@jit
def restore(
    ds_desc,
    w_desc,
    dy_desc,
    dh_desc,
    X: tl.constexpr,
    Y: tl.constexpr,
    ADD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    row, column = _tile(X, BM, BN)
    dh = tl.zeros([BM, BN], tl.float32)
    for k in range(0, Y, BK):
        dh = tl.dot(ds_desc.load([row, k]), w_desc.load([k, column]), dh, input_precision="ieee")
    if ADD:
        dh += dy_desc.load([row, column]).to(tl.float32)
    dh_desc.store([row, column], dh.to(dh_desc.dtype))


# TRITON_INTERPRET=1 was set when this module was imported: kernels run on a CPU, slowly.
INTERPRETED = has_triton and not isinstance(expand, triton.JITFunction)
