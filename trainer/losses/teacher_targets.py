"""What the teacher of a loss over prototypes says of the global batch: its probabilities, balanced.

Each summary is balanced by itself. With one centre for all of them, each summary soon prefers a prototype of
its own whatever the sample is, and their mean still looks spread; the same holds for one Sinkhorn over all of
them.

Shapes: R rows of one micro-batch and direction (samples, or the letters of all samples), P positions in each
(1 for letters), A rows of all of this rank's, G of all ranks, C bottleneck, K prototypes, X what is centred:
K cosines, or C of the bottleneck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.core.collectives import Group
from trainer.losses.distillation import centred_probabilities
from trainer.losses.prototype_head import PrototypeConfig, PrototypeOutput, centred_unit
from trainer.losses.sinkhorn import Assignment, sinkhorn


@dataclass(frozen=True)
class TeacherRows:
    """What the teacher said on this rank of all rows that a prototype loss reads."""

    outputs: Sequence[PrototypeOutput]  # [R, P, ...] by micro-batch, then by direction; all split, or none
    directions: int
    valid_A: Tensor  # fp32, 0 where a row does not count

    @classmethod
    def of(
        cls, outputs: Sequence[Sequence[PrototypeOutput]], valid: Sequence[Sequence[Tensor]] | None
    ) -> "TeacherRows":
        """Both by micro-batch and direction; ``valid``: bool [R], None: all rows count."""
        parts = [part for by_direction in outputs for part in by_direction]
        if valid is None:
            valid_A = torch.cat([part.new_ones(len(part)) for part in _lead_of(parts)])
        else:
            valid_A = torch.cat([part for by_direction in valid for part in by_direction]).float()
        return cls(parts, len(outputs[0]), valid_A)

    @property
    def sizes(self) -> list[int]:
        """R of each part."""
        return [len(part) for part in self._lead]

    def payload(self, *, whole: bool) -> dict[str, Tensor]:
        """Tensors whose shapes agree over ranks: the bottlenecks of all rows, or the sum of what is to be
        centred."""
        if whole:
            bottlenecks = [out.bottleneck for out in self.outputs if out.bottleneck is not None]
            return {"bottleneck": torch.cat(bottlenecks), "valid": self.valid_A}
        sums = [
            torch.tensordot(valid_R, of_part_RPX, 1)
            for valid_R, of_part_RPX in zip(self.valid_A.split(self.sizes), self._lead, strict=True)
        ]
        return {"sum": torch.stack(sums).sum(0), "valid": self.valid_A.sum()}

    @property
    def _lead(self) -> list[Tensor]:
        """[R, P, X] of each part: its bottlenecks where it is split, else its cosines."""
        return _lead_of(self.outputs)


def _lead_of(outputs: Sequence[PrototypeOutput]) -> list[Tensor]:
    lead = (out.cosines if out.bottleneck is None else out.bottleneck for out in outputs)
    return [part for part in lead if part is not None]


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's probabilities of this rank's rows, for a step."""

    rows: TeacherRows
    counted: Tensor  # fp32 0-d: rows of the global batch that count
    temperature: float  # of the teacher
    assigned: tuple[Tensor, ...]  # Sinkhorn's probabilities by part; empty where the centre balances
    before_PX: Tensor | None  # the moving centre up to the last step
    centre_PX: Tensor | None  # of this global batch, 0 where no row counts; None: there is none
    of_bottleneck: bool = False  # what the centre is of

    @property
    def total(self) -> Tensor:
        """0-d: the rows that count; at least 1."""
        return self.counted.clamp(min=1)

    def probabilities(self, micro_batch: int, direction: int) -> Tensor:
        """fp32 [R, P, K]."""
        part = micro_batch * self.rows.directions + direction
        if self.assigned:
            return self.assigned[part]
        cosines_RPK = self.cosines(self.rows.outputs[part])
        return centred_probabilities(cosines_RPK, self._of(False), self.temperature)

    def cosines(self, output: PrototypeOutput) -> Tensor:
        """fp32 [..., P, K] of either network's output."""
        return output.cosines_about(self._of(True))

    def valid_of(self, micro_batch: int, direction: int) -> Tensor:
        """bool [R]."""
        part = micro_batch * self.rows.directions + direction
        return self.rows.valid_A.split(self.rows.sizes)[part].bool()

    def _of(self, bottleneck: bool) -> Tensor | None:
        return self.before_PX if bottleneck == self.of_bottleneck else None


def teacher_targets(
    config: PrototypeConfig,
    rows: TeacherRows,
    gathered: Mapping[str, Tensor],
    *,
    group: Group,
    before_PX: Tensor | None,
    progress: float = 1.0,
) -> TeacherTargets:
    """``gathered``: the payload of all ranks [W, ...]; ``before_PX``: the moving centre up to the last step;
    ``progress``: the share of the schedule that is done."""
    counted, temperature = gathered["valid"].sum(), config.temperature_at(progress)
    total = counted.clamp(min=1)
    assigned: tuple[Tensor, ...] = ()
    centre_PX = None
    if config.balance == "sinkhorn":
        bottleneck_GPC, valid_G = gathered["bottleneck"].flatten(0, 1), gathered["valid"].flatten()
        unit_GPC = centred_unit(bottleneck_GPC, before_PX) if config.centre_bottleneck else bottleneck_GPC
        assigned = _balanced(config, rows, unit_GPC, valid_G, group, temperature).split(rows.sizes)
        if config.centre_bottleneck:
            centre_PX = torch.tensordot(valid_G, bottleneck_GPC, 1) / total
    elif config.takes_off:
        centre_PX = gathered["sum"].sum(0) / total
    return TeacherTargets(
        rows, counted, temperature, assigned, before_PX, centre_PX, of_bottleneck=config.centre_bottleneck
    )


def _balanced(
    config: PrototypeConfig,
    rows: TeacherRows,
    unit_GPC: Tensor,
    valid_G: Tensor,
    group: Group,
    temperature: float,
) -> Tensor:
    """Sinkhorn's probabilities of this rank's rows [A, P, K]."""
    prototypes_KC = rows.outputs[0].prototypes_KC
    assert prototypes_KC is not None, "bottlenecks come with their prototypes"
    mine = len(rows.valid_A)
    found = [
        sinkhorn(
            Assignment(
                unit_GC,
                prototypes_KC,
                valid_G,
                temperature=temperature,
                iterations=config.sinkhorn_iterations,
            ),
            slice(group.rank * mine, (group.rank + 1) * mine),
        )
        for unit_GC in unit_GPC.unbind(1)
    ]
    return torch.stack(found, 1)
