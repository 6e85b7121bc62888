"""The teacher: the student's exponential moving average, each rank holding the fp32 average of its own
partition only.

θ are the student's fp32 masters after a step, φ the teacher: φ₀ = θ₀, φ ← lerp(φ, θ, 1 - m). The update is
elementwise and uses one formula, so the sharded teacher equals an unsharded one bit for bit, at any shard
boundary, where all ranks have one kind of processor (one that fuses multiply and add rounds once less). For
its forward the teacher has weights of its own in the compute dtype (Weights), which follow φ after every
update: full copies under ZeRO 0-2, as the student's own are, and partitions under ZeRO-3.
"""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainer.core import collectives
from trainer.core.collectives import Group, Pending
from trainer.engine import partition
from trainer.engine.partition import FlatGroup, Fragments


class Weights(Protocol):
    """The weights that a module computes with, in the compute dtype, written from the fp32 shards of all
    ranks."""

    def write(self, shards: Sequence[Tensor]) -> Pending:
        """Bring the module's weights up to ``shards``, one for each FlatGroup; they are there once it is
        waited for."""


class FlatWeights:
    """Full weights on every rank, as views into one flat buffer a group: a copy of the own shard and an
    all-gather."""

    def __init__(
        self, module: nn.Module, groups: Sequence[FlatGroup], *, group: Group, dtype: torch.dtype
    ) -> None:
        self._group = group
        self._flats: list[Tensor] = []
        parameters = dict(module.named_parameters())
        device = next(iter(parameters.values())).device
        for flat_group in groups:
            flat = torch.zeros(flat_group.numel, dtype=dtype, device=device)
            for name, (offset, shape) in flat_group.slots.items():
                parameters[name].data = flat[offset : offset + shape.numel()].view(shape)
            self._flats.append(flat)

    def write(self, shards: Sequence[Tensor]) -> Pending:
        # Each rank's part of the buffer is where its shard is cast to, so that no second copy of it is made.
        parts = []
        for shard, flat in zip(shards, self._flats, strict=True):
            own = flat.view(self._group.size, -1)[self._group.rank]
            parts.append((flat, own.copy_(shard)))
        return collectives.start_all_gather(self._group, parts)


M = TypeVar("M", bound=nn.Module)


class ShardedEMA(Generic[M]):
    """The teacher module with its fp32 average in shards, in eval mode and without gradient.

    Buffers are not averaged: they are rank 0's of the student.
    """

    def __init__(
        self, module: M, student: nn.Module, groups: list[FlatGroup], weights: Weights, *, group: Group
    ) -> None:
        """``groups`` describe the masters of ``student``; ``weights`` write to ``module``, which has its
        names."""
        self.group, self.groups = group, groups
        self._module: M = module.requires_grad_(False).eval()
        self._student, self._weights = student, weights
        self.shards: list[Tensor] = []  # φ, fp32
        for flat_group in groups:
            assert flat_group.numel % group.size == 0, (
                f"{flat_group.numel} entries do not divide by {group.size} ranks"
            )
            self.shards.append(flat_group.shard(group))
        self._pending = Pending()
        self._refresh()

    @property
    def module(self) -> M:
        """The teacher to be called, its weights up to the last update."""
        self._pending.wait()
        return self._module

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """φ ← lerp(φ, θ, 1 - momentum) on this rank's partition; call it only after an applied step.

        The module's weights follow in the background; ``module`` waits for them.
        """
        pieces, masters = [], []
        for shard, flat_group in zip(self.shards, self.groups, strict=True):
            for offset, master in flat_group.masters:
                pieces.append(shard[offset : offset + master.numel()])
                masters.append(master.detach())
        torch._foreach_lerp_(pieces, masters, 1.0 - momentum)
        self._refresh()

    @torch.no_grad()
    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of the whole teacher, one tensor at a time, on every rank; a collective."""
        self._pending.wait()
        for shard, flat_group in zip(self.shards, self.groups, strict=True):
            mine = {piece.name: piece for piece in flat_group.pieces(self.group)}
            for name, (_, shape) in flat_group.slots.items():
                # Bits are summed as integers: only one rank's are not zero, so the result is exact, signed
                # zeros too.
                bits = torch.zeros(shape.numel(), dtype=torch.int32, device=shard.device)
                if piece := mine.get(name):
                    part = shard[piece.offset : piece.offset + piece.length]
                    bits[piece.at : piece.at + piece.length] = part.view(torch.int32)
                yield name, collectives.sum_over_ranks(self.group, bits).view(torch.float32).view(shape)

    def fragments(self) -> dict[str, list[tuple[int, Tensor]]]:
        """This rank's part of φ without padding, to be saved; views, so save them before the next update."""
        return partition.of_shards(self.shards, self.groups, self.group)

    @torch.no_grad()
    def load(self, saved: Fragments) -> None:
        """φ from fragments that were saved on any number of ranks under any ZeRO stage; a collective.

        Each rank needs the entries of its own partition at least. Entries may be given twice, with the same
        bits.

        Raises:
            ValueError: a fragment does not fit this teacher, two of them differ, or entries are missing; on
                all ranks, and φ is left as it was.
        """
        shards = [torch.zeros_like(shard) for shard in self.shards]
        fault = partition.fill(shards, self.groups, saved, self.group)
        collectives.raise_together(self.group, fault)
        for shard, loaded in zip(self.shards, shards, strict=True):
            shard.copy_(loaded)
        self._refresh()

    def _refresh(self) -> None:
        with torch.no_grad():
            self._pending.wait()
            for ours, buffer in zip(self._module.buffers(), self._student.buffers(), strict=True):
                ours.copy_(collectives.from_first(self.group, buffer))
            self._pending = self._weights.write(self.shards)
