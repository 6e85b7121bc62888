"""Tables of the same columns, one after the other, into one file of the format that its name says."""

import contextlib
import gzip
from collections.abc import Iterator
from typing import IO, Any, Protocol, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.inference import output_format

FORMATS = {end: name for end, name in output_format.FORMATS.items() if end not in output_format.NO_TABLES}


class TableWriter(Protocol):
    """What ``opened`` gives."""

    def write(self, table: pa.Table) -> None:
        """ValueError: the format cannot hold a column."""


@contextlib.contextmanager
def opened(file: IO[bytes], end: str) -> Iterator[TableWriter]:
    """A writer to ``file``, which stays open; ``end`` is a key of FORMATS."""
    with contextlib.ExitStack() as stack:
        if FORMATS[end] == "Parquet":
            yield stack.enter_context(contextlib.closing(_Parquet(file)))
        else:
            if end.endswith(".gz"):  # without name and time: the same table has the same bytes
                packed = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
                file = cast("IO[bytes]", packed)
            yield _Text(file, "\t" if end.startswith(".tsv") else ",")


class _Parquet:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer: Any = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Text:
    def __init__(self, file: IO[bytes], separator: str) -> None:
        self._file, self._separator, self._first = file, separator, True

    def write(self, table: pa.Table) -> None:
        nested = [field for field in table.schema if pa.types.is_nested(field.type)]
        if nested:
            raise ValueError(
                f"column {nested[0].name!r} holds {nested[0].type}, which a text file cannot; write .parquet"
            )
        frame = table.to_pandas(types_mapper=pd.ArrowDtype)  # whole numbers stay whole beside missing ones
        frame.to_csv(
            self._file,
            index=False,
            header=self._first,
            sep=self._separator,
            mode="wb",
            lineterminator="\n",
        )
        self._first = False
