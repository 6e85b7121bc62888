"""The section ``partners``."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from pydantic import Field, field_validator

from configs import Section
from data_prep.config.values import Strings, odd


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
        return odd(k)

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
