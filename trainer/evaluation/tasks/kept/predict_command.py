"""The command ``python -m trainer.predict``: every row of a file through a fine-tuned model, in order."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from cluster.storage import store
from configs import redact
from trainer.evaluation.tasks.kept.registered_task import open_task_model
from trainer.evaluation.tasks.kept.task_model import TaskModel
from trainer.inference import output_format, table_writer
from trainer.inference.passed_on import InputCount, passed_on, refuse_files
from trainer.inference.precision import Precision, Resolved, best_device, resolve_precision
from trainer.inference.readers.stream import SequenceChunk, read_sequences


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
    count = InputCount()
    with store.publish(request.output) as file, table_writer.opened(file, end) as writer:
        for chunk in chunks:
            if chunk.letters or not count.rows:
                writer.write(_table(model, chunk, precision))
            count.add(
                rows=len(chunk.letters),
                ambiguous=chunk.ambiguous,
                cut=chunk.cut,
                columns=chunk.others.column_names,
            )
    return list(_sentences(request, model, count))


def _sentences(request: PredictRequest, model: TaskModel, count: InputCount) -> Iterator[str]:
    record = model.record
    yield (
        f"{redact(request.output)}: {count.rows:,} predictions of {record.task} ({redact(request.model)}: "
        f"{record.mode} of {record.encoder} version {record.encoder_version})"
    )
    yield from count.sentences(request.input, model.columns)


def _check(request: PredictRequest) -> str:
    """The format of the output, a key of table_writer.FORMATS. ConfigError where an option is wrong."""
    refuse_files(input_uri=request.input, output=request.output, reference=request.reference)
    return output_format.format_of(request.output, table_writer.FORMATS, example="predictions.parquet")


def _table(model: TaskModel, chunk: SequenceChunk, precision: Resolved) -> pa.Table:
    """The other columns of a chunk, then its predictions. ValueError: two columns would have one name."""
    columns = model.columns
    table = passed_on(chunk.others, columns)
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
