"""safetensors files, written and hashed in one pass without the interpreter's lock, so that steps go on.

safetensors' own writer copies every tensor and holds the lock meanwhile: 0.1 s for 100 MB, ten times as long
as the copy of the state, which is all that a step should wait for. Files are read with safetensors.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cluster.process.heartbeat import heartbeat
from trainer.run.checkpoint.manifests import DamagedError, File

_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
_PIECE = 64 << 20  # bytes between two signs of progress


def write(file: IO[bytes], tensors: Mapping[str, Tensor], *, lasting: bool = False) -> File:
    """Size and sha256 of ``tensors`` (on the CPU, contiguous) as written to ``file`` in safetensors' format.

    ``lasting``: each piece is flushed to the disk before the next is written, so that also on a slow disk the
    heartbeat moves.
    """
    digest, size = hashlib.sha256(), 0
    for part in _parts({name: tensors[name] for name in sorted(tensors)}):
        for start in range(0, len(part), _PIECE):
            piece = part[start : start + _PIECE]
            digest.update(piece)
            file.write(piece)
            size += len(piece)
            if lasting and len(piece) == _PIECE:
                file.flush()
                os.fdatasync(file.fileno())
            heartbeat.advance()
    return File(size=size, sha256=digest.hexdigest())


def read(name: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file. DamagedError if it is none."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError as fault:
        raise DamagedError(f"{name} is no safetensors file: {' '.join(str(fault).split())}") from fault


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The length of the header in 8 bytes, the header, padded so that the tensors are aligned, and the bytes
    of each tensor."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        assert tensor.device.type == "cpu" and tensor.is_contiguous(), name
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data
