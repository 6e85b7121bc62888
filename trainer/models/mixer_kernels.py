"""Triton kernels of a mixer layer, out = x + rotate(contract(gelu(expand(h)))), forward and backward.

Six products of matrices, each with everything beside it in its prologue or epilogue, so that no tensor is
read or written for a rotation, an addition, a bias or an activation alone:

    expand     S = h W₁ᵀ + b₁, written in a training; A = gelu(S)
    contract   out = x + rotate(A W₂ᵀ + b₂): each entry is written to where the rotation takes it
    slope      dS = (rotate⁻¹(dy) W₂) · gelu′(S), and A again, which is not kept from the forward
    restore    dh = dS W₁, plus dy where h is x
    grad_first   dW₁ = dSᵀ h and db₁, over slices of the rows; slices are added up afterwards, in one order
    grad_second  dW₂ = rotate⁻¹(dy)ᵀ A and db₂, likewise

The rotation takes entry (p, c) of a circle of n positions to ((p - shift(c)) mod n, c), with shifts 0, 1, 2,
4, … by groups of C channels; beyond the circle it takes nothing anywhere. It is a bijection, so that a
scatter needs no atomics, and its inverse in the backward is a read by the same index.

Rows of hidden states are padded with zeros to a multiple of ``MULTIPLE`` columns, in which every kernel
leaves zeros; weights are read as they are, with masks. Sums are fp32, offsets int32.

Shapes: N = B·T rows of positions, D hidden, X ≥ D with padding, H intermediate, Y ≥ H with padding, C
channels of a group.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    has_triton = True
except ImportError:  # torch for CPUs brings none
    has_triton = False

    def jit(function: Any) -> Any:
        return function


def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels are not for ``device`` and ``dtype``, in words; None if they are."""
    if not has_triton:
        return "Triton is not installed"
    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda":
        return "there is no NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < _LEAST:
        return f"{torch.cuda.get_device_name(device)} is older than the kernels are for"
    return None if dtype in (torch.bfloat16, torch.float16) else "weights are not in bf16"


_LEAST = (8, 0)  # Ampere: bf16 on tensor cores
MULTIPLE = 64  # columns; the depth of one product on the tensor cores of a row of 128 bytes


@jit
def _normal(s):
    """Of the normal distribution: Φ(s), and √(2π) times its density. gelu(s) = s Φ(s).

    Φ to 8·10⁻⁸ (Abramowitz and Stegun 1964, 7.1.26): one exponential for both, where erf takes 90
    instructions.
    """
    density = tl.exp(-0.5 * s * s)
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(s))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    tail *= density
    return tl.where(s < 0, tail, 1.0 - tail), density


@jit
def _shifts(c, D: tl.constexpr, C: tl.constexpr):
    group = c // C
    return tl.where((group == 0) | (c >= D), 0, 1 << tl.maximum(group - 1, 0))


@jit
def _rotated(row, shift, circle_ptr, N, T, RAGGED: tl.constexpr):
    """The row that the rotation takes each (row, channel) to."""
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
    return first[:, None] + there


@jit
def _columns(program, columns, BM: tl.constexpr, BN: tl.constexpr):
    """The tile of a program: its rows and columns. Tiles of the same rows stand beside each other."""
    tiles = tl.cdiv(columns, BN)
    return (program // tiles) * BM + tl.arange(0, BM), (program % tiles) * BN + tl.arange(0, BN)


@jit
def _rows_product(a_ptr, row, live, K, b_ptr, n, n_live, k_live, b_k, b_n, BM: tl.constexpr, BN: tl.constexpr,
                  BK: tl.constexpr):  # fmt: skip
    """Σ over k < K of a[row, k] · b[k, n], where b[k, n] is at b_ptr + k·b_k + n·b_n; fp32."""
    total = tl.zeros([BM, BN], tl.float32)
    a_row = a_ptr + row[:, None] * K
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a = tl.load(a_row + k[None, :], mask=live[:, None], other=0.0)
        b = tl.load(
            b_ptr + k[:, None] * b_k + n[None, :] * b_n,
            mask=(k < k_live)[:, None] & (n < n_live)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@jit
def expand(h_ptr, w_ptr, bias_ptr, s_ptr, a_ptr, N, X: tl.constexpr, Y: tl.constexpr, D: tl.constexpr,
           H: tl.constexpr, KEEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row, n = _columns(tl.program_id(0), Y, BM, BN)
    live = row < N
    s = _rows_product(h_ptr, row, live, X, w_ptr, n, H, D, 1, D, BM, BN, BK)
    s += tl.load(bias_ptr + n, mask=n < H, other=0.0).to(tl.float32)[None, :]
    kind = a_ptr.dtype.element_ty
    at = row[:, None] * Y + n[None, :]
    mask = live[:, None] & (n < Y)[None, :]
    if KEEP:
        tl.store(s_ptr + at, s.to(kind), mask=mask)
    s = s.to(kind).to(tl.float32)  # as the backward will read it
    below, _ = _normal(s)
    tl.store(a_ptr + at, (s * below).to(kind), mask=mask)


@jit
def contract(a_ptr, w_ptr, bias_ptr, x_ptr, out_ptr, circle_ptr, N, T, X: tl.constexpr, Y: tl.constexpr,
             D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row, c = _columns(tl.program_id(0), X, BM, BN)
    live = row < N
    u = _rows_product(a_ptr, row, live, Y, w_ptr, c, D, H, 1, H, BM, BN, BK)
    u += tl.load(bias_ptr + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    at = _rotated(row, _shifts(c, D, C), circle_ptr, N, T, RAGGED) * X + c[None, :]
    at = tl.max_contiguous(tl.multiple_of(at, (1, 4)), (1, 4)) if C % 4 == 0 else at
    mask = live[:, None] & (c < X)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (x + u).to(out_ptr.dtype.element_ty), mask=mask)


@jit
def slope(dy_ptr, w_ptr, s_ptr, ds_ptr, a_ptr, circle_ptr, N, T, X: tl.constexpr, Y: tl.constexpr,
          D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr,
          BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row, n = _columns(tl.program_id(0), Y, BM, BN)
    live = row < N
    da = tl.zeros([BM, BN], tl.float32)
    for c0 in range(0, X, BK):
        c = c0 + tl.arange(0, BK)
        at = _rotated(row, _shifts(c, D, C), circle_ptr, N, T, RAGGED) * X + c[None, :]
        at = tl.max_contiguous(tl.multiple_of(at, (1, 4)), (1, 4)) if C % 4 == 0 else at
        du = tl.load(dy_ptr + at, mask=live[:, None], other=0.0)
        w = tl.load(
            w_ptr + c[:, None] * H + n[None, :], mask=(c < D)[:, None] & (n < H)[None, :], other=0.0
        )
        da = tl.dot(du, w, da, input_precision="ieee")
    at = row[:, None] * Y + n[None, :]
    mask = live[:, None] & (n < Y)[None, :]
    s = tl.load(s_ptr + at, mask=mask, other=0.0).to(tl.float32)
    below, density = _normal(s)
    ds = da * (below + s * 0.3989422804014327 * density)
    kind = ds_ptr.dtype.element_ty
    tl.store(ds_ptr + at, ds.to(kind), mask=mask)
    tl.store(a_ptr + at, (s * below).to(kind), mask=mask)


@jit
def restore(ds_ptr, w_ptr, dy_ptr, dh_ptr, N, X: tl.constexpr, Y: tl.constexpr, D: tl.constexpr,
            H: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row, d = _columns(tl.program_id(0), X, BM, BN)
    live = row < N
    dh = _rows_product(ds_ptr, row, live, Y, w_ptr, d, D, H, D, 1, BM, BN, BK)
    at = row[:, None] * X + d[None, :]
    mask = live[:, None] & (d < X)[None, :]
    if ADD:
        dh += tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=mask)


@jit
def grad_first(ds_ptr, h_ptr, dw_ptr, db_ptr, N, ROWS: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, D: tl.constexpr,
               H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """dw [slice, H, D] and db [slice, H], fp32: of the ROWS rows of each slice."""
    part = tl.program_id(1)
    m, n = _columns(tl.program_id(0), X, BM, BN)
    total, sums = tl.zeros([BM, BN], tl.float32), tl.zeros([BM], tl.float32)
    for r0 in range(0, ROWS, BK):
        row = part * ROWS + r0 + tl.arange(0, BK)
        live = row < N
        ds = tl.load(
            ds_ptr + row[None, :] * Y + m[:, None], mask=live[None, :] & (m < Y)[:, None], other=0.0
        )
        h = tl.load(h_ptr + row[:, None] * X + n[None, :], mask=live[:, None] & (n < X)[None, :], other=0.0)
        total = tl.dot(ds, h, total, input_precision="ieee")
        sums += tl.sum(ds.to(tl.float32), 1)
    own = (part * H + m[:, None]) * D + n[None, :]
    tl.store(dw_ptr + own, total, mask=(m < H)[:, None] & (n < D)[None, :])
    tl.store(db_ptr + part * H + m, sums, mask=(m < H) & (tl.program_id(0) % tl.cdiv(X, BN) == 0))


@jit
def grad_second(dy_ptr, a_ptr, dw_ptr, db_ptr, circle_ptr, N, T, ROWS: tl.constexpr, X: tl.constexpr, Y: tl.constexpr,
                D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """dw [slice, D, H] and db [slice, D], fp32: of the ROWS rows of each slice."""
    part = tl.program_id(1)
    m, n = _columns(tl.program_id(0), Y, BM, BN)
    shift = _shifts(m, D, C)
    total, sums = tl.zeros([BM, BN], tl.float32), tl.zeros([BM], tl.float32)
    for r0 in range(0, ROWS, BK):
        row = part * ROWS + r0 + tl.arange(0, BK)
        live = row < N
        at = _rotated(row, shift, circle_ptr, N, T, RAGGED) * X + m[None, :]
        at = tl.max_contiguous(tl.multiple_of(at, (1, 4)), (1, 4)) if C % 4 == 0 else at
        du = tl.load(dy_ptr + at, mask=live[:, None] & (m < X)[None, :], other=0.0)
        a = tl.load(
            a_ptr + row[:, None] * Y + n[None, :],
            mask=live[:, None] & (n < Y)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.trans(du), a, total, input_precision="ieee")
        sums += tl.sum(du.to(tl.float32), 0)
    own = (part * D + m[:, None]) * H + n[None, :]
    tl.store(dw_ptr + own, total, mask=(m < D)[:, None] & (n < H)[None, :])
    tl.store(db_ptr + part * D + m, sums, mask=(m < D) & (tl.program_id(0) % tl.cdiv(Y, BN) == 0))
