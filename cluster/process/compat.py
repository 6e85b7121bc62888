"""Functions of torch whose names differ between versions (2.11 to 2.13 are supported)."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

# 2.13 deprecates the second name, and 2.11 does not know the first.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def all_gather(flat: Tensor, shard: Tensor, *, group: Any = None, async_op: bool = False) -> Any:
    """Fill ``flat`` [W·n] with every rank's ``shard`` [n]; the work handle where ``async_op``."""
    return getattr(dist, ALL_GATHER)(flat, shard, group=group, async_op=async_op)
