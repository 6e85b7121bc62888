"""What every reader of labelled sequences is asked for and gives: the rows of a file in batches, in order.

A reader is a function ``read(uri, wanted) -> Iterator[Batch]``. It finds the rows and their cells; what their
letters and labels may be, its callers check (table.py, stream.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep import alphabet

BATCH_ROWS = 1024
_BATCH_LETTERS = 16 << 20
_FIELD_SHOWN = 40  # letters of a field in a message
_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Wanted:
    """What is asked of a file.

    Attributes:
        label_columns: none, where labels are not needed.
        reference: the genome that a BED's intervals are cut from.
        label_pattern: where a FASTA's header has the label, see fasta.py; "" for the usual places.
        others: whether ``Batch.others`` is filled.
        quiet: nothing is said of what a user should know, since it was said before.
    """

    sequence_column: str = "sequence"
    label_columns: tuple[str, ...] = ()
    reference: str | None = None
    label_pattern: str = ""
    others: bool = False
    quiet: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.sequence_column, *self.label_columns)


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        numbers: of each row's line, row or record in the file, from 1.
        sequences: letters as the file has them.
        labels: of each row, the text of each label column.
        others: the other columns, where they are wanted.
        cut: the file's last line has no end, so the file may be cut.
    """

    numbers: Sequence[int]
    sequences: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    others: pa.Table | None
    cut: bool = False


class Gather:
    """Single rows as batches. ``others``: the names of the other columns; they are text."""

    def __init__(self, others: Sequence[str] | None) -> None:
        self._names = others
        self._clear()

    def _clear(self) -> None:
        self._numbers: list[int] = []
        self._sequences: list[str] = []
        self._labels: list[tuple[str, ...]] = []
        self._others: list[Sequence[str]] = []
        self._letters = 0

    def add(self, number: int, sequence: str, labels: tuple[str, ...], others: Sequence[str] = ()) -> bool:
        """Adds a row; whether the batch is full."""
        self._numbers.append(number)
        self._sequences.append(sequence)
        self._labels.append(labels)
        if self._names is not None:
            self._others.append(others)
        self._letters += len(sequence)
        return len(self._numbers) >= BATCH_ROWS or self._letters >= _BATCH_LETTERS

    def take(self, *, cut: bool = False) -> Batch:
        """The rows since the last call."""
        others = None
        if self._names is not None:
            columns: Any = zip(*self._others, strict=True) if self._others else [()] * len(self._names)
            others = pa.table([pa.array(column, pa.string()) for column in columns], names=list(self._names))
        batch = Batch(self._numbers, self._sequences, self._labels, others, cut)
        self._clear()
        return batch


def place_of(names: Sequence[str], column: str, where: str) -> int:
    """Where ``column`` stands among ``names``. ValueError if it stands there twice."""
    places = [i for i, name in enumerate(names) if name == column]
    if len(places) > 1:
        at = " and ".join(str(i + 1) for i in places)
        raise ValueError(f"{where}: {column!r} is the name of columns {at}; rename all but one")
    return places[0]


def missing_column(names: Sequence[str], wanted: Wanted) -> str:
    """What follows the file's name where a column is missing."""
    missing = next(column for column in wanted.columns if column not in names)
    listed = ", ".join(short(name) for name in names[:_COLUMNS_SHOWN])
    more = f" and {len(names) - _COLUMNS_SHOWN:,} more" if len(names) > _COLUMNS_SHOWN else ""
    is_sequence = missing == wanted.sequence_column
    key, option = ("sequence_column", " (--sequence-column)") if is_sequence else ("label_column", "")
    return f"has no column {missing!r}, its columns are {listed}{more}; give the right name as {key}{option}"


def asked(wanted: Wanted) -> str:
    """The columns that are asked for, in words."""
    return " and ".join(map(repr, wanted.columns))


def is_sequence(text: str) -> bool:
    try:
        return len(text) >= 8 and alphabet.encode(text.encode())[0].size > 0
    except ValueError:
        return False


def short(text: str) -> str:
    """``text`` in quotes, cut where it is long; a sequence is not shown, only its length."""
    if is_sequence(text):
        return f"({len(text):,} nucleotides)"
    return repr(text) if len(text) <= _FIELD_SHOWN else f"{text[:_FIELD_SHOWN]!r}... ({len(text):,} letters)"
