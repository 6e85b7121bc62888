"""The config section ``model``."""

from pydantic import field_validator

from configs import Section
from configs.numbers import Positive
from trainer.models import MODELS
from trainer.models.chordmixer import Norm


class Model(Section):
    name: str = "findna"
    num_layers: Positive = 40
    num_groups: Positive = 11
    group_channels: Positive = 28
    intermediate_size: Positive = 512
    num_summary: Positive = 10
    norm: Norm = "none"

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"must be one of {', '.join(sorted(MODELS))}")
        return name
