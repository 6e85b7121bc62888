"""What the losses over prototypes share: config, head, the teacher's targets, the cross-entropy.

The teacher's outputs become probabilities, balanced over the global batch. Each summary is balanced by
itself. With one centre for all of them, each summary soon prefers a prototype of its own whatever the sample
is, and their mean still looks spread; the same holds for one Sinkhorn over all of them.

Shapes: R rows of one micro-batch and direction (samples, or the letters of all samples), P positions in each
(1 for letters), A rows of all of this rank's, S student readings, N places, C bottleneck, K prototypes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from configs.numbers import Above0, Positive
from trainer.core.collectives import Group
from trainer.losses import prototype_metrics
from trainer.losses.distillation import centred_probabilities
from trainer.losses.sinkhorn import Assignment, sinkhorn
from trainer.losses.term import LossConfig, LossTerm, Place, RankBatch
from trainer.models.heads import mlp
from trainer.models.network import Network, Outputs


class PrototypeConfig(LossConfig):
    """A prototype head and how the teacher's side of it is balanced.

    ``balance``: ``centring`` takes the moving mean of the teacher's cosines off, ``sinkhorn`` spreads the
    global batch evenly over the prototypes, ``none`` leaves them as they are, which collapses.
    """

    prototypes: Positive = 4096
    mlp_size: Positive = 512
    bottleneck: Positive = 128
    student_temperature: Above0 = 0.1
    teacher_temperature: Above0 = 0.04
    balance: Literal["centring", "sinkhorn", "none"] = "centring"
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    sinkhorn_iterations: Positive = 3


class PrototypeOutput(NamedTuple):
    """What a PrototypeHead gives for vectors [..., D]: cosines, or that from which they can be computed."""

    cosines: Tensor | None  # fp32 [..., K] in [-1, 1]
    bottleneck: Tensor | None = None  # fp32 unit vectors [..., C]
    prototypes_KC: Tensor | None = None  # fp32 unit vectors

    def rows(self) -> "PrototypeOutput":
        """[B, N, ...] as rows of one position: [B·N, 1, ...]."""
        cosines, bottleneck = (None if part is None else part.flatten(0, 1)[:, None] for part in self[:2])
        return PrototypeOutput(cosines, bottleneck, self.prototypes_KC)


class PrototypeHead(nn.Module):
    """Cosines between a bottleneck of each vector and K unit prototypes.

    Caron et al. 2021 (DINO), with the prototypes' norm fixed at 1. A subclass says which vectors are read.
    """

    def __init__(self, hidden_size: int, *, mlp_size: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = mlp(hidden_size, mlp_size, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)

    def outputs(self, x: Tensor, *, split: bool = False) -> PrototypeOutput:
        """``split``: bottleneck and prototypes in place of their cosines."""
        bottleneck = F.normalize(self.mlp(x).float(), dim=-1)
        prototypes_KC = F.normalize(self.prototypes.float(), dim=-1)
        if split:
            return PrototypeOutput(None, bottleneck, prototypes_KC)
        return PrototypeOutput(bottleneck @ prototypes_KC.T)


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
            lead = [part.cosines if part.bottleneck is None else part.bottleneck for part in parts]
            valid_A = torch.cat([x.new_ones(len(x)) for x in lead if x is not None])
        else:
            valid_A = torch.cat([part for by_direction in valid for part in by_direction]).float()
        return cls(parts, len(outputs[0]), valid_A)

    @property
    def sizes(self) -> list[int]:
        """R of each part."""
        parts = (out.cosines if out.bottleneck is None else out.bottleneck for out in self.outputs)
        return [len(part) for part in parts if part is not None]

    @property
    def split(self) -> bool:
        return self.outputs[0].bottleneck is not None

    def payload(self) -> dict[str, Tensor]:
        """Tensors whose shapes agree over ranks."""
        if self.split:
            bottlenecks = [out.bottleneck for out in self.outputs if out.bottleneck is not None]
            return {"bottleneck": torch.cat(bottlenecks), "valid": self.valid_A}
        cosines = [out.cosines for out in self.outputs if out.cosines is not None]
        sums = [
            torch.tensordot(valid_R, cosines_RPK, 1)
            for valid_R, cosines_RPK in zip(self.valid_A.split(self.sizes), cosines, strict=True)
        ]
        return {"sum": torch.stack(sums).sum(0), "valid": self.valid_A.sum()}


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's probabilities of this rank's rows, for a step."""

    rows: TeacherRows
    total: float  # rows of the global batch that count; at least 1
    temperature: float  # of the teacher
    assigned: tuple[Tensor, ...]  # Sinkhorn's probabilities by part; empty where the centre balances
    before_PK: Tensor | None  # the moving centre up to the last step
    centre_PK: Tensor | None  # of this global batch; None: there is none, or no row counts

    def probabilities(self, micro_batch: int, direction: int) -> Tensor:
        """fp32 [R, P, K]."""
        part = micro_batch * self.rows.directions + direction
        if self.assigned:
            return self.assigned[part]
        cosines = self.rows.outputs[part].cosines
        assert cosines is not None, "outputs that are not split are cosines"
        return centred_probabilities(cosines, self.before_PK, self.temperature)

    def valid_of(self, micro_batch: int, direction: int) -> Tensor:
        """bool [R]."""
        part = micro_batch * self.rows.directions + direction
        return self.rows.valid_A.split(self.rows.sizes)[part].bool()


def teacher_targets(
    config: PrototypeConfig,
    rows: TeacherRows,
    gathered: Mapping[str, Tensor],
    *,
    group: Group,
    before_PK: Tensor | None,
) -> TeacherTargets:
    """``gathered``: the payload of all ranks [W, ...]; ``before_PK``: the moving centre up to the last
    step."""
    total = max(1.0, float(gathered["valid"].sum()))
    assigned: tuple[Tensor, ...] = ()
    centre_PK = None
    if rows.split:
        assigned = _balanced(config, rows, gathered, group).split(rows.sizes)
    elif config.balance == "centring" and float(gathered["valid"].sum()) > 0:
        centre_PK = gathered["sum"].sum(0) / total
    return TeacherTargets(rows, total, config.teacher_temperature, assigned, before_PK, centre_PK)


def _balanced(
    config: PrototypeConfig, rows: TeacherRows, gathered: Mapping[str, Tensor], group: Group
) -> Tensor:
    """Sinkhorn's probabilities of this rank's rows [A, P, K]."""
    prototypes_KC = rows.outputs[0].prototypes_KC
    assert prototypes_KC is not None, "bottlenecks come with their prototypes"
    bottleneck_GPC = gathered["bottleneck"].flatten(0, 1)
    mine = len(rows.valid_A)
    found = [
        sinkhorn(
            Assignment(
                bottleneck_GC,
                prototypes_KC,
                gathered["valid"].flatten(),
                temperature=config.teacher_temperature,
                iterations=config.sinkhorn_iterations,
            ),
            slice(group.rank * mine, (group.rank + 1) * mine),
        )
        for bottleneck_GC in bottleneck_GPC.unbind(1)
    ]
    return torch.stack(found, 1)


P = TypeVar("P", bound=PrototypeConfig)


class PrototypeLoss(LossTerm[P, TeacherTargets]):
    """A loss over prototypes; a subclass says which rows its head reads."""

    metrics: ClassVar[Mapping[str, str]]  # entropy, kl, usage, chosen -> name of the metric health/NAME
    rows_called: ClassVar[str]  # what a row is, in words
    guard_prefix: ClassVar[str]  # of the names of its kinds of collapse
    max_kl: ClassVar[float]  # nats: a student that agrees with its teacher up to this may have collapsed

    @property
    def split(self) -> bool:
        """Whether the teacher's outputs travel as bottlenecks: Sinkhorn needs those of all ranks."""
        return self.config.balance == "sinkhorn"

    @property
    def head_sizes(self) -> dict[str, int]:
        sizes = self.config
        return {"mlp_size": sizes.mlp_size, "bottleneck": sizes.bottleneck, "prototypes": sizes.prototypes}

    def first_state(self, network: Network, device: torch.device) -> Tensor | None:
        """The moving centre [P, K] of the teacher's cosines; None where nothing is centred."""
        if self.config.balance != "centring":
            return None
        return torch.zeros(self.positions(network), self.config.prototypes, device=device)

    def positions(self, network: Network) -> int:
        """P."""
        return 1

    def teacher_rows(self, outputs: Outputs) -> PrototypeOutput:
        """[R, P, ...] of one micro-batch and direction."""
        raise NotImplementedError

    def valid(self, batch: RankBatch) -> list[list[Tensor]] | None:
        """bool [R] by micro-batch and direction; None: all rows count."""
        return None

    def _rows(self, batch: RankBatch) -> TeacherRows:
        outputs = [[self.teacher_rows(one) for one in by_direction] for by_direction in batch.taught]
        return TeacherRows.of(outputs, self.valid(batch))

    def payload(self, batch: RankBatch) -> dict[str, Tensor]:
        return self._rows(batch).payload()

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> TeacherTargets:
        rows = self._rows(batch)
        return teacher_targets(self.config, rows, gathered, group=batch.group, before_PK=batch.state)

    def next_state(self, state: Tensor, context: TeacherTargets) -> Tensor | None:
        """The moving centre moves towards that of the global batch."""
        if context.centre_PK is None:
            return None
        return state.lerp(context.centre_PK, 1 - self.config.centre_momentum)

    def student_of(
        self, outputs: Outputs, count: int, place: Place, context: TeacherTargets
    ) -> tuple[Tensor, Tensor]:
        """(the teacher's probabilities, the student's cosines) of the first ``count`` rows, [R, P, K]
        each."""
        raise NotImplementedError

    @torch.no_grad()
    def measure(
        self, outputs: Outputs, batch: RankBatch, place: Place, context: TeacherTargets, *, count: int
    ) -> dict[str, Tensor]:
        teacher_RPK, cosines_RPK = self.student_of(outputs, count, place, context)
        log_student_RPK = F.log_softmax(cosines_RPK / self.config.student_temperature, dim=-1)
        return {"sums": prototype_metrics.prototype_sums(teacher_RPK, log_student_RPK)[None]}

    def readings(self, gathered: Mapping[str, Tensor]) -> dict[str, float]:
        found = prototype_metrics.readings(gathered["sums"].sum(0))
        return {f"health/{self.metrics[name]}": value for name, value in found.items()}

    def teacher_entropy(self, cosines_BPK: Tensor, centre_PK: Tensor | None) -> dict[str, Tensor]:
        """The entropy of each row's probabilities, [B], mean over its positions, by the metric's name."""
        probability_BPK = centred_probabilities(cosines_BPK, centre_PK, self.config.teacher_temperature)
        entropy_B = prototype_metrics.entropy(probability_BPK).mean(1)
        return {f"health/{self.metrics['entropy']}": entropy_B}
