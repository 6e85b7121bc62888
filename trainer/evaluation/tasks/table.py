"""The rows of a CSV or TSV file with labelled sequences. What is not understood is refused by line, never
passed over.

The first line names the columns; every other line is one row with as many fields, or blank. The separator is
the one of comma, tab, semicolon and bar at which the first line has both columns that are asked for. UTF-8,
or UTF-16 with its mark; any line ends; plain or compressed (see unpack).
"""

import csv
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from configs import redact
from configs.values import decode
from data_prep import alphabet
from trainer.evaluation import unpack

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_LINE_END = re.compile("\r\n|\r|\n")  # str.splitlines knows more, which may stand inside a field
_MISSING = {
    "NA",
    "NAN",
}  # the only ones of pandas' and R's words for a missing value that are nucleotide letters, too
_SHOWN = 40  # letters of a field in a message
_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Table:
    """The rows of one file: upper-case A, C, G, T, N; the labels as the file has them; the line of each row
    (from 1).

    ``ambiguous``: letters of other IUPAC codes that became N. ``cut``: the last line has no end, as in a cut
    file.
    """

    uri: str
    letters: tuple[str, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    ambiguous: int
    cut: bool

    def at(self, row: int) -> str:
        return f"{self.uri}, line {self.lines[row]}"


def read(uri: str, *, sequence_column: str, label_column: str, check_label: Callable[[str], object]) -> Table:
    """The table at ``uri``; ``check_label`` raises ValueError for a label that the task does not have.

    Raises:
        StoreError: it cannot be read. ValueError: one sentence that names the file, the line and what is
        wrong there.
    """
    shown = redact(uri)
    text, lines = _text(uri, shown)
    if not text.strip():
        raise ValueError(
            f"{shown} is empty; the first line must name the columns {sequence_column!r} and {label_column!r}"
        )
    number, separator, names = _header(lines, shown, sequence_column, label_column)
    sequence_at, label_at = (
        _only(names, column, f"{shown}, line {number}") for column in (sequence_column, label_column)
    )
    nameless = [i for i, name in enumerate(names) if not name]  # pandas and R number the rows in one
    rows: list[tuple[str, str, int]] = []
    ambiguous = 0
    for line, fields in _rows(lines, number, separator, shown):
        where = f"{shown}, line {line}"
        if len(fields) != len(names):
            raise ValueError(_odd_count(where, fields, names, separator))
        for i in nameless:
            if (value := fields[i].strip()) and not value.isdecimal():
                raise ValueError(
                    f"{where}: column {i + 1} has no name in the header and holds {_short(value)}, which "
                    f"is no number of a row; name it, or remove a {_SEPARATORS[separator]} too many"
                )
        label = fields[label_at].strip()
        try:
            check_label(label)
        except ValueError as fault:
            raise ValueError(f"{where}: label {_short(label)} {fault}") from fault
        letters, odd = _letters(fields[sequence_at], where)
        ambiguous += odd
        rows.append((letters, label, line))
    if not rows:
        raise ValueError(f"{shown} has a header and no rows")
    letters_of, label_of, line_of = zip(*rows, strict=True)
    return Table(shown, letters_of, label_of, line_of, ambiguous, not text.endswith(("\n", "\r")))


def _text(uri: str, shown: str) -> tuple[str, list[str]]:
    """The text without its mark, and its lines without their ends."""
    data = b"".join(unpack.plain(uri))
    try:
        text = decode(data)
    except ValueError as fault:
        raise ValueError(f"{shown}: {fault}") from fault
    return text, _LINE_END.split(text)


def _header(lines: list[str], shown: str, *columns: str) -> tuple[int, str, list[str]]:
    """(line number, separator, names of the columns) of the first line that is not blank."""
    number = next(i for i, line in enumerate(lines, 1) if line.strip())
    line = lines[number - 1]
    found: dict[str, list[str]] = {}
    faults: list[ValueError] = []
    for separator in _SEPARATORS:
        try:
            _, fields = next(_rows([line], 0, separator, shown, first=number))
        except ValueError as fault:  # quotes may be in order with another separator
            faults.append(fault)
            continue
        found[separator] = [field.strip() for field in fields]
        if set(columns) <= set(found[separator]):
            return number, separator, found[separator]
    if faults:
        raise faults[0]
    names = max(found.values(), key=len)
    if any(_is_sequence(name) for name in names):
        raise ValueError(
            f"{shown} has no header: its line {number} holds a sequence; the first line must name the "
            f"columns {' and '.join(map(repr, columns))}"
        )
    missing = next(column for column in columns if column not in names)
    listed = ", ".join(_short(name) for name in names[:_COLUMNS_SHOWN])
    more = f" and {len(names) - _COLUMNS_SHOWN:,} more" if len(names) > _COLUMNS_SHOWN else ""
    raise ValueError(f"{shown} has no column {missing!r}, its columns are {listed}{more}")


def _only(names: list[str], column: str, where: str) -> int:
    places = [i for i, name in enumerate(names) if name == column]
    if len(places) > 1:
        at = " and ".join(str(i + 1) for i in places)
        raise ValueError(f"{where}: {column!r} is the name of columns {at}; rename all but one")
    return places[0]


def _rows(
    lines: list[str], after: int, separator: str, shown: str, *, first: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line behind the first ``after`` that is not blank. The first line is
    ``first``."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default
    at = after

    def feed() -> Iterator[str]:
        nonlocal at
        for line in lines[after:]:
            at += 1
            if line.strip():
                yield line

    start = after
    reader = csv.reader(feed(), delimiter=separator, strict=True)
    while True:
        read_before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            line = _opened(lines, start, at)
            raise ValueError(
                f"{shown}, line {line + first - 1}: quotes are not in order ({fault}); a quoted field "
                "ends on its line, with a quote before the separator"
            ) from fault
        if reader.line_num > read_before + 1:
            raise ValueError(
                f"{shown}, line {_opened(lines, start, at) + first - 1}: a quoted field goes on to line "
                f"{at + first - 1}; each row must be one line"
            )
        start = at
        yield at + first - 1, fields


def _opened(lines: list[str], start: int, end: int) -> int:
    """The number of the first line behind ``start`` that is not blank."""
    return next((i for i in range(start + 1, end + 1) if lines[i - 1].strip()), end)


def _odd_count(where: str, fields: list[str], names: list[str], separator: str) -> str:
    have, want = len(fields), len(names)
    kind = _SEPARATORS[separator]
    text = f"{where}: {have:,} field{'s' * (have != 1)}, and the header names {want:,} columns"
    if fields[0].lstrip().startswith("#"):
        return f"{text}; the line looks like a comment, which a table cannot have: remove it"
    if have == want + 1 and not fields[-1].strip():
        return f"{text}: the line ends in a {kind} too many; remove it, here and wherever else"
    if have > want:
        return (
            f"{text}: a {kind} too many, or a column without a name in the header (a row name?), shifts "
            f"the others"
        )
    return f"{text}: the line is cut short, or a {kind} or a quote is missing"


def _letters(field: str, where: str) -> tuple[str, int]:
    """A, C, G, T, N alone, upper case; and how many other IUPAC letters became N."""
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
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} letters)"
