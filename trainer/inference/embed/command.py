"""The command ``python -m trainer.embed``: sequences of a file, their windows or letters as vectors."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import pyarrow as pa

from cluster.process import paths
from cluster.process.progress import Progress, Stage, say
from cluster.storage import store
from configs import ConfigError, redact
from trainer.inference import output_format
from trainer.inference.embed import output, source, zarr_output
from trainer.inference.embed.chunks import Chunk
from trainer.inference.embed.picture import Points, Projection, draw, refuse_picture
from trainer.inference.embed.rows import Each, Rows, finished, regrouped, rows_of
from trainer.inference.embed.shape import Shape
from trainer.inference.embed.source import Source, Survey
from trainer.inference.embed.vectors import Pooling, Reading, Strands, Vectors, read_windows
from trainer.inference.embed.windows import Tiling
from trainer.inference.opened_model import OpenedModel, open_model
from trainer.inference.parts import Compute, Parts, in_parts, one_by_one
from trainer.inference.passed_on import refuse_files
from trainer.inference.precision import Precision, Resolved, best_device, resolve_precision

# Letters of a chunk: what a kill costs, what a worker is given at once, and enough to fill a device's tiles.
_CHUNK_LETTERS = {"cpu": 1 << 20, "cuda": 1 << 24}
_CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}  # of its vectors, where each letter has one
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
    overwrite: bool = False
    picture: str | None = None
    colour: str | None = None
    projection: Projection = "pca"
    track_uri: str | None = None


def embed_file(request: EmbedRequest, *, spread: "Spread | None" = None) -> list[str]:
    """Write the output; sentences about what was written. ``spread`` computes elsewhere than in this process.

    What is computed of a long input is kept in parts beside the output until that is complete.

    Raises: ConfigError, StoreError, ValueError, TrackError, RuntimeError, MemoryError, each one sentence. No
    half of an output is left then.
    """
    _check(request)
    is_stream = _is_stream(request.output)
    if spread and is_stream:
        raise ConfigError(f"--workers needs an --output that is a file or folder, not {request.output}")
    model = open_model(request.model, track_uri=request.track_uri)
    job = _job(request, model)
    with Progress() as progress:
        found = source.survey(
            job.source, check=lambda others: _refuse(request, job, others), on_progress=progress
        )
        shape = replace(job.shape, rows=found.rows(job.each), records=found.count.rows)
        points = Points(request.colour, rows=shape.rows) if request.picture else None
        parts = None
        if (len(found.chunks) > 1 or spread) and not is_stream:
            parts = Parts(request.output, key=_key(job, found))
            if parts.found:
                say(f"{parts.found:,} of {len(found.chunks):,} parts are there from before")
        left = [letters for number, letters in enumerate(found.chunks) if not parts or number not in parts]
        stage = Stage(progress, "embed", sum(left))
        compute = _here(job, stage) if spread is None else _there(job, stage, spread)
        rows = regrouped(_rows(job, found, compute, parts), shape.group)
        first = next(rows)  # before the output is touched
        with output.opened(request.output, shape, overwrite=request.overwrite) as writer:
            for some in itertools.chain([first], rows):
                writer.write(some)
                if points:
                    points.add(some)
            if request.picture and points:  # first: where it cannot be drawn, the same command goes on
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
    if request.picture:
        paths.refuse_lost(outputs={"--picture": request.picture})
        refuse_picture(request.picture, request.projection)
    elif request.colour or request.projection != "pca":
        raise ConfigError(f"--{'colour' if request.colour else 'projection'} is for --picture")
    store.refuse_pipe(request.input)


def _is_stream(uri: str) -> bool:
    """Whether it is a pipe, a device or standard output, beside which no parts can lie."""
    if not store.is_local(uri):
        return False
    path = store.local_path(uri).absolute()
    return path.parts[1] in ("dev", "proc") or (path.exists() and not (path.is_file() or path.is_dir()))


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
    letters = _CHUNK_LETTERS[best_device().type]
    if each == "letter":
        letters = _CHUNK_BYTES[best_device().type] // (4 * size * reading.strands_read)
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
        Source(
            request.input,
            request.sequence_column,
            request.reference,
            tiling,
            letters,
            repeated=_CHUNK_BYTES["cpu"] if each == "letter" else None,
        ),
        reading,
        each,
        precision,
        Shape(each, 0, 0, size * strands, strands, attributes),
    )


class Spread(Protocol):
    """What computes on several machines: ``trainer.workers.embedding.Workers``."""

    def __call__(
        self,
        model: Mapping[str, bytes],
        reading: Reading,
        *,
        precision: Resolved,
        table_of: Callable[[Chunk, Vectors], pa.Table],
        on_letters: Callable[[int], object],
    ) -> Compute[Chunk]:
        """What computes chunks by the model whose files are ``model``.

        Args:
            table_of: makes the table of a chunk of its vectors, in this process.
            on_letters: told how many letters more are done.
        """


def _there(job: Job, stage: Stage, spread: Spread) -> Compute[Chunk]:
    return spread(
        job.model.files,
        job.reading,
        precision=job.precision,
        table_of=lambda chunk, vectors: _table(job, chunk, vectors),
        on_letters=stage.advance,
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
        return _table(job, chunk, vectors)

    return one_by_one(embed)


def _table(job: Job, chunk: Chunk, vectors: Vectors) -> pa.Table:
    return rows_of(chunk, vectors, job.reading, job.each).to_table()


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
    yield from job.model.remarks(request.length)
    yield from found.count.sentences(request.input, output.own_names(request.output, job.shape))
    if end == ".npy":
        yield f"an .npy holds no names: row i is {job.each} i of the input"
    if request.picture:
        yield f"{redact(request.picture)}: a picture of them"
