"""What every backbone is: letters in, one vector for each letter and some for the whole row out.

Shapes: B rows, L letters, P summaries, D hidden.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.section import Section
from trainer.models.portable_files import Portable


class BackboneConfig(Section):
    """The part of every ``model`` section. ``name`` is a key of MODELS and the export's ``model_type``."""

    name: str

    # Field -> key of config.json, where Hugging Face calls it otherwise.
    EXPORT_KEYS: ClassVar[Mapping[str, str]] = {}
    # Fields that say how it is computed and not what, so that no export has them.
    NOT_EXPORTED: ClassVar[frozenset[str]] = frozenset({"name"})
    # Fields that exports of earlier versions do not have; their defaults must mean what was before.
    ADDED_LATER: ClassVar[frozenset[str]] = frozenset()

    def faults(self, *, zero_stage: int, precision: str) -> list[str]:
        """A sentence for each setting that no training under ``train.zero_stage`` and ``train.precision``
        (fp32 or bf16) can have."""
        return []

    def exported(self) -> dict[str, Any]:
        """Its sizes as config.json has them."""
        sizes = self.model_dump(mode="json", exclude=set(self.NOT_EXPORTED))
        return {self.EXPORT_KEYS.get(field, field): value for field, value in sizes.items()}

    @classmethod
    def from_export(cls, config: Mapping[str, Any]) -> "BackboneConfig":
        """The section of an export's config.json. KeyError: a size is missing there.

        A field that was added to the backbone later counts as its default if it is in ``ADDED_LATER``.
        """
        keys = {
            field: cls.EXPORT_KEYS.get(field, field)
            for field in cls.model_fields
            if field not in cls.NOT_EXPORTED
        }
        sizes = {
            field: config[key] for field, key in keys.items() if key in config or field not in cls.ADDED_LATER
        }
        return cls(name=config["model_type"], **sizes)


class Hidden(NamedTuple):
    """Hidden states: of the whole row (at least one vector), and of each letter."""

    summary_BPD: Tensor
    letters_BLD: Tensor


class Backbone(nn.Module):
    """Codes uint8 [B, L] -> Hidden. A subclass sets ``hidden_size`` and ``summaries`` (P).

    ``portable``: the same for transformers; None: transformers does not open its exports.
    """

    Config: ClassVar[type[BackboneConfig]]
    portable: ClassVar[Portable | None] = None
    hidden_size: int
    summaries: int = 1

    def __init__(self, config: Any, *, activation_checkpointing: bool = False) -> None:
        """``config``: a ``Config``; ``activation_checkpointing``: hidden states are computed again in the
        backward."""
        super().__init__()
        self.config, self.activation_checkpointing = config, activation_checkpointing

    def forward(
        self,
        codes_BL: Tensor,
        *,
        length_B: Tensor | None = None,
        noise_BLC: Tensor | None = None,
        layer: int | None = None,
    ) -> Hidden:
        """Hidden states of ``codes_BL`` uint8.

        Args:
            length_B: letters of each row, those behind are padding, on which nothing may depend; None says
                that every row is full.
            noise_BLC: float [B, L, 4] added to the A, C, G, T input channels of the letters.
            layer: stop after so many layers, 0 to ``layer_count``; None: all of them. A backbone without a
                ``layer_count`` is never given it, and need not take it.
        """
        raise NotImplementedError

    @property
    def layer_count(self) -> int | None:
        """How many layers ``forward`` can stop after; None: it always goes to the end."""
        return None

    def run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``part(x)``, which is computed again in the backward if activations are checkpointed.

        It is computed again up to the last tensor that the backward needs. That must lie within the same
        module on all ranks, or they wait for each other's weights under ZeRO-3 for ever. So what depends on
        padding stays outside ``part``.
        """
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return part(x)
        return checkpoint(part, x, use_reentrant=False)

    def computed_by(self, device: torch.device, dtype: torch.dtype) -> str:
        """What computes its layers in a training on ``device`` with weights of ``dtype``, in words; "" where
        there is nothing to choose.

        Raises:
            ValueError: its config wants what is not there.
        """
        return ""

    def positions(self, length: int) -> int:
        """To how many vectors of a row of ``length`` letters its weights are applied, for counting FLOPs."""
        return length

    def activation_modules(self) -> list[nn.Linear]:
        """The linear maps that read the hidden activations of its layers, in order; by default none.

        The input of each is [B, T, in_features]; its last L positions are the letters. Probes read it.
        """
        return []

    def wiring(self) -> dict[str, Any]:
        """What decides which position feeds which: weights mean nothing under another wiring. No length in
        it."""
        raise NotImplementedError

    def wiring_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.wiring(), sort_keys=True).encode()).hexdigest()

    def export_config(self) -> dict[str, Any]:
        """What config.json says of it."""
        sizes: dict[str, Any] = self.config.exported()
        return sizes | {"hidden_size": self.hidden_size}
