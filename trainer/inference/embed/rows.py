"""What is computed of a chunk as rows, and the rows of all chunks as those of the result.

A row is of a record, a window or a letter. A record that lies in several pieces has a row of sums of each;
these are added up in order. In the file of a part the first columns are ours, by their places; the input's
follow.

Shapes: N windows, Q pieces of records, R rows, S strands, V numbers of a vector of one strand.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from trainer.inference.embed.chunks import Chunk
from trainer.inference.embed.vectors import Reading, Vectors, over_strands
from trainer.inference.embed.windows import Places

Each = Literal["record", "window", "letter"]
PLACES: dict[Each, tuple[str, ...]] = {
    "record": ("length",),
    "window": ("start", "end"),
    "letter": ("position",),
}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """Rows in the order of the input.

    Attributes:
        record_R: int64, the number of each row's record, from 0.
        places: int64 [R] each: where it lies in the record, by the names in PLACES.
        vectors_RV: its numbers; of both strands one behind the other, where both are kept.
        others: the input's other columns.
    """

    record_R: Places
    places: dict[str, Places]
    vectors_RV: Array
    others: pa.Table

    def __len__(self) -> int:
        return len(self.record_R)

    def to_table(self) -> pa.Table:
        """As Arrow; the vectors are one column of lists."""
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(self.vectors_RV.reshape(-1)), self.vectors_RV.shape[1]
        )
        columns = [pa.array(self.record_R), *map(pa.array, self.places.values()), vectors]
        names = ["record", *self.places, "vector"]
        return pa.table([*columns, *self.others.columns], names=[*names, *self.others.column_names])

    @classmethod
    def from_table(cls, table: pa.Table, each: Each) -> "Rows":
        """The rows of which ``to_table`` made ``table``."""
        names = PLACES[each]
        record_R, *places = (table.column(i).to_numpy() for i in range(1 + len(names)))
        vectors = table.column(1 + len(names)).combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        return cls(
            record_R,
            dict(zip(names, places, strict=True)),
            flat.reshape(len(table), vectors.type.list_size),
            table.select(range(2 + len(names), table.num_columns)),
        )


def rows_of(chunk: Chunk, vectors_NSV: Vectors, reading: Reading, each: Each) -> Rows:
    """The rows of what ``vectors.read_windows`` gave of ``chunk``."""
    if each == "record":
        return _pieces(chunk, vectors_NSV, reading)
    vectors_RV = over_strands(vectors_NSV, reading.strands)
    keep_start_N = chunk.start_N + chunk.windows.keep_start_N.numpy()
    kept_N = chunk.windows.kept().numpy()
    if each == "window":
        places = {"start": keep_start_N, "end": keep_start_N + kept_N}
        piece_R = chunk.piece_N
    else:
        first_N = kept_N.cumsum() - kept_N
        places = {"position": np.arange(kept_N.sum()) + np.repeat(keep_start_N - first_N, kept_N)}
        piece_R = np.repeat(chunk.piece_N, kept_N)
    return Rows(chunk.record_Q[piece_R], places, vectors_RV, chunk.others.take(piece_R))


def _pieces(chunk: Chunk, vectors_NSV: Vectors, reading: Reading) -> Rows:
    """A row for each piece of a record: the sum of its windows' vectors, each as often as it has letters that
    count; or their maximum. The strands stay apart until the record is complete."""
    kept_N = chunk.windows.kept().numpy()
    vectors_NV = vectors_NSV.reshape(len(vectors_NSV), -1).astype(np.float64)
    if reading.pooling != "max":
        vectors_NV *= kept_N[:, None]
    vectors_QV = _added(vectors_NV, chunk.piece_N, reading)
    return Rows(chunk.record_Q, {"length": _summed(kept_N, chunk.piece_N)}, vectors_QV, chunk.others)


def finished(parts: Iterable[Rows], reading: Reading, each: Each) -> Iterator[Rows]:
    """The rows of the result: ``parts`` as they are, or, of records, their pieces put together."""
    if each != "record":
        yield from parts
        return
    last: Rows | None = None  # the record that may go on
    for part in parts:
        whole = _together(part if last is None else _joined([last, part]), reading)
        last = _cut(whole, len(whole) - 1, len(whole))
        if len(whole) > 1:
            yield _completed(_cut(whole, 0, len(whole) - 1), reading)
    if last is not None:
        yield _completed(last, reading)


def _together(rows: Rows, reading: Reading) -> Rows:
    """Pieces of one record, which stand one behind the other, as one row, added up in their order."""
    is_first = np.append(True, rows.record_R[1:] != rows.record_R[:-1])
    if is_first.all():
        return rows
    first, group_R = np.flatnonzero(is_first), is_first.cumsum() - 1
    places = {"length": _summed(rows.places["length"], group_R)}
    vectors = _added(rows.vectors_RV, group_R, reading)
    return Rows(rows.record_R[first], places, vectors, rows.others.take(first))


def _added(vectors_RV: Array, group_R: Places, reading: Reading) -> Array:
    """A row for each group of rows: their sum, one after the other, or their maximum."""
    is_first = np.append(True, group_R[1:] != group_R[:-1])
    result = vectors_RV[is_first]
    ufunc = np.maximum if reading.pooling == "max" else np.add
    ufunc.at(result, group_R[~is_first], vectors_RV[~is_first])
    return result


def _summed(letters_R: Places, group_R: Places) -> Places:
    return np.bincount(group_R, weights=letters_R).astype(np.int64)  # exact up to 2^53


def _completed(rows: Rows, reading: Reading) -> Rows:
    """Records with all their pieces: sums become means, and strands what is wanted of them."""
    vectors_RV = rows.vectors_RV
    if reading.pooling != "max":
        vectors_RV = vectors_RV / rows.places["length"][:, None]
    vectors_RSV = vectors_RV.reshape(len(rows), reading.strands_read, -1)
    return Rows(rows.record_R, rows.places, over_strands(vectors_RSV, reading.strands), rows.others)


def regrouped(parts: Iterable[Rows], rows: int) -> Iterator[Rows]:
    """The same rows, so many at a time; at the end there may be fewer."""
    waiting: list[Rows] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) >= rows:
            together = _joined(waiting)
            yield _cut(together, 0, rows)
            waiting = [_cut(together, rows, len(together))]
    if waiting and (rest := _joined(waiting)):
        yield rest


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.record_R for part in parts]),
        {name: np.concatenate([part.places[name] for part in parts]) for name in parts[0].places},
        np.concatenate([part.vectors_RV for part in parts]),
        pa.concat_tables([part.others for part in parts]),
    )


def _cut(rows: Rows, start: int, end: int) -> Rows:
    places = {name: place_R[start:end] for name, place_R in rows.places.items()}
    others = rows.others.slice(start, end - start)
    return Rows(rows.record_R[start:end], places, rows.vectors_RV[start:end], others)
