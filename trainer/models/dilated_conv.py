"""A stack of dilated convolutions: stem(x), then x + contract(gelu(conv(norm(x)))), repeated.

Each block reads ``kernel`` letters that stand ``dilation`` apart, so the field of view grows with the sum of
the dilations. Beyond a row's ends, hence also at padding, every convolution reads zeros. The norm has no
weights (those of the convolution behind it do the same work) and gives zeros for zeros: the residual stream
is 0 at padding, and so is all that a convolution reads there.

Memory: hidden states are [B, L, D] and weights [out, taps, in], both contiguous. As images of height 1
([B, D, 1, L], [out, in, 1, taps]) that is channels-last, which CPU and GPU convolve fastest: no copy is made.

Shapes: B rows, L letters, D hidden, E = expansion · D, O and I channels out and in, K taps.
"""

import math
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from configs.numbers import Positive
from data_prep import alphabet
from trainer.models.backbone import Backbone, BackboneConfig, Hidden
from trainer.models.portable_files import shipped


def _odd(taps: int) -> int:
    if taps % 2 == 0:
        raise ValueError(f"must be odd, so that a letter stands in the middle (given {taps})")
    return taps


Taps = Annotated[Positive, AfterValidator(_odd)]


class DilatedConvConfig(BackboneConfig):
    """A block for each of ``dilations``; ``kernel`` and ``stem_kernel`` are odd numbers of letters."""

    name: str = "dilated-conv"
    hidden_size: Positive = 64
    stem_kernel: Taps = 11
    kernel: Taps = 9
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8, 1)
    expansion: Positive = 2

    EXPORT_KEYS = {"kernel": "kernel_size"}


class DilatedConv(Backbone):
    """Its summaries are the mean and the maximum of a row's letters."""

    Config = DilatedConvConfig
    portable = shipped("modeling_dilated_conv.py", prefix="DilatedConv")
    summaries = 2

    def __init__(self, config: DilatedConvConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing)
        self.hidden_size = config.hidden_size
        self.stem = Convolution(alphabet.SIZE, self.hidden_size, taps=config.stem_kernel)
        self.blocks = nn.ModuleList(
            Block(
                self.hidden_size, config.expansion * self.hidden_size, taps=config.kernel, dilation=dilation
            )
            for dilation in config.dilations
        )

    @property
    def layer_count(self) -> int:
        return len(self.blocks)

    def activation_modules(self) -> list[nn.Linear]:
        return [block.contract for block in self.blocks if isinstance(block, Block)]

    def wiring(self) -> dict[str, Any]:
        return {
            "conv": "x + contract(gelu(conv(norm(x)))), norm at the end",
            "stem_kernel": self.config.stem_kernel,
            "kernel": self.config.kernel,
            "dilations": list(self.config.dilations),
            "summary": ["mean", "max"],
            "alphabet": "A C G T N MASK CLS PAD",
        }

    def export_config(self) -> dict[str, Any]:
        return super().export_config() | {"hidden_act": "gelu"}

    def forward(
        self,
        codes_BL: Tensor,
        *,
        length_B: Tensor | None = None,
        noise_BLC: Tensor | None = None,
        layer: int | None = None,
    ) -> Hidden:
        """As the backbone's; the norm at the end comes after any ``layer``."""
        letters_V = torch.arange(alphabet.SIZE, device=codes_BL.device, dtype=codes_BL.dtype)
        x_BLV = (codes_BL[..., None] == letters_V).to(self.stem.weight_OKI.dtype)
        if noise_BLC is not None:
            x_BLV[..., : alphabet.BASES] += noise_BLC.to(x_BLV.dtype)
        real_BL1 = None
        if length_B is not None:
            place_L = torch.arange(codes_BL.shape[1], device=codes_BL.device)
            real_BL1 = (place_L < length_B[:, None])[..., None]
        x_BLD = _only(self.stem(_only(x_BLV, real_BL1)), real_BL1)
        for number, block in enumerate(self.blocks):
            if number == layer:
                break
            x_BLD = x_BLD + _only(self.run(block, x_BLD), real_BL1)
        letters_BLD = _norm(x_BLD)
        return Hidden(_mean_and_max(letters_BLD, real_BL1), letters_BLD)


class Block(nn.Module):
    """contract(gelu(conv(norm(x)))): [B, L, D] -> [B, L, D], what is added to x."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, taps: int, dilation: int) -> None:
        super().__init__()
        self.conv = Convolution(hidden_size, intermediate_size, taps=taps, dilation=dilation)
        self.contract = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        update_BLD: Tensor = self.contract(nn.functional.gelu(self.conv(_norm(x_BLD))))
        return update_BLD


class Convolution(nn.Module):
    """[B, L, I] -> [B, L, O]: each letter from ``taps`` letters around it, ``dilation`` apart."""

    def __init__(self, channels: int, out: int, *, taps: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation, self.margin = dilation, taps // 2 * dilation
        self.weight_OKI = nn.Parameter(torch.empty(out, taps, channels))
        self.bias_O = nn.Parameter(torch.empty(out))
        bound = 1 / math.sqrt(taps * channels)  # as torch's own convolutions
        nn.init.uniform_(self.weight_OKI, -bound, bound)
        nn.init.uniform_(self.bias_O, -bound, bound)

    def forward(self, x_BLI: Tensor) -> Tensor:
        x_BI1L = x_BLI.transpose(1, 2).unsqueeze(2)
        weight_OI1K = self.weight_OKI.transpose(1, 2).unsqueeze(2)
        y_BO1L = nn.functional.conv2d(
            x_BI1L, weight_OI1K, self.bias_O, padding=(0, self.margin), dilation=(1, self.dilation)
        )
        return y_BO1L.squeeze(2).transpose(1, 2)


def _norm(x_BLD: Tensor) -> Tensor:
    return nn.functional.layer_norm(x_BLD, x_BLD.shape[-1:])


def _only(x_BLD: Tensor, real_BL1: Tensor | None) -> Tensor:
    """``x_BLD``, 0 where the row has no letter."""
    return x_BLD if real_BL1 is None else x_BLD.masked_fill(~real_BL1, 0)


def _mean_and_max(x_BLD: Tensor, real_BL1: Tensor | None) -> Tensor:
    """[B, 2, D]: over each row's letters."""
    if real_BL1 is None:
        mean_BD, most_BD = x_BLD.mean(1), x_BLD.max(1).values
    else:
        mean_BD = x_BLD.sum(1) / real_BL1.sum(1)  # padding is 0
        most_BD = x_BLD.masked_fill(~real_BL1, -math.inf).max(1).values
    return torch.stack([mean_BD, most_BD], 1)
