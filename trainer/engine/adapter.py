"""Where an optimiser of DeepSpeed keeps the fp32 masters, the gradients and the weights; the base of all
adapters.

Only this folder touches DeepSpeed's internals. Checked with DeepSpeed 0.19.8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.partition import FlatGroup


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

    def squares(self) -> Tensor:
        """fp64 [n]: the squared norm of ``gradients``, in parts that are finite only if they are."""
        gradients = self.gradients()
        if not gradients:
            return torch.zeros(1, dtype=torch.float64, device=next(self.network.parameters()).device)
        return squared_norm(gradients)[None]

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


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """fp64 0-d: the squared norm of all of ``tensors``, at least one, summed up in fp64."""
    return torch.stack(torch._foreach_norm(list(tensors), dtype=torch.float64)).square().sum()
