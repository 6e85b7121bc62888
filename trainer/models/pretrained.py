"""A network as four small files: model.safetensors, heads.safetensors, config.json, README.md; and back,
strictly."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.storage import store
from data_prep import alphabet
from trainer.models import MODELS
from trainer.models.config import Model
from trainer.models.heads import EmbeddingHead, ExpanderHead, PrototypeHead
from trainer.models.network import Network

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


def build_backbone(model: Model, *, activation_checkpointing: bool = False) -> Any:
    """The backbone of a ``model`` section, randomly initialised from torch's generator."""
    sizes = model.model_dump(exclude={"name"})
    return MODELS[model.name](**sizes, activation_checkpointing=activation_checkpointing)


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
    weights, heads = (
        safetensors.torch.save({name: part[name] for name in sorted(part)}, metadata={"format": "pt"})
        for part in tensors
    )
    content = {
        CONFIG: json.dumps(_hf_config(network), indent=2, sort_keys=True).encode() + b"\n",
        CARD: card.encode(),
        HEADS: heads,
        WEIGHTS: weights,
    }
    for name in FILES:
        store.write_bytes(store.join(uri, name), content[name])
    return Exported(uri, hashlib.sha256(weights).hexdigest())


def load(uri: str) -> Network:
    """The backbone and nucleotide head exported at ``uri``, in eval mode; the projection heads stay behind.

    Raises:
        StoreError: a file is missing. ValueError: another format, model, wiring, or set of weights, by name.
    """
    config = read_config(uri)
    try:
        network, declared = fresh(config), config["wiring_sha256"]
    except (KeyError, TypeError) as fault:
        raise ValueError(f"{store.join(uri, CONFIG)} is damaged: {type(fault).__name__} {fault}") from fault
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
    """The same network with new weights from torch's generator, for training from scratch."""
    return Network(MODELS[config["model_type"]](**_sizes(config)), heads={})


def parameter_count(module: nn.Module) -> int:
    """Entries of all parameters; of whole ones under ZeRO-3, where a rank holds a part of each."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def projection_heads(losses: Any, hidden_size: int) -> dict[str, nn.Module]:
    """The heads that the losses in use need, by the loss's name."""
    heads: dict[str, nn.Module] = {}
    for name, d in (("distill", losses.distill), ("patch", losses.patch)):
        if d.weight:
            heads[name] = PrototypeHead(
                hidden_size, mlp_size=d.mlp_size, bottleneck=d.bottleneck, prototypes=d.prototypes
            )
    if losses.contrastive.weight:
        c = losses.contrastive
        heads["contrastive"] = EmbeddingHead(
            hidden_size,
            mlp_size=c.mlp_size,
            embedding=c.embedding,
            scale=1 / c.temperature,
            max_scale=c.max_scale,
            learnable=c.learnable_scale,
        )
    if losses.vicreg.weight:
        heads["vicreg"] = ExpanderHead(
            hidden_size, mlp_size=losses.vicreg.mlp_size, embedding=losses.vicreg.embedding
        )
    return heads


def _hf_config(network: Network) -> dict[str, Any]:
    name = next(name for name, kind in MODELS.items() if isinstance(network.backbone, kind))
    return {
        "format_version": FORMAT_VERSION,
        "model_type": name,
        "architectures": [type(network.backbone).__name__],
        "torch_dtype": "float32",
        "vocab_size": alphabet.SIZE,
        "vocab": ["A", "C", "G", "T", "N", "MASK", "CLS", "PAD"],
        "num_labels": alphabet.BASES,
        "wiring_sha256": network.backbone.wiring_sha256(),
        **network.backbone.config,
    }


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_layers": config["num_hidden_layers"],
        "num_groups": config["num_groups"],
        "group_channels": config["group_channels"],
        "intermediate_size": config["intermediate_size"],
        "num_summary": config["num_summary_tokens"],
        "norm": config["norm"],
    }
