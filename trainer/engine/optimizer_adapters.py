"""Where DeepSpeed's optimisers keep the fp32 masters, the gradients and the weights: one adapter for each
kind of optimiser.

Only this folder touches DeepSpeed's internals. Checked with DeepSpeed 0.19.8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor, nn

from trainer.core import collectives
from trainer.core.collectives import Group, Pending
from trainer.engine.partition import FlatGroup, even_partition


class Adapter:
    """Where one kind of optimiser keeps the masters and, between backward and step, this rank's gradients."""

    def __init__(
        self, optimizer: Any, network: nn.Module, names: Sequence[Sequence[str]], group: Group
    ) -> None:
        self.optimizer, self.network, self.names, self.group = optimizer, network, names, group
        self.parameters = dict(network.named_parameters())

    def flat_groups(self) -> list[FlatGroup]:
        """Where each parameter lies in the partition, and this rank's masters."""
        raise NotImplementedError

    def gradients(self) -> list[Tensor]:
        """This rank's part of the reduced gradient, after the last backward and before the step."""
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    def whole_masters(self) -> dict[str, Tensor]:
        """The masters that every rank keeps whole and updates by itself: name -> fp32 tensor; else empty."""
        return {}

    def optimizer_parameters(self) -> list[Tensor]:
        """The fp32 tensors that the optimiser keeps moments for; every master lies within one."""
        return [master for part in self.optimizer.param_groups for master in part["params"]]

    def write_weights(self) -> None:
        """Set the weights to the masters, rounded to the compute dtype; a collective."""
        raise NotImplementedError

    def gather(self, flats: Sequence[Tensor]) -> None:
        """Set ``flats`` to the masters of all ranks, rounded to the dtype of ``flats``."""
        parts = []
        for flat, flat_group in zip((flat.data for flat in flats), self.flat_groups(), strict=True):
            own = flat.view(self.group.size, -1)[self.group.rank]
            parts.append((flat, own.copy_(flat_group.shard(self.group))))
        collectives.start_all_gather(self.group, parts).wait()

    def partitioned(self, flats: Sequence[Tensor], partitions: Sequence[Tensor]) -> list[FlatGroup]:
        """Groups whose parameters are views into ``flats``, of which each rank updates its ``partitions``."""
        groups = []
        for names, flat, partition in zip(self.names, flats, partitions, strict=True):
            slots = {}
            for name in names:
                parameter = self.parameters[name]
                offset, remainder = divmod(parameter.data_ptr() - flat.data_ptr(), flat.element_size())
                assert remainder == 0 and 0 <= offset <= flat.numel() - parameter.numel(), (
                    f"{name} does not lie in its flat buffer"
                )
                slots[name] = (offset, parameter.shape)
            groups.append(FlatGroup(flat.numel(), slots, [(0, partition.data)]))
        return groups


class _Plain(Adapter):
    """ZeRO-0 in fp32: the parameters are the masters."""

    def flat_groups(self) -> list[FlatGroup]:
        return [even_partition(self.whole_masters(), self.group)]

    def whole_masters(self) -> dict[str, Tensor]:
        return {name: self.parameters[name].data for names in self.names for name in names}

    def write_weights(self) -> None:
        pass


class _Unfused(Adapter):
    """ZeRO-0 in bf16."""

    def flat_groups(self) -> list[FlatGroup]:
        return [even_partition(self.whole_masters(), self.group)]

    def whole_masters(self) -> dict[str, Tensor]:
        names = [name for names in self.names for name in names]
        masters = [master.data for tensors in self.optimizer.fp32_groups for master in tensors]
        return dict(zip(names, masters, strict=True))

    def write_weights(self) -> None:
        for name, master in self.whole_masters().items():
            self.parameters[name].data.copy_(master)


class _Bf16(Adapter):
    """ZeRO-1 in bf16 with fp32 gradients."""

    def flat_groups(self) -> list[FlatGroup]:
        return self.partitioned(self.optimizer.bf16_groups_flat, self.optimizer.fp32_groups_flat_partition)

    def gradients(self) -> list[Tensor]:
        return list(self.optimizer.fp32_groups_gradient_flat_partition)

    def write_weights(self) -> None:
        self.gather(self.optimizer.bf16_groups_flat)


class _Zero12(Adapter):
    """ZeRO-1 in fp32, ZeRO-2."""

    def flat_groups(self) -> list[FlatGroup]:
        return self.partitioned(
            self.optimizer.bit16_groups_flat, self.optimizer.single_partition_of_fp32_groups
        )

    def gradients(self) -> list[Tensor]:
        return _flattened(self.optimizer.averaged_gradients)

    def write_weights(self) -> None:
        self.gather(self.optimizer.bit16_groups_flat)


class _Zero3(Adapter):
    """ZeRO-3 cuts every parameter by itself; the last ranks' parts end in padding that nobody initialises."""

    def flat_groups(self) -> list[FlatGroup]:
        groups = []
        for name in (name for names in self.names for name in names):
            parameter: Any = self.parameters[name]
            part = parameter.ds_tensor.numel()
            group = FlatGroup(part * self.group.size, {name: (0, parameter.ds_shape)}, [])
            master = safe_get_local_fp32_param(parameter)
            length = sum(piece.length for piece in group.pieces(self.group))  # 0 if all of it is padding
            groups.append(FlatGroup(group.numel, group.slots, [(0, master.data[:length])]))
        return groups

    def gradients(self) -> list[Tensor]:
        return _flattened(self.optimizer.averaged_gradients)

    def optimizer_parameters(self) -> list[Tensor]:
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def write_weights(self) -> None:
        groups = self.flat_groups()
        weights = PartitionedWeights(self.network, groups, self.optimizer.persistent_parameters)
        weights.write([flat_group.shard(self.group) for flat_group in groups]).wait()


def _flattened(by_group: Mapping[int, Sequence[Tensor] | None]) -> list[Tensor]:
    return [tensor for tensors in by_group.values() for tensor in tensors or ()]


_ADAPTERS: dict[type, type[Adapter]] = {
    DeepSpeedZeroOptimizer: _Zero12,
    DeepSpeedZeroOptimizer_Stage3: _Zero3,
    BF16_Optimizer: _Bf16,
    FP16_UnfusedOptimizer: _Unfused,
}


def adapter_for(optimizer: Any, network: nn.Module, names: Sequence[Sequence[str]], group: Group) -> Adapter:
    """The adapter of this kind of optimiser; ``names`` by parameter group. ValueError if there is none."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return _Plain(optimizer, network, names, group)
    if type(optimizer) not in _ADAPTERS:
        raise ValueError(
            f"no teacher follows DeepSpeed's {type(optimizer).__name__}; known are "
            f"{', '.join(sorted(kind.__name__ for kind in _ADAPTERS))}"
        )
    return _ADAPTERS[type(optimizer)](optimizer, network, names, group)


class PartitionedWeights:
    """The weights of a module under ZeRO-3, written partition by partition.

    ``persistent``: the parameters that DeepSpeed keeps whole on every rank; they are gathered again.
    """

    def __init__(self, module: nn.Module, groups: Sequence[FlatGroup], persistent: Sequence[Any]) -> None:
        parameters: dict[str, Any] = dict(module.named_parameters())
        self._parts = [parameters[name].ds_tensor for flat_group in groups for name in flat_group.slots]
        self._persistent = list(persistent)

    def write(self, shards: Sequence[Tensor]) -> Pending:
        for part, shard in zip(self._parts, shards, strict=True):
            part.data.copy_(shard)
        if self._persistent:  # DeepSpeed would go on reading the whole copies that it made at first
            self._persistent[0].partition(self._persistent)
            self._persistent[0].all_gather(self._persistent)
        # DeepSpeed gathers partitions on a stream of its own, which does not wait for the one that wrote
        # them.
        return collectives.written(self._parts[0].device)
