"""The teacher: the student's exponential moving average, each rank holding the fp32 average of its own partition only.

θ are the student's fp32 masters after a step, φ the teacher: φ₀ = θ₀, φ ← lerp(φ, θ, 1 - m). The update is elementwise
and uses one formula, so the sharded teacher equals an unsharded one bit for bit, at any shard boundary. For its
forward the teacher's parameters are views into flat buffers in the compute dtype, laid out as the optimiser lays out
the student; a refresh is one copy of the own shard and one all-gather per parameter group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from trainer import collectives
from trainer.collectives import Group


@dataclass(frozen=True)
class FlatGroup:
    """One parameter group as the optimiser partitions it: a flat vector of ``numel`` entries, 1/W of it on each rank.

    ``slots``: name -> (offset in the flat vector, shape). ``masters``: (offset in this rank's partition, fp32 1-D
    tensor) pieces that hold the student's masters; they cover the partition but for padding.
    """

    numel: int
    slots: dict[str, tuple[int, torch.Size]]
    masters: list[tuple[int, Tensor]]


M = TypeVar("M", bound=nn.Module)


class ShardedEMA(Generic[M]):
    """The teacher module with its fp32 average in shards. ``module`` is in eval mode and takes no gradient."""

    def __init__(self, module: M, groups: list[FlatGroup], *, group: Group, dtype: torch.dtype) -> None:
        """``module`` has the student's names, shapes and device; its parameters become views into flat buffers.

        Raises:
            ValueError: the groups do not cover the module's parameters, by name and shape, exactly once.
        """
        self.module: M = module.requires_grad_(False).eval()
        self.group = group
        self.groups = groups
        _check_cover(module, groups)
        parameters = dict(module.named_parameters())
        device = next(iter(parameters.values())).device
        self.shards: list[Tensor] = []  # φ, fp32
        self.flats: list[Tensor] = []  # compute dtype, for the forward
        for flat_group in groups:
            assert flat_group.numel % group.size == 0, f"{flat_group.numel} entries do not divide by {group.size} ranks"
            shard = torch.zeros(flat_group.numel // group.size, dtype=torch.float32, device=device)
            for offset, master in flat_group.masters:
                shard[offset : offset + master.numel()] = master.detach()
            flat = torch.zeros(flat_group.numel, dtype=dtype, device=device)
            for name, (offset, shape) in flat_group.slots.items():
                parameters[name].data = flat[offset : offset + shape.numel()].view(shape)
            self.shards.append(shard)
            self.flats.append(flat)
        self.refresh()

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """φ ← lerp(φ, θ, 1 - momentum) on this rank's partition; call it only after an applied step."""
        pieces, masters = [], []
        for shard, flat_group in zip(self.shards, self.groups, strict=True):
            for offset, master in flat_group.masters:
                pieces.append(shard[offset : offset + master.numel()])
                masters.append(master.detach())
        torch._foreach_lerp_(pieces, masters, 1.0 - momentum)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the module's weights up to φ: cast the own shard, gather the others'."""
        for shard, flat in zip(self.shards, self.flats, strict=True):
            collectives.all_gather_flat(self.group, flat, shard.to(flat.dtype))

    @torch.no_grad()
    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of the whole teacher, one tensor at a time, on every rank; a collective."""
        for shard, flat_group in zip(self.shards, self.groups, strict=True):
            start = self.group.rank * shard.numel()
            for name, (offset, shape) in flat_group.slots.items():
                # Bits are summed as integers: only one rank's are not zero, so the result is exact, signed zeros too.
                bits = torch.zeros(shape.numel(), dtype=torch.int32, device=shard.device)
                low, high = max(offset, start), min(offset + shape.numel(), start + shard.numel())
                if low < high:
                    bits[low - offset : high - offset] = shard[low - start : high - start].view(torch.int32)
                yield name, collectives.sum_over_ranks(self.group, bits).view(torch.float32).view(shape)


def _check_cover(module: nn.Module, groups: list[FlatGroup]) -> None:
    wanted = {name: parameter.shape for name, parameter in module.named_parameters()}
    given: dict[str, torch.Size] = {}
    for flat_group in groups:
        for name, (_, shape) in flat_group.slots.items():
            if name in given:
                raise ValueError(f"parameter {name} stands in two optimiser groups")
            given[name] = shape
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ValueError(f"teacher and optimiser differ in {len(wrong)} parameters: {', '.join(wrong[:5])}")
