"""What of the student outlives a process: its fp32 masters and AdamW's two moments, each cut as the masters
are."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.core.collectives import Group
from trainer.engine.optimizer_adapters import Adapter
from trainer.engine.partition import FlatGroup

KINDS = ("master", "exp_avg", "exp_avg_sq")  # AdamW's names for its moments


class Saved:
    """Masters and moments of an optimiser, read and written by partition."""

    def __init__(self, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
        self._adapter, self._optimizer = adapter, optimizer
        self._owners = sorted(adapter.owners(), key=Tensor.data_ptr)
        self._starts = [owner.data_ptr() for owner in self._owners]

    @property
    def applied(self) -> int:
        """Steps that AdamW has taken: its bias correction depends on them."""
        counts = {
            int(state["step"]) if (state := self._optimizer.state.get(owner)) else 0 for owner in self._owners
        }
        assert len(counts) == 1, f"parameters have taken {sorted(counts)} steps"
        return counts.pop()

    def copy(self, kind: str, flat_group: FlatGroup, into: Tensor) -> None:
        """``into`` becomes this rank's partition of ``kind``; what it has at padding stays."""
        for offset, master in flat_group.masters:
            if master.numel():
                into[offset : offset + master.numel()].copy_(self._beside(master, kind), non_blocking=True)

    def groups(self) -> tuple[list[FlatGroup], Group]:
        """What ``load`` needs of every kind: this rank's partition, or all of it where every rank keeps
        all."""
        if self._adapter.everywhere():
            alone = Group(0, 1)
            return self._adapter.unpartitioned(alone), alone
        return self._adapter.groups(), self._adapter.group

    @torch.no_grad()
    def load(self, shards: Mapping[str, Sequence[Tensor]], *, applied: int) -> None:
        """Masters, moments, and the weights in the compute dtype, from shards [kind] of ``groups``; a
        collective."""
        groups, _ = self.groups()
        for kind in KINDS:
            for shard, flat_group in zip(shards[kind], groups, strict=True):
                for offset, master in flat_group.masters:
                    if master.numel():
                        self._beside(master, kind).copy_(shard[offset : offset + master.numel()])
        for owner in self._owners:
            self._state(owner)["step"].fill_(applied)
        self._adapter.write_weights()

    def _beside(self, master: Tensor, kind: str) -> Tensor:
        """The entries of ``kind`` that belong to those of ``master``, which lies within one of the
        optimiser's own."""
        if kind == "master":
            return master.detach()
        owner = self._owners[bisect_right(self._starts, master.data_ptr()) - 1]
        offset, remainder = divmod(master.data_ptr() - owner.data_ptr(), owner.element_size())
        assert remainder == 0 and 0 <= offset <= owner.numel() - master.numel(), (
            "masters lie within the optimiser's"
        )
        return self._state(owner)[kind].view(-1)[offset : offset + master.numel()]

    def _state(self, owner: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one of its parameters, made as AdamW would at its first step."""
        state: dict[str, Tensor] = self._optimizer.state[owner]
        if not state:
            fused = self._optimizer.param_groups[0]["fused"]
            state["step"] = torch.zeros((), device=owner.device if fused else None)
            state |= {kind: torch.zeros_like(owner) for kind in KINDS[1:]}
        return state
