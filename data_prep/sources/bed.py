"""BED files -> intervals, line by line. A line that cannot be read is refused by its number."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from configs.values import decode
from data_prep.sources import compression

_LINE_END = re.compile(r"\r\n|\n|\r")


class Line(NamedTuple):  # a BED may have millions
    """An interval, [start, end) of ``contig``; the texts of its fourth and fifth column, or ""; its line's
    number."""

    number: int
    contig: str
    start: int
    end: int
    name: str
    score: str = ""


def read_lines(uri: str) -> list[Line]:
    """The intervals of the BED file at ``uri``, plain or compressed; blank lines, comments (#) and lines of
    ``track`` and ``browser`` are left out.

    Raises:
        StoreError: it cannot be read.
        ValueError: a line that is no interval, with its number; a compressed file that is damaged or cut
            short; or bytes that are no text.
    """
    return list(parse(b"".join(compression.plain(uri)), uri))


def parse(data: bytes, uri: str) -> Iterator[Line]:
    """The intervals in the plain bytes of the BED file at ``uri``, one after the other. ValueError as
    ``read_lines``."""
    try:
        text = decode(data)
    except ValueError as fault:
        raise ValueError(f"{uri} is not a BED file: {fault}") from fault
    return _lines(text, uri)


def _lines(text: str, uri: str) -> Iterator[Line]:
    contigs: dict[str, str] = {}  # names seen: a line with one of them and two numbers needs no further check
    for number, line in enumerate(_LINE_END.split(text), 1):
        words = line.split("\t", 5)
        plain = len(words) > 2 and words[0] in contigs and _is_number(words[1]) and _is_number(words[2])
        if not plain:
            words = [word.strip() for word in words] if len(words) > 1 else line.split(maxsplit=5)
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            is_interval = len(words) > 2 and all(map(_is_number, words[1:3]))
            if line.split()[0] in ("track", "browser") and not is_interval:
                continue
            if not is_interval or not words[0] or len(words[0].split()) > 1:
                raise ValueError(
                    f"{uri}, line {number}: needs contig, start and end, not {line[:60]!r}; start and end "
                    "are whole numbers, of digits alone"
                )
        contig, start, end = contigs.setdefault(words[0], words[0]), int(words[1]), int(words[2])
        if start > end:
            raise ValueError(
                f"{uri}, line {number}: [{start}, {end}) is no interval; BED counts from 0, half-open"
            )
        name, score = words[3].strip() if len(words) > 3 else "", words[4] if len(words) > 4 else ""
        yield Line(number, contig, start, end, name, score)


def _is_number(word: str) -> bool:
    return word.isdecimal() and word.isascii() and len(word) < 19
