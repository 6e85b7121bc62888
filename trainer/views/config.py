"""The config section ``views``: how each network's reading of a window is made, and what is hidden in it."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from configs import Section
from configs.numbers import Fraction
from trainer.data.config import MIN_LENGTH
from trainer.views.edits import VIEWS, flank_for


class ViewConfig(Section):
    """One view: operations of VIEWS in their order with their limits in bp, then substitution, strand,
    noise."""

    operations: dict[str, Annotated[int, Field(ge=0, le=1000)]] = {}
    substitution: Fraction = 0.0
    reverse_complement: Fraction = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("operations")
    @classmethod
    def _known(cls, operations: dict[str, int]) -> dict[str, int]:
        unknown = sorted(operations.keys() - VIEWS.keys())
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}; must be of {', '.join(sorted(VIEWS))}")
        return operations


class Masking(Section):
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.3
    mask_share: Fraction = 0.8
    random_share: Fraction = 0.1

    @model_validator(mode="after")
    def _shares(self) -> "Masking":
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"mask_share {self.mask_share} and random_share {self.random_share} exceed 1 together"
            )
        return self


class Crops(ViewConfig):
    """``number`` local windows of ``length`` bp within each window, read by the student alone, unmasked."""

    number: Annotated[int, Field(ge=0, le=32)] = 0
    length: Annotated[int, Field(ge=MIN_LENGTH)] = 200


class Views(Section):
    """``symmetric``: each view is also read by the other network, so both directions are distilled and
    contrasted."""

    symmetric: bool = False
    student: ViewConfig = ViewConfig()
    teacher: ViewConfig = ViewConfig()
    crops: Crops = Crops()
    masking: Masking = Masking()

    @property
    def flank(self) -> int:
        """bp on either side of a window that its views can reach into."""
        crops = self.crops.operations if self.crops.number else {}
        return flank_for(self.student.operations, self.teacher.operations, crops)

    def faults(self, shortest: int) -> list[str]:
        """What does not fit windows of ``shortest`` bp, or is never used: a line each, with the key."""
        found = [
            f"views.{name}.noise: only the student's whole windows are noisy; set views.student.noise"
            for name in ("teacher", "crops")
            if getattr(self, name).noise
        ]
        if self.crops.number and self.crops.length >= shortest:
            found.append(f"views.crops.length: {self.crops.length} must be below data.length {shortest}")
        return found
