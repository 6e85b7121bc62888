# SPDX-License-Identifier: Apache-2.0
"""A stack of dilated convolutions: stem(x), then x + contract(gelu(conv(norm(x)))), repeated, and a norm.

Beyond a row's ends, hence also at padding, every convolution reads zeros. The norm has no weights and gives
zeros for zeros.

Shapes: B rows, L letters, D hidden, O and I channels out and in, K taps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_dna import DnaConfig
from .modeling_dna import (
    DnaForMaskedLM,
    DnaForSequenceClassification,
    DnaModel,
    is_letter,
    mean_pool,
    one_hot,
)


class DilatedConvConfig(DnaConfig):
    model_type = "dilated-conv"

    def __init__(
        self,
        hidden_size: int = 64,
        stem_kernel: int = 11,
        kernel_size: int = 9,
        dilations: Sequence[int] = (1, 2, 4, 8, 1),
        expansion: int = 2,
        **others: Any,
    ) -> None:
        if stem_kernel % 2 == 0 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernels must be odd, so that a letter stands in the middle (given {stem_kernel} and "
                f"{kernel_size})"
            )
        self.stem_kernel, self.kernel_size = stem_kernel, kernel_size
        self.dilations, self.expansion = list(dilations), expansion
        others["num_hidden_layers"] = len(self.dilations)
        super().__init__(hidden_size=hidden_size, **others)


class Convolution(nn.Module):
    """[B, L, I] -> [B, L, O]: each letter from ``taps`` letters around it, ``dilation`` apart."""

    def __init__(self, channels: int, out: int, *, taps: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation, self.margin = dilation, taps // 2 * dilation
        self.weight_OKI = nn.Parameter(torch.empty(out, taps, channels))
        self.bias_O = nn.Parameter(torch.empty(out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight_OKI[0].numel())
        for parameter in (self.weight_OKI, self.bias_O):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x_BLI: Tensor) -> Tensor:
        x_BI1L = x_BLI.transpose(1, 2).unsqueeze(2)
        weight_OI1K = self.weight_OKI.transpose(1, 2).unsqueeze(2)
        y_BO1L = nn.functional.conv2d(
            x_BI1L, weight_OI1K, self.bias_O, padding=(0, self.margin), dilation=(1, self.dilation)
        )
        return y_BO1L.squeeze(2).transpose(1, 2)


class Block(nn.Module):
    """contract(gelu(conv(norm(x)))): [B, L, D] -> [B, L, D], what is added to x."""

    def __init__(self, config: DilatedConvConfig, *, dilation: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.expansion * config.hidden_size
        self.conv = Convolution(size, inner, taps=config.kernel_size, dilation=dilation)
        self.contract = nn.Linear(inner, size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        update_BLD: Tensor = self.contract(nn.functional.gelu(self.conv(_norm(x_BLD))))
        return update_BLD


class DilatedConvModel(DnaModel):
    """Its summaries are the mean and the maximum of a row's letters."""

    config_class = DilatedConvConfig

    def __init__(self, config: DilatedConvConfig) -> None:
        super().__init__(config)
        self.stem = Convolution(config.vocab_size, config.hidden_size, taps=config.stem_kernel)
        self.blocks = nn.ModuleList(Block(config, dilation=dilation) for dilation in config.dilations)
        self.post_init()

    def read(
        self, codes_BL: Tensor, length_B: Tensor, keep: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        padding_BL1 = ~is_letter(length_B, codes_BL.shape[1])[..., None]
        x_BLV = one_hot(codes_BL, self.stem.weight_OKI.dtype).masked_fill(padding_BL1, 0)
        x_BLD = self.stem(x_BLV).masked_fill(padding_BL1, 0)
        for block in self.blocks:
            keep(x_BLD)
            x_BLD = x_BLD + self.run(block, x_BLD).masked_fill(padding_BL1, 0)
        letters_BLD = _norm(x_BLD)
        keep(letters_BLD)
        mean_BD = mean_pool(letters_BLD, length_B).to(letters_BLD.dtype)
        most_BD = letters_BLD.masked_fill(padding_BL1, -math.inf).amax(1)
        return torch.stack([mean_BD, most_BD], 1), letters_BLD


def _norm(x_BLD: Tensor) -> Tensor:
    return nn.functional.layer_norm(x_BLD, x_BLD.shape[-1:])


class DilatedConvForMaskedLM(DnaForMaskedLM):
    config_class, backbone_class = DilatedConvConfig, DilatedConvModel


class DilatedConvForSequenceClassification(DnaForSequenceClassification):
    config_class, backbone_class = DilatedConvConfig, DilatedConvModel
