"""The config section ``loss``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Section
from configs.numbers import Above0, Fraction, Positive, Weight
from trainer.views.config import Views


class MlmLoss(Section):
    """``soft_weight``: what a letter counts that is soft-masked (lower case, a repeat) in the reference."""

    weight: Weight = 1.0
    soft_weight: Fraction = 1.0


class Prototypes(Section):
    """A prototype head and how the teacher's side of it is balanced.

    ``balance``: ``centring`` takes the moving mean of the teacher's cosines off, ``sinkhorn`` spreads the
    global batch evenly over the prototypes, ``none`` leaves them as they are, which collapses.
    """

    weight: Weight = 0.0
    prototypes: Positive = 4096
    mlp_size: Positive = 512
    bottleneck: Positive = 128
    student_temperature: Above0 = 0.1
    teacher_temperature: Above0 = 0.04
    balance: Literal["centring", "sinkhorn", "none"] = "centring"
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    sinkhorn_iterations: Positive = 3


class DistillLoss(Prototypes):
    weight: Weight = 1.0


class PatchLoss(Prototypes):
    """``pairs``: hidden letters of each window that are compared with the teacher's, chosen at random."""

    prototypes: Positive = 1024
    pairs: Positive = 32


class ContrastiveLoss(Section):
    """``keys``: of the teacher, or the student's own of its other view (``views.symmetric``).

    ``variant``: ``lse`` gathers the batch once, ``ring`` never holds it whole, ``ref`` is the plain formula.
    ``mask_same_place``: windows that overlap, or hold the same sequence on either strand, are no negatives.
    """

    weight: Weight = 0.0
    mlp_size: Positive = 512
    embedding: Positive = 128
    temperature: Above0 = 0.1
    learnable_scale: bool = False
    max_scale: Above0 = 100.0
    keys: Literal["teacher", "student"] = "teacher"
    variant: Literal["lse", "ring", "ref"] = "lse"
    mask_same_place: bool = True

    @model_validator(mode="after")
    def _scale(self) -> "ContrastiveLoss":
        if 1 / self.temperature > self.max_scale:
            raise ValueError(
                f"temperature {self.temperature:g} is a scale of {1 / self.temperature:g}, but max_scale "
                f"is {self.max_scale:g}"
            )
        return self


class KoleoLoss(Section):
    """Spreads the student's pooled embeddings evenly."""

    weight: Weight = 0.0


class VicregLoss(Section):
    weight: Weight = 0.0
    mlp_size: Positive = 512
    embedding: Positive = 256
    invariance: Weight = 25.0
    variance: Weight = 25.0
    covariance: Weight = 1.0


class Loss(Section):
    mlm: MlmLoss = MlmLoss()
    distill: DistillLoss = DistillLoss()
    patch: PatchLoss = PatchLoss()
    contrastive: ContrastiveLoss = ContrastiveLoss()
    koleo: KoleoLoss = KoleoLoss()
    vicreg: VicregLoss = VicregLoss()

    @model_validator(mode="after")
    def _some(self) -> "Loss":
        if not self.weights():
            raise ValueError(
                f"every loss has weight 0; at least one of {', '.join(type(self).model_fields)} must be "
                "above 0"
            )
        return self

    def weights(self) -> dict[str, float]:
        """The losses in use: name -> weight."""
        all_ = {name: getattr(self, name).weight for name in type(self).model_fields}
        return {name: weight for name, weight in all_.items() if weight > 0}

    @property
    def needs_soft_mask(self) -> bool:
        """Whether windows must bring the soft mask of the reference."""
        return self.mlm.weight > 0 and self.mlm.soft_weight != 1

    def faults(self, views: Views) -> list[str]:
        """What the losses in use need of the views and do not get: a line each, with the key."""
        found = []
        if self.contrastive.weight and self.contrastive.keys == "student" and not views.symmetric:
            found.append(
                "loss.contrastive.keys: student keys need views.symmetric: true; or use the teacher's"
            )
        if views.crops.number and not self.distill.weight:
            found.append("views.crops.number: only loss.distill reads local windows, and its weight is 0")
        for name in ("teacher", "crops"):
            if getattr(views, name).noise:
                found.append(
                    f"views.{name}.noise: only the student's whole windows are noisy; set views.student.noise"
                )
        if self.patch.weight and not views.masking.mask_share:
            found.append(
                "loss.patch.weight: only hidden letters are compared, and views.masking.mask_share is 0"
            )
        return found
