"""FASTA text, streamed: what it is like, and the same records with lines of one length. Memory stays a few chunks."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

WIDTH = 1 << 16  # line width of what is rewritten
LONGEST_LINE = 1 << 20  # above that, indexing would hold whole chromosomes in memory
_HEADER_MAX = 1 << 16
_LINE_END = re.compile(rb"[\r\n]")
_BLANKS = b" \t\v\f\r\n"


class Regularity:
    """Whether text fed in chunks can be indexed as it is: line ends alike, ASCII, no line over LONGEST_LINE, and no
    white space in the sequence."""

    def __init__(self) -> None:
        self._feeds = self._returns = self._since_feed = 0
        self._ascii = self._short = self._solid = True
        self._line = b""  # how the line that the next chunk goes on with starts

    def feed(self, chunk: bytes) -> None:
        feeds = chunk.count(b"\n")
        self._feeds, self._returns = self._feeds + feeds, self._returns + chunk.count(b"\r")
        self._ascii = self._ascii and chunk.isascii()
        # Lines are looked at one by one only where they may be long.
        longest = len(chunk) if not feeds else chunk.find(b"\n") if feeds > len(chunk) // 1000 else _longest(chunk)
        self._short = self._short and self._since_feed + longest <= LONGEST_LINE
        self._since_feed = len(chunk) - chunk.rfind(b"\n") - 1 if feeds else self._since_feed + len(chunk)
        self._solid = self._solid and not any(self._in_sequence(chunk, blank) for blank in (b" ", b"\t", b"\v", b"\f"))
        self._line = chunk[chunk.rfind(b"\n") + 1 :][:1] if feeds else self._line or chunk[:1]

    def _in_sequence(self, chunk: bytes, blank: bytes) -> bool:
        at = chunk.find(blank)
        while at >= 0:
            start = chunk.rfind(b"\n", 0, at) + 1
            if (chunk[start : start + 1] if start else self._line or chunk[:1]) not in (b">", b";"):
                return True
            end = chunk.find(b"\n", at)
            at = chunk.find(blank, end) if end >= 0 else -1
        return False

    def __bool__(self) -> bool:
        return self._ascii and self._short and self._solid and self._returns in (0, self._feeds)


def rewrite(chunks: Iterable[bytes], target: IO[bytes], *, uri: str) -> None:
    """The records of ``chunks`` with lines of WIDTH letters: blank lines, uneven lines and odd line ends are gone.

    A name is a header's first word. Lines before the first record are comments.

    Raises:
        ValueError: no record, a record without a readable name, or a byte that cannot be a letter; it names ``uri``.
    """
    number, name, at, carry = 0, "", 0, b""
    for header, letters in _parts(chunks, uri=uri):
        if header is not None:
            target.write(carry + b"\n" if carry else b"")
            number, carry, at = number + 1, b"", 0
            name = _name(header, number, uri=uri)
            target.write(b">" + name.encode() + b"\n")
        elif number:
            if not letters.isascii() or b">" in letters:
                wrong = next(i for i, byte in enumerate(letters) if byte > 127 or byte == ord(">"))
                raise ValueError(f"{uri}: contig {name}: byte {letters[wrong : wrong + 1]!r} at position "
                                 f"{at + wrong} is no nucleotide letter")
            at += len(letters)
            letters = carry + letters
            whole = len(letters) // WIDTH * WIDTH
            target.write(b"".join(letters[i : i + WIDTH] + b"\n" for i in range(0, whole, WIDTH)))
            carry = letters[whole:]
    target.write(carry + b"\n" if carry else b"")
    if not number:
        raise ValueError(f"{uri} is not a FASTA: no line starts with '>'")


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
                raise ValueError(f"{uri}: damaged gzip after {written} bytes of text ({fault}); get it again") from None
            written += len(text)
            if text:
                yield text
            open_member = not inflate.eof
            data = inflate.unconsumed_tail if open_member else inflate.unused_data
    if open_member:
        raise ValueError(f"{uri}: the gzip stream ends early, after {written} bytes of text; get it again")


def _parts(chunks: Iterable[bytes], *, uri: str) -> Iterator[tuple[bytes | None, bytes]]:
    """(header, b"") for each header line, (None, letters without white space) for pieces of what stands between."""
    header: io.BytesIO | None = None
    at_line_start = True
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            if header is not None:
                end = _LINE_END.search(chunk, at)
                header.write(chunk[at : end.start() if end else len(chunk)])
                if header.tell() > _HEADER_MAX:
                    raise ValueError(f"{uri} is not a FASTA: a header line is longer than {_HEADER_MAX} bytes")
                at = end.end() if end else len(chunk)
                if end:
                    yield header.getvalue(), b""
                    header, at_line_start = None, True
                continue
            if at_line_start and chunk.startswith(b">", at):
                header, at = io.BytesIO(), at + 1
                continue
            end_at = _next_header(chunk, at + 1)
            piece = chunk[at:end_at]
            at_line_start = piece.endswith((b"\n", b"\r"))
            letters = piece.replace(b"\n", b"").translate(None, _BLANKS) if _odd(piece) else piece.replace(b"\n", b"")
            if letters:
                yield None, letters
            at = end_at
    if header is not None:
        yield header.getvalue(), b""


def _next_header(chunk: bytes, at: int) -> int:
    while (at := chunk.find(b">", at)) >= 0:
        if chunk[at - 1] in b"\r\n":
            return at
        at += 1
    return len(chunk)


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
