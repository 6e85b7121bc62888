"""Operators of a piece of work, and the reads that would make the host wait if its tensors lay on a GPU.

Counted on a CPU that runs what a GPU would run (``queued``), so that a machine without a GPU holds both
numbers down.
"""

import collections
import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.core import device

_ROOT = str(Path(__file__).resolve().parents[1])

# Reads of a value, and results whose size is one.
_READS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "equal",
    "bincount",
    "unique_consecutive",
    "_unique2",
    "repeat_interleave.Tensor",
}
# No kernel of their own: views, and memory that is not written.
_FREE = {
    "view",
    "t",
    "transpose.int",
    "expand",
    "slice.Tensor",
    "select.int",
    "unsqueeze",
    "squeeze.dim",
    "detach",
    "alias",
    "permute",
    "split.Tensor",
    "split_with_sizes",
    "_unsafe_view",
    "as_strided",
    "unbind.int",
    "empty.memory_format",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "view.dtype",
    "diagonal",
    "chunk",
    "narrow",
    "unfold",
    "resize_",
    "_reshape_alias",
    "squeeze.default",
    "squeeze",
    "detach_",
    "set_.source_Storage_storage_offset",
}


@contextlib.contextmanager
def queued() -> Iterator[None]:
    """The code takes its ways for a GPU, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "is_queued", lambda _: True)
        yield


class Count(TorchDispatchMode):
    """``ops``: by phase, name -> count, views left out. ``reads``: (name, file:line) -> count.

    A tensor that is made of Python numbers (``lift_fresh``) is a read, too: on a GPU it is a copy from
    pageable memory, for which the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lists = _Lists(self.reads_at)
        self.phase = "step"
        self.ops: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.reads: collections.Counter[tuple[str, str]] = collections.Counter()

    @property
    def total(self) -> int:
        return sum(sum(of.values()) for of in self.ops.values())

    def __enter__(self) -> "Count":
        self._lists.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *fault: Any) -> None:
        super().__exit__(*fault)
        self._lists.__exit__(*fault)

    def reads_at(self, name: str) -> None:
        self.reads[name, _where()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not name.startswith("aten::"):  # a collective, a mark of the profiler
            return func(*args, **(kwargs or {}))
        name = name.removeprefix("aten::")
        name = f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name
        if name not in _FREE and name != "lift_fresh":
            self.ops[self.phase][name] += 1
        if name in _READS or name == "lift_fresh" or self._is_boolean_index(name, args):
            self.reads_at(name)
        return func(*args, **(kwargs or {}))

    def _is_boolean_index(self, name: str, args: Any) -> bool:
        if name not in ("index.Tensor", "index_put_", "index_put", "_index_put_impl_"):
            return False
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


class _Lists(TorchFunctionMode):
    """Tells of reads of whole tensors, which on a CPU call no operator."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.cpu, Tensor.numpy):
            self._tell(func.__name__)
        return func(*args, **(kwargs or {}))


def _where() -> str:
    frames = [
        f for f in traceback.extract_stack() if "/trainer/" in f.filename or "/deepspeed/" in f.filename
    ]
    if not frames:
        return "?"
    last = frames[-1]
    name = last.filename.split("site-packages/")[-1].removeprefix(f"{_ROOT}/")
    return f"{name}:{last.lineno}"
