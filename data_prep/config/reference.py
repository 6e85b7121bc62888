"""An entry of ``references``: one genome."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from configs import Section
from data_prep.config.tracks import RepeatsConfig, TrackConfig
from data_prep.config.values import Strings, at_least_one

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class ReferenceConfig(Section):
    """One genome: its name in the dataset, where its FASTA lies, and what of it is used."""

    name: str
    # FASTA (plain, gzip, bgzip) or .2bit; of several, which are alternatives, the first that exists is used.
    uri: Annotated[Strings, at_least_one("FASTA or .2bit")]
    # Names, globs, and globs after "!", which are left out; without the key, all contigs.
    contigs: Annotated[Strings, at_least_one("contig; leave the key out for all")] | None = None
    # Two records of one name: refused, or the second is called name.2, the third name.3.
    repeated_names: Literal["refuse", "number"] = "refuse"
    include: Strings = ()  # BED URIs: only these intervals
    exclude: Strings = ()  # BED URIs: none of these intervals
    repeats: RepeatsConfig = RepeatsConfig()
    track: TrackConfig = TrackConfig()
    weight: float = Field(default=1.0, gt=0)
    # Where it stands among the species, from the root down, such as mammals/primates.
    clade: str | None = None
    # Of its letters, in words; build.json has it, and from there the cards of models.
    licence: Annotated[str, Field(min_length=1)] | None = None

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
