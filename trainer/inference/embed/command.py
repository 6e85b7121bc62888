"""The command ``python -m trainer.embed``: sequences of a file, their windows or letters as vectors."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal

import pyarrow as pa

from cluster.process import paths
from cluster.process.progress import Progress, Stage, say
from cluster.storage import store
from configs import ConfigError, redact
from trainer.inference import output_format
from trainer.inference.embed import output, source, zarr_output
from trainer.inference.embed.chunks import Chunk
from trainer.inference.embed.model import OpenedModel, open_model
from trainer.inference.embed.picture import Points, Projection, draw, refuse_picture
from trainer.inference.embed.rows import Each, Rows, finished, regrouped, rows_of
from trainer.inference.embed.shape import Shape
from trainer.inference.embed.source import Source, Survey
from trainer.inference.embed.vectors import Pooling, Reading, Strands, read_windows
from trainer.inference.embed.windows import Tiling
from trainer.inference.parts import Compute, Parts, in_parts, one_by_one
from trainer.inference.passed_on import refuse_files
from trainer.inference.precision import Precision, Resolved, best_device, resolve_precision

_CHUNK_LETTERS = 1 << 20  # of a chunk: what a kill costs, and what a worker is given at once
_CHUNK_BYTES = 1 << 25  # of a chunk's vectors, where each letter has one
_FORMAT = 1  # of the parts and of what decides their numbers, beside what ``_key`` names


@dataclass(frozen=True)
class EmbedRequest:
    """The options of the command; each field has the name of its option."""

    model: str
    input: str
    output: str
    sequence_column: str = "sequence"
    reference: str | None = None
    pooling: Pooling = "mean"
    layer: int | None = None
    strands: Strands = "both"
    each: Literal["record", "window"] | None = None
    length: int | None = None
    overlap: int = 0
    precision: Precision = "fp32"
    workers: int | None = None
    overwrite: bool = False
    picture: str | None = None
    colour: str | None = None
    projection: Projection = "pca"
    track_uri: str | None = None


def embed_file(request: EmbedRequest) -> list[str]:
    """Write the output; sentences about what was written.

    What is computed of a long input is kept in parts beside the output until that is complete.

    Raises: ConfigError, StoreError, ValueError, TrackError, RuntimeError, MemoryError, each one sentence. No
    half of an output is left then.
    """
    _check(request)
    model = open_model(request.model, track_uri=request.track_uri)
    job = _job(request, model)
    with Progress() as progress:
        found = source.survey(
            job.source, check=lambda others: _refuse(request, job, others), on_progress=progress
        )
        shape = replace(job.shape, rows=found.rows(job.each), records=found.count.rows)
        points = Points(request.colour, rows=shape.rows) if request.picture else None
        parts = None
        if len(found.chunks) > 1 or request.workers:
            parts = Parts(request.output, key=_key(job, found))
            if parts.found:
                say(f"{parts.found:,} of {len(found.chunks):,} parts are there from before")
        left = [letters for number, letters in enumerate(found.chunks) if not parts or number not in parts]
        stage = Stage(progress, "embed", sum(left))
        compute = _on_workers(request, job, stage) if request.workers else _here(job, stage)
        rows = regrouped(_rows(job, found, compute, parts), shape.group)
        first = next(rows)  # before the output is touched
        with output.opened(request.output, shape, overwrite=request.overwrite) as writer:
            for some in itertools.chain([first], rows):
                writer.write(some)
                if points:
                    points.add(some)
    if request.picture and points:
        draw(request.picture, points, projection=request.projection, title=job.model.title)
    if parts:
        parts.remove()
    return list(_sentences(request, job, found))


@dataclass(frozen=True)
class Job:
    """What the options mean for a model; ``shape`` does not know the number of rows yet."""

    model: OpenedModel
    source: Source
    reading: Reading
    each: Each
    precision: Resolved
    shape: Shape


def _check(request: EmbedRequest) -> None:
    """ConfigError, before any work, where an option is wrong."""
    refuse_files(input_uri=request.input, output=request.output, reference=request.reference)
    if output_format.format_of(request.output) == ".zarr":
        zarr_output.refuse_existing(request.output, overwrite=request.overwrite)
    if request.length is not None and request.length < 1:
        raise ConfigError(f"--length {request.length} must be at least 1")
    if request.overlap < 0:
        raise ConfigError(f"--overlap {request.overlap} must be at least 0")
    if request.length is not None:
        _refuse_overlap(request.overlap, request.length)
    if request.pooling == "letters" and request.each:
        raise ConfigError("--pooling letters gives a row for each letter; leave out --each")
    if request.workers is not None and request.workers < 1:
        raise ConfigError(f"--workers {request.workers} must be at least 1")
    if request.picture:
        paths.refuse_lost(outputs={"--picture": request.picture})
        refuse_picture(request.picture, request.projection)
    elif request.colour:
        raise ConfigError("--colour is for --picture")
    store.refuse_pipe(request.input)


def _refuse_overlap(overlap: int, length: int) -> None:
    if overlap >= length:
        raise ConfigError(f"--overlap {overlap} must be below the windows' length, which is {length}")


def _job(request: EmbedRequest, model: OpenedModel) -> Job:
    """ConfigError: the model has no such layer, or its windows are too short for the overlap."""
    backbone = model.network.backbone
    reading = Reading(request.pooling, request.layer, request.strands)
    try:
        reading.check(backbone)
    except ValueError as fault:
        raise ConfigError(f"--{fault}") from fault
    length = request.length or model.length
    _refuse_overlap(request.overlap, length)
    each: Each = "letter" if request.pooling == "letters" else request.each or "record"
    strands = 2 if request.strands == "separate" else 1
    size = reading.size(backbone)
    letters = _CHUNK_BYTES // (4 * size * reading.strands_read) if each == "letter" else _CHUNK_LETTERS
    tiling = Tiling(length, request.overlap)
    precision = resolve_precision(request.precision, best_device())
    attributes = {
        "model": model.name,
        "version": model.version,
        "weights_sha256": model.sha256,
        "pooling": reading.pooling,
        "layer": reading.layer,
        "strands": reading.strands,
        "each": each,
        "length": length,
        "overlap": request.overlap,
        "precision": precision,
    }
    return Job(
        model,
        Source(request.input, request.sequence_column, request.reference, tiling, letters),
        reading,
        each,
        precision,
        Shape(each, 0, 0, size * strands, strands, attributes),
    )


def _refuse(request: EmbedRequest, job: Job, others: pa.Table) -> None:
    """ValueError if the input's columns do not fit the output, or lack the one of --colour."""
    output.refuse_columns(request.output, job.shape, others)
    if request.colour and request.colour not in others.column_names:
        raise ValueError(
            f"{redact(request.input)} has no column {request.colour!r} for --colour; it has "
            f"{', '.join(others.column_names) or 'none'}"
        )


def _key(job: Job, found: Survey) -> str:
    """A digest of all that decides the numbers of the parts."""
    decides = {
        **job.shape.attributes,
        "model": "",
        "version": "",
        "input": found.sha256,
        "chunk": job.source.chunk_letters,
        "format": _FORMAT,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _here(job: Job, stage: Stage) -> Compute[Chunk]:
    """Computes in this process."""
    network = job.model.network.to(best_device())

    def embed(chunk: Chunk) -> pa.Table:
        vectors = read_windows(network, chunk.windows, job.reading, precision=job.precision)
        stage.advance(chunk.letters)
        return rows_of(chunk, vectors, job.reading, job.each).to_table()

    return one_by_one(embed)


def _on_workers(request: EmbedRequest, job: Job, stage: Stage) -> Compute[Chunk]:
    """Computes on Ray. Only who asks for it needs Ray, and the room of the workers is above this one."""
    room = import_module("trainer.workers.embedding")
    made: Compute[Chunk] = room.on_workers(
        room.SharedModel(job.model.files, job.model.sha256),
        job.reading,
        precision=job.precision,
        workers=request.workers,
        rows=lambda chunk, vectors: rows_of(chunk, vectors, job.reading, job.each).to_table(),
        on_letters=stage.advance,
    )
    return made


def _rows(job: Job, found: Survey, compute: Compute[Chunk], parts: Parts | None) -> Iterator[Rows]:
    """The rows of the result in order."""
    chunks = source.chunks(job.source, found)
    tables: Iterable[pa.Table]
    if parts:
        tables = in_parts(chunks, compute, parts=parts)
    else:
        tables = (table for _, table in compute(enumerate(chunks)))
    return finished((Rows.from_table(table, job.each) for table in tables), job.reading, job.each)


def _sentences(request: EmbedRequest, job: Job, found: Survey) -> Iterator[str]:
    numbers, end = job.shape.numbers, output_format.format_of(request.output)
    what = {
        "record": f"{numbers} numbers each",
        "window": f"{found.windows:,} windows of {numbers} numbers each",
        "letter": f"{numbers} numbers for each letter",
    }[job.each]
    overlap = f" that overlap by {request.overlap}" if request.overlap else ""
    yield (
        f"{redact(request.output)}: {found.count.rows:,} sequences, {found.letters:,} bp, {what} "
        f"({output_format.FORMATS[end]}; {job.model.title}, windows of {job.source.tiling.length} bp"
        f"{overlap})"
    )
    if not (job.model.version or request.length):
        yield (
            f"a folder does not say on what windows its model was pretrained; --length sets another than "
            f"{job.model.length}"
        )
    yield from found.count.sentences(request.input, output.own_names(request.output, job.shape))
    if end == ".npy":
        yield f"an .npy holds no names: row i is {job.each} i of the input"
    if request.picture:
        yield f"{redact(request.picture)}: a picture of them"
