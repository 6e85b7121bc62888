"""FASTA text, streamed: what it is like, and the same records with lines of one length. Memory stays a few
chunks."""

import codecs
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

WIDTH = 1 << 16  # line width of what is rewritten
LONGEST_LINE = 1 << 20  # above that, indexing would hold whole chromosomes in memory
_HEADER_MAX = 1 << 16
_LINE_END = re.compile(rb"[\r\n]")
_LETTERS = re.compile(rb"[ACGTUN]+\s", re.IGNORECASE)
_BLANKS = b" \t\v\f\r\n"
_PARTING = (b"\x1c", b"\x1d", b"\x1e", b"\x1f")  # part words for pyfaidx, who would cut a name there


class Regularity:
    """Whether text fed in chunks can be indexed as it is: a record from the first byte on, line ends alike,
    ASCII, no line over LONGEST_LINE, and no white space in the sequence."""

    def __init__(self) -> None:
        self._feeds = self._returns = self._pairs = self._since_feed = 0
        self._ascii = self._short = self._solid = True
        self._first = self._last = b""
        self._line = b""  # how the line that the next chunk goes on with starts

    def feed(self, chunk: bytes) -> None:
        feeds, returns = chunk.count(b"\n"), chunk.count(b"\r")
        self._feeds, self._returns = self._feeds + feeds, self._returns + returns
        self._pairs += (chunk.count(b"\r\n") if returns else 0) + (
            self._last == b"\r" and chunk.startswith(b"\n")
        )
        self._first, self._last = self._first or chunk[:1], chunk[-1:]
        self._ascii = self._ascii and chunk.isascii()
        # Lines are looked at one by one only where they may be long.
        longest = (
            len(chunk) if not feeds else chunk.find(b"\n") if feeds > len(chunk) // 1000 else _longest(chunk)
        )
        self._short = self._short and self._since_feed + longest <= LONGEST_LINE
        self._since_feed = len(chunk) - chunk.rfind(b"\n") - 1 if feeds else self._since_feed + len(chunk)
        self._solid = self._solid and not any(
            self._in_sequence(chunk, blank) for blank in (b" ", b"\t", b"\v", b"\f")
        )
        self._solid = self._solid and not any(byte in chunk for byte in _PARTING)
        self._line = chunk[chunk.rfind(b"\n") + 1 :][:1] if feeds else self._line or chunk[:1]

    def _in_sequence(self, chunk: bytes, blank: bytes) -> bool:
        at = chunk.find(blank)
        while at >= 0:
            start = chunk.rfind(b"\n", 0, at) + 1
            if (chunk[start : start + 1] if start else self._line or chunk[:1]) != b">":
                return True
            end = chunk.find(b"\n", at)
            at = chunk.find(blank, end) if end >= 0 else -1
        return False

    def __bool__(self) -> bool:
        ends_alike = not self._returns or self._returns == self._feeds == self._pairs
        return self._first == b">" and self._ascii and self._short and self._solid and ends_alike


def rewrite(chunks: Iterable[bytes], target: IO[bytes], *, uri: str) -> None:
    """The records of ``chunks`` with lines of WIDTH letters: blank lines, uneven lines, white space at the
    start of a line, odd line ends, and a byte-order mark are gone.

    A name is a header's first word. Before the first record there may be blank lines, and comments that begin
    with ;.

    Raises:
        ValueError: no record, text before the first one, a record without a readable name, or a byte that
            cannot be a letter; it names ``uri``.
    """
    number, name, at, carry = 0, "", 0, b""
    for header, letters in _parts(_after_comments(chunks, uri=uri), uri=uri):
        if header is not None:
            target.write(carry + b"\n" if carry else b"")
            number, carry, at = number + 1, b"", 0
            name = _name(header, number, uri=uri)
            target.write(b">" + name.encode() + b"\n")
        else:
            if not letters.isascii() or b">" in letters:
                wrong = next(i for i, byte in enumerate(letters) if byte > 127 or byte == ord(">"))
                raise ValueError(
                    f"{uri}: contig {name}: byte {letters[wrong : wrong + 1]!r} at position "
                    f"{at + wrong} is no nucleotide letter"
                )
            at += len(letters)
            letters = carry + letters
            whole = len(letters) // WIDTH * WIDTH
            target.write(b"".join(letters[i : i + WIDTH] + b"\n" for i in range(0, whole, WIDTH)))
            carry = letters[whole:]
    target.write(carry + b"\n" if carry else b"")


def gunzip(chunks: Iterable[bytes], *, uri: str, size: int = 1 << 22) -> Iterator[bytes]:
    """The text of gzip ``chunks``, one member or many (bgzip), in pieces of at most ``size`` bytes.

    Raises:
        ValueError: damaged or cut short; it names ``uri``.
    """
    written, open_member, members = 0, False, 0
    for chunk in chunks:
        data = chunk
        while data:
            if not open_member:
                # gzip allows zeros after a member, as tapes have them.
                data = data.lstrip(b"\0") if members else data
                if not data:
                    break
                inflate, open_member, members = zlib.decompressobj(wbits=31), True, members + 1
            try:
                text = inflate.decompress(data, size)
            except zlib.error as fault:
                raise ValueError(
                    f"{uri}: damaged gzip after {written} bytes of text ({fault}); get it again"
                ) from None
            written += len(text)
            if text:
                yield text
            open_member = not inflate.eof
            data = inflate.unconsumed_tail if open_member else inflate.unused_data
    if open_member:
        raise ValueError(f"{uri}: the gzip stream ends early, after {written} bytes of text; get it again")


_OTHERS = (
    (b"@", "FASTQ or SAM"),
    (b"##gff", "GFF"),
    (b"##fileformat=VCF", "VCF"),
    (b"LOCUS ", "GenBank"),
    (b"ID ", "EMBL"),
    (b"<", "a web page"),
    (b"PK\3\4", "a zip archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"BAM\1", "BAM"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip within gzip"),
    (b"CRAM", "CRAM"),
    (b"\x43\x27\x41\x1a", ".2bit within gzip"),
    (b"\x1a\x41\x27\x43", ".2bit within gzip"),
    (codecs.BOM_UTF16_LE, "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "UTF-16 text"),
)


def refuse_other(start: bytes, *, uri: str) -> None:
    """ValueError, naming ``uri``, if what starts so is no FASTA. A byte-order mark and blank lines may be
    there."""
    start = start.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
    if start and not start.startswith((b">", b";")):
        kind = next((kind for mark, kind in _OTHERS if start.startswith(mark)), "")
        what = "letters of a sequence" if _LETTERS.match(start) else repr(start[:12])
        raise ValueError(
            f"{uri} is not a FASTA: it starts with {what}, not with '>'"
            f"{f'; it looks like {kind}, and is to be converted' if kind else ''}"
        )


def _after_comments(chunks: Iterable[bytes], *, uri: str) -> Iterator[bytes]:
    """``chunks`` from the first ``>`` on, before which only a byte-order mark, blank lines and comments may
    stand."""
    ahead, rest = b"", iter(chunks)
    for chunk in rest:
        ahead += chunk
        if len(ahead) < 4:  # a mark may be cut
            continue
        ahead = ahead.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
        while ahead.startswith(b";") and (end := _LINE_END.search(ahead)):
            ahead = ahead[end.end() :].lstrip(_BLANKS)
        if len(ahead) > _HEADER_MAX or ahead[:1] not in (b";", b""):
            break
    refuse_other(ahead, uri=uri)
    if not ahead.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS).startswith(b">"):
        raise ValueError(f"{uri} is not a FASTA: no line starts with '>'")
    yield ahead.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
    yield from rest


def _parts(chunks: Iterable[bytes], *, uri: str) -> Iterator[tuple[bytes | None, bytes]]:
    """(header, b"") for each header line, (None, letters without white space) for pieces of what stands
    between. White space before the > of a header is none of it."""
    header: io.BytesIO | None = None
    at_line_start = True
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            if header is not None:
                end = _LINE_END.search(chunk, at)
                header.write(chunk[at : end.start() if end else len(chunk)])
                if header.tell() > _HEADER_MAX:
                    raise ValueError(
                        f"{uri} is not a FASTA: a header line is longer than {_HEADER_MAX} bytes"
                    )
                at = end.end() if end else len(chunk)
                if end:
                    yield header.getvalue(), b""
                    header, at_line_start = None, True
                continue
            end_at = _next_header(chunk, at, at_line_start)
            piece = chunk[at:end_at]
            if piece:
                at_line_start = _ends_blank(piece, at_line_start)
                odd = _odd(piece)
                letters = (
                    piece.replace(b"\n", b"").translate(None, _BLANKS) if odd else piece.replace(b"\n", b"")
                )
                if letters:
                    yield None, letters
            if end_at < len(chunk):
                header = io.BytesIO()
                end_at += 1
            at = end_at
    if header is not None:
        yield header.getvalue(), b""


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
    """Whether nothing but white space stands behind the last line end of ``piece``; ``before``: was that so
    before?"""
    line = piece.rstrip(b" \t\v\f")
    return line.endswith((b"\n", b"\r")) if line else before


def _odd(piece: bytes) -> bool:
    return any(blank in piece for blank in (b"\r", b" ", b"\t", b"\v", b"\f"))


def _name(header: bytes, number: int, *, uri: str) -> str:
    words = header.split()
    if not words:
        raise ValueError(f"{uri}: record {number} has no name after its '>'")
    name = words[0].decode(errors="replace")
    if not name.isprintable() or "\ufffd" in name:
        raise ValueError(f"{uri}: the name of record {number}, {words[0]!r}, is not readable text")
    return name


def _longest(chunk: bytes) -> int:
    return max(map(len, chunk.split(b"\n")))
