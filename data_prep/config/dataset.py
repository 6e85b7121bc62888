"""The whole config of a build."""

from pydantic import Field, model_validator

from configs import Section
from data_prep.config.dedup import DedupConfig
from data_prep.config.partners import PartnersConfig
from data_prep.config.reference import ReferenceConfig
from data_prep.config.split import BedSplit, CladeSplit, SplitConfig
from data_prep.config.weights import WeightsConfig


class DataConfig(Section):
    """The config of a build. The manifest has those keys of it that determine the bytes."""

    references: tuple[ReferenceConfig, ...]
    output: str = Field(min_length=1)
    block_bp: int = Field(default=1 << 18, ge=1024, le=1 << 20, multiple_of=4)
    shard_bp: int = Field(default=64 << 20, gt=0, le=1 << 28)  # a worker holds one shard's minimisers
    max_n_fraction: float = Field(default=0.5, ge=0, le=1)
    split: SplitConfig = SplitConfig()
    dedup: DedupConfig = DedupConfig()
    partners: PartnersConfig = PartnersConfig()
    weights: WeightsConfig = WeightsConfig()
    seed: int = 0
    # Default: the CPUs of this machine, or of the Ray cluster that it joins.
    workers: int | None = Field(default=None, ge=1)
    overwrite: bool = False
    grow: bool = False  # a dataset at ``output`` becomes that of this config; equal shards of it are kept

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        names = [assembly.name for assembly in self.assemblies()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names:
            raise ValueError("references: at least one is needed")
        if twice:
            raise ValueError(f"references: names must differ, given twice: {', '.join(twice)}")
        if self.shard_bp < self.block_bp:
            raise ValueError(
                f"shard_bp {self.shard_bp} is less than block_bp {self.block_bp}; a shard holds blocks"
            )
        if self.grow and self.overwrite:
            raise ValueError("grow keeps what is there and overwrite does not: give one of the two")
        self.weights.check(self.references)
        self.partners.names(names)
        for key, part in (("val", self.split.val), ("test", self.split.test)):
            if isinstance(part, CladeSplit):
                self._refuse_unknown(key, part)
        return self

    def of_clade(self, part: CladeSplit) -> list[str]:
        """The references of the clades of ``part``, in their order."""
        return [r.name for r in self.assemblies() if any(r.is_in(clade) for clade in part.clade)]

    def _refuse_unknown(self, key: str, part: CladeSplit) -> None:
        for clade in part.clade:
            if not any(reference.is_in(clade) for reference in self.references):
                there = sorted({reference.clade for reference in self.references if reference.clade})
                raise ValueError(
                    f"split.{key}: no reference has the clade {clade!r}; "
                    + (f"there are {', '.join(there)}" if there else "none has the key clade")
                )

    def assemblies(self) -> tuple[ReferenceConfig, ...]:
        """The assemblies of the dataset: the references, and haplotypes of those that have variants."""
        return tuple(assembly for reference in self.references for assembly in reference.assemblies())

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
                (f"references.{number}.uri", reference.only_file()),
                (f"references.{number}.aliases", (reference.aliases,) if reference.aliases else ()),
                (f"references.{number}.include", reference.include),
                (f"references.{number}.exclude", reference.exclude),
                (f"references.{number}.variants.vcf", reference.variants.vcf if reference.variants else ()),
                (f"references.{number}.repeats.uri", reference.repeats.uri),
                (f"references.{number}.track.uri", (reference.track.uri,) if reference.track.uri else ()),
            ]
        return [(key, uri) for key, uris in files for uri in uris]
