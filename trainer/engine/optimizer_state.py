"""What a checkpoint has of the student: its fp32 masters and AdamW's two moments, partitioned alike."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.core.collectives import Group
from trainer.engine.optimizer_adapters import Adapter
from trainer.engine.partition import FlatGroup, even_partition

KINDS = ("master", "exp_avg", "exp_avg_sq")  # AdamW's names for its moments


class OptimizerState:
    """Masters and moments of an optimiser, read and written by partition."""

    def __init__(self, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
        self._adapter, self._optimizer = adapter, optimizer
        self._parameters = sorted(adapter.optimizer_parameters(), key=Tensor.data_ptr)
        self._starts = [parameter.data_ptr() for parameter in self._parameters]

    @property
    def applied(self) -> int:
        """Steps that AdamW has taken: its bias correction depends on them."""
        counts = {
            int(state["step"]) if (state := self._optimizer.state.get(parameter)) else 0
            for parameter in self._parameters
        }
        assert len(counts) == 1, f"parameters have taken {sorted(counts)} steps"
        return counts.pop()

    def copy(self, kind: str, flat_group: FlatGroup, into: Tensor) -> None:
        """Copy this rank's partition of ``kind`` to ``into``; entries of padding stay as they are."""
        for offset, master in flat_group.masters:
            if master.numel():
                into[offset : offset + master.numel()].copy_(self._entries(master, kind), non_blocking=True)

    def groups(self) -> tuple[list[FlatGroup], Group]:
        """(groups, group) of the shards that ``load`` needs: this rank's partition, or everything where every
        rank keeps everything."""
        if whole := self._adapter.whole_masters():
            alone = Group(0, 1)
            return [even_partition(whole, alone)], alone
        return self._adapter.flat_groups(), self._adapter.group

    @torch.no_grad()
    def load(self, shards: Mapping[str, Sequence[Tensor]], *, applied: int) -> None:
        """Set masters, moments, and the weights in the compute dtype from shards [kind] of ``groups``.

        A collective. ``applied``: steps that AdamW has taken.
        """
        groups, _ = self.groups()
        for kind in KINDS:
            for shard, flat_group in zip(shards[kind], groups, strict=True):
                for offset, master in flat_group.masters:
                    if master.numel():
                        self._entries(master, kind).copy_(shard[offset : offset + master.numel()])
        for parameter in self._parameters:
            self._state(parameter)["step"].fill_(applied)
        self._adapter.write_weights()

    def _entries(self, master: Tensor, kind: str) -> Tensor:
        """The entries of ``kind`` for those of ``master``, which lies within one of the optimiser's
        parameters."""
        if kind == "master":
            return master.detach()
        parameter = self._parameters[bisect_right(self._starts, master.data_ptr()) - 1]
        offset, remainder = divmod(master.data_ptr() - parameter.data_ptr(), parameter.element_size())
        assert remainder == 0 and 0 <= offset <= parameter.numel() - master.numel(), (
            "a master does not lie within a parameter of the optimiser"
        )
        return self._state(parameter)[kind].view(-1)[offset : offset + master.numel()]

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one of its parameters; created here as AdamW does at its first step."""
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        if not state:
            fused = self._optimizer.param_groups[0]["fused"]
            state["step"] = torch.zeros((), device=parameter.device if fused else None)
            state |= {kind: torch.zeros_like(parameter) for kind in KINDS[1:]}
        return state
