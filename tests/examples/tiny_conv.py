"""A backbone from outside: one convolution over the letters; the row's vector is their mean."""

from typing import Any

import torch
from torch import Tensor, nn

from configs.numbers import Positive
from data_prep import alphabet
from trainer.models.backbone import Backbone, BackboneConfig, Hidden
from trainer.models.network import mean_pool


class TinyConvConfig(BackboneConfig):
    """The section ``model``; ``EXPORT_KEYS`` says what config.json calls a size otherwise."""

    name: str = "tiny-conv"
    channels: Positive = 12
    width: Positive = 5

    EXPORT_KEYS = {"width": "kernel_size"}


class TinyConv(Backbone):
    Config = TinyConvConfig

    def __init__(self, config: TinyConvConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing)
        self.hidden_size = config.channels
        self.input = nn.Linear(alphabet.SIZE, config.channels)
        self.mix = nn.Conv1d(config.channels, config.channels, 2 * (config.width // 2) + 1, padding="same")

    def wiring(self) -> dict[str, Any]:
        return {"conv": "x + gelu(conv(x))", "width": self.config.width, "alphabet": "A C G T N MASK CLS PAD"}

    def forward(
        self, codes_BL: Tensor, *, length_B: Tensor | None = None, noise_BLC: Tensor | None = None
    ) -> Hidden:
        x_BLV = nn.functional.one_hot(codes_BL.long(), alphabet.SIZE).to(self.input.weight.dtype)
        if noise_BLC is not None:
            x_BLV[..., : alphabet.BASES] += noise_BLC.to(x_BLV.dtype)
        x_BLD = self.input(x_BLV)
        if length_B is not None:  # padding is 0, as beyond the ends, so that no letter depends on it
            place_L = torch.arange(codes_BL.shape[1], device=codes_BL.device)
            x_BLD = x_BLD * (place_L < length_B[:, None])[..., None]
        x_BLD = x_BLD + nn.functional.gelu(self.mix(x_BLD.transpose(1, 2)).transpose(1, 2))
        return Hidden(mean_pool(x_BLD, length_B)[:, None].to(x_BLD.dtype), x_BLD)
