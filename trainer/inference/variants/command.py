"""The command ``python -m trainer.variants``: variants of a VCF, or all substitutions of regions, with their
scores."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import pyarrow as pa

from cluster.process import paths
from cluster.process.progress import Progress, say
from cluster.storage import store
from cluster.storage.uri import identity
from configs import ConfigError, redact
from data_prep.sources import reference
from trainer.inference import output_format, table_writer
from trainer.inference.opened_model import DEFAULT_LENGTH, OpenedModel, open_model
from trainer.inference.parts import Parts, in_parts
from trainer.inference.precision import Precision, best_device, resolve_precision
from trainer.inference.variants import vcf_writer
from trainer.inference.variants.forward import Strands
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.outcome import Outcome, brief
from trainer.inference.variants.picture import Collector
from trainer.inference.variants.scoring import SCORES, Score, Scoring, score
from trainer.inference.variants.sources import Chunk, Saturation, VcfSource
from trainer.inference.variants.vcf import Vcf
from trainer.inference.variants.windows import MISFITS, Unscored, place
from trainer.models.network import Network

_METHOD = 1  # to be raised when the same options give other numbers
FORMATS = {**table_writer.FORMATS, **vcf_writer.FORMATS}


@dataclass(frozen=True)
class VariantsRequest:
    """The options of the command; each field has the name of its option. ``scores`` has commas between."""

    model: str
    reference: str
    output: str
    vcf: str | None = None
    bed: str | None = None
    length: int | None = None
    scores: str = ",".join(SCORES)
    strands: Strands = "both"
    precision: Precision = "fp32"
    strict: bool = False
    prefix: str = vcf_writer.PREFIX
    picture: str | None = None
    track_uri: str | None = None


def score_file(request: VariantsRequest) -> list[str]:
    """Write the scores; sentences about what was written.

    Raises: ConfigError, StoreError, ValueError, TrackError, MemoryError, each one sentence. No part of a file
    is left then; what was computed is kept for the same command.
    """
    end, scores = _check(request)
    model = open_model(request.model, track_uri=request.track_uri)
    with Progress() as progress:
        located = reference.locate(request.reference, on_progress=progress)
    genome = Genome.of(located)
    source = _source(request, genome)
    device = best_device()
    network, length = model.network.to(device), request.length or model.length
    scoring = Scoring(length, scores, request.strands, resolve_precision(request.precision, device))
    about = f"{model.title}, windows of {length:,} letters"
    fields = vcf_writer.Fields(request.prefix, about)
    if isinstance(source, VcfSource):
        if end in vcf_writer.FORMATS:
            fields.refuse_present(source.vcf, source.info)
        if request.strict:
            _refuse_misfits(source.vcf, genome, length)
    parts = Parts(request.output, key=_key(model, source, located.handle.sha256, scoring))
    if parts.found:
        say(f"{parts.found} parts of an earlier command are there, and are not computed again")
    tables = _computed(network, genome, source, scoring, parts)
    outcome = Outcome(Collector(source.regions) if isinstance(source, Saturation) else None)
    written = outcome.watched(tables)
    with store.publish(request.output) as file:
        if isinstance(source, VcfSource) and end in vcf_writer.FORMATS:
            columns = [*scores, "status"]
            vcf_writer.write(file, source.vcf, written, fields=fields, columns=columns, end=end)
        else:
            with table_writer.opened(file, end) as writer:
                for table in written:
                    writer.write(table)
        if request.picture and outcome.collector:  # first: where it cannot be drawn, the same command goes on
            store.write_bytes(request.picture, outcome.collector.png())
    parts.remove()
    what = f"{outcome.rows:,} variants, {outcome.scored:,} of them with scores"
    return [
        f"{redact(request.output)}: {what} ({FORMATS[end]}; {about})",
        *outcome.sentences(),
        *model.remarks(request.length),
        *_remarks(request, source, genome, outcome),
    ]


def _computed(
    network: Network, genome: Genome, source: VcfSource | Saturation, scoring: Scoring, parts: Parts
) -> Iterator[pa.Table]:
    """The tables of all chunks, at least one, from ``parts``; all that are not there are computed first."""

    def table(chunk: Chunk) -> pa.Table:
        """Columns chrom, pos, id or region, ref, alt, the scores, status."""
        found = score(network, genome, chunk.variants, scoring).table(chunk.variants)
        return found.add_column(2, pa.field(source.column, pa.string()), [pa.array(chunk.names, pa.string())])

    there = 0  # variants of parts of an earlier command

    def read() -> Iterator[Chunk]:
        nonlocal there
        for number, chunk in enumerate(source.chunks()):
            there += len(chunk.variants) * (number in parts)
            yield chunk

    def compute(chunks: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, pa.Table]]:
        done = 0
        for number, chunk in chunks:
            yield number, table(chunk)
            done += len(chunk.variants)
            progress("score", done, source.variants - there)

    with Progress(unit="variants") as progress:
        tables = in_parts(read(), compute, parts=parts)
        first = next(tables, table(Chunk([], [])))
    return itertools.chain([first], tables)


def _check(request: VariantsRequest) -> tuple[str, tuple[Score, ...]]:
    """The format of the output, a key of FORMATS, and the scores. ConfigError where an option is wrong."""
    inputs = {"--vcf": request.vcf, "--bed": request.bed, "--reference": request.reference}
    outputs = {"--output": request.output, "--picture": request.picture}
    given = [(key, uri) for key, uri in inputs.items() if uri]
    paths.refuse_lost(outputs=outputs, inputs=given)
    end = output_format.format_of(request.output, FORMATS, example="variants.parquet")
    for key, uri in given:
        store.refuse_pipe(uri)
        if identity(request.output) == identity(uri):
            raise ConfigError(f"--output {redact(request.output)} is that of {key}; give another name")
    if request.bed and end in vcf_writer.FORMATS:
        raise ConfigError(
            f"--output {redact(request.output)}: with --bed there is no VCF that scores could be written "
            f"into; give a table: {', '.join(table_writer.FORMATS)}"
        )
    scores = cast("tuple[Score, ...]", tuple(request.scores.split(",")))
    try:
        Scoring(DEFAULT_LENGTH if request.length is None else request.length, scores)
    except ValueError as fault:
        raise ConfigError(f"--{fault}") from fault
    if request.bed and request.strict:
        raise ConfigError("--strict is for --vcf: substitutions of regions always fit the reference")
    vcf_writer.Fields(request.prefix, "")
    if request.prefix != vcf_writer.PREFIX and end not in vcf_writer.FORMATS:
        raise ConfigError(
            f"--prefix is for an output that is a VCF ({', '.join(vcf_writer.FORMATS)}), and "
            f"{redact(request.output)} is a table"
        )
    if request.picture:
        _check_picture(request, scores)
    return end, tuple(name for name in SCORES if name in scores)


def _check_picture(request: VariantsRequest, scores: Sequence[str]) -> None:
    picture = str(request.picture)
    if not request.bed:
        raise ConfigError("--picture shows all substitutions of regions; give them as --bed")
    if "llr" not in scores:
        raise ConfigError("--picture shows llr; name it in --scores")
    if not picture.lower().endswith(".png"):
        raise ConfigError(f"--picture {redact(picture)} must end in .png")
    output_format.refuse_folder(picture, "variants.png")


def _source(request: VariantsRequest, genome: Genome) -> VcfSource | Saturation:
    if request.bed:
        return Saturation(request.bed, genome)
    assert request.vcf, "one of --vcf and --bed is given"
    return VcfSource(request.vcf, genome)


def _refuse_misfits(vcf: Vcf, genome: Genome, length: int) -> None:
    """ValueError for the first variant that is not of this reference."""
    for record in vcf.records():
        for variant in record.variants:
            found = place(variant, genome, length=length)
            if isinstance(found, Unscored) and found.status.startswith(MISFITS):
                raise ValueError(
                    f"{redact(vcf.uri)}, {vcf.unit} {record.number}: {variant.chrom}:{variant.pos} does not "
                    f"fit the reference ({brief(found.status)}); without --strict it is passed over"
                )


def _key(model: OpenedModel, source: VcfSource | Saturation, genome_sha256: str, scoring: Scoring) -> str:
    """A digest of all that decides the table."""
    decides = [
        _METHOD,
        model.sha256,
        best_device().type,
        source.column,
        source.sha256,
        genome_sha256,
        asdict(scoring),
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _remarks(
    request: VariantsRequest, source: VcfSource | Saturation, genome: Genome, outcome: Outcome
) -> Iterator[str]:
    file = redact(source.uri)
    if isinstance(source, VcfSource):
        if not source.variants:
            yield f"{file} has no records, so the output has none"
        if not source.ended:
            yield f"{file}: its last line has no end; if the file was cut short, get it again"
    elif source.unknown:
        yield f"{source.unknown:,} of {source.letters:,} letters are N, and have no substitutions"
    if sentence := genome.names.sentence("the VCF" if isinstance(source, VcfSource) else "the BED"):
        yield sentence
    if request.picture and outcome.collector:
        yield f"{redact(request.picture)}: {outcome.collector.sentence()}"
