"""ChordMixer (Khalitov, Yu, Cheng, Yang, ICLR 2023), the backbone of FinDNA: x + CircularShift(MLP(x)),
repeated.

Channels come in groups; group i of every layer's update is rolled by a fixed number of positions (0, 1, 2, 4,
…), so that log₂(length) layers connect any two positions. Each row is a circle of its own length: summary
positions, then letters. Padding lies outside the circle, so no logit depends on it but for rounding.

In half precision rows are padded with zeros to whole lines of memory: a GPU multiplies, say, 308 columns at a
third of the speed of 320, a CPU at 70 to 90 %.

Shapes: B rows, L letters, P summary positions, T = P + L, D = G·C channels in G groups, X ≥ D with padding.
"""

from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from configs.numbers import Positive
from data_prep import alphabet
from trainer.models import mixer_kernels as kernels
from trainer.models.backbone import Backbone, BackboneConfig, Hidden
from trainer.models.mixer_function import mixer_layer, padded
from trainer.models.mixer_rotation import Rotation, shifts_of
from trainer.models.portable_files import shipped

Norm = Literal["none", "layer", "rms"]
_MOST_GROUPS = 31  # the last of them reads 2^29 positions further on, and offsets are int32
_NORMS: dict[str, type[nn.Module]] = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}


class ChordMixerConfig(BackboneConfig):
    """``num_groups`` of ``group_channels`` channels each; ``num_summary`` positions stand before the
    letters.

    ``kernel``: what computes the layers in training. auto: Triton kernels where there is a GPU that they are
    for and weights are in bf16, else plain operations.
    """

    name: str = "findna"
    num_layers: Positive = 40
    num_groups: Annotated[int, Field(ge=1, le=_MOST_GROUPS)] = 11
    group_channels: Positive = 28
    intermediate_size: Positive = 512
    num_summary: Positive = 10
    norm: Norm = "none"
    kernel: Literal["auto", "plain", "triton"] = "auto"

    NOT_EXPORTED = frozenset({"name", "kernel"})
    EXPORT_KEYS = {"num_layers": "num_hidden_layers", "num_summary": "num_summary_tokens"}

    def faults(self, *, zero_stage: int, precision: str) -> list[str]:
        if self.kernel != "triton":
            return []
        found = []
        if zero_stage == 3:
            found.append(
                "model.kernel triton needs the whole weights of a layer, which ZeRO-3 gathers one map at a "
                "time; use train.zero_stage 0 to 2, or kernel auto"
            )
        if precision == "fp32":
            found.append("model.kernel triton is for bf16; set train.precision=bf16, or kernel auto")
        return found


class ChordMixer(Backbone):
    Config = ChordMixerConfig
    portable = shipped("modeling_findna.py", prefix="Findna")

    def __init__(self, config: ChordMixerConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing)
        self.shifts = shifts_of(config.num_groups)
        self.group_channels = config.group_channels
        self.hidden_size = config.num_groups * config.group_channels
        self.summaries = config.num_summary
        self.input = PaddedLinear(alphabet.SIZE, self.hidden_size)
        self.layers = nn.ModuleList(
            MixerLayer(self.hidden_size, config.intermediate_size, norm=config.norm)
            for _ in range(config.num_layers)
        )

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    def positions(self, length: int) -> int:
        return self.summaries + length

    def activation_modules(self) -> list[nn.Linear]:
        return [layer.contract for layer in self.layers if isinstance(layer, MixerLayer)]

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

    def computed_by(self, device: torch.device, dtype: torch.dtype) -> str:
        because = self.plain_because(device, dtype)
        if because is None:
            return "the mixer's layers run by Triton kernels"
        if self.config.kernel == "triton":
            raise ValueError(_not_by_triton(because))
        return f"the mixer's layers run by plain operations: {because}" if device.type == "cuda" else ""

    def plain_because(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why its layers run by plain operations on ``device`` with weights of ``dtype``; None: by Triton
        kernels."""
        if self.config.kernel == "plain":
            return "model.kernel is plain"
        if fault := kernels.unusable(device, dtype):
            return fault
        if self._is_read():
            return "activations or weights within a layer are read from outside, as under ZeRO-3"
        return None

    def forward(
        self,
        codes_BL: Tensor,
        *,
        length_B: Tensor | None = None,
        noise_BLC: Tensor | None = None,
        layer: int | None = None,
    ) -> Hidden:
        rows, length = codes_BL.shape
        summary_BP = codes_BL.new_full((rows, self.summaries), alphabet.CLS)
        letters_V = torch.arange(alphabet.SIZE, device=codes_BL.device, dtype=codes_BL.dtype)
        codes_BT = torch.cat([summary_BP, codes_BL], 1)
        x_BTV = (codes_BT[..., None] == letters_V).to(self.input.weight.dtype)
        if noise_BLC is not None:
            x_BTV[:, self.summaries :, : alphabet.BASES] += noise_BLC.to(x_BTV.dtype)
        x_BTX = self.input(x_BTV, self._columns(x_BTV))
        rotation = Rotation(
            x_BTX,
            num_groups=self.config.num_groups,
            group_channels=self.group_channels,
            circle_B=None if length_B is None else length_B + self.summaries,
        )
        fused = self._is_fused(x_BTX)
        for number, mixer in enumerate(self.layers):
            if number == layer:
                break
            assert isinstance(mixer, MixerLayer)
            if fused:
                x_BTX = self.run(partial(mixer.fused, rotation=rotation), x_BTX)
            else:
                x_BTX = x_BTX + rotation(self.run(mixer, x_BTX))
        return Hidden(*x_BTX[..., : self.hidden_size].split([self.summaries, length], dim=1))

    def _is_fused(self, x_BTX: Tensor) -> bool:
        # Who reads within a layer, such as a probe, gets what it reads.
        if self.config.kernel == "plain" or self._is_read():
            return False
        because = kernels.unusable(x_BTX.device, self.input.weight.dtype)
        if because is None and x_BTX.dtype != self.input.weight.dtype:
            because = f"the input is {x_BTX.dtype} by autocast and weights are {self.input.weight.dtype}"
        if because and self.config.kernel == "triton":
            raise RuntimeError(_not_by_triton(because))
        return because is None

    def _is_read(self) -> bool:
        return any(layer.is_read() for layer in self.layers if isinstance(layer, MixerLayer))

    def _columns(self, like: Tensor) -> int:
        """X: padded in half precision, on a CPU only where that adds little; else D."""
        columns = padded(self.hidden_size)
        adds_little = 8 * (columns - self.hidden_size) <= self.hidden_size
        is_half = like.dtype in (torch.bfloat16, torch.float16)
        if self.config.kernel == "triton" or (is_half and (like.is_cuda or adds_little)):
            return columns
        return self.hidden_size


def _not_by_triton(because: str) -> str:
    return f"model.kernel is triton, but {because}; set auto or plain"


class PaddedLinear(nn.Linear):
    """x Wᵀ + b for rows that are padded with zeros: [..., ≥ in_features] -> [..., columns]."""

    def forward(self, x: Tensor, columns: int | None = None) -> Tensor:
        """``columns``: of the result, by default out_features; those behind are 0."""
        read, more = x.shape[-1] - self.in_features, (columns or self.out_features) - self.out_features
        if not (read or more):
            return super().forward(x)
        weight = nn.functional.pad(self.weight, (0, read, 0, more))
        return nn.functional.linear(x, weight, nn.functional.pad(self.bias, (0, more)))


class MixerLayer(nn.Module):
    """The position-wise part of a layer: [..., X] -> [..., X], zeros from column D on."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, norm: Norm) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm == "none" else _NORMS[norm](hidden_size)
        self.expand = PaddedLinear(hidden_size, intermediate_size)
        self.contract = PaddedLinear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.expand(self._normed(x))
        contracted: Tensor = self.contract(nn.functional.gelu(expanded), x.shape[-1])
        return contracted

    def fused(self, x_BTX: Tensor, *, rotation: Rotation) -> Tensor:
        """x + rotation(forward(x)) by the kernels."""
        h_BTX = None if isinstance(self.norm, nn.Identity) else self._normed(x_BTX).to(x_BTX.dtype)
        weights = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
        return mixer_layer(x_BTX, h_BTX, weights, rotation)

    def is_read(self) -> bool:
        """Whether anybody has hooked its maps, to read what they get or to gather their weights."""
        return any(part._forward_pre_hooks or part._forward_hooks for part in (self.expand, self.contract))

    def _normed(self, x: Tensor) -> Tensor:
        padding = x.shape[-1] - self.expand.in_features
        if not padding or isinstance(self.norm, nn.Identity):
            normed: Tensor = self.norm(x)
            return normed
        return nn.functional.pad(self.norm(x[..., :-padding]), (0, padding))
