"""The teacher: the student's exponential moving average; each rank holds the fp32 average of its partition
only.

θ are the student's masters after a step, φ the teacher: φ₀ = θ₀, φ ← lerp(φ, θ, 1 - m). The update is
elementwise and uses one formula, so the sharded teacher equals an unsharded one bit for bit, at any shard
boundary, if all ranks have one kind of processor (one that fuses multiply and add rounds once less). For its
forward the teacher has weights of its own in the compute dtype (Weights), which follow φ after every update:
full copies under ZeRO 0-2 and without DeepSpeed, partitions under ZeRO-3.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.core import collectives
from trainer.core.collectives import Group, Pending
from trainer.engine import partition
from trainer.engine.partition import FlatGroup, Fragments, even_partition, no_memory


class Weights(Protocol):
    """The weights that a module computes with, in the compute dtype, written from the fp32 shards of all
    ranks."""

    def write(self, shards: Sequence[Tensor]) -> Pending:
        """Start to write ``shards``, one for each FlatGroup, to the module's weights; wait for the result
        before reading them."""


class FlatWeights:
    """Full weights on every rank, as views into one flat buffer a group, written by an all-gather."""

    def __init__(self, module: nn.Module, groups: Sequence[FlatGroup], *, group: Group) -> None:
        """The parameters of ``module`` become the views, in their own dtype, which is one in each group."""
        self._group = group
        self._flats: list[Tensor] = []
        parameters = dict(module.named_parameters())
        for flat_group in groups:
            first = parameters[next(iter(flat_group.slots))]
            flat = torch.zeros(flat_group.numel, dtype=first.dtype, device=first.device)
            for name, (offset, shape) in flat_group.slots.items():
                parameters[name].data = flat[offset : offset + shape.numel()].view(shape)
            self._flats.append(flat)

    def write(self, shards: Sequence[Tensor]) -> Pending:
        # The shard is cast into this rank's part of the buffer, so that no second copy of it is made.
        parts = []
        for shard, flat in zip(shards, self._flats, strict=True):
            own = flat.view(self._group.size, -1)[self._group.rank]
            parts.append((flat, own.copy_(shard)))
        return collectives.start_all_gather(self._group, parts)


M = TypeVar("M", bound=nn.Module)


def blank_copy(module: M, *, dtype: torch.dtype | None = None) -> M:
    """A copy of ``module`` whose parameters have no memory and no gradient; tied parameters stay tied.

    ``dtype`` is that of parameters and floating buffers; None keeps the module's. FlatWeights or
    ``partition_parameters`` give the parameters memory.
    """
    blanks: dict[int, Any] = {
        id(parameter): nn.Parameter(no_memory(parameter, dtype=dtype), requires_grad=False)
        for parameter in module.parameters()
    }
    blank = copy.deepcopy(module, blanks)
    return blank if dtype is None else blank.to(dtype)


class ShardedEMA(Generic[M]):
    """The exponential moving average of a module's parameters: a copy of the module, in eval mode and without
    gradient, and the fp32 average in shards, one on each rank.

    Buffers are not averaged: they are copies of the student's on rank 0.
    """

    @classmethod
    def of(cls, student: M, group: "dist.ProcessGroup | None" = None) -> "ShardedEMA[M]":
        """The average of a plain torch module, equal to it at first; all ranks of ``group`` call this.

        Every rank must keep all parameters of ``student``, with the same values (as under
        DistributedDataParallel, whose ``.module`` to give), on the device and in the dtype that they will
        have in training. Each rank then holds 1 / ranks of the fp32 average, and a full copy of the module in
        its own dtype to be called.

        Args:
            group: None is all processes, or this one alone if torch.distributed is not initialised.

        Raises:
            ValueError: there is no parameter, one is not floating point, or they are on several devices.
        """
        parameters = dict(student.named_parameters())
        _check_parameters(parameters)
        ranks = Group.of(group)
        masters: dict[torch.dtype, dict[str, Tensor]] = {}
        for name, parameter in parameters.items():
            masters.setdefault(parameter.dtype, {})[name] = parameter.detach()
        groups = [even_partition(of_dtype, ranks) for of_dtype in masters.values()]
        module = blank_copy(student)
        weights = FlatWeights(module, groups, group=ranks)
        return cls(module, student, groups, weights, group=ranks, watched=list(parameters.values()))

    def __init__(
        self,
        module: M,
        student: nn.Module,
        groups: list[FlatGroup],
        weights: Weights,
        *,
        group: Group,
        watched: Sequence[nn.Parameter] = (),
    ) -> None:
        """The average of what ``groups`` hold as masters of ``student``.

        Args:
            module: has the parameters that ``groups`` name; ``weights`` write to them.
            watched: parameters whose memory the masters are views of, so that they must not be replaced.
        """
        self.group, self.groups = group, groups
        self._watched = [(parameter, parameter.data_ptr()) for parameter in watched]
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
        """The module to be called, with the weights of the last update."""
        self._pending.wait()
        return self._module

    @torch.no_grad()
    def update(self, momentum: float, *, where: Tensor | None = None) -> None:
        """φ ← lerp(φ, θ, 1 - momentum) on this rank's partition; all ranks call it, after an applied step.

        ``where``: bool 0-d on the device, the same on all ranks; φ keeps its bits where it is false. The
        module's weights follow in the background; ``module`` waits for them.

        Raises:
            ValueError: momentum is not within 0 and 1, or the student was moved since ``of``.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum} is not within 0 and 1")
        if any(parameter.data_ptr() != pointer for parameter, pointer in self._watched):
            raise ValueError(
                "the student's parameters were moved to other memory (another device or dtype) since its "
                "average was made; call ShardedEMA.of after that"
            )
        pieces, masters = [], []
        for shard, flat_group in zip(self.shards, self.groups, strict=True):
            for offset, master in flat_group.masters:
                pieces.append(shard[offset : offset + master.numel()])
                masters.append(master.detach().float())
        if where is None:
            torch._foreach_lerp_(pieces, masters, 1.0 - momentum)
        else:
            weight = where.float() * (1.0 - momentum)
            for piece, master in zip(pieces, masters, strict=True):
                piece.lerp_(master, weight)
        self._refresh()

    @torch.no_grad()
    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter's average, one whole tensor at a time, on every rank.

        A collective: all ranks must exhaust it.
        """
        self._pending.wait()
        return partition.whole_tensors(self.shards, self.groups, self.group)

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state_dict on every rank, its parameters as fp32 averages; a collective."""
        whole = dict(self.full_tensors())
        averages = {id(parameter): whole[name] for name, parameter in self._module.named_parameters()}
        state: Mapping[str, Tensor] = self._module.state_dict(keep_vars=True)
        return {name: averages.get(id(tensor), tensor.detach().clone()) for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the average to the parameters of ``state``, as ``state_dict`` returned them on any number of
        ranks.

        A collective. Buffers stay the student's.

        Raises:
            ValueError: as ``load``.
        """
        names = self._module.state_dict().keys() - dict(self._module.named_parameters()).keys()
        self.load({name: [(0, tensor.reshape(-1))] for name, tensor in state.items() if name not in names})

    def fragments(self) -> dict[str, list[tuple[int, Tensor]]]:
        """This rank's part of φ without padding, to be saved; views, so save them before the next update."""
        return partition.fragments_of(self.shards, self.groups, self.group)

    @torch.no_grad()
    def load(self, saved: Fragments) -> None:
        """Set φ to fragments that were saved on any number of ranks under any ZeRO stage; a collective.

        Each rank needs at least the entries of its own partition. Entries may be given twice, with the same
        bits.

        Raises:
            ValueError: a fragment does not fit this teacher, two of them differ, or entries are missing; on
                all ranks, and φ is left as it was.
        """
        shards = [torch.zeros_like(shard) for shard in self.shards]
        fault = partition.fill_shards(shards, self.groups, saved, self.group)
        collectives.raise_together(self.group, fault)
        for shard, loaded in zip(self.shards, shards, strict=True):
            shard.copy_(loaded)
        self._refresh()

    def _refresh(self) -> None:
        """Copy the student's buffers, and start to write φ to the module's weights."""
        with torch.no_grad():
            self._pending.wait()
            for ours, buffer in zip(self._module.buffers(), self._student.buffers(), strict=True):
                ours.copy_(collectives.from_first(self.group, buffer))
            self._pending = self._weights.write(self.shards)


def _check_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """ValueError if these cannot be averaged."""
    if not parameters:
        raise ValueError("the module has no parameters to average")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {name} is {parameter.dtype}; only floating point can be averaged")
    devices = {str(parameter.device) for parameter in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"the parameters are on several devices, {', '.join(sorted(devices))}; use one")
