"""FASTA text -> records, the one parser of it; and records -> FASTA text. Memory stays a few chunks.

A record is a line that begins with ``>``, whose first word is the record's name, and the letters up to the
next such line. White space in lines, blank lines, and any kind of line end mean nothing. Before the first
record there may be a byte-order mark, blank lines, and comments that begin with ``;``.
"""

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np

from configs import magic, redact
from data_prep.alphabet import Codes, encode
from data_prep.sources import compression

BLANKS = b" \t\v\f\r\n"
_HEADER_MAX = 1 << 16
_LINE_END = re.compile(rb"[\r\n]")
_LETTERS = re.compile(rb"[ACGTUN]+\s", re.IGNORECASE)
_OTHER_TEXTS = {
    b"@": "FASTQ or SAM",
    b"##gff": "GFF",
    b"##fileformat=VCF": "VCF",
    b"LOCUS ": "GenBank",
    b"ID ": "EMBL",
    b"<": "a web page",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}


class Record(NamedTuple):
    """A name, codes uint8 [n], and how many IUPAC ambiguity letters became N."""

    name: str
    codes: Codes
    ambiguous: int


class Piece(NamedTuple):
    """Some letters of record ``number`` (from 1), without white space. Each record begins with a piece that
    has none."""

    number: int
    name: str
    letters: bytes


class Writer:
    """Writes FASTA to ``file`` with lines of ``width`` letters. Call ``finish`` at the end."""

    def __init__(self, file: IO[bytes], *, width: int) -> None:
        self._file, self._width, self._carry = file, width, b""

    def start(self, header: str) -> None:
        """Begins a record."""
        self.finish()
        self._file.write(f">{header}\n".encode())

    def write(self, letters: bytes) -> None:
        """Adds letters to the record."""
        letters = self._carry + letters
        whole = len(letters) // self._width * self._width
        lines = [letters[i : i + self._width] + b"\n" for i in range(0, whole, self._width)]
        self._file.write(b"".join(lines))
        self._carry = letters[whole:]

    def finish(self) -> None:
        """Writes the last line of the record."""
        self._file.write(self._carry + b"\n" if self._carry else b"")
        self._carry = b""


def records(uri: str) -> Iterator[Record]:
    """Each record of the FASTA at ``uri``, plain or compressed, as codes; one at a time, once in memory.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is no FASTA, a record has no name, the name of another one, no letters, or a byte that
            is no letter; the message names the file and the record.
    """
    where = redact(uri)
    for (_, name), parts in itertools.groupby(pieces(text(uri), uri=where), key=lambda piece: piece[:2]):
        codes, ambiguous = bytearray(), 0
        for piece in parts:
            try:
                found, _, more = encode(piece.letters, origin=len(codes))
            except ValueError as fault:
                raise ValueError(f"{where}: record {name}: {fault}") from fault
            codes += found.data
            ambiguous += more
        if not codes:
            raise ValueError(f"{where}: record {name} has no letters")
        yield Record(name, np.frombuffer(codes, np.uint8), ambiguous)


def headed_records(uri: str) -> Iterator[tuple[int, str, str]]:
    """The number (from 1), the whole header without its ``>``, and the letters of each record of the FASTA at
    ``uri``, plain or compressed. Names may stand there twice, and letters are not checked.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is no FASTA, or a header is no text; the message names the file.
    """
    where, number, title, letters = redact(uri), 0, "", list[bytes]()
    for header, piece in _lines(_after_comments(text(uri), uri=where), uri=where):
        if header is None:
            letters.append(piece)
            continue
        if number:
            yield number, title, b"".join(letters).decode("latin-1")
        number, letters = number + 1, []
        try:
            title = header.decode().strip()
        except UnicodeDecodeError as fault:
            raise ValueError(f"{where}: the header of record {number} is not text in UTF-8") from fault
    yield number, title, b"".join(letters).decode("latin-1")


def text(uri: str) -> Iterator[bytes]:
    """The decompressed text of the FASTA at ``uri`` in chunks.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is empty, damaged, or its first bytes are not those of a FASTA.
    """
    return checked(compression.plain(uri), uri=uri)


def checked(chunks: Iterator[bytes], *, uri: str) -> Iterator[bytes]:
    """``chunks``, if their first bytes are those of a FASTA. Raises ValueError as ``text``."""
    start = next(chunks, b"")
    if not start:
        raise ValueError(f"{redact(uri)} is empty, not a FASTA")
    _refuse_other(start, uri=redact(uri))
    yield start
    yield from chunks


def pieces(chunks: Iterable[bytes], *, uri: str, number_repeated: bool = False) -> Iterator[Piece]:
    """The records of the FASTA text ``chunks``, each as a piece without letters and pieces of its letters.

    Letters are whatever bytes stand between headers: the caller checks them. With ``number_repeated`` the
    second record of the name x is called x.2, the third x.3.

    Raises:
        ValueError: no record, text before the first one, a record without a readable name, or two of one
            name; the message names ``uri``.
    """
    number, name = 0, ""
    numbers: dict[str, int] = {}
    repeated: Counter[str] = Counter()
    for header, letters in _lines(_after_comments(chunks, uri=uri), uri=uri):
        if header is not None:
            number += 1
            name = _name(header, number, uri=uri)
            repeated[name] += 1
            if number_repeated and repeated[name] > 1:
                name = f"{name}.{repeated[name]}"
            if (first := numbers.setdefault(name, number)) != number:
                raise ValueError(
                    f"{uri}: {name!r} is the name of records {first} and {number}; a name is the first word "
                    "after '>', and each record needs its own: rename or remove one; a dataset's "
                    "build can number them (repeated_names: number)"
                )
        yield Piece(number, name, letters)


def _name(header: bytes, number: int, *, uri: str) -> str:
    words = header.split()
    if not words:
        raise ValueError(f"{uri}: record {number} has no name after its '>'")
    name = words[0].decode(errors="replace")
    if not name.isprintable() or "\ufffd" in name:
        raise ValueError(f"{uri}: the name of record {number}, {words[0]!r}, is not readable text")
    return name


def _refuse_other(start: bytes, *, uri: str) -> None:
    """ValueError if a file whose text begins with ``start`` is no FASTA."""
    start = start.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS)
    if not start or start.startswith((b">", b";")):
        return
    within = magic.format_of(start)
    kind = next((kind for mark, kind in _OTHER_TEXTS.items() if start.startswith(mark)), "")
    kind = f"{within} within a compressed file" if within else kind
    what = "letters of a sequence" if _LETTERS.match(start) else repr(start[:12])
    raise ValueError(
        f"{uri} is not a FASTA: it starts with {what}, not with '>'"
        f"{f'; it looks like {kind}, which must be converted' if kind else ''}"
    )


def _after_comments(chunks: Iterable[bytes], *, uri: str) -> Iterator[bytes]:
    """``chunks`` from the first ``>`` on."""
    ahead, rest = b"", iter(chunks)
    for chunk in rest:
        ahead += chunk
        if len(ahead) < 4:  # a byte-order mark may be cut
            continue
        ahead = ahead.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS)
        while ahead.startswith(b";") and (end := _LINE_END.search(ahead)):
            ahead = ahead[end.end() :].lstrip(BLANKS)
        if len(ahead) > _HEADER_MAX or ahead[:1] not in (b";", b""):
            break
    ahead = ahead.removeprefix(codecs.BOM_UTF8).lstrip(BLANKS)
    _refuse_other(ahead, uri=uri)
    if not ahead.startswith(b">"):
        raise ValueError(f"{uri} is not a FASTA: no line starts with '>'")
    yield ahead
    yield from rest


def _lines(chunks: Iterable[bytes], *, uri: str) -> Iterator[tuple[bytes | None, bytes]]:
    """(header, b"") for each header line; (None, letters) for pieces of what stands between them."""
    header: bytearray | None = None  # of a line that goes on in the next chunk
    at_line_start = True
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            if header is not None:
                end = _LINE_END.search(chunk, at)
                header += chunk[at : end.start() if end else len(chunk)]
                if len(header) > _HEADER_MAX:
                    raise ValueError(
                        f"{uri} is not a FASTA: a header line is longer than {_HEADER_MAX} bytes"
                    )
                at = end.end() if end else len(chunk)
                if end:
                    yield bytes(header), b""
                    header, at_line_start = None, True
                continue
            end_at = _next_header(chunk, at, at_line_start)
            if piece := chunk[at:end_at]:
                at_line_start = _ends_blank(piece, at_line_start)
                if letters := _without_blanks(piece):
                    yield None, letters
            if end_at < len(chunk):
                header = bytearray()
                end_at += 1
            at = end_at
    if header is not None:
        yield bytes(header), b""


def _next_header(chunk: bytes, first: int, at_line_start: bool) -> int:
    """Where, from ``first`` on, the next > stands with only white space before it on its line; else the
    end."""
    at = chunk.find(b">", first)
    while at >= 0:
        start = at
        while start > first and chunk[start - 1] in b" \t\v\f":
            start -= 1
        if chunk[start - 1] in b"\r\n" if start > first else at_line_start:
            return at
        at = chunk.find(b">", at + 1)
    return len(chunk)


def _ends_blank(piece: bytes, before: bool) -> bool:
    """Whether only white space stands after the last line end of ``piece``; ``before``: whether that was so
    before it."""
    line = piece.rstrip(b" \t\v\f")
    return line.endswith((b"\n", b"\r")) if line else before


def _without_blanks(piece: bytes) -> bytes:
    letters = piece.replace(b"\n", b"")  # faster than translate, and mostly all that is needed
    odd = any(blank in letters for blank in (b"\r", b" ", b"\t", b"\v", b"\f"))
    return letters.translate(None, BLANKS) if odd else letters
