"""What files beside a reference say of its letters: repeats, which make the soft mask, and a weight for each
letter. Prepared where the build is planned, applied by workers, block by block.

Shapes: L letters of a span.
"""

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.storage import store
from configs import magic, redact
from data_prep.alphabet import Mask
from data_prep.config import ReferenceConfig
from data_prep.levels import Levels, Scale, Values
from data_prep.sources.aliases import AliasTable, Renamed
from data_prep.sources.bigwig import keep_bigwig, open_bigwig
from data_prep.sources.interval_table import keep_repeats, keep_scores, open_table
from data_prep.sources.kept_file import KeptFile, is_changed
from data_prep.sources.reference import Handle, edits
from data_prep.sources.survey import Reference
from data_prep.split.filters import Warn
from data_prep.split.intervals import Span, some

_COLUMNS = {"bed": 5, "bedgraph": 4}  # from 1: where the value stands


@dataclass(frozen=True)
class NamedFile:
    """A file, and what it calls the contigs of a reference: those that it says something of."""

    file: KeptFile
    names: dict[str, str]

    def only(self, contigs: Container[str]) -> "NamedFile":
        return replace(self, names={own: name for own, name in self.names.items() if own in contigs})


@dataclass(frozen=True)
class Annotation:
    """What the files of one reference say of its letters. ``filters``: what of them determines the bytes.

    ``replaces``: the repeats take the place of lower case, and do not only add to it.
    """

    filters: dict[str, Any]
    repeats: tuple[NamedFile, ...] = ()
    replaces: bool = False
    track: NamedFile | None = None
    is_bigwig: bool = False
    scale: Scale | None = None

    def only(self, contigs: Container[str]) -> "Annotation":
        """What a worker needs that reads these contigs."""
        track = self.track and self.track.only(contigs)
        return replace(self, repeats=tuple(file.only(contigs) for file in self.repeats), track=track)

    def soft_mask(self, span: Span, lower_case: Mask) -> Mask:
        """bool [L], the soft mask of ``span``, whose ``lower_case`` bool [L] the reference has."""
        mask = np.zeros_like(lower_case) if self.replaces else lower_case
        for named in self.repeats:
            if name := named.names.get(span.contig):
                mask = mask | open_table(named.file).mask(name, span.start, span.end)
        return mask

    def levels(self, span: Span) -> Levels | None:
        """uint8 [L], the levels of the weights of ``span``; None: the reference has no track."""
        if self.track is None or self.scale is None:
            return None
        name = self.track.names.get(span.contig)
        if name is None:
            value_L: Values = np.full(span.bp, np.nan)
        elif self.is_bigwig:
            value_L = open_bigwig(self.track.file).values(name, span.start, span.end)
        else:
            value_L = open_table(self.track.file).values(name, span.start, span.end)
        return self.scale.levels(value_L)

    def changed(self) -> str:
        """The URI of a file that is not what was read any more; "" if there is none."""
        files = [named.file for named in (*self.repeats, self.track) if named]
        return next((file.uri for file in files if is_changed(file)), "")


def annotated(
    annotation: Annotation, handle: Handle, span: Span, lower_case: Mask
) -> tuple[Mask, Levels | None]:
    """(soft mask bool [L], levels uint8 [L] or None) of ``span`` as ``handle`` reads it, which has
    ``lower_case``. A letter of a haplotype has those of the letter of the reference that it stands for; an
    inserted one, of the letter before it."""
    if handle.haplotype is None or (not annotation.repeats and annotation.track is None):
        return annotation.soft_mask(span, lower_case), annotation.levels(span)
    origin_L = edits(handle, span.contig).origin(span.start, span.end)
    low, high = int(origin_L.min()), int(origin_L.max()) + 1
    there = Span(span.assembly, span.contig, low, high)
    repeats = annotation.soft_mask(there, np.zeros(high - low, np.bool_))[origin_L - low]
    levels = annotation.levels(there)
    mask = repeats if annotation.replaces else repeats | lower_case
    return mask, None if levels is None else levels[origin_L - low]


@dataclass(frozen=True)
class _Contigs:
    """Of a reference, for messages ``where``: its contigs with their bp, and which of them are used."""

    where: str
    bp: Mapping[str, int]
    used: Container[str]
    aliases: AliasTable | None


def prepare_annotation(
    wanted: ReferenceConfig, reference: Reference, used: Container[str], *, warn: Warn
) -> Annotation:
    """The annotation of a reference, of whose contigs some are ``used``; of a haplotype that of its
    reference, which ``annotated`` lifts. ``warn`` gets a sentence on what has no effect.

    Raises:
        StoreError: a file cannot be read. ValueError: one that cannot be used, names no contig of the
            reference, or reaches beyond one.
    """
    base = reference.base or reference
    name = wanted.haplotype.reference if wanted.haplotype else wanted.name
    contigs = _Contigs(f"reference {name}", base.contigs, used, base.aliases)
    found = Annotation({})
    if wanted.repeats.uri:
        files = [keep_repeats(uri, wanted.repeats.classes) for uri in wanted.repeats.uri]
        settings = wanted.repeats.model_dump(mode="json", exclude={"uri"})
        found = replace(
            found,
            repeats=tuple(_named_table(file, contigs, "no repeats", warn) for file in files),
            replaces=wanted.repeats.mode == "replace",
            filters={"repeats": settings | {"sha256": [file.sha256 for file in files]}},
        )
    track = wanted.track
    if track.uri is not None:
        assert track.high is not None, "the config model wants it"
        file, is_bigwig = _track_file(track.uri, track.kind, where=contigs.where)
        named = _named_bigwig if is_bigwig else _named_table
        settings = track.model_dump(mode="json", exclude={"uri"})
        settings |= {"kind": "bigwig" if is_bigwig else track.kind or "bed", "sha256": file.sha256}
        found = replace(
            found,
            track=named(file, contigs, f"their letters have the weight {track.missing:g}", warn),
            is_bigwig=is_bigwig,
            scale=Scale(track.low, track.high, track.missing, track.levels),
            filters=found.filters | {"track": settings},
        )
    return found


def _track_file(uri: str, kind: str | None, *, where: str) -> tuple[KeptFile, bool]:
    """The file of a track, and whether it is a bigWig."""
    with store.open_read(store.absolute(uri)) as file:
        is_bigwig = magic.format_of(file.read(16)) == magic.BIGWIG
    if kind is not None and is_bigwig != (kind == "bigwig"):
        found = "a bigWig" if is_bigwig else "no bigWig"
        raise ValueError(f"{where}: track.kind is {kind}, but {redact(uri)} is {found}; correct the kind")
    return (
        (keep_bigwig(uri), True) if is_bigwig else (keep_scores(uri, column=_COLUMNS[kind or "bed"]), False)
    )


def _named_table(file: KeptFile, contigs: _Contigs, else_what: str, warn: Warn) -> NamedFile:
    content = open_table(file).content
    named, uri = _named(file, content.contigs, contigs, else_what, warn), redact(file.uri)
    if content.empty:
        lines = f"{content.empty:,} line{'s' * (content.empty > 1)} of length 0"
        warn(f"{uri}: {lines} (the first is line {content.empty_line}): that covers nothing")
    for own, name in named.names.items():
        extent, bp = content.contigs[name], contigs.bp[own]
        if extent.start >= bp:
            raise ValueError(
                f"{uri}, line {extent.start_line}: {name}:{extent.start} lies beyond the contig's {bp} bp; "
                f"is the file of another version of {contigs.where}?"
            )
        if extent.end > bp:
            warn(
                f"{uri}, line {extent.end_line}: {name} ends at {extent.end}, past the contig's {bp} bp: "
                "what lies there counts for nothing"
            )
    return named


def _named_bigwig(file: KeptFile, contigs: _Contigs, else_what: str, warn: Warn) -> NamedFile:
    there = open_bigwig(file).contigs()
    named = _named(file, there, contigs, else_what, warn)
    for own, name in named.names.items():
        if there[name] != contigs.bp[own]:
            raise ValueError(
                f"{contigs.where}: in {redact(file.uri)} the contig {name} has {there[name]} bp, in the "
                f"reference {contigs.bp[own]}; give the track of this version of the genome"
            )
    return named


def _named(
    file: KeptFile, there: Collection[str], contigs: _Contigs, else_what: str, warn: Warn
) -> NamedFile:
    """``file``, which says something of the contigs ``there``; ``else_what`` is so for others."""
    uri, where = redact(file.uri), contigs.where
    renamed, names, unknown = Renamed(contigs.bp, contigs.aliases), dict[str, str](), list[str]()
    for name in there:
        own = renamed.find(name)
        if own is None:
            unknown.append(name)
        elif own in names:
            raise ValueError(f"{where}: {uri} calls its contig {own} {names[own]} and {name}; take one name")
        else:
            names[own] = name
    if not names:
        raise ValueError(
            f"{where}: {uri} names no contig of it (the file has {some(there) or 'nothing'}; the reference "
            f"{some(contigs.bp)})"
        )
    if unknown:
        warn(f"{uri} has contigs that {where} does not have ({some(unknown)}): that counts for nothing")
    if sentence := renamed.sentence(uri):
        warn(f"{where}: {sentence}")
    if silent := [own for own in contigs.bp if own in contigs.used and own not in names]:
        warn(f"{uri} says nothing of {where}'s {some(silent)}: {else_what}")
    return NamedFile(file, names)
