"""Distillation of summaries (DINO), the loss ``distill``: the student's prototypes against the teacher's.

Shapes: S student readings (the view, then each local crop), B rows, P summaries, K prototypes.
"""

import torch
from torch import Tensor, nn

from configs.numbers import Weight
from trainer.losses.distillation import Distilled, distillation
from trainer.losses.prototypes import (
    PrototypeConfig,
    PrototypeHead,
    PrototypeLoss,
    PrototypeOutput,
    TeacherTargets,
)
from trainer.losses.term import Place, StepShape
from trainer.models.network import Network, Outputs, Reading


class DinoConfig(PrototypeConfig):
    weight: Weight = 1.0


class SummaryHead(PrototypeHead):
    """Prototypes of the summaries, [B, P, ...]."""

    def forward(self, reading: Reading, request: bool | None = None) -> PrototypeOutput:
        """``request``: bottleneck and prototypes in place of their cosines."""
        return self.outputs(reading.summary_BPD, split=bool(request))


class Dino(PrototypeLoss[DinoConfig]):
    """Caron et al. 2021."""

    name = "distill"
    Config = DinoConfig
    reads_crops = True
    watches_drift = True
    metrics = {
        "entropy": "teacher_entropy",
        "kl": "kl",
        "usage": "prototype_usage",
        "chosen": "prototypes_chosen",
        "information": "teacher_information",
    }
    rows_called, guard_prefix, max_kl = "samples", "", 0.1

    def head(self, hidden_size: int) -> nn.Module:
        return SummaryHead(hidden_size, **self.head_sizes)

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        return shape.summaries * (shape.views + shape.crops), shape.summaries * shape.views

    def positions(self, network: Network) -> int:
        return network.backbone.summaries

    def teacher_request(self, extra: None, direction: int) -> bool:
        return self.split

    def teacher_rows(self, outputs: Outputs) -> PrototypeOutput:
        output: PrototypeOutput = outputs.heads[self.name]
        return output

    def value(self, outputs: Outputs, place: Place, context: TeacherTargets) -> Tensor:
        cosines_SNK = _student_readings(outputs, self.name)
        readings, places, _ = cosines_SNK.shape
        of_a_row = readings * places // len(outputs.pooled_BD)
        return distillation(
            Distilled(
                cosines_SNK,
                context.probabilities(place.micro_batch, place.direction).flatten(0, 1),
                None,
                self.config.student_temperature,
                context.total * of_a_row,
            )
        )

    def student_of(
        self, outputs: Outputs, count: int, place: Place, context: TeacherTargets
    ) -> tuple[Tensor, Tensor]:
        cosines_BPK: Tensor = outputs.heads[self.name].cosines[:count]
        return context.probabilities(place.micro_batch, 0)[:count], cosines_BPK

    @torch.no_grad()
    def held_out(self, outputs: Outputs, state: Tensor | None) -> dict[str, Tensor]:
        return self.teacher_entropy(outputs.heads[self.name].cosines, state)


def _student_readings(outputs: Outputs, name: str) -> Tensor:
    """[S, B·P, K]: cosines of the view's summaries, then of each crop's of the same rows."""
    view_SBPK = outputs.heads[name].cosines[None]
    if name in outputs.crops:
        crops_XPK = outputs.crops[name].cosines
        view_SBPK = torch.cat([view_SBPK, crops_XPK.unflatten(0, (-1, view_SBPK.shape[1]))])
    return view_SBPK.flatten(1, 2)
