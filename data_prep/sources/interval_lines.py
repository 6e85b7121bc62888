"""Intervals in text files beside a genome: repeats, scores and bedGraphs, line by line, in bounded memory.

What a file of repeats is, its lines tell: BED; RepeatMasker's .out (a header of three lines; query begin and
end in columns 6 and 7, from 1, both inclusive; class/family in column 11); UCSC's rmsk.txt (genoName,
genoStart and genoEnd in columns 6 to 8, from 0, half-open; repClass in column 12).
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from configs import redact
from data_prep.sources import compression

_LINE_END = re.compile(rb"\r\n|\n|\r")
_HEADER = re.compile(r"\s*(\w+\s+perc\s+perc\s+perc\s|score\s+div\.\s)")  # the two lines of RepeatMasker's
_DISPLAY = re.compile(r"(track|browser)(\s|$)")
_NONE_FOUND = "There were no repetitive sequences"  # then all that RepeatMasker writes


class Interval(NamedTuple):  # a file may have millions
    """[start, end) of ``contig``, what it is worth (NaN of a repeat), its repeat's class or "", its line."""

    contig: str
    start: int
    end: int
    value: float
    kind: str
    line: int


class _Format(NamedTuple):
    """``read`` gives the interval of a line's words, None of another format's line."""

    name: str
    has_classes: bool
    read: Callable[[str, int], Interval | None]


def repeats(uri: str, *, classes: Collection[str] = (), digest: Any = None) -> Iterator[Interval]:
    """The repeats in the file at ``uri``, plain or compressed: those of ``classes``, or all. ``digest`` (of
    hashlib) is fed the text.

    Raises:
        StoreError: it cannot be read.
        ValueError: a line that is no repeat, with its number; classes of a file that has none, or that are
            not in it; a compressed file that is damaged or cut short.
    """
    used: _Format | None = None
    seen = set[str]()
    for number, line in _lines(uri, digest):
        found = None if used is None else used.read(line, number)
        if found is None and (_HEADER.match(line) or line.startswith(_NONE_FOUND)):
            continue
        if used is None:
            used = next((known for known in _FORMATS if known.read(line, number)), None)
            if used is None:
                raise _no_line(uri, number, line, "a BED, a RepeatMasker .out or an rmsk table")
            if classes and not used.has_classes:
                raise ValueError(
                    f"{redact(uri)} is a BED, whose lines have no class of repeat; leave "
                    "repeats.classes out, or give RepeatMasker's .out"
                )
            found = used.read(line, number)
        if found is None:
            raise _no_line(uri, number, line, f"{used.name}, as the lines before it are")
        seen.add(found.kind)
        if not classes or found.kind in classes:
            yield _checked(found, uri)
    if absent := set(classes) - seen:
        raise ValueError(
            f"{redact(uri)} has no repeat of the class {', '.join(sorted(absent))}; "
            f"its classes are {', '.join(sorted(seen)) or 'none'}"
        )


def scores(uri: str, *, column: int, digest: Any = None) -> Iterator[Interval]:
    """The intervals of a BED or bedGraph at ``uri`` with the number in their ``column`` (from 1). ``digest``
    (of hashlib) is fed the text.

    Raises:
        StoreError: it cannot be read.
        ValueError: a line without such a number, with its number; a compressed file that is damaged.
    """
    for number, line in _lines(uri, digest):
        found = _bed(line, number)
        words = _words(line)
        try:
            value = float(words[column - 1])
        except (IndexError, ValueError):
            value = math.nan
        if found is None or not math.isfinite(value):
            raise _no_line(uri, number, line, f"contig, start, end, and a number in column {column}")
        yield _checked(found._replace(value=value), uri)


def _lines(uri: str, digest: Any) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that may hold something: no blank one, comment, track or browser line."""
    for number, raw in enumerate(_split(_fed(compression.plain(uri), digest)), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as fault:
            raise ValueError(f"{redact(uri)}, line {number}: not text in UTF-8 ({fault.reason})") from fault
        start = line.lstrip()
        if not start or start[0] == "#":
            continue
        if _DISPLAY.match(start) and _bed(line, number) is None:
            continue
        yield number, line


def _fed(pieces: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for piece in pieces:
        if digest is not None:
            digest.update(piece)
        yield piece


def _split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        # A \r at the end of a piece may be half of a \r\n.
        lines = _LINE_END.split(rest + piece) if not piece.endswith(b"\r") else [rest + piece]
        rest = lines.pop()
        yield from lines
    yield from _LINE_END.split(rest)


def _words(line: str) -> list[str]:
    return [word.strip() for word in line.split("\t")] if "\t" in line else line.split()


def _bed(line: str, number: int) -> Interval | None:
    words = _words(line)
    if len(words) < 3 or not words[0] or not (_is_number(words[1]) and _is_number(words[2])):
        return None
    return Interval(words[0], int(words[1]), int(words[2]), math.nan, "", number)


def _repeatmasker(line: str, number: int) -> Interval | None:
    words = line.split()
    if len(words) < 14 or words[8] not in ("+", "C") or words[7][0] != "(" or words[7][-1] != ")":
        return None
    if not (_is_number(words[5]) and _is_number(words[6]) and _is_number(words[7][1:-1])):
        return None
    kind = words[10].split("/", 1)[0].rstrip("?")
    return Interval(words[4], int(words[5]) - 1, int(words[6]), math.nan, kind, number)


def _rmsk(line: str, number: int) -> Interval | None:
    words = line.split("\t")
    if len(words) != 17 or not all(map(_is_number, (words[0], words[6], words[7]))) or not words[5]:
        return None
    if words[9] not in ("+", "-"):
        return None
    return Interval(words[5], int(words[6]), int(words[7]), math.nan, words[11].rstrip("?"), number)


# In this order: a line of rmsk.txt begins as a BED line does.
_FORMATS = (
    _Format("a line of RepeatMasker's .out", True, _repeatmasker),
    _Format("a line of an rmsk table", True, _rmsk),
    _Format("contig, start and end", False, _bed),
)


def _is_number(word: str) -> bool:
    return word.isdecimal() and word.isascii() and len(word) < 19


def _checked(found: Interval, uri: str) -> Interval:
    if found.start < 0 or found.start > found.end:
        raise ValueError(
            f"{redact(uri)}, line {found.line}: [{found.start}, {found.end}) is no interval, counted from 0, "
            "half-open"
        )
    return found


def _no_line(uri: str, number: int, line: str, wanted: str) -> ValueError:
    return ValueError(f"{redact(uri)}, line {number}: needs {wanted}, not {line.strip()[:60]!r}")
