"""ChordMixer (Khalitov, Yu, Cheng, Yang, ICLR 2023), the backbone of FinDNA: x + CircularShift(MLP(x)),
repeated.

Channels come in groups; group i of every layer's update is rolled by a fixed number of positions (0, 1, 2, 4,
…), so that log₂(length) layers connect any two positions. Each row is a circle of its own length: summary
positions, then letters. Padding lies outside the circle, so no logit depends on it but for rounding.

Shapes: B rows, L letters, P summary positions, T = P + L, D = G·C channels in G groups.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from configs.numbers import Positive
from data_prep import alphabet
from trainer.models.backbone import Backbone, BackboneConfig, Hidden

Norm = Literal["none", "layer", "rms"]
_NORMS: dict[str, type[nn.Module]] = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}


class ChordMixerConfig(BackboneConfig):
    """``num_groups`` of ``group_channels`` channels each; ``num_summary`` positions stand before the
    letters."""

    name: str = "findna"
    num_layers: Positive = 40
    num_groups: Positive = 11
    group_channels: Positive = 28
    intermediate_size: Positive = 512
    num_summary: Positive = 10
    norm: Norm = "none"

    EXPORT_KEYS = {"num_layers": "num_hidden_layers", "num_summary": "num_summary_tokens"}


class ChordMixer(Backbone):
    Config = ChordMixerConfig

    def __init__(self, config: ChordMixerConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing)
        self.shifts = [0] + [1 << i for i in range(config.num_groups - 1)]
        self.group_channels = config.group_channels
        self.hidden_size = config.num_groups * config.group_channels
        self.summaries = config.num_summary
        self.input = nn.Linear(alphabet.SIZE, self.hidden_size)
        self.layers = nn.ModuleList(
            MixerMLP(self.hidden_size, config.intermediate_size, norm=config.norm)
            for _ in range(config.num_layers)
        )

    def positions(self, length: int) -> int:
        return self.summaries + length

    def activation_modules(self) -> list[nn.Linear]:
        return [layer.contract for layer in self.layers if isinstance(layer, MixerMLP)]

    def wiring(self) -> dict[str, Any]:
        return {
            "mixer": "x + roll(mlp(norm(x)), -shift)",
            "shifts": self.shifts,
            "group_channels": self.group_channels,
            "summary": ["first", self.summaries],
            "alphabet": "A C G T N MASK CLS PAD",
        }

    def export_config(self) -> dict[str, Any]:
        return super().export_config() | {"hidden_act": "gelu"}

    def forward(
        self, codes_BL: Tensor, *, length_B: Tensor | None = None, noise_BLC: Tensor | None = None
    ) -> Hidden:
        rows, length = codes_BL.shape
        summary_BP = codes_BL.new_full((rows, self.summaries), alphabet.CLS)
        onehot_BTV = nn.functional.one_hot(torch.cat([summary_BP, codes_BL], 1).long(), alphabet.SIZE)
        x_BTV = onehot_BTV.to(self.input.weight.dtype)
        if noise_BLC is not None:
            x_BTV[:, self.summaries :, : alphabet.BASES] += noise_BLC.to(x_BTV.dtype)
        index_BTG = None
        if length_B is not None:
            index_BTG = self._roll_index(length_B + self.summaries, length + self.summaries)
        x_BTD = self.input(x_BTV)
        for layer in self.layers:
            x_BTD = x_BTD + self._shifted(self.run(layer, x_BTD), index_BTG)
        return Hidden(*x_BTD.split([self.summaries, length], dim=1))

    def _shifted(self, update_BTD: Tensor, index_BTG: Tensor | None) -> Tensor:
        """Each group of channels rolled by its shift."""
        if index_BTG is None:
            groups = update_BTD.split(self.group_channels, dim=-1)
            rolled = [group.roll(-shift, 1) for group, shift in zip(groups, self.shifts, strict=True)]
            return torch.cat(rolled, -1)
        grouped_BTGC = update_BTD.unflatten(-1, (-1, self.group_channels))
        index_BTGC = index_BTG[..., None].expand(-1, -1, -1, self.group_channels)
        return grouped_BTGC.gather(1, index_BTGC).flatten(-2)

    def _roll_index(self, circle_B: Tensor, width: int) -> Tensor:
        """int64 [B, T, G]: the position each position reads, (t + shift) mod circle; padding reads itself."""
        place_T = torch.arange(width, device=circle_B.device)
        shift_G = torch.tensor(self.shifts, device=circle_B.device)
        index_BTG = (place_T[:, None] + shift_G) % circle_B[:, None, None]
        return torch.where((place_T < circle_B[:, None])[..., None], index_BTG, place_T[:, None])


class MixerMLP(nn.Module):
    """The position-wise part of a layer: [..., D] -> [..., D]."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, norm: Norm) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm == "none" else _NORMS[norm](hidden_size)
        self.expand = nn.Linear(hidden_size, intermediate_size)
        self.contract = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        contracted: Tensor = self.contract(nn.functional.gelu(self.expand(self.norm(x))))
        return contracted
