"""Distillation of letters (iBOT), the loss ``patch``: hidden letters against the teacher's of the same place.

Shapes: B rows, L letters, N of them, D hidden, K prototypes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.numbers import Positive
from trainer.data.windows import Windows
from trainer.losses.distillation import Distilled, distillation
from trainer.losses.prototype_head import PrototypeConfig, PrototypeHead, PrototypeOutput
from trainer.losses.prototypes import PrototypeLoss
from trainer.losses.teacher_targets import TeacherTargets
from trainer.losses.term import Place, RankBatch, StepShape
from trainer.models.network import Outputs, Reading
from trainer.views.alignment import Aligned, align
from trainer.views.config import Views
from trainer.views.view_batch import ViewBatch


class PatchConfig(PrototypeConfig):
    """``pairs``: hidden letters of each window that are compared with the teacher's, chosen at random."""

    prototypes: Positive = 1024
    pairs: Positive = 32

    def faults(self, views: Views, *, global_batch: int) -> list[str]:
        if views.masking.mask_share:
            return []
        return ["loss.patch.weight: only hidden letters are compared, and views.masking.mask_share is 0"]


class Letters(NamedTuple):
    """The letters that the head is asked for."""

    place_BN: Tensor  # int64
    split: bool = False  # bottleneck and prototypes in place of their cosines


class LetterHead(PrototypeHead):
    """Prototypes of some letters of each row, [B, N, ...]; None where no letters are asked for."""

    def forward(self, reading: Reading, request: Letters | None = None) -> PrototypeOutput | None:
        if request is None:
            return None
        letters_BLD = reading.letters_BLD
        index_BND = request.place_BN[..., None].expand(-1, -1, letters_BLD.shape[2])
        return self.outputs(letters_BLD.gather(1, index_BND), split=request.split)


class Patch(PrototypeLoss[PatchConfig]):
    """Zhou et al. 2022, with a head of its own (Oquab et al. 2023, DINOv2)."""

    name = "patch"
    Config = PatchConfig
    needs_same_letters = True
    metrics = {
        name: f"patch_{name}" for name in ("entropy", "kl", "usage", "chosen", "information", "learned")
    }
    rows_called, guard_prefix, max_kl = (
        "letters",
        "patch ",
        0.3,
    )  # a student is never quite as sure of letters

    def head(self, hidden_size: int) -> nn.Module:
        return LetterHead(hidden_size, **self.head_settings)

    def head_vectors(self, shape: StepShape) -> tuple[float, float]:
        return self.config.pairs * shape.views, self.config.pairs * shape.views

    def prepare(self, windows: Windows, views: ViewBatch) -> list[Aligned]:
        return [
            align(pair.student, pair.masked, pair.teacher, windows, name=pair.name, pairs=self.config.pairs)
            for pair in views.pairs
        ]

    def student_request(self, extra: list[Aligned]) -> Letters:
        return Letters(torch.cat([aligned.student_BN for aligned in extra]))

    def teacher_request(self, extra: list[Aligned], direction: int) -> Letters:
        return Letters(extra[direction].teacher_BN, self.split)

    def teacher_rows(self, outputs: Outputs) -> PrototypeOutput:
        output: PrototypeOutput = outputs.heads[self.name]
        return output.rows()

    def valid(self, batch: RankBatch) -> list[list[Tensor]]:
        return [[aligned.valid_BN.flatten() for aligned in extra] for extra in batch.extras]

    def value(self, outputs: Outputs, place: Place, context: TeacherTargets) -> Tensor:
        return distillation(
            Distilled(
                context.cosines(outputs.heads[self.name]).flatten(0, 1)[None],
                context.probabilities(place.micro_batch, place.direction)[:, 0],
                context.valid_of(place.micro_batch, place.direction).float(),
                self.config.student_temperature,
                context.total,
            )
        )

    def student_of(
        self, outputs: Outputs, count: int, place: Place, context: TeacherTargets
    ) -> tuple[Tensor, Tensor]:
        cosines_BNK = context.cosines(outputs.heads[self.name])
        valid_BN = context.valid_of(place.micro_batch, 0).view(cosines_BNK.shape[:2])[:count]
        teacher_BNK = context.probabilities(place.micro_batch, 0).view_as(cosines_BNK)
        return teacher_BNK[:count][valid_BN][:, None], cosines_BNK[:count][valid_BN][:, None]
