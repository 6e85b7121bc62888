"""A network as four small files: model.safetensors, heads.safetensors, config.json, README.md; and back,
strictly. Beside them lie those with which transformers opens it (portable_files.py)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.storage import store
from data_prep import alphabet
from trainer.models import portable_files
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


def write(uri: str, network: Network, tensors: Mapping[str, Tensor], *, card: str) -> Exported:
    """Write an export below ``uri``; the bytes of model.safetensors depend on the weights alone."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    ordered = ((name, tensors[name]) for name in in_order(tensors))
    return write_stream(uri, network, shapes, ordered, card=card)


def in_order(names: Iterable[str]) -> list[str]:
    """Parameters in the order that the files have them in: projection heads, then what users of the model
    need."""
    return sorted(names, key=lambda name: (not _is_head(name), name))


def write_stream(
    uri: str,
    network: Network,
    shapes: Mapping[str, torch.Size],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    card: str,
) -> Exported:
    """``write`` with one tensor in memory at a time: ``tensors`` come ``in_order`` and are written as they
    come. ``network`` is asked for its sizes only."""
    _write_texts(uri, network, card=card)
    coming = iter(tensors)
    digest = ""
    for file_name, in_heads in ((HEADS, True), (WEIGHTS, False)):
        part = {name: shapes[name] for name in in_order(shapes) if _is_head(name) == in_heads}
        with store.publish(store.join(uri, file_name)) as file:
            digest = _write_safetensors(file, part, coming)
    return Exported(uri, digest)


def _write_texts(uri: str, network: Network, *, card: str) -> None:
    """All files of an export but the weights."""
    portable = network.backbone.portable
    texts = {CONFIG: _json(shared_config(network)), CARD: card.encode()}
    for name, content in (texts | (portable.files() if portable else {})).items():
        store.write_bytes(store.join(uri, name), content)


def copy(source: str, target: str) -> None:
    """The files of the export at ``source`` below ``target``, each as a whole, the weights last."""

    def read(name: str) -> bytes:
        return store.read_bytes(store.join(source, name))

    for name, content in portable_files.of_export(json.loads(read(CONFIG)), read).items():
        store.write_bytes(store.join(target, name), content)
    for name in FILES:
        copy_file(store.join(source, name), store.join(target, name))


def share(source: str, target: str, network: Network, *, card: str) -> None:
    """An export of this release below ``target``, of the model at ``source`` whose ``network`` was loaded.

    The weights keep their bytes. Projection heads, which what transformers saves lacks, are then none.
    """
    _write_texts(target, network, card=card)
    heads = store.join(source, HEADS)
    if store.exists(heads):
        copy_file(heads, store.join(target, HEADS))
    else:
        store.write_bytes(store.join(target, HEADS), packed({}))
    copy_file(store.join(source, WEIGHTS), store.join(target, WEIGHTS))


def copy_file(source: str, target: str) -> None:
    """The file at ``source`` at ``target``, as a whole."""
    with store.publish(target) as file:
        for piece in store.chunks(source):
            file.write(piece)


def _is_head(name: str) -> bool:
    return name.startswith("heads.")


def _write_safetensors(
    file: IO[bytes], shapes: Mapping[str, torch.Size], tensors: Iterator[tuple[str, Tensor]]
) -> str:
    """The sha256 of what was written: the next tensors as fp32, byte for byte as the library writes them.

    The library takes all tensors at once, and holds three copies of them.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape.numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for part in (len(text).to_bytes(8, "little"), text):
        digest.update(part)
        file.write(part)
    for wanted in shapes:
        name, tensor = next(tensors)
        assert name == wanted and tensor.shape == shapes[name], f"{name} came, {wanted} was expected"
        if tensor.numel():
            flat = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def files(network: Network, tensors: Mapping[str, Tensor], *, card: str) -> dict[str, bytes]:
    """The content of the four files by name, as ``write`` writes them, but with nothing for transformers.

    For fine-tuned models, whose heads it would not read.
    """
    heads, weights = (
        packed({name: tensor for name, tensor in tensors.items() if _is_head(name) == in_heads})
        for in_heads in (True, False)
    )
    return {CONFIG: _json(_config(network)), CARD: card.encode(), HEADS: heads, WEIGHTS: weights}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of ``tensors`` as they are; its bytes depend on names and values alone."""
    return safetensors.torch.save(
        {name: tensors[name] for name in sorted(tensors)}, metadata={"format": "pt"}
    )


def load(uri: str) -> Network:
    """The backbone and nucleotide head exported at ``uri``, in eval mode; the projection heads stay behind.

    Raises:
        StoreError: a file is missing. ValueError: another format, model, wiring, or set of weights, by name.
    """
    return load_read(uri, read_needed(uri))


def read_needed(uri: str) -> dict[str, bytes]:
    """The content by name of the files that ``load`` needs. StoreError: one is missing."""
    return {name: store.read_bytes(store.join(uri, name)) for name in (CONFIG, WEIGHTS)}


def load_read(uri: str, content: Mapping[str, bytes]) -> Network:
    """``load`` of what ``read_needed`` gave of ``uri``. ValueError as there."""
    config = _config_of(content[CONFIG], store.join(uri, CONFIG))
    try:
        network, declared = fresh(config), config["wiring_sha256"]
    except (KeyError, TypeError, ValidationError) as fault:
        reason = " ".join(f"{type(fault).__name__} {fault}".split())
        raise ValueError(f"{store.join(uri, CONFIG)} is damaged: {reason}") from fault
    wiring = network.backbone.wiring_sha256()
    if wiring != declared:
        raise ValueError(f"{uri}: its wiring {declared[:12]} is not this code's {wiring[:12]}")
    try:
        tensors = safetensors.torch.load(content[WEIGHTS])
        network.load_state_dict(tensors, strict=True)
    except (safetensors.SafetensorError, RuntimeError) as fault:
        reason = " ".join(str(fault).split())
        raise ValueError(f"{store.join(uri, WEIGHTS)} does not fit its config: {reason}") from fault
    return network.eval()


def read_config(uri: str) -> dict[str, Any]:
    """config.json of an export. ValueError if it is of another format version or an unknown model."""
    path = store.join(uri, CONFIG)
    return _config_of(store.read_bytes(path), path)


def _config_of(content: bytes, path: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(content)
    except ValueError as fault:
        raise ValueError(f"{path} is not JSON: {fault}") from fault
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it is no mapping of keys")
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


def shared_config(network: Network) -> dict[str, Any]:
    """config.json of an export: what we read, and what transformers does, if the backbone has it."""
    portable = network.backbone.portable
    return _config(network) | (portable.config() if portable else {})


def _config(network: Network) -> dict[str, Any]:
    backbone = network.backbone
    return {
        "format_version": FORMAT_VERSION,
        "model_type": backbone.config.name,
        "architectures": [type(backbone).__name__],
        "torch_dtype": "float32",
        "vocab_size": alphabet.SIZE,
        "vocab": ["A", "C", "G", "T", "N", "MASK", "CLS", "PAD"],
        "pad_token_id": alphabet.PAD,
        "wiring_sha256": backbone.wiring_sha256(),
        **backbone.export_config(),
    }


def _json(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
