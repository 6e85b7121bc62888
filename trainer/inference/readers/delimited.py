"""Rows of a CSV or TSV file. A line that cannot be read is refused by its number.

The first line names the columns; every other line is one row with as many fields, or blank. The separator is
the one of comma, tab, semicolon and bar at which the first line has all columns that are asked for.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from configs import redact
from trainer.inference.readers import rows
from trainer.inference.readers.rows import Batch, Gather, Wanted, short
from trainer.inference.readers.text import Line, lines

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


@dataclass(frozen=True)
class _Header:
    """The line that names the columns: all names, and the places of those that are asked for and of the
    others."""

    separator: str
    names: list[str]
    sequence_at: int
    labels_at: tuple[int, ...]
    others_at: tuple[int, ...]


def read(uri: str, wanted: Wanted) -> Iterator[Batch]:
    """The rows of the table at ``uri``.

    Raises:
        StoreError: it cannot be read.
        ValueError: one sentence that names the file, the line and what is wrong there.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default
    file, found = redact(uri), lines(uri)
    first = next(found, None)
    if first is None or not first.text:
        raise ValueError(f"{file} is empty; the first line must name the columns {rows.asked(wanted)}")
    header = _header(first, file, wanted)
    gather = Gather([header.names[i] for i in header.others_at] if wanted.others else None)
    number, line = 0, first
    for line in found:
        number, text, _ = line
        if not text:  # blank, at the end of a file that may be cut
            break
        where = f"{file}, line {number}"
        fields = _fields(text, header.separator, where)
        _check_columns(fields, header, where)
        labels = tuple(fields[i].strip() for i in header.labels_at)
        if gather.add(number, fields[header.sequence_at], labels, [fields[i] for i in header.others_at]):
            yield gather.take()
    if not number:
        raise ValueError(f"{file} has a header and no rows")
    yield gather.take(cut=not line.ended)


def _header(line: Line, file: str, wanted: Wanted) -> _Header:
    where = f"{file}, line {line.number}"
    found: list[list[str]] = []
    faults: list[ValueError] = []
    for separator in _SEPARATORS:
        try:
            names = [field.strip() for field in _fields(line.text, separator, where)]
        except ValueError as fault:  # the quotes may be right with another separator
            faults.append(fault)
            continue
        if set(wanted.columns) <= set(names):
            return _places(separator, names, wanted, where)
        found.append(names)
    if faults:
        raise faults[0]
    names = max(found, key=len)
    if line.text.lstrip().startswith(">"):
        raise ValueError(f"{file} looks like a FASTA: name it .fa, or set format: fasta")
    if any(rows.is_sequence(name) for name in names):
        raise ValueError(
            f"{file} has no header: its line {line.number} holds a sequence; the first line must name the "
            f"column{'s' * (len(wanted.columns) > 1)} {rows.asked(wanted)}"
        )
    raise ValueError(f"{file} {rows.missing_column(names, wanted)}")


def _places(separator: str, names: list[str], wanted: Wanted, where: str) -> _Header:
    sequence_at, *labels_at = (rows.place_of(names, column, where) for column in wanted.columns)
    others_at: tuple[int, ...] = ()
    if wanted.others:
        others_at = tuple(
            rows.place_of(names, name, where) for name in names if name and name not in wanted.columns
        )
    return _Header(separator, names, sequence_at, tuple(labels_at), others_at)


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
                f"{where}: column {i} has no name in the header and holds {short(value)}, which "
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
