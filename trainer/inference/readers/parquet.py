"""Rows of a Parquet file. Numbers and yes or no become text as CSV files write them: 1, 0.5, true; a list of
texts becomes one text with commas."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from cluster.storage import store
from configs import redact
from trainer.inference.readers import rows
from trainer.inference.readers.rows import BATCH_ROWS, Batch, Wanted


def read(uri: str, wanted: Wanted) -> Iterator[Batch]:
    """The rows of the Parquet file at ``uri``; their numbers count from 1.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is no Parquet, damaged, or lacks a column or a value; one sentence with file and row.
    """
    file = redact(uri)
    with store.open_read(uri) as opened:
        parquet, names = _opened(opened, file)
        _check(parquet.schema_arrow, names, wanted, file)
        if not parquet.metadata.num_rows:
            raise ValueError(f"{file} has columns and no rows")
        columns = None if wanted.others else list(wanted.columns)
        number = 1
        for batch in _batches(parquet, columns, file):
            yield _batch(batch, wanted, file, number)
            number += batch.num_rows
        if number - 1 != parquet.metadata.num_rows:
            raise _damaged(file, f"{number - 1:,} of {parquet.metadata.num_rows:,} rows are in it")


def _opened(opened: Any, file: str) -> tuple[pq.ParquetFile, list[str]]:
    """The file, and the names of its columns."""
    start = opened.read(4)
    if start != b"PAR1":
        what = "is empty" if not start else "does not begin as one (PAR1)"
        raise ValueError(f"{file} is not a Parquet file: it {what}; set format if its name misleads")
    opened.seek(0)
    try:
        parquet = pq.ParquetFile(opened, page_checksum_verification=True)  # where the writer left sums
        return parquet, parquet.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise _damaged(file, fault) from fault


def _batches(parquet: pq.ParquetFile, columns: list[str] | None, file: str) -> Iterator[Any]:
    try:
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
    except store.StoreError:
        raise
    except (pa.ArrowException, OSError) as fault:
        raise _damaged(file, fault) from fault


def _damaged(file: str, fault: object) -> Exception:
    if isinstance(fault, store.StoreError):
        return fault
    why = " ".join(str(fault).split())
    return ValueError(f"{file} is a damaged Parquet file ({why[:120]}); get it again")


def _check(schema: pa.Schema, names: list[str], wanted: Wanted, file: str) -> None:
    if not set(wanted.columns) <= set(names):
        raise ValueError(f"{file} {rows.missing_column(names, wanted)}")
    for column in names if wanted.others else wanted.columns:
        rows.place_of(names, column, file)
    for column in wanted.columns:
        kind = _values(schema.field(column).type)
        is_label = column in wanted.label_columns
        if not (_is_text(kind) or (is_label and (_to_text(kind) or _is_list_of_text(kind)))):
            needs = "text, numbers, or true and false" if is_label else "text"
            raise ValueError(f"{file}: column {column!r} holds {kind}, and {needs} is needed")


def _batch(batch: pa.RecordBatch, wanted: Wanted, file: str, first: int) -> Batch:
    cells = [
        _texts(batch.column(batch.schema.names.index(column)), column, file, first)
        for column in wanted.columns
    ]
    others = None
    if wanted.others:
        table = pa.Table.from_batches([batch]).replace_schema_metadata()  # pandas' own no longer holds
        others = table.drop_columns(list(wanted.columns))
    numbers = range(first, first + batch.num_rows)
    labels = list(zip(*cells[1:], strict=True)) if len(cells) > 1 else [()] * batch.num_rows
    return Batch(numbers, cells[0], labels, others)


def _texts(column: pa.Array, name: str, file: str, first: int) -> list[str]:
    kind = _values(column.type)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as fault:
        last = first + len(column) - 1
        raise ValueError(
            f"{file}, rows {first} to {last}: column {name!r} has text that is not in UTF-8 ({fault.reason})"
        ) from fault
    convert: Callable[[Any], str] = _to_text(kind) or (",".join if _is_list_of_text(kind) else str.strip)
    texts = []
    for number, value in enumerate(values, first):
        if value is None or (isinstance(value, float) and math.isnan(value)) or _has_null(value):
            shown = "null" if value is None else value
            raise ValueError(
                f"{file}, row {number}: column {name!r} has no value ({shown}); remove the row or fill it in"
            )
        texts.append(convert(value))
    return texts


def _has_null(value: Any) -> bool:
    return isinstance(value, list) and None in value


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of the values behind ``kind``'s dictionary (pandas' categories), if it has one."""
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list_of_text(kind: pa.DataType) -> bool:
    return bool((types.is_list(kind) or types.is_large_list(kind)) and _is_text(kind.value_type))


def _to_text(kind: pa.DataType) -> Callable[[Any], str] | None:
    if types.is_boolean(kind):
        return lambda value: "true" if value else "false"
    if types.is_integer(kind) or types.is_decimal(kind):
        return str
    return repr if types.is_floating(kind) else None
