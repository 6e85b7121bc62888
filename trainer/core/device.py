"""What is to be known of a device: whether the host waits for it."""

import torch


def is_queued(device: torch.device) -> bool:
    """Whether work on ``device`` is queued, so that the host waits where it reads a value of a tensor there.

    All code that has one way for a CPU, where a read costs nothing, and one that reads nothing asks here, by
    the module's name, so that tests run the second on a CPU.
    """
    return device.type != "cpu"
