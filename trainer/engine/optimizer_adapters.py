"""The adapter of each kind of optimiser, and those of ZeRO-0 and 3, where DeepSpeed takes the step by itself.

Checked with DeepSpeed 0.19.8.
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
from trainer.engine.adapter import Adapter
from trainer.engine.flat_adapters import FlatBf16, FlatZero12
from trainer.engine.partition import FlatGroup, even_partition


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
    DeepSpeedZeroOptimizer: FlatZero12,
    DeepSpeedZeroOptimizer_Stage3: _Zero3,
    BF16_Optimizer: FlatBf16,
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
