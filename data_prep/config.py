"""The typed config of `python -m data_prep build`: which references become which dataset."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from configs import Section

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

Names = tuple[str, ...]


def _strings(value: Any) -> Any:
    """One string means a list of one, so that ``split.val=IV`` and ``uri: a.fa`` need no brackets. Numbers
    are names as they are written: Ensembl calls its contigs 1, 2, X."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(
        isinstance(item, str | int | float) and not isinstance(item, bool) and str(item).strip()
        for item in values
    ):
        raise ValueError(
            "must be a string or a list of strings, none of them empty; true, false and null need quotes "
            "to be names"
        )
    return tuple(map(str, values))


def _some(what: str) -> AfterValidator:
    def check(names: Names) -> Names:
        if not names:
            raise ValueError(f"must name at least one {what}")
        return names

    return AfterValidator(check)


Strings = Annotated[Names, BeforeValidator(_strings)]


class BedSplit(Section):
    """What is held out, as BED files (URIs), which ``split.filters.read_zones`` reads."""

    bed: Annotated[Strings, _some("BED file")]


HeldOut = Names | float | BedSplit


def _held_out(value: Any) -> HeldOut:
    if isinstance(value, BedSplit):
        return value
    if isinstance(value, dict) and value.keys() == {"bed"}:
        return BedSplit.model_validate(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    # A whole number from 1 on is a contig's name; 1.5 alone is more likely a fraction that went wrong.
    if isinstance(value, str | list | tuple) or (
        isinstance(value, int) and value >= 1 and not isinstance(value, bool)
    ):
        return tuple(_strings(value))
    raise ValueError(
        "must be a fraction in [0, 1), a list of contig names, or {bed: URI}; a contig called 1.5 needs "
        "brackets, one called true quotes"
    )


def _plain(value: HeldOut) -> Any:
    if isinstance(value, BedSplit):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


Part = Annotated[HeldOut, PlainValidator(_held_out), PlainSerializer(_plain)]


class ReferenceConfig(Section):
    """One genome: its name in the dataset, where its FASTA lies, and what of it is used."""

    name: str
    # FASTA (plain, gzip, bgzip) or .2bit; of several, which are alternatives, the first that exists is used.
    uri: Annotated[Strings, _some("FASTA or .2bit")]
    # Names, globs, and globs after "!", which are left out; without the key, all contigs.
    contigs: Annotated[Strings, _some("contig; leave the key out for all")] | None = None
    # Two records of one name: refused, or the second is called name.2, the third name.3.
    repeated_names: Literal["refuse", "number"] = "refuse"
    include: Strings = ()  # BED URIs: only these intervals
    exclude: Strings = ()  # BED URIs: none of these intervals
    weight: float = Field(default=1.0, gt=0)
    # Of its letters, in words; build.json has it, and from there the cards of models.
    licence: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "must be letters, digits, '.', '_', '+' or '-' only: it stands in headers and file names"
            )
        return name


class SplitConfig(Section):
    """What is held out: contigs (names, globs, or ``assembly:glob``), a seeded fraction of the blocks, or BED
    files."""

    val: Part = 0.0
    test: Part = 0.0
    gap: int = Field(default=1024, ge=0)  # bp cut from train on either side of a held-out block
    # What val and test share with train is reported in leakage.json; with drop it is also dropped from val
    # and test; with off it is not searched for.
    leakage: Literal["report", "drop", "off"] = "report"
    min_bp: int = Field(default=1024, ge=1)  # with drop: shorter pieces of held-out blocks go too

    @model_validator(mode="after")
    def _disjoint(self) -> "SplitConfig":
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


class PartnersConfig(Section):
    """Which genomes are searched for windows that are the same by descent, and how: split.chains has the
    words."""

    between: Strings = ()  # names of references, or globs; none: no partners
    k: int = Field(default=15, ge=11, le=31)  # odd; letters of a minimiser
    window: int = Field(default=5, ge=1, le=64)  # of so many neighbouring k-mers one is a minimiser
    max_gap: int = Field(default=2000, ge=1, le=32_767)
    max_shift: int = Field(default=200, ge=0)
    min_anchors: int = Field(default=3, ge=2)

    @field_validator("k")
    @classmethod
    def _odd(cls, k: int) -> int:
        if k % 2 == 0:
            raise ValueError(f"must be odd, so that no k-mer is its own reverse complement, not {k}")
        return k

    def names(self, references: Sequence[str]) -> list[str]:
        """Those of ``references`` that are meant, in their order. ValueError: a pattern that matches none, or
        less than two in all."""
        for pattern in self.between:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in references):
                raise ValueError(
                    f"partners.between: no reference matches {pattern!r}; there are {', '.join(references)}"
                )
        found = [
            name
            for name in references
            if any(name == pattern or fnmatchcase(name, pattern) for pattern in self.between)
        ]
        if len(found) == 1:
            raise ValueError(
                f"partners.between: {found[0]} is the only reference that it names; partners need at least "
                "two"
            )
        return found


class DataConfig(Section):
    """The config of a build. The manifest has those keys of it that determine the bytes."""

    references: tuple[ReferenceConfig, ...]
    output: str = Field(min_length=1)
    block_bp: int = Field(default=1 << 18, ge=1024, le=1 << 20, multiple_of=4)
    shard_bp: int = Field(default=64 << 20, gt=0, le=1 << 28)  # a worker holds one shard's minimisers
    max_n_fraction: float = Field(default=0.5, ge=0, le=1)
    split: SplitConfig = SplitConfig()
    partners: PartnersConfig = PartnersConfig()
    seed: int = 0
    # Default: the CPUs of this machine, or of the Ray cluster that it joins.
    workers: int | None = Field(default=None, ge=1)
    overwrite: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        names = [reference.name for reference in self.references]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names:
            raise ValueError("references: at least one is needed")
        if twice:
            raise ValueError(f"references: names must differ, given twice: {', '.join(twice)}")
        if self.shard_bp < self.block_bp:
            raise ValueError(
                f"shard_bp {self.shard_bp} is less than block_bp {self.block_bp}; a shard holds blocks"
            )
        self.partners.names(names)
        return self

    def inputs(self) -> list[tuple[str, str]]:
        """(key, URI) of every file that a build needs; of a reference's alternatives, which need not exist,
        none."""
        files = [
            (f"split.{name}.bed", part.bed)
            for name, part in (("val", self.split.val), ("test", self.split.test))
            if isinstance(part, BedSplit)
        ]
        for number, reference in enumerate(self.references):
            files += [
                (f"references.{number}.uri", reference.uri if len(reference.uri) == 1 else ()),
                (f"references.{number}.include", reference.include),
                (f"references.{number}.exclude", reference.exclude),
            ]
        return [(key, uri) for key, uris in files for uri in uris]
