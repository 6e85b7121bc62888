"""The section ``dedup``: sequence that train has more than once."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs import Section
from data_prep.config.values import odd


class DedupConfig(Section):
    """``split.dedup`` has the words. ``dedup: drop`` means ``{mode: drop}``."""

    mode: Literal["off", "report", "drop"] = "off"
    min_shared: float = Field(default=0.9, gt=0, le=1)  # of a block's minimisers, in blocks that are kept
    k: int = Field(default=21, ge=11, le=31)  # odd; letters of a k-mer
    window: int = Field(default=21, ge=1, le=64)  # of so many neighbouring k-mers one is a minimiser

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value and "mode" not in value:
            raise ValueError("has no mode, so nothing would be done; give mode, too: report, drop or off")
        return {"mode": value} if isinstance(value, str) else value

    @field_validator("k")
    @classmethod
    def _odd(cls, k: int) -> int:
        return odd(k)
