"""Where the GPU tests run: on the GPU, or small on a CPU where the campaign is rehearsed; and what the CPU
found.

DNA_GPU_REHEARSE=1 rehearses. DNA_GPU_REFERENCES names a folder that ``python -m tests.gpu.campaign --pack``
made, from which what CPU ranks find is read in place of being computed again on the machine with the GPU.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

T = TypeVar("T")
REHEARSE = os.environ.get("DNA_GPU_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSE else "cuda"
REFERENCES = "references"

marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSE or torch.cuda.is_available()), reason="no NVIDIA GPU on this machine"),
    pytest.mark.timeout(900),  # processes are started afresh, and several runs share one
]


def few(cases: Sequence[T], number: int = 1) -> list[T]:
    """All cases on a GPU; the first few in a rehearsal, since tests/dist has them all on a CPU."""
    return list(cases)[:number] if REHEARSE else list(cases)


def reference(name: str, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives, from DNA_GPU_REFERENCES where that is set."""
    if folder := os.environ.get("DNA_GPU_REFERENCES"):
        return pickle.loads(Path(folder, f"{name}.pickle").read_bytes())
    return compute()
