"""The section ``split``: what is held out."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from configs import Section
from data_prep.config.homology import HomologyConfig
from data_prep.config.values import Names, Strings, at_least_one, strings


class BedSplit(Section):
    """What is held out, as BED files (URIs), which ``split.filters.read_zones`` reads."""

    bed: Annotated[Strings, at_least_one("BED file")]


class CladeSplit(Section):
    """What is held out, as all of every reference whose clade is one of these, or below."""

    clade: Annotated[Strings, at_least_one("clade")]


HeldOut = Names | float | BedSplit | CladeSplit


def _held_out(value: Any) -> HeldOut:
    if isinstance(value, BedSplit | CladeSplit):
        return value
    if isinstance(value, dict) and value.keys() == {"bed"}:
        return BedSplit.model_validate(value)
    if isinstance(value, dict) and value.keys() == {"clade"}:
        return CladeSplit.model_validate(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    # A whole number from 1 on is a contig's name; 1.5 alone is more likely a fraction that went wrong.
    if isinstance(value, str | list | tuple) or (
        isinstance(value, int) and value >= 1 and not isinstance(value, bool)
    ):
        return tuple(strings(value))
    raise ValueError(
        "must be a fraction in [0, 1), a list of contig names, {bed: URI} or {clade: NAME}; a contig called "
        "1.5 needs brackets, one called true quotes"
    )


def _plain(value: HeldOut) -> Any:
    if isinstance(value, BedSplit | CladeSplit):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


Part = Annotated[HeldOut, PlainValidator(_held_out), PlainSerializer(_plain)]


class SplitConfig(Section):
    """What is held out: contigs (names, globs, or ``assembly:glob``), a seeded fraction of the blocks, BED
    files, or clades."""

    val: Part = 0.0
    test: Part = 0.0
    # A fraction draws blocks, or with homology families of blocks (split.families), which stay whole.
    by: Literal["contigs", "homology"] = "contigs"
    homology: HomologyConfig = HomologyConfig()
    gap: int = Field(default=1024, ge=0)  # bp cut from train on either side of a held-out block
    # What val and test share with train is reported in leakage.json; with drop it is also dropped from val
    # and test; with off it is not searched for.
    leakage: Literal["report", "drop", "off"] = "report"
    min_bp: int = Field(default=1024, ge=1)  # with drop: shorter pieces of held-out blocks go too

    @model_validator(mode="after")
    def _disjoint(self) -> "SplitConfig":
        if self.by == "homology" and self.val == self.test == 0:
            raise ValueError(
                "by homology holds nothing out, since val and test are 0; give one of them a share"
            )
        if isinstance(self.val, float) and isinstance(self.test, float):
            if self.val + self.test >= 1:
                raise ValueError(f"val {self.val:g} and test {self.test:g} leave nothing to train on")
        elif isinstance(self.val, tuple) and isinstance(self.test, tuple):
            both = sorted(
                {a for a in self.val for b in self.test if a == b or fnmatchcase(a, b) or fnmatchcase(b, a)}
            )
            if both:
                raise ValueError(f"contigs in both val and test: {', '.join(both)}")
        return self
