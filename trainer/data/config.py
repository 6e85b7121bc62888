"""The config section ``data``: which datasets, in windows of which length, read how."""

import re
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from cluster.process import paths
from cluster.process.host import cache_root
from configs import Section
from configs.numbers import Fraction, Positive

MIN_LENGTH = 16
ANYWHERE = "anywhere"  # what windows are called that no BED file chose
OnCorrupt = Literal["fail", "skip"]
Count = Literal["bp", "interval", "score"]
_LABEL = r"^[\w.-]+$"  # a part of a metric's name
_ENDING = re.compile(r"(\.bed)?(\.(gz|bgz|bz2|xz|zst))?$", re.IGNORECASE)


class WeightedDataset(Section):
    """One dataset of a mixture and its share of the samples, relative to the other weights."""

    uri: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0


class LengthFrom(Section):
    """Windows of ``length`` bp from step ``from_step`` on; the first step is 0."""

    from_step: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=MIN_LENGTH)]


class Partners(Section):
    """``share`` of the samples that have windows of the same descent in other genomes: for these the teacher
    reads one of them, drawn at random, in place of the sample's own window.

    ``kind``: with ``random``, a control, a window of the same genome as that one, but from anywhere in it.
    """

    share: Fraction = 0.0
    kind: Literal["ortholog", "random"] = "ortholog"


class RegionBed(Section):
    """One BED file of regions, and its share of the samples relative to the other files.

    ``by``: how often an interval is visited: by its length, as often as any other, or by its score.
    """

    uri: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0
    by: Count = "bp"
    label: Annotated[str, Field(pattern=_LABEL)] | None = None  # of its windows; default: the file's stem

    @property
    def name(self) -> str:
        """The label of its windows."""
        stem = _ENDING.sub("", PurePosixPath(self.uri).name)
        return self.label or re.sub(r"[^\w.-]", "_", stem)


class Regions(Section):
    """Where windows are centred: ``anywhere`` is the share of the samples that come from anywhere, the rest
    is divided among the ``beds`` by weight. Without ``beds`` all come from anywhere."""

    anywhere: Annotated[float, Field(ge=0, lt=1)] = 0.1
    beds: tuple[RegionBed, ...] = ()

    @model_validator(mode="after")
    def _different(self) -> "Regions":
        for key, values in (("uri", [b.uri for b in self.beds]), ("label", [b.name for b in self.beds])):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(
                    f"beds: two files have the {key} {', '.join(twice)}; give each file once, with a label "
                    "of its own"
                )
        if wrong := [bed.uri for bed in self.beds if bed.name in (ANYWHERE, "")]:
            raise ValueError(
                f"beds: the windows of {wrong[0]} cannot be called {ANYWHERE!r} or nothing; give it a label"
            )
        return self

    @property
    def in_words(self) -> str:
        """The share of each label in the samples, or "" without ``beds``."""
        if not self.beds:
            return ""
        total = sum(bed.weight for bed in self.beds)
        shares = {ANYWHERE: self.anywhere}
        shares |= {bed.name: (1 - self.anywhere) * bed.weight / total for bed in self.beds}
        return ", ".join(f"{100 * share:.3g} % {name}" for name, share in shares.items() if share)


class Data(Section):
    """``uri`` is given as one URI or a list of {uri, weight}, ``length`` as bp or a list of {from_step,
    length}."""

    uri: tuple[WeightedDataset, ...]
    length: tuple[LengthFrom, ...] = (LengthFrom(from_step=0, length=1000),)
    lanes: Positive = 48
    # threads that fetch blocks; default 4, or 0 if all datasets are local
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    cache_dir: str | None = None  # of remote blocks; default: blocks/ in DNA_CACHE or ~/.cache/dna-distill
    cache_bytes: Annotated[int, Field(ge=0)] = 10 << 30  # 0: no cache on disk
    on_corrupt: OnCorrupt = "fail"
    partners: Partners = Partners()
    regions: Regions = Regions()

    @field_validator("uri", mode="before")
    @classmethod
    def _one_uri(cls, value: Any) -> Any:
        if isinstance(value, str) and value:
            return ({"uri": value},)
        if not isinstance(value, list | tuple):
            raise ValueError("must be a URI or a list of {uri, weight}")
        return value

    @field_validator("length", mode="before")
    @classmethod
    def _one_length(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value >= MIN_LENGTH:
            return ({"from_step": 0, "length": value},)
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"must be an integer of at least {MIN_LENGTH} or a list of {{from_step, length}}"
            )
        return value

    @field_validator("uri")
    @classmethod
    def _different(cls, uri: tuple[WeightedDataset, ...]) -> tuple[WeightedDataset, ...]:
        if not uri:
            raise ValueError("at least one dataset is needed")
        twice = sorted({part.uri for part in uri if sum(part.uri == other.uri for other in uri) > 1})
        if twice:
            raise ValueError(
                f"given twice: {', '.join(twice)}; give each dataset once, with the sum of its weights"
            )
        return uri

    @field_validator("length")
    @classmethod
    def _in_order(cls, length: tuple[LengthFrom, ...]) -> tuple[LengthFrom, ...]:
        steps = [part.from_step for part in length]
        if not steps or steps[0] != 0:
            raise ValueError(f"the first from_step must be 0, not {steps[0] if steps else 'missing'}")
        if any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"from_step must increase from entry to entry: {', '.join(map(str, steps))}")
        return length

    @field_serializer("uri")
    def _as_given_uri(self, uri: tuple[WeightedDataset, ...]) -> str | list[dict[str, Any]]:
        return uri[0].uri if len(uri) == 1 else [part.model_dump() for part in uri]

    @field_serializer("length")
    def _as_given_length(self, length: tuple[LengthFrom, ...]) -> int | list[dict[str, Any]]:
        return length[0].length if len(length) == 1 else [part.model_dump() for part in length]

    @property
    def last_length(self) -> int:
        """The length in bp that a run ends with, at which it is validated."""
        return self.length[-1].length

    @property
    def cache_folder(self) -> Path:
        if self.cache_dir:
            return Path(paths.expand(self.cache_dir, what="data.cache_dir")).absolute()
        return cache_root() / "blocks"
