"""The collectives of a real step: every call of torch.distributed, ours and DeepSpeed's, with its bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from tests.bench.step_model import Collective

# Name of torch.distributed -> (kind, which argument holds the bytes of all ranks: for reductions the input)
CALLS = {
    "all_reduce": ("all_reduce", 0),
    "all_gather_into_tensor": ("all_gather", 0),
    "all_gather_single": ("all_gather", 0),
    "reduce_scatter_tensor": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
}


class Counter:
    """``seen``: what was called while ``counting``. ``watch`` must begin before torch.distributed is
    initialised through DeepSpeed, which keeps the functions that it finds then."""

    def __init__(self) -> None:
        self.seen: list[Collective] = []
        self._on, self._inside = False, False

    @contextmanager
    def watch(self) -> Iterator[None]:
        plain = {name: getattr(dist, name) for name in CALLS if hasattr(dist, name)}
        for name, function in plain.items():
            setattr(dist, name, self._watched(name, function))
        try:
            yield
        finally:
            for name, function in plain.items():
                setattr(dist, name, function)

    @contextmanager
    def counting(self) -> Iterator[None]:
        self._on = True
        yield
        self._on = False

    def _watched(self, name: str, function: Any) -> Any:
        kind, place = CALLS[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            outer = self._on and not self._inside  # one calls another within torch
            if outer:
                tensors = [*args, *kwargs.values()]
                tensor = next(t for t in tensors[place:] if isinstance(t, Tensor))
                self.seen.append(Collective(kind, tensor.nbytes, str(tensor.dtype).removeprefix("torch.")))
            self._inside, before = True, self._inside
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = before

        return call
