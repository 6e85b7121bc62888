"""Joining and leaving torch.distributed, and the process group as DeepSpeed wants it."""

import functools
import logging
import os
import warnings
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from trainer.core.collectives import Group


def init_distributed(device: torch.device) -> None:
    """Join the process group that the launcher describes (RANK, WORLD_SIZE, MASTER_*); without a launcher, a
    group of this process alone."""
    _prepare_deepspeed()
    torch.backends.cudnn.allow_tf32 = False  # fp32 convolutions, as torch has it for matrix products
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        else:
            dist.init_process_group(backend)
    deepspeed.init_distributed(backend, verbose=False)


def leave_distributed(*, together: bool) -> None:
    """Close the process group; ``together`` waits for the other ranks first, so that none loses its peers
    while it still works."""
    if dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()


@functools.cache
def _prepare_deepspeed() -> None:
    """Silence what DeepSpeed prints about settings that are meant, and keep it from compiling."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed warns of optimisers that are not torch's own class, which ours is not.
    deepspeed.utils.logger.addFilter(lambda record: "untested" not in record.getMessage())
    # DeepSpeed 0.19.8 calls functions that torch 2.13 deprecates.
    warnings.filterwarnings(
        "ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*", category=FutureWarning
    )
    # DeepSpeed would compile this op on CPU (25 s, needs g++) and leave 66 MiB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DataParallel:
    """A process group as DeepSpeed asks for it: all of it data parallel, nothing model parallel."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)

    def get_data_parallel_group(self) -> Any:
        return self._group.handle

    def get_data_parallel_group_ranks(self) -> list[int]:
        assert self._group.handle is not None, "the whole world needs no mpu"
        return dist.get_process_group_ranks(self._group.handle)

    def get_data_parallel_world_size(self) -> int:
        return self._group.size

    def get_data_parallel_rank(self) -> int:
        return self._group.rank

    def get_model_parallel_group(self) -> Any:
        return self._alone

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0
