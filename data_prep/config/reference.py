"""An entry of ``references``: one genome."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PrivateAttr, field_validator

from configs import Section
from data_prep.config.tracks import RepeatsConfig, TrackConfig
from data_prep.config.values import Names, Strings, at_least_one
from data_prep.config.variants import VariantsConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class HaplotypeOf(NamedTuple):
    """Which haplotype an assembly is: of the reference of this name, sample, 1 or 2."""

    reference: str
    sample: str
    number: int


class ReferenceConfig(Section):
    """One genome: its name in the dataset, where its FASTA lies, and what of it is used."""

    name: str
    # FASTA (plain, gzip, bgzip), .2bit, GenBank, a zip archive with one of NCBI's datasets packages, or
    # accession:GCF_…; of several, which are alternatives, the first that exists is used.
    uri: Annotated[Strings, at_least_one("FASTA or .2bit")]
    # A file of other names of the contigs: NCBI's report of the assembly, UCSC's chromAlias, or a table.
    aliases: Annotated[str, Field(min_length=1)] | None = None
    # Names, globs, and globs after "!", which are left out; the word primary; without the key, all contigs.
    contigs: Annotated[Strings, at_least_one("contig; leave the key out for all")] | None = None
    # Two records of one name: refused, or the second is called name.2, the third name.3.
    repeated_names: Literal["refuse", "number"] = "refuse"
    include: Strings = ()  # BED URIs: only these intervals
    exclude: Strings = ()  # BED URIs: none of these intervals
    repeats: RepeatsConfig = RepeatsConfig()
    track: TrackConfig = TrackConfig()
    variants: VariantsConfig | None = None  # haplotypes that are assemblies beside it
    weight: float = Field(default=1.0, gt=0)
    # Where it stands among the species, from the root down, such as mammals/primates.
    clade: str | None = None
    # Of its letters, in words; build.json has it, and from there the cards of models.
    licence: Annotated[str, Field(min_length=1)] | None = None

    _haplotype: HaplotypeOf | None = PrivateAttr(None)

    def is_in(self, clade: str) -> bool:
        """Whether it stands in ``clade`` or below: primates, mammals/primates and mammals all mean those of
        mammals/primates/apes."""
        return self.clade is not None and f"/{clade}/" in f"/{self.clade}/"

    @field_validator("clade")
    @classmethod
    def _path(cls, clade: str | None) -> str | None:
        if clade is not None and not all(_NAME.fullmatch(part) for part in clade.split("/")):
            raise ValueError("must be names of letters, digits, '.', '_', '+' or '-', with / between them")
        return clade

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "must be letters, digits, '.', '_', '+' or '-' only: it stands in headers and file names"
            )
        return name

    def only_file(self) -> Names:
        """Its URI if that is a file and has no alternatives."""
        return () if len(self.uri) > 1 or self.uri[0].startswith("accession:") else self.uri

    @property
    def haplotype(self) -> HaplotypeOf | None:
        """Which haplotype it is; None of a reference as it stands in the config."""
        return self._haplotype

    def assemblies(self) -> tuple["ReferenceConfig", ...]:
        """The assemblies that it is in the dataset: itself, and each haplotype of its ``variants``."""
        if self.variants is None:
            return (self,)
        found = [self] if self.variants.keep_reference else []
        for sample in self.variants.samples:
            for number in self.variants.haplotypes:
                one = self.model_copy(update={"name": f"{self.name}.{sample}.{number}"})
                one._haplotype = HaplotypeOf(self.name, sample, number)
                found.append(one)
        return tuple(found)
