"""What the losses over prototypes share: their state, the teacher's targets, health.

Shapes: R rows of one micro-batch and direction (samples, or the letters of all samples), P positions in each
(1 for letters), K prototypes, X what is centred: K cosines, or C of the bottleneck.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.losses import prototype_metrics
from trainer.losses.distillation import centred_probabilities
from trainer.losses.prototype_head import PrototypeConfig, PrototypeHead, PrototypeOutput
from trainer.losses.teacher_targets import TeacherRows, TeacherTargets, teacher_targets
from trainer.losses.term import LossTerm, Place, RankBatch
from trainer.models.network import Network, Outputs

P = TypeVar("P", bound=PrototypeConfig)


class PrototypeLoss(LossTerm[P, TeacherTargets]):
    """A loss over prototypes; a subclass says which rows its head reads."""

    metrics: ClassVar[Mapping[str, str]]  # of prototype_metrics.readings -> name of the metric health/NAME
    rows_called: ClassVar[str]  # what a row is, in words
    guard_prefix: ClassVar[str]  # of the names of its kinds of collapse
    max_kl: ClassVar[float]  # nats: a student that agrees with its teacher up to this may have collapsed

    @property
    def split(self) -> bool:
        """Whether the teacher's bottlenecks travel: Sinkhorn needs those of all ranks."""
        return self.config.balance == "sinkhorn"

    @property
    def head_settings(self) -> dict[str, Any]:
        sizes = self.config
        return {
            "mlp_size": sizes.mlp_size,
            "bottleneck": sizes.bottleneck,
            "prototypes": sizes.prototypes,
            "raw": sizes.centre_bottleneck,
            "predictor": sizes.predictor,
        }

    def student_only(self, head: nn.Module) -> list[nn.Module]:
        assert isinstance(head, PrototypeHead), "its own"
        return [] if head.predictor is None else [head.predictor]

    def first_state(self, network: Network, device: torch.device) -> Tensor | None:
        """The moving centre [P, X] of the teacher's cosines or bottleneck; None where nothing is centred."""
        if not self.config.takes_off:
            return None
        size = self.config.bottleneck if self.config.centre_bottleneck else self.config.prototypes
        return torch.zeros(self.positions(network), size, device=device)

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
        return self._rows(batch).payload(whole=self.split)

    def receive(self, batch: RankBatch, gathered: Mapping[str, Tensor]) -> TeacherTargets:
        return teacher_targets(
            self.config,
            self._rows(batch),
            gathered,
            group=batch.group,
            before_PX=batch.state,
            progress=batch.moment.progress,
        )

    def next_state(self, state: Tensor, context: TeacherTargets) -> Tensor | None:
        """The moving centre moves towards that of the global batch, where a row counts in it."""
        if context.centre_PX is None:
            return None
        moved = state.lerp(context.centre_PX, 1 - self.config.centre_momentum)
        return torch.where(context.counted > 0, moved, state)

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

    def teacher_entropy(self, output: PrototypeOutput, centre_PX: Tensor | None) -> dict[str, Tensor]:
        """The entropy of each row's probabilities, [B], mean over its positions, by the metric's name; at the
        temperature of the end."""
        of_cosines, of_bottleneck = (None, centre_PX) if self.config.centre_bottleneck else (centre_PX, None)
        cosines_BPK = output.cosines_about(of_bottleneck)
        probability_BPK = centred_probabilities(cosines_BPK, of_cosines, self.config.teacher_temperature)
        entropy_B = prototype_metrics.entropy(probability_BPK).mean(1)
        return {f"health/{self.metrics['entropy']}": entropy_B}
