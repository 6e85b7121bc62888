"""The base of every config model."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every config model: unknown keys are refused, values are immutable once read.

    Where a text is wanted, a number is taken as it was written: ``run.name=2``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)
