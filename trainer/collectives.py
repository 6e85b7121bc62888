"""The few collectives that training uses, each over a given process group; a group of one communicates nothing."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A process group (None: all processes), this process's rank in it, and its size."""

    rank: int
    size: int
    handle: "dist.ProcessGroup | None" = None

    @classmethod
    def of(cls, handle: "dist.ProcessGroup | None" = None) -> "Group":
        """The group as torch.distributed knows it; of size 1 where torch.distributed is not initialised."""
        if not dist.is_initialized():
            return cls(0, 1)
        return cls(dist.get_rank(handle), dist.get_world_size(handle), handle)


def gather_packed(group: Group, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each fp32 tensor of every rank, stacked to [W, ...], in one all-gather. Shapes must agree over ranks."""
    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors.values()])
    gathered = flat.new_empty(group.size, flat.numel())
    if group.size == 1:
        gathered[0] = flat
    else:
        dist.all_gather_single(gathered.view(-1), flat, group=group.handle)
    parts = gathered.split([tensor.numel() for tensor in tensors.values()], dim=1)
    return {
        name: part.reshape(group.size, *tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def all_gather_flat(group: Group, flat: Tensor, shard: Tensor) -> None:
    """Fill ``flat`` [W·n] with every rank's ``shard`` [n], in rank order."""
    if group.size == 1:
        flat.copy_(shard)
    else:
        dist.all_gather_single(flat, shard, group=group.handle)


def sum_over_ranks(group: Group, tensor: Tensor) -> Tensor:
    """The sum of every rank's ``tensor``, in its own dtype; the argument is left as it was."""
    total = tensor.clone()
    if group.size > 1:
        dist.all_reduce(total, group=group.handle)
    return total


def gather_rows(group: Group, rows: Tensor) -> Tensor:
    """Rows [n, D] of every rank, in rank order, where n may differ by rank."""
    if group.size == 1:
        return rows
    counts = torch.zeros(group.size, dtype=torch.int64, device=rows.device)
    counts[group.rank] = len(rows)
    counts = sum_over_ranks(group, counts)
    widest = int(counts.max())
    padded = rows.new_zeros(widest, rows.shape[1])
    padded[: len(rows)] = rows
    gathered = rows.new_empty(group.size * widest, rows.shape[1])
    dist.all_gather_single(gathered, padded, group=group.handle)
    return torch.cat([gathered[rank * widest :][: int(count)] for rank, count in enumerate(counts)])
