"""Distillation of summaries (DINO), the loss ``distill``: the student's prototypes against the teacher's.

Shapes: S student readings (the view, then each local crop), B rows, P summaries, K prototypes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from configs.numbers import Weight
from trainer.losses.distillation import Distilled, distillation
from trainer.losses.prototype_head import PrototypeConfig, PrototypeHead, PrototypeOutput
from trainer.losses.prototypes import PrototypeLoss
from trainer.losses.teacher_targets import TeacherTargets
from trainer.losses.term import Place, StepShape
from trainer.models.network import Network, Outputs, Reading


class DinoConfig(PrototypeConfig):
    """``reads``: the summaries of the backbone, or the mean over the letters, which is one position."""

    weight: Weight = 1.0
    reads: Literal["summary", "pooled"] = "summary"


class SummaryHead(PrototypeHead):
    """Prototypes of the summaries, [B, P, ...]."""

    def forward(self, reading: Reading, request: bool | None = None) -> PrototypeOutput:
        """``request``: bottleneck and prototypes in place of their cosines."""
        return self.outputs(reading.summary_BPD, split=bool(request))


class PooledHead(PrototypeHead):
    """Prototypes of the mean over the letters, [B, 1, ...]."""

    def forward(self, reading: Reading, request: bool | None = None) -> PrototypeOutput:
        """``request``: as SummaryHead's."""
        pooled_BD = reading.pooled_BD.to(reading.letters_BLD.dtype)
        return self.outputs(pooled_BD[:, None], split=bool(request))


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
        "learned": "learned",
    }
    rows_called, guard_prefix, max_kl = "samples", "", 0.1

    def head(self, hidden_size: int) -> nn.Module:
        kind = PooledHead if self.config.reads == "pooled" else SummaryHead
        return kind(hidden_size, **self.head_settings)

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        positions = 1 if self.config.reads == "pooled" else shape.summaries
        return positions * (shape.views + shape.crops), positions * shape.views

    def positions(self, network: Network) -> int:
        return 1 if self.config.reads == "pooled" else network.backbone.summaries

    def teacher_request(self, extra: None, direction: int) -> bool:
        return self.split

    def teacher_rows(self, outputs: Outputs) -> PrototypeOutput:
        output: PrototypeOutput = outputs.heads[self.name]
        return output

    def value(self, outputs: Outputs, place: Place, context: TeacherTargets) -> Tensor:
        cosines_SNK = _student_readings(outputs, self.name, context)
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
        output: PrototypeOutput = outputs.heads[self.name]
        return context.probabilities(place.micro_batch, 0)[:count], context.cosines(output.first(count))

    @torch.no_grad()
    def held_out(self, outputs: Outputs, state: Tensor | None) -> dict[str, Tensor]:
        return self.teacher_entropy(outputs.heads[self.name], state)


def _student_readings(outputs: Outputs, name: str, context: TeacherTargets) -> Tensor:
    """[S, B·P, K]: cosines of the view's summaries, then of each crop's of the same rows."""
    view_SBPK = context.cosines(outputs.heads[name])[None]
    if name in outputs.crops:
        crops_XPK = context.cosines(outputs.crops[name])
        view_SBPK = torch.cat([view_SBPK, crops_XPK.unflatten(0, (-1, view_SBPK.shape[1]))])
    return view_SBPK.flatten(1, 2)
