"""bgzip (BGZF of the SAM specification): gzip members of at most 64 KiB of text, then an empty one.

htslib's own writer takes paths alone, and where a disk is full it complains on stderr a second time, when it
is deleted.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO

END = bytes.fromhex(
    "1f8b08040000000000ff0600424302001b0003000000000000000000"
)  # the empty block, as htslib's
_TEXT = 0xFF00  # bytes of text in a block, as htslib has them: also what does not get smaller fits in
_HEADER = struct.Struct("<4BI2BH2B2H")  # of a gzip member with the extra field BC, which holds its size - 1
_TRAILER = struct.Struct("<2I")


def is_bgzip(start: bytes) -> bool:
    """Whether a file that begins so (at least 14 bytes) is bgzip."""
    return start[:4] == END[:4] and start[12:14] == b"BC"


@contextlib.contextmanager
def opened(file: IO[bytes]) -> Iterator["Writer"]:
    """A writer to ``file``, which stays open; the last block is written when the context ends well."""
    writer = Writer(file)
    yield writer
    writer.finish()


class Writer:
    """The same text gives the same bytes, however it is cut."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._text = file, bytearray()

    def write(self, text: bytes) -> None:
        self._text += text
        whole = len(self._text) // _TEXT * _TEXT
        for start in range(0, whole, _TEXT):
            self._file.write(_block(bytes(self._text[start : start + _TEXT])))
        del self._text[:whole]

    def finish(self) -> None:
        """Writes what is left, and the empty block."""
        if self._text:
            self._file.write(_block(bytes(self._text)))
        self._file.write(END)


def _block(text: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(text) + packer.flush()
    size = _HEADER.size + len(packed) + _TRAILER.size
    header = _HEADER.pack(0x1F, 0x8B, 8, 4, 0, 0, 0xFF, 6, ord("B"), ord("C"), 2, size - 1)
    return header + packed + _TRAILER.pack(zlib.crc32(text), len(text))
