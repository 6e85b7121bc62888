"""tiny_conv.py for transformers: this file is copied into exports, with what it imports relatively."""

from collections.abc import Callable
from typing import Any

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


class TinyConvConfig(DnaConfig):
    model_type = "tiny-conv"

    def __init__(self, channels: int = 12, kernel_size: int = 5, **others: Any) -> None:
        self.channels, self.kernel_size = channels, kernel_size
        super().__init__(**others | {"hidden_size": channels, "num_hidden_layers": 1})


class TinyConvModel(DnaModel):
    config_class = TinyConvConfig

    def __init__(self, config: TinyConvConfig) -> None:
        super().__init__(config)
        size, taps = config.channels, 2 * (config.kernel_size // 2) + 1
        self.input, self.mix = nn.Linear(config.vocab_size, size), nn.Conv1d(size, size, taps, padding="same")
        self.post_init()

    def read(
        self, codes_BL: Tensor, length_B: Tensor, keep: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        x_BLD = self.input(one_hot(codes_BL, self.input.weight.dtype))
        x_BLD = x_BLD * is_letter(length_B, codes_BL.shape[1])[..., None]
        keep(x_BLD)
        x_BLD = x_BLD + nn.functional.gelu(self.mix(x_BLD.transpose(1, 2)).transpose(1, 2))
        keep(x_BLD)
        return mean_pool(x_BLD, length_B)[:, None].to(x_BLD.dtype), x_BLD


class TinyConvForMaskedLM(DnaForMaskedLM):
    config_class, backbone_class = TinyConvConfig, TinyConvModel


class TinyConvForSequenceClassification(DnaForSequenceClassification):
    config_class, backbone_class = TinyConvConfig, TinyConvModel
