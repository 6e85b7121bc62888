"""The teacher: the student's exponential moving average, each rank holding the fp32 average of its own partition only.

θ are the student's fp32 masters after a step, φ the teacher: φ₀ = θ₀, φ ← lerp(φ, θ, 1 - m). The update is elementwise
and uses one formula, so the sharded teacher equals an unsharded one bit for bit, at any shard boundary. For its forward
the teacher has weights of its own in the compute dtype (Weights), which follow φ after every update: full copies under
ZeRO 0-2, as the student's own are, and partitions under ZeRO-3.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainer import collectives
from trainer.collectives import Group, Pending


class Piece(NamedTuple):
    """``length`` entries of parameter ``name`` from its entry ``at`` on; in the shard they begin at ``offset``."""

    name: str
    at: int
    offset: int
    length: int


@dataclass(frozen=True)
class FlatGroup:
    """One or more parameters as the optimiser partitions them: a flat vector of ``numel`` entries, 1/W on each rank.

    ``slots``: name -> (offset in the flat vector, shape). ``masters``: (offset in this rank's partition, fp32 1-D
    tensor) pieces that hold the student's masters, at least one, if only an empty one; they cover the partition but for
    padding.
    """

    numel: int
    slots: dict[str, tuple[int, torch.Size]]
    masters: list[tuple[int, Tensor]]

    def pieces(self, group: Group) -> Iterator[Piece]:
        """What of each parameter lies in this rank's partition; padding belongs to none."""
        size = self.numel // group.size
        start = group.rank * size
        for name, (offset, shape) in self.slots.items():
            low, high = max(offset, start), min(offset + shape.numel(), start + size)
            if low < high:
                yield Piece(name, low - offset, low - start, high - low)

    def shard(self, group: Group) -> Tensor:
        """fp32, this rank's partition with the masters as they are now and zeros at padding; a copy."""
        shard = self.masters[0][1].new_zeros(self.numel // group.size, dtype=torch.float32)
        for offset, master in self.masters:
            shard[offset : offset + master.numel()] = master.detach()
        return shard


Fragments = Mapping[str, Sequence[tuple[int, Tensor]]]
"""name -> [(first entry, fp32 1-D tensor)]: parts of flattened parameters, from any number of ranks."""


class Weights(Protocol):
    """The weights that a module computes with, in the compute dtype, written from the fp32 shards of all ranks."""

    def write(self, shards: Sequence[Tensor]) -> Pending:
        """Bring the module's weights up to ``shards``, one for each FlatGroup; they are there once it is waited for."""


class FlatWeights:
    """Full weights on every rank, as views into one flat buffer a group: a copy of the own shard and an all-gather."""

    def __init__(self, module: nn.Module, groups: Sequence[FlatGroup], *, group: Group, dtype: torch.dtype) -> None:
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
        """``groups`` describe the masters of ``student``; ``weights`` write to ``module``, which has its names."""
        self.group, self.groups = group, groups
        self._module: M = module.requires_grad_(False).eval()
        self._student, self._weights = student, weights
        self.shards: list[Tensor] = []  # φ, fp32
        for flat_group in groups:
            assert flat_group.numel % group.size == 0, f"{flat_group.numel} entries do not divide by {group.size} ranks"
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
                # Bits are summed as integers: only one rank's are not zero, so the result is exact, signed zeros too.
                bits = torch.zeros(shape.numel(), dtype=torch.int32, device=shard.device)
                if piece := mine.get(name):
                    part = shard[piece.offset : piece.offset + piece.length]
                    bits[piece.at : piece.at + piece.length] = part.view(torch.int32)
                yield name, collectives.sum_over_ranks(self.group, bits).view(torch.float32).view(shape)

    def fragments(self) -> dict[str, list[tuple[int, Tensor]]]:
        """This rank's part of φ without padding, to be saved; views, so save them before the next update."""
        return {
            piece.name: [(piece.at, shard[piece.offset : piece.offset + piece.length])]
            for shard, flat_group in zip(self.shards, self.groups, strict=True)
            for piece in flat_group.pieces(self.group)
        }

    @torch.no_grad()
    def load(self, saved: Fragments) -> None:
        """φ from fragments that were saved on any number of ranks under any ZeRO stage; a collective.

        Each rank needs the entries of its own partition at least. Entries may be given twice, with the same bits.

        Raises:
            ValueError: a fragment does not fit this teacher, two of them differ, or entries are missing; on all ranks,
                and φ is left as it was.
        """
        shards, fault = [torch.zeros_like(shard) for shard in self.shards], _misfit(saved, self.groups)
        for shard, flat_group in zip(shards, self.groups, strict=True):
            for piece in flat_group.pieces(self.group):
                part = shard[piece.offset : piece.offset + piece.length]
                fault = fault or _fill(part, piece, saved.get(piece.name, ()))
        collectives.raise_together(self.group, fault, device=self.shards[0].device)
        for shard, loaded in zip(self.shards, shards, strict=True):
            shard.copy_(loaded)
        self._refresh()

    def _refresh(self) -> None:
        with torch.no_grad():
            self._pending.wait()
            for ours, buffer in zip(self._module.buffers(), self._student.buffers(), strict=True):
                ours.copy_(collectives.from_first(self.group, buffer))
            self._pending = self._weights.write(self.shards)


def _misfit(saved: Fragments, groups: Sequence[FlatGroup]) -> str | None:
    """What in ``saved`` cannot be part of a teacher of ``groups``, in a sentence."""
    entries = {name: shape.numel() for flat_group in groups for name, (_, shape) in flat_group.slots.items()}
    if unknown := sorted(saved.keys() - entries.keys()):
        return (f"the saved teacher has {len(unknown)} parameters that this one has not: {', '.join(unknown[:5])}; "
                "build the network that it was saved from")  # fmt: skip
    for name, fragments in saved.items():
        for start, values in fragments:
            if values.dtype != torch.float32 or values.ndim != 1:
                return (f"the saved teacher has {name} from {start} on as {values.dtype} of shape "
                        f"{tuple(values.shape)}; give it as torch.float32 with one dimension")  # fmt: skip
            if start < 0 or start + values.numel() > entries[name]:
                return (f"the saved teacher has entries {start} to {start + values.numel()} of {name}, which has 0 to "
                        f"{entries[name]} here; build the network that it was saved from")  # fmt: skip
    return None


def _fill(part: Tensor, piece: Piece, fragments: Sequence[tuple[int, Tensor]]) -> str | None:
    """Write what ``fragments`` have of ``piece`` to its ``part`` of the shard; what is wrong with it, in a sentence."""
    bits, filled = part.view(torch.int32), torch.zeros_like(part, dtype=torch.bool)
    for start, values in fragments:
        low, high = max(start, piece.at), min(start + values.numel(), piece.at + piece.length)
        if low < high:
            place = slice(low - piece.at, high - piece.at)
            given = values[low - start : high - start].to(part.device).view(torch.int32)
            if differing := int((filled[place] & (bits[place] != given)).sum()):
                return (f"the saved teacher has two values for {differing} entries of {piece.name} within {low} to "
                        f"{high}; load the fragments of one save")  # fmt: skip
            bits[place], filled[place] = given, True
    if missing := piece.length - int(filled.sum()):
        return (f"the saved teacher lacks {missing} of {piece.length} entries of {piece.name} from {piece.at} on; "
                "load the fragments of every rank that saved")  # fmt: skip
    return None


def check_cover(wanted: Mapping[str, torch.Size], groups: Sequence[FlatGroup]) -> None:
    """ValueError if ``groups`` do not have each of the ``wanted`` parameters once, by name and shape."""
    given: dict[str, torch.Size] = {}
    for flat_group in groups:
        for name, (_, shape) in flat_group.slots.items():
            if name in given:
                raise ValueError(f"parameter {name} stands in two optimiser groups")
            given[name] = shape
    if wanted != given:
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ValueError(f"network and optimiser differ in {len(wrong)} parameters: {', '.join(wrong[:5])}")
