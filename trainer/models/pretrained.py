"""A network as four small files: model.safetensors, heads.safetensors, config.json, README.md; and back,
strictly."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.storage import store
from data_prep import alphabet
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.models.registry import MODELS

FORMAT_VERSION = 1
WEIGHTS, HEADS, CONFIG, CARD = "model.safetensors", "heads.safetensors", "config.json", "README.md"
FILES = (
    CONFIG,
    CARD,
    HEADS,
    WEIGHTS,
)  # in the order of writing: the weights' presence says that all is there


@dataclass(frozen=True)
class Exported:
    """Where an export lies and the sha256 of its model.safetensors."""

    uri: str
    sha256: str


def split_tensors(
    tensors: Iterable[tuple[str, Tensor]], *, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(backbone and nucleotide head, projection heads), fp32 on CPU. ``keep`` False only drains the
    collective."""
    model: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if keep:
            part = heads if name.startswith("heads.") else model
            part[name] = tensor.detach().to("cpu", torch.float32).contiguous()
    return model, heads


def write(
    uri: str, network: Network, tensors: tuple[dict[str, Tensor], dict[str, Tensor]], *, card: str
) -> Exported:
    """Write the four files below ``uri``; model.safetensors' bytes depend on the weights alone."""
    content = files(network, tensors, card=card)
    for name in FILES:
        store.write_bytes(store.join(uri, name), content[name])
    return Exported(uri, hashlib.sha256(content[WEIGHTS]).hexdigest())


def files(
    network: Network, tensors: tuple[dict[str, Tensor], dict[str, Tensor]], *, card: str
) -> dict[str, bytes]:
    """The content of the four files, by name; ``tensors`` as ``split_tensors`` gives them."""
    weights, heads = (packed(part) for part in tensors)
    config = json.dumps(_hf_config(network), indent=2, sort_keys=True).encode() + b"\n"
    return {CONFIG: config, CARD: card.encode(), HEADS: heads, WEIGHTS: weights}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file, whose bytes depend on names and values alone."""
    return safetensors.torch.save(
        {name: tensors[name] for name in sorted(tensors)}, metadata={"format": "pt"}
    )


def load(uri: str) -> Network:
    """The backbone and nucleotide head exported at ``uri``, in eval mode; the projection heads stay behind.

    Raises:
        StoreError: a file is missing. ValueError: another format, model, wiring, or set of weights, by name.
    """
    config = read_config(uri)
    try:
        network, declared = fresh(config), config["wiring_sha256"]
    except (KeyError, TypeError, ValidationError) as fault:
        reason = " ".join(f"{type(fault).__name__} {fault}".split())
        raise ValueError(f"{store.join(uri, CONFIG)} is damaged: {reason}") from fault
    wiring = network.backbone.wiring_sha256()
    if wiring != declared:
        raise ValueError(f"{uri}: its wiring {declared[:12]} is not this code's {wiring[:12]}")
    try:
        tensors = safetensors.torch.load(store.read_bytes(store.join(uri, WEIGHTS)))
        network.load_state_dict(tensors, strict=True)
    except (safetensors.SafetensorError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())
        raise ValueError(f"{store.join(uri, WEIGHTS)} does not fit its config: {reason}") from fault
    return network.eval()


def read_config(uri: str) -> dict[str, Any]:
    """config.json of an export. ValueError if it is of another format version or an unknown model."""
    path = store.join(uri, CONFIG)
    try:
        config: dict[str, Any] = json.loads(store.read_bytes(path))
    except ValueError as fault:
        raise ValueError(f"{path} is not JSON: {fault}") from fault
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {config.get('format_version')}, this code reads {FORMAT_VERSION}"
        )
    if config.get("model_type") not in MODELS:
        raise ValueError(
            f"{path} has model_type {config.get('model_type')!r}, known are {', '.join(sorted(MODELS))}"
        )
    return config


def fresh(config: dict[str, Any]) -> Network:
    """The same network with new weights from torch's generator, for training from scratch.

    Raises:
        KeyError, TypeError, ValueError: the config lacks a size, or has one that cannot be.
    """
    section = MODELS[config["model_type"]].Config.from_export(config)
    return Network(build_backbone(section), heads={})


def parameter_count(module: nn.Module) -> int:
    """Entries of all parameters; of whole ones under ZeRO-3, where a rank holds a part of each."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def _hf_config(network: Network) -> dict[str, Any]:
    backbone = network.backbone
    return {
        "format_version": FORMAT_VERSION,
        "model_type": backbone.config.name,
        "architectures": [type(backbone).__name__],
        "torch_dtype": "float32",
        "vocab_size": alphabet.SIZE,
        "vocab": ["A", "C", "G", "T", "N", "MASK", "CLS", "PAD"],
        "num_labels": alphabet.BASES,
        "wiring_sha256": backbone.wiring_sha256(),
        **backbone.export_config(),
    }
