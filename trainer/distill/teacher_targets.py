"""The teacher's side of a prototype loss: from its outputs to probabilities, balanced over the global batch.

Each summary position is balanced by itself. With one centre for all of them, each position soon prefers a
prototype of its own whatever the sample is, and their mean still looks spread; the same holds for one
Sinkhorn over all of them.

Shapes: R rows of one micro-batch and direction (samples, or the letters of all samples), P positions in each
(1 for letters), A rows of all of this rank's, C bottleneck, K prototypes.
"""

import torch
from torch import Tensor

from trainer.core.collectives import Group
from trainer.losses.config import Prototypes
from trainer.losses.dino import centred_probabilities
from trainer.losses.sinkhorn import Assignment, sinkhorn
from trainer.models.heads import Assigned


class Targets:
    """Probabilities of one prototype head for a step: ``payload`` goes to all ranks, ``receive`` gets
    theirs."""

    def __init__(
        self, name: str, config: Prototypes, said: list[list[Assigned]], valid: list[list[Tensor]] | None
    ) -> None:
        """``said``: [R, P, ...] by micro-batch and direction, split if ``config`` says sinkhorn; ``valid``
        bool [R]."""
        self.name, self.config = name, config
        self._said = [assigned for by_direction in said for assigned in by_direction]
        self._directions = len(said[0])
        self._cosines = [a.cosines for a in self._said if a.cosines is not None]
        self._bottlenecks = [a.bottleneck for a in self._said if a.bottleneck is not None]
        rows = self._bottlenecks or self._cosines
        self._rows = [len(part) for part in rows]
        self._valid_A = (
            rows[0].new_ones(sum(self._rows))
            if valid is None
            else torch.cat([part for by_direction in valid for part in by_direction]).float()
        )
        self._assigned: list[Tensor] = []  # Sinkhorn's, which needs all rows at once
        self._before_PK: Tensor | None = None
        self.centre_PK: Tensor | None = None  # of this global batch

    def payload(self) -> dict[str, Tensor]:
        """Tensors whose shapes agree over ranks."""
        if self._bottlenecks:
            return {
                f"{self.name} bottleneck": torch.cat(self._bottlenecks),
                f"{self.name} valid": self._valid_A,
            }
        parts = zip(self._valid_A.split(self._rows), self._cosines, strict=True)
        sum_PK = torch.stack(
            [torch.tensordot(valid_R, cosines_RPK, 1) for valid_R, cosines_RPK in parts]
        ).sum(0)
        return {f"{self.name} sum": sum_PK, f"{self.name} valid": self._valid_A.sum()}

    def receive(self, everywhere: dict[str, Tensor], *, group: Group, centre_PK: Tensor | None) -> None:
        """``everywhere``: the payload of all ranks [W, ...]; ``centre_PK``: the moving centre up to the last
        step."""
        self._before_PK = centre_PK
        if self._bottlenecks:
            self._assigned = list(self._balanced(everywhere, group).split(self._rows))
        elif self.config.balance == "centring" and float(everywhere[f"{self.name} valid"].sum()) > 0:
            self.centre_PK = everywhere[f"{self.name} sum"].sum(0) / self.total(everywhere)

    def total(self, everywhere: dict[str, Tensor]) -> float:
        """Rows of the global batch that count, all directions; at least 1."""
        return max(1.0, float(everywhere[f"{self.name} valid"].sum()))

    def probabilities(self, micro_batch: int, direction: int) -> Tensor:
        """fp32 [R, P, K]."""
        part = micro_batch * self._directions + direction
        if self._assigned:
            return self._assigned[part]
        return centred_probabilities(self._cosines[part], self._before_PK, self.config.teacher_temperature)

    def _balanced(self, everywhere: dict[str, Tensor], group: Group) -> Tensor:
        """Sinkhorn's probabilities of this rank's rows [A, P, K]."""
        prototypes_KC = self._said[0].prototypes_KC
        assert prototypes_KC is not None, "bottlenecks come with their prototypes"
        bottleneck_GPC = everywhere[f"{self.name} bottleneck"].flatten(0, 1)
        mine = len(self._valid_A)
        found = [
            sinkhorn(
                Assignment(
                    bottleneck_GC,
                    prototypes_KC,
                    everywhere[f"{self.name} valid"].flatten(),
                    temperature=self.config.teacher_temperature,
                    iterations=self.config.sinkhorn_iterations,
                ),
                slice(group.rank * mine, (group.rank + 1) * mine),
            )
            for bottleneck_GC in bottleneck_GPC.unbind(1)
        ]
        return torch.stack(found, 1)
