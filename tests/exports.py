"""Tiny exports of each backbone, as a training run leaves them, for tests that open them by transformers."""

from pathlib import Path
from typing import Any

import torch

from trainer.models import pretrained
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.models.registry import MODELS

SIZES: dict[str, dict[str, Any]] = {
    "findna": {
        "num_layers": 3,
        "num_groups": 5,
        "group_channels": 4,
        "intermediate_size": 16,
        "num_summary": 3,
        "norm": "layer",
    },
    "dilated-conv": {
        "hidden_size": 20,
        "stem_kernel": 5,
        "kernel": 3,
        "dilations": [1, 4, 2],
        "expansion": 2,
    },
}


def network_of(name: str, **changes: Any) -> Network:
    torch.manual_seed(0)
    section = MODELS[name].Config.model_validate({"name": name, **SIZES[name], **changes})
    return Network(build_backbone(section), heads={}).eval()


def files_of(name: str) -> set[str]:
    """The names of all files of an export."""
    portable = MODELS[name].portable
    return {*pretrained.FILES, *(portable.files() if portable else ())}


def export(folder: Path, network: Network, *, card: str = "card") -> Path:
    """``folder``, with the files of an export of ``network``."""
    pretrained.write(str(folder), network, dict(network.state_dict()), card=card)
    return folder
