"""Counter-based randomness: every draw is a hash of (key, stream, position), so that there is no state to
save or to share.

A key is one int64 a sample, folded from (seed, dataset, epoch, block, window). The same ids give the same
draws on any rank, in any order, on CPU or GPU. The mixer is SplitMix64's finaliser (Steele, Lea, Flood,
OOPSLA 2014). A hash costs a dozen passes over 64-bit words, so a word is used for as many draws as it has
bits for: 4 of 16 bits, or 32 letters.
Shapes: B samples, n draws a sample.
"""

import zlib

import torch
from torch import Tensor

_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
SHORTS, LETTERS = 4, 32  # draws that one word holds


def fold(seed: int | Tensor, *ids: int | Tensor) -> Tensor:
    """One int64 key (or [B] keys) from a seed or key and further ids, each an int or int64 [B], whose order
    matters."""
    key = seed
    for part in ids:
        if isinstance(key, Tensor):
            step = (
                part.long() * _signed(_GOLDEN) if isinstance(part, Tensor) else _signed(_GOLDEN * int(part))
            )
            key = _mix_(_mix_(key.clone()) + step)
        elif isinstance(part, Tensor):
            key = _mix_(part.long() * _signed(_GOLDEN) + _signed(_mix_int(key)))
        else:
            key = _mix_int(_mix_int(key) + _GOLDEN * int(part))
    return _mix_(key.clone()) if isinstance(key, Tensor) else torch.tensor(_signed(_mix_int(key)))


def words(key_B: Tensor, stream: str, n: int) -> Tensor:
    """int64 [B, n] of 64 random bits each; ``stream`` names the purpose, so that purposes never share
    draws."""
    return read(stream_keys(key_B, stream), 0, n)


def stream_keys(key_B: Tensor, stream: str) -> Tensor:
    """int64 [B], from which ``read`` takes the words of ``stream``, for streams that are read more than
    once."""
    return fold(key_B, zlib.crc32(stream.encode()))


def read(stream_B: Tensor, first: int, n: int) -> Tensor:
    """int64 [B, n]: words ``first`` … ``first + n - 1`` of the streams."""
    counts_n = torch.arange(first + 1, first + n + 1, device=stream_B.device)
    return _mix_(counts_n * _signed(_GOLDEN) + stream_B[:, None])


def integers(key_B: Tensor, stream: str, high: int) -> Tensor:
    """int64 [B], uniform on 0 … high - 1 (bias below high / 2³²)."""
    return scaled(words(key_B, stream, 1)[:, 0], 0, high)


def scaled(words_: Tensor, low_bit: int, high: int) -> Tensor:
    """int64, uniform on 0 … high - 1 (bias below high / 2³²), from 32 bits of each word starting at
    ``low_bit``."""
    return (field(words_, low_bit, 32) * high) >> 32


def below(words_: Tensor, low_bit: int, probability: float) -> Tensor:
    """bool, True with ``probability`` (to 2⁻²⁴), from 24 bits of each word starting at ``low_bit``."""
    return field(words_, low_bit, 24) < round(probability * (1 << 24))


def field(words_: Tensor, low_bit: int, width: int) -> Tensor:
    """``width`` bits of each word starting at ``low_bit``, as int64 ≥ 0."""
    return (words_ >> low_bit) & ((1 << width) - 1)


def shorts(words_Bn: Tensor) -> Tensor:
    """int16 [B, 4n], uniform on all 2¹⁶ values: the words as they lie in memory (little-endian on CPU and
    GPU)."""
    return words_Bn.view(torch.int16)


def below_short(shorts_: Tensor, cut: int) -> Tensor:
    """uint8, 1 with probability ``cut`` / 2¹⁶ (0 ≤ cut ≤ 2¹⁶), else 0; one draw may be compared with
    several cuts.

    Numbers and not bool, here and in views/: a comparison into a number type and the arithmetic on it are
    vectorised on CPU; into bool it is 6 times, and ``torch.where`` on a random condition 40 times as slow.
    """
    assert 0 <= cut <= 1 << 16, f"cut {cut} is not within 0 and 2^16"
    if cut == 0:
        return torch.zeros_like(shorts_, dtype=torch.uint8)
    return torch.le(shorts_, cut - 1 - (1 << 15), out=shorts_.new_empty(0, dtype=torch.uint8))


def letters(words_Bn: Tensor) -> Tensor:
    """uint8 [B, 32n], uniform on 0 … 3: two bits each."""
    bytes_B1m = words_Bn.view(torch.uint8)[:, None]
    shift_41 = torch.arange(0, 8, 2, dtype=torch.uint8, device=words_Bn.device)[:, None]
    return ((bytes_B1m >> shift_41) & 3).flatten(1)


def normals(key_B: Tensor, stream: str, n: int) -> Tensor:
    """float32 [B, n] standard normal draws (Box and Muller 1958; the two of a pair are n / 2 apart)."""
    half = -(-n // 2)
    ints_Bn = words(key_B, stream, half).view(torch.int32)
    radius_Bh = (
        ints_Bn[:, :half].bitwise_and((1 << 24) - 1).add_(1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_()
    )
    angle_Bh = ints_Bn[:, half:].float().mul_(torch.pi * 2.0**-31)
    return torch.cat([angle_Bh.cos().mul_(radius_Bh), angle_Bh.sin_().mul_(radius_Bh)], 1)[:, :n]


def _mix_(x: Tensor) -> Tensor:
    # In place, with one scratch tensor: fresh memory costs more than the arithmetic. int64 shifts keep the
    # sign; the masks make them logical.
    high = torch.bitwise_right_shift(x, 30)
    x.bitwise_xor_(high.bitwise_and_(_BITS >> 30)).mul_(_signed(_MIX_1))
    torch.bitwise_right_shift(x, 27, out=high)
    x.bitwise_xor_(high.bitwise_and_(_BITS >> 27)).mul_(_signed(_MIX_2))
    torch.bitwise_right_shift(x, 31, out=high)
    return x.bitwise_xor_(high.bitwise_and_(_BITS >> 31))


def _mix_int(x: int) -> int:
    x = int(x) & _BITS
    x = (x ^ x >> 30) * _MIX_1 & _BITS
    x = (x ^ x >> 27) * _MIX_2 & _BITS
    return x ^ x >> 31


def _signed(x: int) -> int:
    """The int64 with the lowest 64 bits of ``x``."""
    return ((x & _BITS) ^ (1 << 63)) - (1 << 63)
