"""What is to be known of a device: whether the host waits for it."""

from typing import Any

import torch
from torch import Tensor

from trainer.core.waiting import device_wait


def is_queued(device: torch.device) -> bool:
    """Whether work on ``device`` is queued, so that the host waits where it reads a value of a tensor there.

    All code that has one way for a CPU, where a read costs nothing, and one that reads nothing asks here, by
    the module's name, so that tests run the second on a CPU.
    """
    return device.type != "cpu"


class HostCopy:
    """A small tensor's values on the host, from a copy that begins at once; only ``values`` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:  # only into pinned memory does a copy run beside the host
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def values(self) -> list[Any]:
        """As ``Tensor.tolist`` gives them. What was queued after the copy is not waited for."""
        if self._event is not None:
            with device_wait.running():
                self._event.synchronize()
        found: list[Any] = self._host.tolist()
        return found
