"""Nested tensors in one buffer, so that one copy takes them to a GPU."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_ALIGNMENT = 16  # bytes, a multiple of every element's


@dataclass(frozen=True)
class Parcel(Generic[T]):
    """``content`` as it was given; ``buffer`` uint8 with the bytes of all its tensors, each at its place."""

    content: T
    buffer: Tensor
    places: dict[int, int]  # id of a tensor of ``content`` -> its first byte

    @classmethod
    def of(cls, content: T, *, pin: bool = False) -> "Parcel[T]":
        """A parcel of tensors of the CPU, nested as ``map_tensors`` finds them.

        ``pin``: into memory from which a copy to the GPU runs beside the host.
        """
        tensors: dict[int, Tensor] = {}
        map_tensors(content, lambda tensor: tensors.setdefault(id(tensor), tensor))
        places, end = dict[int, int](), 0
        for key, tensor in tensors.items():
            assert tensor.device.type == "cpu", f"a tensor on {tensor.device} is to be packed on the CPU"
            places[key] = end
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pin)
        for key, tensor in tensors.items():
            _at(buffer, places[key], tensor).copy_(tensor)
        return cls(content, buffer, places)

    def to(self, device: torch.device) -> T:
        """The content with its tensors on ``device``, as views of one copy of the buffer; a tensor that
        stands in several places is one there, too."""
        there = self.buffer.to(device, non_blocking=True)
        made: dict[int, Tensor] = {}

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = _at(there, self.places[id(tensor)], tensor)
            return made[id(tensor)]

        content: T = map_tensors(self.content, moved)
        return content


def _at(buffer: Tensor, first: int, like: Tensor) -> Tensor:
    """The bytes from ``first`` on, as a tensor of the shape and dtype of ``like``."""
    return buffer[first : first + like.nbytes].view(like.dtype).view(like.shape)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to each tensor in its lists, tuples, dicts and dataclasses; anything
    else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [map_tensors(part, change) for part in value]
    if isinstance(value, tuple):
        parts = [map_tensors(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: map_tensors(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
