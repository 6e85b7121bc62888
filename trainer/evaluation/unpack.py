"""A file's plain bytes, whatever it is called: gzip, bzip2, xz and Zstandard are told by the first bytes."""

import bz2
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow

from cluster.storage import store
from configs import redact

_PIECE = 1 << 18  # inflated at a time: what is all one letter grows a thousandfold
_STREAMS: dict[bytes, tuple[str, Callable[[], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"BZh": ("bzip2", bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": ("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}


def plain(uri: str) -> Iterator[bytes]:
    """The decompressed bytes of the file at ``uri`` in pieces.

    Raises:
        StoreError: it cannot be read. ValueError: cut short, damaged, or another kind of archive; it names
        ``uri``.
    """
    chunks = store.chunks(uri)
    first = next(chunks, b"")
    for mark, what in _OTHERS.items():
        if first.startswith(mark):
            raise ValueError(
                f"{redact(uri)} is {what}, not text; give it as plain text, gzip, bzip2, xz or zstd"
            )
    pieces = itertools.chain([first], chunks)
    for mark, (name, new) in _STREAMS.items():
        if first.startswith(mark):
            return _inflated(pieces, name, new, uri)
    return _zstd(pieces, uri) if first.startswith(_ZSTD) else pieces


def _inflated(chunks: Iterator[bytes], name: str, new: Callable[[], Any], uri: str) -> Iterator[bytes]:
    """One stream after the other; zeros may stand between and behind them, as tapes and xz have them."""
    stream, inside = new(), False
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE):
            data = chunk[start : start + _PIECE]
            while data := data if inside else data.lstrip(b"\0"):
                try:
                    text, inside = stream.decompress(data), True
                except (zlib.error, OSError, lzma.LZMAError) as fault:
                    raise ValueError(
                        f"{redact(uri)} is a damaged {name} file ({fault}); get it again"
                    ) from fault
                if text:
                    yield text
                data = stream.unused_data
                if stream.eof:
                    stream, inside = new(), False
    if inside:
        raise ValueError(f"{redact(uri)} is a damaged {name} file: it ends early; get it again")


def _zstd(chunks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    source = pyarrow.PythonFile(_Reader(chunks), mode="r")
    try:
        with pyarrow.CompressedInputStream(source, "zstd") as stream:
            while text := stream.read(_PIECE):
                yield text
    except store.StoreError:
        raise
    except OSError as fault:  # pyarrow's own
        raise ValueError(f"{redact(uri)} is a damaged zstd file ({fault}); get it again") from fault


class _Reader(io.RawIOBase):
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or memoryview(next(self._chunks, b""))
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def lines(uri: str) -> Iterator[bytes]:
    """The lines of the decompressed text at ``uri`` without their ends: LF, CRLF or CR. Raises as ``plain``
    does."""
    begun: list[bytes] = []  # of a line that goes on in the next piece
    held = b""  # a CR whose LF may come with the next piece
    for piece in plain(uri):
        text = held + piece
        held = b"\r" if text.endswith(b"\r") else b""
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, *more = text.split(b"\n")
        begun.append(head)
        if more:
            yield b"".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    if (last := b"".join(begun)) or held:
        yield last
