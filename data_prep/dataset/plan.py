"""References and config -> which block goes to which shard. Only here is decided what a build writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.config import BedSplit, CladeSplit, DataConfig, HeldOut, Names, ReferenceConfig
from data_prep.dataset.annotation import Annotation, prepare_annotation
from data_prep.dataset.growth import Base
from data_prep.dataset.relatives import Splitting, assigned, leak, lifted
from data_prep.dataset.settings import digests, partner_settings, split_settings
from data_prep.shards import FORMAT_VERSION, SPLITS, Manifest, Shard, Source
from data_prep.sources.survey import Reference
from data_prep.split.contigs import choose_contigs, copies, meant
from data_prep.split.filters import Genome, Warn, read_filter, read_zones
from data_prep.split.intervals import Span, Zones, count_covered, group, some, tile


@dataclass(frozen=True)
class Chunk:
    """A shard of the plan: its name, its split, and its blocks, which are all of one assembly. ``kept``: the
    shard itself, where a dataset that grows has it already."""

    name: str
    split: str
    spans: tuple[Span, ...]
    kept: Shard | None = None

    @property
    def bp(self) -> int:
        return sum(span.bp for span in self.spans)

    @property
    def assembly(self) -> str:
        return self.spans[0].assembly


@dataclass(frozen=True)
class Plan:
    """The manifest without its shards, and the blocks of every split.

    ``dropped``: how many blocks are left out because of their N. ``warnings``: a sentence for each part of
    the input that has no effect, or may be a mistake. ``base``: the dataset that grows into this one.
    ``annotations``: what files say of the letters of each reference.
    """

    manifest: Manifest
    parts: dict[str, list[Span]]
    dropped: int
    warnings: tuple[str, ...] = ()
    base: Base | None = None
    annotations: dict[str, Annotation] = field(default_factory=dict)

    def chunks(self) -> list[Chunk]:
        """The shards, in the order of the manifest."""
        groups = {split: group(self.parts[split], shard_bp=self.manifest.shard_bp) for split in SPLITS}
        if self.base is None:
            return [
                Chunk(f"{split}-{index:06d}.tar", split, tuple(spans))
                for split, shards in groups.items()
                for index, spans in enumerate(shards)
            ]
        planned = [(split, spans) for split, shards in groups.items() for spans in shards]
        names = self.base.names(planned, self.manifest.sources)
        return [
            Chunk(name, split, tuple(spans), kept)
            for (split, spans), (name, kept) in zip(planned, names, strict=True)
        ]

    def changed_file(self) -> str:
        """The URI of a file beside the references that is not what was read any more; "" if there is none."""
        return next((uri for part in self.annotations.values() if (uri := part.changed())), "")


def make_plan(config: DataConfig, references: Mapping[str, Reference]) -> Plan:
    """The plan of ``config`` over its prepared ``references`` (by name).

    Raises:
        ValueError: a filter or a split that matches nothing, a split that is asked for and is empty,
            something held out twice, or no block is left to train on.
    """
    sources: list[Source] = []
    spans: list[Span] = []
    warnings: dict[str, None] = {}  # in order, each once
    annotations = dict[str, Annotation]()
    for wanted in config.assemblies():
        for note in references[wanted.name].notes:
            warnings.setdefault(note)
        source, blocks = _source(
            wanted, references[wanted.name], block_bp=config.block_bp, warn=warnings.setdefault
        )
        annotation = prepare_annotation(
            wanted, references[wanted.name], source.contigs, warn=warnings.setdefault
        )
        annotations[wanted.name] = annotation
        more = config.weights.filters(wanted) | annotation.filters
        sources.append(replace(source, filters=source.filters | more))
        spans += blocks
    held_out = _held_out(config, sources, references, warn=warnings.setdefault)
    of_base = {own.name: own.haplotype.reference for own in config.assemblies() if own.haplotype}
    parts = assigned(
        spans,
        Splitting(held_out, config.seed, config.split.gap),
        references,
        of_base,
        lambda name: _tiled_base(name, config, references),
    )
    kept = without_n(parts, references, config.max_n_fraction)
    for name, value in held_out.items():
        if value != 0 and not kept[name]:
            why = _why_empty(value, len(parts[name]), len(spans), config.max_n_fraction)
            raise ValueError(f"split.{name} is asked for and would be empty: {why}")
    if not kept["train"]:
        raise ValueError(
            "nothing is left to train on: the filters, max_n_fraction, or the split take every block; "
            f"of {sum(map(len, parts.values()))} blocks {len(parts['train'])} were meant for train"
        )
    for warning in (_warn_of_copies(kept), leak(kept, references, of_base)):
        if warning:
            warnings.setdefault(warning)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        sources=tuple(sources),
        block_bp=config.block_bp,
        shard_bp=config.shard_bp,
        max_n_fraction=config.max_n_fraction,
        split=split_settings(config),
        seed=config.seed,
        shards=dict.fromkeys(SPLITS, ()),
        partners=partner_settings(config),
    )
    dropped = sum(map(len, parts.values())) - sum(map(len, kept.values()))
    plan = Plan(manifest, parts, dropped, tuple(warnings), annotations=annotations)
    return with_parts(plan, kept, references)


def _held_out(
    config: DataConfig, sources: Sequence[Source], references: Mapping[str, Reference], *, warn: Warn
) -> dict[str, Names | float | Zones]:
    """What val and test hold out, BED files and clades as zones. Of families nothing yet: ``families.divide``
    draws them."""
    places = {(source.name, contig): bp for source in sources for contig, bp in source.contigs.items()}

    def of(name: str, value: HeldOut) -> Names | float | Zones:
        where = f"split.{name}"
        if isinstance(value, BedSplit):
            known = {name: _genome(reference) for name, reference in references.items()}
            return read_zones(value.bed, places, known=known, where=where, warn=warn)
        if isinstance(value, CladeSplit):
            of_it = set(config.of_clade(value))
            return {place: [(0, bp)] for place, bp in places.items() if place[0] in of_it}
        if isinstance(value, float):
            return 0.0 if config.split.by == "homology" else value
        names = {name: reference.names for name, reference in references.items()}
        return meant(value, places, names, where=where, warn=warn)

    return {name: of(name, value) for name, value in (("val", config.split.val), ("test", config.split.test))}


def _genome(reference: Reference) -> Genome:
    if reference.base is None:
        return Genome(reference.contigs, reference.names)
    return Genome(reference.base.contigs, reference.base.names, reference.contigs, reference.lift)


def without_n(
    parts: Mapping[str, Sequence[Span]], references: Mapping[str, Reference], max_n_fraction: float
) -> dict[str, list[Span]]:
    """``parts`` without the blocks that have too many N."""
    runs = {(name, c): runs for name, r in references.items() for c, runs in r.n_runs.items()}
    kept = {}
    for split, spans in parts.items():
        counts = count_covered(spans, runs).tolist()
        kept[split] = [s for s, n in zip(spans, counts, strict=True) if n <= max_n_fraction * s.bp]
    return kept


def refuse_empty(
    parts: Mapping[str, Sequence[Span]], config: DataConfig, *, planned: Mapping[str, Sequence[Span]]
) -> None:
    """ValueError if homology or dedup leaves nothing of a split that is asked for, or of train."""
    for name, value in (("val", config.split.val), ("test", config.split.test)):
        if value != 0 and not parts[name]:
            raise ValueError(
                f"split.by homology leaves nothing of {name}: its windows share more than "
                f"{config.split.homology.max_shared:.0%} of their minimisers with what is not held out, and "
                f"no piece of split.min_bp {config.split.min_bp} is left; hold out what is less alike"
            )
    if not parts["train"]:
        raise ValueError(
            f"nothing is left to train on: of {len(planned['train'])} blocks the homology split or dedup "
            "takes every one; smaller shares, more min_link or less min_shared leave some"
        )


def _why_empty(value: Names | float | Zones, assigned: int, blocks: int, max_n_fraction: float) -> str:
    """Why a split with ``assigned`` of all ``blocks`` has none left."""
    if assigned:
        return f"all of its {assigned} blocks have more N than max_n_fraction {max_n_fraction:g}"
    if isinstance(value, float):
        return (
            f"a share of {value:g} draws none of {blocks} blocks; a larger share, a smaller block_bp or "
            "another seed draws some"
        )
    return "the filters leave nothing of its intervals"


def _warn_of_copies(parts: Mapping[str, Sequence[Span]]) -> str:
    train, held_out = copies(parts)
    if not train:
        return ""
    return (
        f"train has {some(train)}: by name other copies or pieces of {some(held_out)}, held out; hold "
        'them out, too, or leave them out (contigs: ["chr*", "!*_*"] takes UCSC\'s primary ones)'
    )


def with_parts(plan: Plan, parts: dict[str, list[Span]], references: Mapping[str, Reference]) -> Plan:
    """``plan`` with other blocks, and the ambiguity letters in them counted again."""
    runs = {(name, c): runs for name, r in references.items() for c, runs in r.ambiguous_runs.items()}
    spans = [span for split in SPLITS for span in parts[split]]
    counts = dict.fromkeys(references, 0)
    for span, count in zip(spans, count_covered(spans, runs).tolist(), strict=True):
        counts[span.assembly] += count
    sources = tuple(replace(source, iupac_to_n=counts[source.name]) for source in plan.manifest.sources)
    return replace(plan, manifest=replace(plan.manifest, sources=sources), parts=parts)


def _source(
    wanted: ReferenceConfig, reference: Reference, *, block_bp: int, warn: Warn
) -> tuple[Source, list[Span]]:
    # Of a haplotype, names and places are given as of its reference.
    base = reference.base or reference
    where = f"reference {wanted.haplotype.reference if wanted.haplotype else wanted.name}"
    chosen = choose_contigs(base.contigs, wanted.contigs, where=where, names=base.names, warn=warn)
    contigs = {contig: reference.contigs[contig] for contig in chosen if contig in reference.contigs}
    include, exclude = (
        [
            lifted(
                reference,
                read_filter(uri, base.contigs, where=where, strict=strict, warn=warn, names=base.names),
            )
            for uri in uris
        ]
        for uris, strict in ((wanted.include, True), (wanted.exclude, False))
    )
    filters: dict[str, Any] = {
        "contigs": wanted.contigs and list(wanted.contigs),
        "include": digests(wanted.include),
        "exclude": digests(wanted.exclude),
    } | ({"repeated_names": "number"} if wanted.repeated_names == "number" else {})
    if reference.aliases:
        filters["aliases"] = reference.aliases.sha256
    if wanted.haplotype:
        filters["haplotype"] = wanted.haplotype._asdict()
    source = Source(wanted.name, reference.handle.sha256, contigs, 0, filters, wanted.weight)
    return source, tile(wanted.name, contigs, block_bp=block_bp, include=include, exclude=exclude)


def _tiled_base(name: str, config: DataConfig, references: Mapping[str, Reference]) -> list[Span]:
    """The blocks of a reference of which only haplotypes are in the dataset."""
    wanted = next(reference for reference in config.references if reference.name == name)
    base = next(
        reference.base for own in wanted.assemblies() if (reference := references[own.name]).base is not None
    )
    return _source(wanted, base, block_bp=config.block_bp, warn=lambda text: None)[1]
