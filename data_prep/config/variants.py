"""The section ``variants`` of a reference."""

import re
from typing import Annotated, Literal

from pydantic import field_validator

from configs import Section
from data_prep.config.values import Names, Strings, at_least_one

_SAMPLE = re.compile(r"[A-Za-z0-9._+-]+")


class VariantsConfig(Section):
    """Haplotypes of samples as assemblies beside their reference: NAME.SAMPLE.1, NAME.SAMPLE.2."""

    vcf: Annotated[Strings, at_least_one("VCF or BCF file")]  # phased; several are read as one
    samples: Annotated[Strings, at_least_one("sample")]
    haplotypes: tuple[Literal[1, 2], ...] = (1, 2)
    keep_reference: bool = True  # False: the haplotypes alone are in the dataset

    @field_validator("samples")
    @classmethod
    def _plain(cls, samples: Names) -> Names:
        for sample in samples:
            if not _SAMPLE.fullmatch(sample):
                raise ValueError(
                    f"{sample!r} must be letters, digits, '.', '_', '+' or '-' only: it stands in names of "
                    "assemblies; rename the sample (bcftools reheader)"
                )
        return samples

    @field_validator("haplotypes")
    @classmethod
    def _some(cls, haplotypes: tuple[int, ...]) -> tuple[int, ...]:
        if not haplotypes or len(set(haplotypes)) < len(haplotypes):
            raise ValueError("must be [1], [2] or [1, 2]")
        return haplotypes
