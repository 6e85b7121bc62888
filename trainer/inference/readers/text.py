"""The lines of a text file as they stream in: any Unicode encoding with a mark, any line ends, plain or
compressed (data_prep.sources.compression)."""

import codecs
import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from configs import redact
from configs.values import MARKS, refuse_binary
from data_prep.sources import compression

_FIRST = 16  # bytes that tell what a file is


class Line(NamedTuple):
    """The number of a line, from 1; its text without its end; whether it has an end."""

    number: int
    text: str
    ended: bool


def lines(uri: str) -> Iterator[Line]:
    """The lines of the file at ``uri`` that are not blank; a last one without an end is given as "" if it is.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is damaged, no text, or text in another encoding; one sentence with the file and line.
    """
    before, rest = 0, ""
    for text in _decoded(uri):
        *whole, rest = (rest + text).split("\n")
        for number, line in enumerate(whole, before + 1):
            if "\0" in line:
                raise _nul(uri, number)
            if line and not line.isspace():
                yield Line(number, line, True)
        before += len(whole)
    if "\0" in rest:
        raise _nul(uri, before + 1)
    if rest:
        yield Line(before + 1, "" if rest.isspace() else rest, False)


def _decoded(uri: str) -> Iterator[str]:
    """The text in pieces, its line ends as line feeds."""
    file, chunks, first = redact(uri), compression.plain(uri), b""
    for chunk in chunks:
        first += chunk
        if len(first) >= _FIRST:
            break
    try:
        refuse_binary(first)
    except ValueError as fault:
        raise ValueError(f"{file}: {fault}") from fault
    mark, encoding = next(((mark, name) for mark, name in MARKS if first.startswith(mark)), (b"", "utf-8"))
    # Line ends are made alike behind the decoder: an end may lie across two pieces.
    decoder, ends = codecs.getincrementaldecoder(encoding)(), io.IncrementalNewlineDecoder(None, True)
    feeds = 0
    for data in itertools.chain([first[len(mark) :]], chunks, [None]):
        try:
            raw = decoder.decode(data or b"", final=data is None)
        except UnicodeDecodeError as fault:
            before = fault.object[: fault.start].decode(encoding, "replace")
            line = feeds + ends.decode(before, final=True).count("\n") + 1
            byte = fault.object[fault.start : fault.start + 1]
            raise ValueError(
                f"{file}: not text in {encoding.upper()}: line {line} has byte {byte!r}; save it as UTF-8"
            ) from fault
        text = ends.decode(raw, final=data is None)
        feeds += text.count("\n")
        yield text


def _nul(uri: str, number: int) -> ValueError:
    return ValueError(f"{redact(uri)}: not text in UTF-8: line {number} has a NUL; save it as UTF-8")
