"""Rows of embeddings into one output, as they come: Parquet, CSV, TSV, npy; zarr is in zarr_output.py.

Shapes: R rows, V numbers of a row.
"""

import contextlib
import csv
import gzip
import io
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import store
from trainer.inference import output_format, table_writer
from trainer.inference.embed import zarr_output
from trainer.inference.embed.rows import Rows
from trainer.inference.embed.shape import RowsWriter, Shape
from trainer.inference.passed_on import passed_on


@contextlib.contextmanager
def opened(uri: str, shape: Shape, *, overwrite: bool = False) -> Iterator[RowsWriter]:
    """What takes the rows of the output at ``uri``, ``shape.group`` at a time. The output is there as a whole
    once the block ends, and not at all if the block raises.

    ``overwrite``: a zarr that is there is replaced, as a file always is.
    """
    end = output_format.format_of(uri)
    if end == ".zarr":
        with zarr_output.opened(uri, shape, overwrite=overwrite) as writer:
            yield writer
        return
    with store.publish(uri) as file:
        if end == ".npy":
            yield _Npy(file, shape)
        elif output_format.FORMATS[end] == "Parquet":
            with table_writer.opened(file, end) as tables:
                yield _Parquet(tables, shape)
        else:
            with contextlib.ExitStack() as stack:
                if end.endswith(".gz"):  # without name and time: the same rows have the same bytes
                    packed = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
                    file = cast("IO[bytes]", packed)
                yield _Text(file, shape, "\t" if end.startswith(".tsv") else ",")


def refuse_columns(uri: str, shape: Shape, others: pa.Table) -> None:
    """ValueError if the output at ``uri`` cannot hold the input's columns ``others``."""
    end = output_format.format_of(uri)
    if end == ".npy":
        return
    beside = passed_on(others, own_names(uri, shape))
    if end == ".zarr":
        zarr_output.columns_of(beside)
    elif output_format.FORMATS[end] != "Parquet":
        _refuse_nested(beside)


def own_names(uri: str, shape: Shape) -> set[str]:
    """The names in the output at ``uri`` that are not those of the input's columns."""
    return zarr_output.own_names(shape) if output_format.format_of(uri) == ".zarr" else shape.own()


def _refuse_nested(others: pa.Table) -> None:
    for column in others.schema:
        if pa.types.is_nested(column.type):
            raise ValueError(
                f"column {column.name!r} holds {column.type}, which a text file cannot; write .parquet"
            )


class _Npy:
    """The numbers alone, fp32 [R, V], as numpy writes them."""

    def __init__(self, file: IO[bytes], shape: Shape) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (shape.rows, shape.numbers)}
        np.lib.format.write_array_header_1_0(file, header)
        self._file = file

    def write(self, rows: Rows) -> None:
        self._file.write(np.ascontiguousarray(rows.vectors_RV, "<f4").data)


class _Parquet:
    """A column for each number."""

    def __init__(self, tables: table_writer.TableWriter, shape: Shape) -> None:
        self._tables, self._names, self._own = tables, shape.names(), shape.own()

    def write(self, rows: Rows) -> None:
        others = passed_on(rows.others, self._own)
        arrays = [*others.columns, *map(pa.array, rows.places.values()), *map(pa.array, rows.vectors_RV.T)]
        self._tables.write(pa.table(arrays, names=[*others.column_names, *rows.places, *self._names]))


class _Text:
    """A line for each row. Arrow writes the numbers, ten times as fast as csv or pandas do."""

    def __init__(self, file: IO[bytes], shape: Shape, separator: str) -> None:
        self._file, self._separator, self._first = file, separator, True
        self._names, self._own = shape.names(), shape.own()

    def write(self, rows: Rows) -> None:
        others = passed_on(rows.others, self._own)
        if self._first:
            self._file.write(self._line([*others.column_names, *rows.places, *self._names]).encode() + b"\n")
            self._first = False
        cells = [*(column.to_pylist() for column in others.columns), *map(list, rows.places.values())]
        before = pa.array([self._line(row) for row in zip(*cells, strict=True)], pa.string())
        numbers = [pc.cast(pa.array(column_R), pa.string()) for column_R in rows.vectors_RV.T]
        lines = pc.binary_join_element_wise(before, *numbers, self._separator)
        self._file.write("\n".join([*lines.to_pylist(), ""]).encode())

    def _line(self, cells: Any) -> str:
        line = io.StringIO()
        csv.writer(line, delimiter=self._separator, lineterminator="").writerow(cells)
        return line.getvalue()
