"""The rows of a CSV or TSV file with labelled sequences. A line that cannot be read is refused by its number.

The first line names the columns; every other line is one row with as many fields, or blank. The separator is
the one of comma, tab, semicolon and bar at which the first line has both columns that are asked for. Any
Unicode encoding (configs.values.decode), any line ends, plain or compressed (data_prep.sources.compression).
"""

import csv
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from configs import redact
from configs.values import decode
from data_prep import alphabet
from data_prep.sources import compression

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_LINE_END = re.compile("\r\n|\r|\n")  # str.splitlines knows more, which may stand inside a field
_MISSING = {"NA", "NAN"}  # missing values as pandas and R write them, which are nucleotide letters, too
_FIELD_SHOWN = 40  # letters of a field in a message
_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Table:
    """The rows of one file: letters A, C, G, T, N in upper case, labels as in the file, and the line of each
    row (from 1).

    ``ambiguous``: letters of other IUPAC codes that became N. ``cut``: the last line has no end, so the file
    may be cut.
    """

    uri: str
    letters: tuple[str, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    ambiguous: int
    cut: bool

    def at(self, row: int) -> str:
        return f"{self.uri}, line {self.lines[row]}"


@dataclass(frozen=True)
class _Header:
    """The line that names the columns: its number, and the columns that are asked for by their places."""

    line: int
    separator: str
    names: list[str]
    sequence_at: int
    label_at: int


def read(uri: str, *, sequence_column: str, label_column: str, check_label: Callable[[str], object]) -> Table:
    """The table at ``uri``; ``check_label`` raises ValueError for a label that the task does not have.

    Raises:
        StoreError: it cannot be read.
        ValueError: one sentence that names the file, the line and what is wrong there.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default
    file = redact(uri)
    text = _text(uri, file)
    lines = [(number, line) for number, line in enumerate(_LINE_END.split(text), 1) if line.strip()]
    if not lines:
        raise ValueError(
            f"{file} is empty; the first line must name the columns {sequence_column!r} and {label_column!r}"
        )
    header = _header(*lines[0], file, sequence_column, label_column)
    letters, found_labels, numbers, ambiguous = list[str](), list[str](), list[int](), 0
    for number, line in lines[1:]:
        where = f"{file}, line {number}"
        fields = _fields(line, header.separator, where)
        _check_columns(fields, header, where)
        label = fields[header.label_at].strip()
        try:
            check_label(label)
        except ValueError as fault:
            raise ValueError(f"{where}: label {_short(label)} {fault}") from fault
        sequence, became_n = _letters(fields[header.sequence_at], where)
        letters.append(sequence)
        found_labels.append(label)
        numbers.append(number)
        ambiguous += became_n
    if not numbers:
        raise ValueError(f"{file} has a header and no rows")
    cut = not text.endswith(("\n", "\r"))
    return Table(file, tuple(letters), tuple(found_labels), tuple(numbers), ambiguous, cut)


def _text(uri: str, file: str) -> str:
    data = b"".join(compression.plain(uri))
    try:
        return decode(data)
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from fault


def _header(number: int, line: str, file: str, sequence_column: str, label_column: str) -> _Header:
    columns = (sequence_column, label_column)
    where = f"{file}, line {number}"
    found: list[list[str]] = []
    faults: list[ValueError] = []
    for separator in _SEPARATORS:
        try:
            names = [field.strip() for field in _fields(line, separator, where)]
        except ValueError as fault:  # the quotes may be right with another separator
            faults.append(fault)
            continue
        if set(columns) <= set(names):
            return _Header(number, separator, names, *(_only(names, column, where) for column in columns))
        found.append(names)
    if faults:
        raise faults[0]
    names = max(found, key=len)
    if any(_is_sequence(name) for name in names):
        raise ValueError(
            f"{file} has no header: its line {number} holds a sequence; the first line must name the "
            f"columns {' and '.join(map(repr, columns))}"
        )
    missing = next(column for column in columns if column not in names)
    listed = ", ".join(_short(name) for name in names[:_COLUMNS_SHOWN])
    more = f" and {len(names) - _COLUMNS_SHOWN:,} more" if len(names) > _COLUMNS_SHOWN else ""
    raise ValueError(f"{file} has no column {missing!r}, its columns are {listed}{more}")


def _only(names: list[str], column: str, where: str) -> int:
    places = [i for i, name in enumerate(names) if name == column]
    if len(places) > 1:
        at = " and ".join(str(i + 1) for i in places)
        raise ValueError(f"{where}: {column!r} is the name of columns {at}; rename all but one")
    return places[0]


def _fields(line: str, separator: str, where: str) -> list[str]:
    """The fields of one ``line`` that is not blank."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error as fault:
        raise ValueError(
            f"{where}: quotes are not in order ({fault}); a quoted field ends on its line, with a quote "
            "before the separator"
        ) from fault


def _check_columns(fields: list[str], header: _Header, where: str) -> None:
    """ValueError if a row has another number of fields than the header, or a value without a column."""
    if len(fields) != len(header.names):
        raise ValueError(_wrong_count(where, fields, header))
    for i, (name, field) in enumerate(zip(header.names, fields, strict=True), 1):
        # pandas and R number the rows in a column without a name.
        if not name and (value := field.strip()) and not value.isdecimal():
            raise ValueError(
                f"{where}: column {i} has no name in the header and holds {_short(value)}, which "
                f"is no number of a row; name it, or remove a {_SEPARATORS[header.separator]} too many"
            )


def _wrong_count(where: str, fields: list[str], header: _Header) -> str:
    have, want = len(fields), len(header.names)
    kind = _SEPARATORS[header.separator]
    text = f"{where}: {have:,} field{'s' * (have != 1)}, and the header names {want:,} columns"
    if fields[0].lstrip().startswith("#"):
        return f"{text}; the line looks like a comment, which a table cannot have: remove it"
    if have == want + 1 and not fields[-1].strip():
        return f"{text}: the line ends in a {kind} too many; remove it, here and wherever else"
    if have > want:
        return (
            f"{text}: a {kind} too many, or a column without a name in the header (a row name?), shifts "
            "the others"
        )
    return f"{text}: the line is cut short, or a {kind} or a quote is missing"


def _letters(field: str, where: str) -> tuple[str, int]:
    """The letters of ``field``, A, C, G, T, N in upper case; and how many other IUPAC letters became N."""
    text = field.strip()
    if text.upper() in _MISSING:
        raise ValueError(
            f"{where}: the sequence is {text!r}, as tables write a missing value; remove the row"
        )
    try:
        codes, _, ambiguous = alphabet.encode(text.encode())
    except ValueError as fault:
        raise ValueError(f"{where}: {fault}") from fault
    if not codes.size:
        raise ValueError(f"{where}: the sequence is empty")
    return alphabet.decode(codes).decode(), ambiguous


def _is_sequence(text: str) -> bool:
    try:
        return len(text) >= 8 and alphabet.encode(text.encode())[0].size > 0
    except ValueError:
        return False


def _short(text: str) -> str:
    """``text`` in quotes, cut where it is long; a sequence is not shown, only its length."""
    if _is_sequence(text):
        return f"({len(text):,} nucleotides)"
    return repr(text) if len(text) <= _FIELD_SHOWN else f"{text[:_FIELD_SHOWN]!r}... ({len(text):,} letters)"
