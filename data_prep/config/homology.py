"""The section ``split.homology``: when two blocks are one family, and what held-out windows may share."""

from pydantic import Field, field_validator, model_validator

from configs import Section
from data_prep.config.values import odd


class HomologyConfig(Section):
    """``split.families`` and ``split.homology`` have the words. The defaults were measured (docs/data.md)."""

    k: int = Field(default=19, ge=11, le=31)  # odd; letters of a k-mer
    window: int = Field(default=11, ge=1, le=64)  # of so many neighbouring k-mers one is a minimiser
    min_link: float = Field(default=0.003, gt=0, le=1)  # share of the smaller block's minimisers
    max_copies: int = Field(default=5, ge=1)  # blocks of an assembly, on average; in more it is a repeat
    max_shared: float = Field(default=0.1, ge=0, lt=1)  # of a held-out window's minimisers
    window_bp: int = Field(default=1000, ge=1)

    @field_validator("k")
    @classmethod
    def _odd(cls, k: int) -> int:
        return odd(k)

    @model_validator(mode="after")
    def _wide_enough(self) -> "HomologyConfig":
        if self.window_bp < self.window + self.k - 1:
            raise ValueError(
                f"window_bp {self.window_bp} has no minimiser: {self.window} k-mers of {self.k} letters need "
                f"{self.window + self.k - 1} bp"
            )
        return self
