# SPDX-License-Identifier: Apache-2.0
"""ChordMixer (Khalitov, Yu, Cheng, Yang, ICLR 2023), the backbone of FinDNA: x + rotation(MLP(x)), repeated.

Channels come in groups; group i of every layer's update is read 0, 1, 2, 4, … positions further on. Each row
is a circle of its own length: summary positions, then letters. Padding lies outside the circle.

Shapes: B rows, L letters, P summary positions, T = P + L, D = G·E channels in G groups of E.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_dna import CLS, DnaConfig
from .modeling_dna import DnaForMaskedLM, DnaForSequenceClassification, DnaModel, one_hot

_NORMS = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}


class FindnaConfig(DnaConfig):
    model_type = "findna"

    def __init__(
        self,
        num_hidden_layers: int = 40,
        num_groups: int = 11,
        group_channels: int = 28,
        intermediate_size: int = 512,
        num_summary_tokens: int = 10,
        norm: str = "none",
        **others: Any,
    ) -> None:
        if norm not in _NORMS:
            raise ValueError(f"norm is {norm!r}; it is one of {', '.join(_NORMS)}")
        self.num_groups, self.group_channels = num_groups, group_channels
        self.intermediate_size, self.num_summary_tokens, self.norm = (
            intermediate_size,
            num_summary_tokens,
            norm,
        )
        others["hidden_size"] = num_groups * group_channels
        super().__init__(num_hidden_layers=num_hidden_layers, **others)


class MixerLayer(nn.Module):
    """The position-wise part of a layer: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: FindnaConfig) -> None:
        super().__init__()
        norm, size = _NORMS[config.norm], config.hidden_size
        self.norm = norm() if config.norm == "none" else norm(size)
        self.expand = nn.Linear(size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        contracted: Tensor = self.contract(nn.functional.gelu(self.expand(self.norm(x_BTD))))
        return contracted


class FindnaModel(DnaModel):
    config_class = FindnaConfig

    def __init__(self, config: FindnaConfig) -> None:
        super().__init__(config)
        self.input = nn.Linear(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def read(
        self, codes_BL: Tensor, length_B: Tensor, keep: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor]:
        rows, summaries = codes_BL.shape[0], self.config.num_summary_tokens
        codes_BT = torch.cat([codes_BL.new_full((rows, summaries), CLS), codes_BL], 1)
        x_BTD = self.input(one_hot(codes_BT, self.input.weight.dtype))
        reads = rotation(length_B + summaries, codes_BT.shape[1], self.config.num_groups)
        keep(x_BTD[:, summaries:])
        for layer in self.layers:
            update_BTD = self.run(layer, x_BTD)
            pieces = update_BTD.reshape(-1, self.config.group_channels)
            x_BTD = x_BTD + pieces.index_select(0, reads).view(update_BTD.shape)
            keep(x_BTD[:, summaries:])
        return x_BTD[:, :summaries], x_BTD[:, summaries:]


def rotation(circle_B: Tensor, positions: int, groups: int) -> Tensor:
    """int64 [B·T·G]: which group of which position each group of each position reads. ``circle_B``: positions
    of each circle; those behind stand still."""
    device = circle_B.device
    shift_G = torch.tensor([(1 << group) >> 1 for group in range(groups)], device=device)
    place_T1 = torch.arange(positions, device=device)[:, None]
    circle_B11 = circle_B[:, None, None]
    place_BTG = torch.where(place_T1 < circle_B11, (place_T1 + shift_G) % circle_B11, place_T1)
    row_B11 = torch.arange(circle_B.shape[0], device=device)[:, None, None]
    return ((row_B11 * positions + place_BTG) * groups + torch.arange(groups, device=device)).flatten()


class FindnaForMaskedLM(DnaForMaskedLM):
    config_class, backbone_class = FindnaConfig, FindnaModel


class FindnaForSequenceClassification(DnaForSequenceClassification):
    config_class, backbone_class = FindnaConfig, FindnaModel
