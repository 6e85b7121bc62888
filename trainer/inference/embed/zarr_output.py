"""Rows of embeddings as a zarr group (format 3): one array of numbers, and small ones that say what a row is.

    embeddings      fp32 [R, V], in chunks of whole rows
    length          int64 [R]; or start and end, where a row is of a window
    name, ...       [R]: the input's other columns

Where a row is of a letter, the input's other columns have an entry for each record, and ``offset``, int64
[records + 1], says where the letters of each begin and end. The root's ``zarr.json`` is written last: without
it nothing opens the group.

Shapes: R rows, V numbers of a row.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import store
from configs import ConfigError, redact
from trainer.inference.embed.rows import PLACES, Rows
from trainer.inference.embed.shape import RowsWriter, Shape
from trainer.inference.passed_on import passed_on

_ARRAY = "embeddings"
_ROOT = "zarr.json"
_UNFINISHED = "UNFINISHED"  # beside the arrays of a group on an object store, until it is complete
_ENTRIES = 1 << 16  # of a chunk of the small arrays


def refuse_existing(uri: str, *, overwrite: bool) -> None:
    """ConfigError, before any work, if something is at ``uri`` that is not to be replaced."""
    if store.is_local(uri):
        path = store.local_path(uri)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output {redact(uri)} is a file, and a zarr is a folder; give another name")
        there = path.exists()
    else:
        names = store.list_files(uri)
        there = bool(names) and _UNFINISHED not in names
    if there and not overwrite:
        raise ConfigError(f"output {redact(uri)} is there; give another name, or --overwrite to replace it")


@contextlib.contextmanager
def opened(uri: str, shape: Shape, *, overwrite: bool) -> Iterator[RowsWriter]:
    """What takes the rows of the group at ``uri``. On a disk it is written beside its place and renamed.

    Raises:
        ConfigError: as ``refuse_existing``. StoreError: it cannot be written.
    """
    refuse_existing(uri, overwrite=overwrite)
    with _beside(uri) if store.is_local(uri) else _in_place(uri) as place:
        group = _Group(place, shape)
        yield group
        group.close()


@contextlib.contextmanager
def _beside(uri: str) -> Iterator[str]:
    """A folder beside ``uri`` on a disk, which takes its place when the block ends."""
    path = store.local_path(uri)
    unfinished, old = (path.with_name(f".{path.name}.{state}") for state in ("unfinished", "old"))
    store.remove(str(unfinished))  # what a killed command left
    try:
        yield str(unfinished)
        if path.exists():
            store.remove(str(old))
            path.rename(old)
        unfinished.rename(path)
        store.remove(str(old))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _in_place(uri: str) -> Iterator[str]:
    """``uri`` on an object store, without what was there."""
    store.remove(uri)
    store.write_bytes(store.join(uri, _UNFINISHED), b"")
    try:
        yield uri
    except BaseException:
        with contextlib.suppress(store.StoreError):  # the fault to raise is the one that led here
            store.remove(uri)
        raise
    store.remove(store.join(uri, _UNFINISHED))


class _Group:
    """The group at ``place``. zarr packs its chunks in memory; the store writes them, with its retries."""

    def __init__(self, place: str, shape: Shape) -> None:
        import zarr  # slow to import, and only needed here

        self._place, self._shape, self._files = place, shape, dict[str, Any]()
        memory = zarr.storage.MemoryStore(self._files)
        self._group = zarr.open_group(memory, mode="w", attributes=dict(shape.attributes), zarr_format=3)
        self._root = self._files.pop(_ROOT).to_bytes()
        self._arrays: dict[str, _Array] = {}

    def write(self, rows: Rows) -> None:
        if not self._arrays:
            self._create(rows)
        arrays = {_ARRAY: rows.vectors_RV, **self._columns(rows)}
        for name, values in arrays.items():
            self._arrays[name].append(values)
            self._publish()

    def close(self) -> None:
        """Writes what is left, then the root."""
        if self._shape.each == "letter":
            self._arrays["offset"].append(np.array([self._shape.rows]))
        for array in self._arrays.values():
            array.flush()
            self._publish()
        store.write_bytes(store.join(self._place, _ROOT), self._root)

    def _create(self, rows: Rows) -> None:
        shape = self._shape
        self._arrays[_ARRAY] = _Array(
            self._group.create_array(
                _ARRAY,
                shape=(shape.rows, shape.numbers),
                chunks=(min(shape.group, shape.rows), shape.numbers),
                dtype="float32",
                compressors=None,  # such numbers become hardly smaller
            )
        )
        for name, values in self._columns(rows).items():
            entries = shape.records + (name == "offset") if shape.each == "letter" else shape.rows
            self._arrays[name] = _Array(
                self._group.create_array(
                    name,
                    shape=(entries,),
                    chunks=(min(_ENTRIES, entries),),
                    dtype="str" if values.dtype == object else values.dtype,
                )
            )

    def _columns(self, rows: Rows) -> dict[str, Any]:
        """The small arrays by name: what these rows add to each."""
        own = own_names(self._shape)
        if self._shape.each != "letter":
            return {**columns_of(passed_on(rows.others, own)), **rows.places}
        first_R = np.flatnonzero(rows.places["position"] == 0)
        others = columns_of(passed_on(rows.others.take(first_R), own))
        return {**others, "offset": first_R + self._written()}

    def _written(self) -> int:
        return self._arrays[_ARRAY].entries if self._arrays else 0

    def _publish(self) -> None:
        for name in list(self._files):
            store.write_bytes(store.join(self._place, name), self._files.pop(name).to_bytes())


class _Array:
    """An array to whose end entries are added; whole chunks are written as they are complete."""

    def __init__(self, array: Any) -> None:
        self._array, self._waiting = array, list[Any]()
        self.entries = self._flushed = 0

    def append(self, values: Any) -> None:
        self._waiting.append(values)
        self.entries += len(values)
        chunk = self._array.chunks[0]
        if self.entries - self._flushed >= chunk:
            self._write((self.entries - self._flushed) // chunk * chunk)

    def flush(self) -> None:
        """Writes what is left."""
        if self.entries > self._flushed:
            self._write(self.entries - self._flushed)

    def _write(self, count: int) -> None:
        values = np.concatenate(self._waiting)
        self._array[self._flushed : self._flushed + count] = values[:count]
        self._flushed += count
        self._waiting = [values[count:]]


def own_names(shape: Shape) -> set[str]:
    """The names of all arrays that are not of the input's columns."""
    return {_ARRAY, *(("offset",) if shape.each == "letter" else PLACES[shape.each])}


def columns_of(others: pa.Table) -> dict[str, Any]:
    """The input's columns as numpy: text, truths and numbers; "" and NaN where a value is missing.

    Raises:
        ValueError: a column holds something else, or its name cannot be that of an array.
    """
    found = {}
    for field, column in zip(others.schema, others.columns, strict=True):
        name, kind = field.name, field.type
        if not name or name.startswith((".", "__")) or "/" in name or name == _ROOT:
            raise ValueError(
                f"the input's column {name!r} cannot be the name of an array of a zarr; rename it"
            )
        if pa.types.is_floating(kind):
            found[name] = column.to_numpy()
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            if column.null_count:
                raise ValueError(
                    f"column {name!r} holds {kind} and has no value in some rows, which a zarr cannot; write "
                    ".parquet"
                )
            found[name] = column.to_numpy()
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"column {name!r} holds {kind}, which a zarr cannot; write .parquet")
        else:
            text = pc.fill_null(pc.cast(column, pa.string()), "")
            found[name] = text.to_numpy().astype(object)
    return found
