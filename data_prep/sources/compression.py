"""The plain bytes of a file. Its first bytes, not its name, tell gzip, bzip2, xz and Zstandard."""

import bz2
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from cluster.storage import store
from configs import magic, redact

_PIECE = 1 << 22  # bytes of text at most in a piece: a file of one letter grows a thousandfold


def plain(uri: str) -> Iterator[bytes]:
    """The decompressed bytes of the file at ``uri``, in pieces.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is damaged, cut short, or of a format that holds no text; the message names ``uri``.
    """
    chunks = store.chunks(uri)
    first = next(chunks, b"")
    return decompress(itertools.chain([first], chunks), kind=magic.format_of(first), uri=uri)


def decompress(chunks: Iterator[bytes], *, kind: str, uri: str, size: int = _PIECE) -> Iterator[bytes]:
    """The plain bytes of ``chunks``, which are in format ``kind`` ("" for text): compressed ones in pieces of
    at most ``size`` bytes. Raises ValueError as ``plain`` does."""
    if kind in _DECOMPRESSORS:
        return _streams(chunks, kind, redact(uri), size)
    if kind == "zstd":
        return _zstd(chunks, redact(uri), size)
    if kind:
        formats = f"{', '.join(magic.COMPRESSED[:-1])} or {magic.COMPRESSED[-1]}"
        raise ValueError(f"{redact(uri)} is {kind}, not text; give it as plain text, {formats}")
    return chunks


class _Gzip:
    """zlib's decompressor of one gzip member, with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}


def _streams(chunks: Iterator[bytes], kind: str, where: str, size: int) -> Iterator[bytes]:
    """One stream after another (bgzip is many). Zeros may follow a stream, as tapes and xz have them."""
    stream: Any = None
    written = 0
    for chunk in chunks:
        data = chunk
        while data or (stream and not stream.needs_input):
            if stream is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                stream = _DECOMPRESSORS[kind]()
            try:
                text = stream.decompress(data, size)
            except (zlib.error, OSError, lzma.LZMAError) as fault:
                raise _damaged(where, kind, written, str(fault)) from fault
            written += len(text)
            if text:
                yield text
            data = stream.unused_data  # empty until the stream ends
            if stream.eof:
                stream = None
    if stream:
        raise _damaged(where, kind, written, "it ends early")


def _zstd(chunks: Iterator[bytes], where: str, size: int) -> Iterator[bytes]:
    import pyarrow  # slow to import, and only needed here

    written = 0
    source = pyarrow.PythonFile(Reader(chunks), mode="r")
    try:
        with pyarrow.CompressedInputStream(source, "zstd") as stream:
            while text := stream.read(size):
                written += len(text)
                yield text
    except store.StoreError:
        raise
    except OSError as fault:  # pyarrow's own
        raise _damaged(where, "zstd", written, str(fault)) from fault


def _damaged(where: str, kind: str, written: int, why: str) -> ValueError:
    return ValueError(
        f"{where} is a damaged {kind} file ({why}, after {written} bytes of text); get it again"
    )


class Reader(io.RawIOBase):
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
