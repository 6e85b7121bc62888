"""The sections ``repeats`` and ``track`` of a reference: what stands in files beside its letters."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Section
from configs.numbers import Fraction
from data_prep.config.values import Strings


class RepeatsConfig(Section):
    """Files of repeats (BED, RepeatMasker's .out, UCSC's rmsk), which make the soft mask; none: lower case
    alone does."""

    uri: Strings = ()
    mode: Literal["replace", "add"] = "replace"  # of lower case
    classes: Strings = ()  # of repeats, as RepeatMasker calls them: only these; none: all

    @model_validator(mode="after")
    def _used(self) -> "RepeatsConfig":
        if not self.uri and (self.mode != "replace" or self.classes):
            raise ValueError("uri is missing: mode and classes are of the files that it names")
        return self


class TrackConfig(Section):
    """A value for each letter (conservation, a score), which becomes its weight: ``low`` counts 0, ``high``
    1; without ``uri`` letters have no weights."""

    uri: Annotated[str, Field(min_length=1)] | None = None
    kind: Literal["bigwig", "bed", "bedgraph"] | None = None
    low: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    missing: Fraction = 0.0  # the weight of letters that have no value
    levels: Literal[2, 4, 16] = 4

    @model_validator(mode="after")
    def _used(self) -> "TrackConfig":
        if self.uri is None:
            if any(getattr(self, key) != field.default for key, field in type(self).model_fields.items()):
                raise ValueError("uri is missing: the other keys are of the file that it names")
            return self
        if self.high is None:
            raise ValueError(
                "high is missing: the value that counts 1, such as 1 for phastCons, 5 for phyloP"
            )
        if self.high <= self.low:
            raise ValueError(f"high {self.high:g} must be above low {self.low:g}")
        return self
