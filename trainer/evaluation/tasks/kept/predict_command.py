"""The command ``python -m trainer.predict``: every row of a file through a fine-tuned model, in order."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from cluster.process import paths
from cluster.storage import store
from cluster.storage.uri import identity
from configs import ConfigError, redact
from trainer.evaluation.tasks.kept.registered_task import open_task_model
from trainer.evaluation.tasks.kept.task_model import TaskModel
from trainer.inference import output_format, table_writer
from trainer.inference.precision import Precision, Resolved, best_device, resolve_precision
from trainer.inference.readers.formats import format_of
from trainer.inference.readers.stream import SequenceChunk, read_sequences

_RENAMED = "input_"  # goes before the name of an input's column that a prediction has, too


@dataclass(frozen=True)
class PredictRequest:
    """The options of the command; each field has the name of its option."""

    model: str
    input: str
    output: str
    sequence_column: str = "sequence"
    reference: str | None = None
    precision: Precision = "fp32"
    track_uri: str | None = None


def predict_file(request: PredictRequest) -> list[str]:
    """Write the predictions; sentences about what was written.

    Raises: ConfigError, StoreError, ValueError, TrackError, MemoryError, each one sentence. No part of a file
    is left then.
    """
    end = _check(request)
    model = open_task_model(request.model, track_uri=request.track_uri).to(best_device())
    precision = resolve_precision(request.precision, best_device())
    chunks = read_sequences(
        request.input, sequence_column=request.sequence_column, reference=request.reference
    )
    count = _Count()
    with store.publish(request.output) as file, table_writer.opened(file, end) as writer:
        for chunk in chunks:
            if chunk.letters or not count.rows:
                writer.write(_table(model, chunk, precision))
            count.add(chunk)
    return list(_sentences(request, model, count))


@dataclass
class _Count:
    """What was read."""

    rows: int = 0
    ambiguous: int = 0
    cut: bool = False
    columns: tuple[str, ...] = ()

    def add(self, chunk: SequenceChunk) -> None:
        self.rows += len(chunk.letters)
        self.ambiguous += chunk.ambiguous
        self.cut |= chunk.cut
        self.columns = tuple(chunk.others.column_names)


def _sentences(request: PredictRequest, model: TaskModel, count: _Count) -> Iterator[str]:
    record = model.record
    yield (
        f"{redact(request.output)}: {count.rows:,} predictions of {record.task} ({redact(request.model)}: "
        f"{record.mode} of {record.encoder} version {record.encoder_version})"
    )
    renamed = [name for name in count.columns if name in model.columns]
    if renamed:
        yield f"the input's own {', '.join(renamed)} stands there with {_RENAMED} before the name"
    if count.ambiguous:
        yield f"{count.ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) were read as N"
    if count.cut:
        yield f"{redact(request.input)}: its last line has no end; if the file was cut short, get it again"


def _check(request: PredictRequest) -> str:
    """The format of the output, a key of table_writer.FORMATS. ConfigError where an option is wrong."""
    inputs = {"--input": request.input, "--reference": request.reference}
    paths.refuse_lost(
        outputs={"--output": request.output}, inputs=[(key, uri) for key, uri in inputs.items() if uri]
    )
    end = output_format.format_of(request.output, table_writer.FORMATS, example="predictions.parquet")
    if identity(request.output) == identity(request.input):
        raise ConfigError(f"--output {redact(request.output)} is the input; give another name")
    if format_of(request.input) == "bed" and not request.reference:
        raise ConfigError(
            f"--input {redact(request.input)} is a BED; give --reference, the genome that its intervals are "
            "cut from (FASTA or .2bit)"
        )
    return end


def _table(model: TaskModel, chunk: SequenceChunk, precision: Resolved) -> pa.Table:
    """The other columns of a chunk, then its predictions. ValueError: two columns would have one name."""
    columns = model.columns
    names = [_RENAMED + name if name in columns else name for name in chunk.others.column_names]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"the input's column {min(twice).removeprefix(_RENAMED)!r} would be passed on as {min(twice)!r}, "
            "which is the name of another; rename one of them"
        )
    table = chunk.others.rename_columns(names)
    types = {"string": pa.string(), "double": pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    if not chunk.letters:
        found = schema.empty_table()
    else:
        predictions = model.predict(chunk.letters, precision=precision)
        found = pa.Table.from_pandas(predictions, schema=schema, preserve_index=False)
    for name in found.column_names:
        table = table.append_column(schema.field(name), found[name])
    return table
