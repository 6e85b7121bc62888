"""Counter-based randomness: every draw is a hash of (key, stream, position), so there is no state to save or to share.

A key is one int64 a sample, folded from (seed, dataset, epoch, block, window); the same ids give the same draws on any
rank, in any order, on CPU or GPU. The mixer is SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014).
Shapes: B samples, n draws a sample.
"""

import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def fold(seed: int | Tensor, *ids: int | Tensor) -> Tensor:
    """One int64 key (or [B] keys) from a seed or key and further ids, each an int or int64 [B]; the order counts."""
    key = torch.as_tensor(seed, dtype=torch.int64)
    for part in ids:
        key = _mix(_mix(key) + _GOLDEN * torch.as_tensor(part, dtype=torch.int64, device=key.device))
    return _mix(key)


def words(key_B: Tensor, stream: str, n: int) -> Tensor:
    """int64 [B, n] of 64 random bits each; ``stream`` names the purpose, so that purposes never share draws."""
    base_B = fold(key_B, zlib.crc32(stream.encode()))
    return _mix(base_B[:, None] + _GOLDEN * torch.arange(1, n + 1, device=key_B.device))


def integers(key_B: Tensor, stream: str, high: int) -> Tensor:
    """int64 [B], uniform on 0 … high - 1 (bias below high / 2³²)."""
    return (field(words(key_B, stream, 1)[:, 0], 0, 32) * high) >> 32


def below(words_: Tensor, low_bit: int, probability: float) -> Tensor:
    """bool, True with ``probability`` (to 2⁻²⁴), from 24 bits of each word starting at ``low_bit``."""
    return field(words_, low_bit, 24) < round(probability * (1 << 24))


def field(words_: Tensor, low_bit: int, width: int) -> Tensor:
    """``width`` bits of each word starting at ``low_bit``, as int64 ≥ 0."""
    return (words_ >> low_bit) & ((1 << width) - 1)


def normals(key_B: Tensor, stream: str, n: int) -> Tensor:
    """float32 [B, n] standard normal draws (Box and Muller 1958, both members of each pair used)."""
    words_Bh = words(key_B, stream, -(-n // 2))
    radius = torch.sqrt(-2 * torch.log((field(words_Bh, 0, 24) + 1).float() * 2.0**-24))
    angle = field(words_Bh, 24, 24).float() * (2 * torch.pi * 2.0**-24)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1).flatten(1)[:, :n]


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # int64 shifts keep the sign; the mask makes it logical
