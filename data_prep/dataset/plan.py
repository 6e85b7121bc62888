"""References and config -> which block goes to which shard. What a build will write is decided here, and only
here."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.storage import store
from data_prep.config import BedSplit, DataConfig, ReferenceConfig
from data_prep.shards import FORMAT_VERSION, SPLITS, Manifest, Source
from data_prep.sources.survey import Reference
from data_prep.split.filters import Warn, read_filter, read_zones
from data_prep.split.intervals import (
    Place,
    Span,
    assign,
    choose_contigs,
    copies,
    count_covered,
    group,
    some,
    tile,
)


@dataclass(frozen=True)
class Chunk:
    """One shard to be: its name, its split, and its blocks, which are all of one assembly."""

    name: str
    split: str
    spans: tuple[Span, ...]

    @property
    def bp(self) -> int:
        return sum(span.bp for span in self.spans)


@dataclass(frozen=True)
class Plan:
    """The manifest without its shards, and the blocks of every split. ``dropped``: blocks left out for their
    N.

    ``warnings``: a sentence each on what of the input counts for nothing, or may not be meant.
    """

    manifest: Manifest
    parts: dict[str, list[Span]]
    dropped: int
    warnings: tuple[str, ...] = ()

    def chunks(self) -> list[Chunk]:
        """The shards to be, in the order of the manifest."""
        return [
            Chunk(f"{split}-{index:06d}.tar", split, tuple(spans))
            for split in SPLITS
            for index, spans in enumerate(group(self.parts[split], shard_bp=self.manifest.shard_bp))
        ]


def make_plan(config: DataConfig, references: Mapping[str, Reference]) -> Plan:
    """The plan of ``config`` over its ``references`` (by name), whose letters were all looked at.

    Raises:
        ValueError: a filter or a split that matches nothing, one that was asked for and is empty, something
            held out twice, or no block is left to train on.
    """
    sources: list[Source] = []
    spans: list[Span] = []
    warnings: dict[str, None] = {}  # in order, each once
    for wanted in config.references:
        source, blocks = _source(
            wanted, references[wanted.name], block_bp=config.block_bp, warn=warnings.setdefault
        )
        sources.append(source)
        spans += blocks
    places = {(source.name, contig): bp for source in sources for contig, bp in source.contigs.items()}
    known = {name: reference.contigs for name, reference in references.items()}
    held_out = {
        name: read_zones(value.bed, places, known=known, where=f"split.{name}", warn=warnings.setdefault)
        if isinstance(value, BedSplit)
        else value
        for name, value in (("val", config.split.val), ("test", config.split.test))
    }
    parts = assign(spans, val=held_out["val"], test=held_out["test"], seed=config.seed, gap=config.split.gap)
    n_runs: dict[Place, Any] = {
        (name, c): runs for name, r in references.items() for c, runs in r.n_runs.items()
    }
    kept = {}
    for name, there in parts.items():
        n_counts = count_covered(there, n_runs).tolist()
        kept[name] = [s for s, n in zip(there, n_counts, strict=True) if n <= config.max_n_fraction * s.bp]
    for name, value in held_out.items():
        if value != 0 and not kept[name]:
            if parts[name]:
                why = (
                    f"all of its {len(parts[name])} blocks have more N than max_n_fraction "
                    f"{config.max_n_fraction:g}"
                )
            elif isinstance(value, float):
                why = (
                    f"a share of {value:g} draws none of {len(spans)} blocks; a larger share, a smaller "
                    f"block_bp or "
                    "another seed draws some"
                )
            else:
                why = "the filters leave nothing of its intervals"
            raise ValueError(f"split.{name} is asked for and would be empty: {why}")
    if not kept["train"]:
        raise ValueError(
            "nothing is left to train on: the filters, max_n_fraction, or the split take every block; "
            f"of {sum(map(len, parts.values()))} blocks {len(parts['train'])} were meant for train"
        )
    train, of = copies(kept)
    if train:
        warnings.setdefault(
            f"train has {some(train)}: by name other copies or pieces of {some(of)}, held out; hold "
            'them out, too, or leave them out (contigs: ["chr*", "!*_*"] takes UCSC\'s primary ones)'
        )
    manifest = Manifest(
        FORMAT_VERSION,
        tuple(sources),
        config.block_bp,
        config.shard_bp,
        config.max_n_fraction,
        _split_settings(config),
        config.seed,
        dict.fromkeys(SPLITS, ()),
    )
    plan = with_parts(Plan(manifest, parts, 0, tuple(warnings)), kept, references)
    return replace(plan, dropped=sum(map(len, parts.values())) - sum(map(len, kept.values())))


def with_parts(plan: Plan, parts: dict[str, list[Span]], references: Mapping[str, Reference]) -> Plan:
    """``plan`` with other blocks, and the ambiguity letters in them counted anew."""
    runs: dict[Place, Any] = {
        (name, c): runs for name, r in references.items() for c, runs in r.ambiguous_runs.items()
    }
    spans = [span for split in SPLITS for span in parts[split]]
    counts = dict.fromkeys(references, 0)
    for span, count in zip(spans, count_covered(spans, runs).tolist(), strict=True):
        counts[span.assembly] += count
    sources = tuple(replace(source, iupac_to_n=counts[source.name]) for source in plan.manifest.sources)
    return replace(plan, manifest=replace(plan.manifest, sources=sources), parts=parts)


def _source(
    wanted: ReferenceConfig, reference: Reference, *, block_bp: int, warn: Warn
) -> tuple[Source, list[Span]]:
    where = f"reference {wanted.name}"
    contigs = choose_contigs(reference.contigs, wanted.contigs, where=where)
    include, exclude = (
        [read_filter(uri, reference.contigs, where=where, strict=strict, warn=warn) for uri in uris]
        for uris, strict in ((wanted.include, True), (wanted.exclude, False))
    )
    filters = {
        "contigs": wanted.contigs and list(wanted.contigs),
        "include": _digests(wanted.include),
        "exclude": _digests(wanted.exclude),
    }
    source = Source(wanted.name, reference.handle.sha256, contigs, 0, filters, wanted.weight)
    return source, tile(wanted.name, contigs, block_bp=block_bp, include=include, exclude=exclude)


def _split_settings(config: DataConfig) -> dict[str, Any]:
    """What of ``config.split`` determines the bytes; a BED file counts by its content."""
    split = config.split
    settings = split.model_dump(mode="json", include={"val", "test", "gap"})
    for name, value in (("val", split.val), ("test", split.test)):
        if isinstance(value, BedSplit):
            settings[name] = {"bed": _digests(value.bed)}
    return settings | ({"leakage": "drop", "min_bp": split.min_bp} if split.leakage == "drop" else {})


def _digests(uris: Sequence[str]) -> list[str]:
    return [hashlib.sha256(store.read_bytes(uri)).hexdigest() for uri in uris]
