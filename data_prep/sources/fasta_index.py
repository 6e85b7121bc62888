"""FASTA text made readable in ranges: an index of a file as it is, or of a copy with even lines. The only
user of pyfaidx."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from data_prep.sources import fasta

WIDTH = 1 << 16  # letters of a line of what is rewritten
LONGEST_LINE = 1 << 20  # of a longer line, indexing would hold a whole chromosome in memory
_SPLITS_NAMES = (b"\x1c", b"\x1d", b"\x1e", b"\x1f")  # pyfaidx would cut a name there
# A record's last letter and all that may follow it: the next header, or the end of the file.
_GAP, _END = re.compile(rb"[^\r\n]\r?\n>[^\n]*\n"), re.compile(rb"[^\r\n](\r?\n)?")


class IndexedFasta:
    """An open FASTA with its index. Handles belong to one process."""

    def __init__(self, path: str, index: str) -> None:
        from pyfaidx import Faidx  # only who reads a reference in ranges needs it

        self._faidx = Faidx(path, indexname=index, as_raw=True, build_index=False, rebuild=False)

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig``."""
        return str(self._faidx.fetch(contig, start + 1, end)).encode()


def write_index(path: str, index: Path) -> dict[str, int] | None:
    """The length of each record of the FASTA at ``path``, whose .fai is now at ``index``; None, and no .fai,
    where pyfaidx cannot index the file as it is."""
    from pyfaidx import Faidx, FastaIndexingError  # only who reads a reference in ranges needs it

    with tempfile.TemporaryDirectory(dir=index.parent) as folder:
        # pyfaidx writes in place; after a rename other processes see a whole index or none.
        fresh = Path(folder) / "fai"
        try:
            faidx = Faidx(path, indexname=str(fresh), as_raw=True)
            entries = dict(faidx.index)
            faidx.close()
        except (FastaIndexingError, RuntimeError, ValueError):  # uneven or blank lines, a name twice
            return None
        if not all(map(str.isprintable, entries)) or not _is_even(path, list(entries.values())):
            return None
        os.replace(fresh, index)
    return {name: int(entry.rlen) for name, entry in entries.items()}


def _is_even(path: str, entries: list[Any]) -> bool:
    """Whether no record's last line is longer than its others: pyfaidx would misread it."""
    size = os.path.getsize(path)
    limits = [*(entry.offset for entry in entries[1:]), size]
    with open(path, "rb") as file:
        for entry, limit in zip(entries, limits, strict=True):
            if not entry.rlen:
                continue
            end = entry.offset + entry.rlen + (entry.rlen - 1) // entry.lenc * (entry.lenb - entry.lenc)
            file.seek(end - 1)
            gap = file.read(max(0, limit - end + 1))
            if end > size or not (_END if entry is entries[-1] else _GAP).fullmatch(gap):
                return False
    return True


def rewrite(chunks: Iterable[bytes], target: IO[bytes], *, uri: str, number_repeated: bool = False) -> None:
    """The records of the FASTA text ``chunks``, written to ``target`` with lines of WIDTH letters and headers
    of a name alone, as ``fasta.pieces`` names them.

    Raises:
        ValueError: as ``fasta.pieces``, or a byte that cannot be a letter; the message names ``uri``.
    """
    writer, number, at = fasta.Writer(target, width=WIDTH), 0, 0
    for piece in fasta.pieces(chunks, uri=uri, number_repeated=number_repeated):
        if piece.number != number:
            number, at = piece.number, 0
            writer.start(piece.name)
        letters = piece.letters
        if not letters.isascii() or b">" in letters:
            wrong = next(i for i, byte in enumerate(letters) if byte > 127 or byte == ord(">"))
            raise ValueError(
                f"{uri}: contig {piece.name}: byte {letters[wrong : wrong + 1]!r} at position "
                f"{at + wrong} is no nucleotide letter"
            )
        at += len(letters)
        writer.write(letters)
    writer.finish()


class Regularity:
    """Whether text fed in chunks can be indexed as it is: a record from the first byte on, line ends alike,
    ASCII, no line over LONGEST_LINE, and no white space in the sequence."""

    def __init__(self) -> None:
        self._feeds = self._returns = self._pairs = self._since_feed = 0
        self._ascii = self._short = self._solid = True
        self._first = self._last = b""
        self._line = b""  # the first byte of the line that the next chunk continues

    def feed(self, chunk: bytes) -> None:
        feeds, returns = chunk.count(b"\n"), chunk.count(b"\r")
        self._feeds, self._returns = self._feeds + feeds, self._returns + returns
        self._pairs += (chunk.count(b"\r\n") if returns else 0) + (
            self._last == b"\r" and chunk.startswith(b"\n")
        )
        self._first, self._last = self._first or chunk[:1], chunk[-1:]
        self._ascii = self._ascii and chunk.isascii()
        self._short = self._short and self._since_feed + _longest_line(chunk, feeds) <= LONGEST_LINE
        self._since_feed = len(chunk) - chunk.rfind(b"\n") - 1 if feeds else self._since_feed + len(chunk)
        self._solid = self._solid and not any(
            self._in_sequence(chunk, blank) for blank in (b" ", b"\t", b"\v", b"\f")
        )
        self._solid = self._solid and not any(byte in chunk for byte in _SPLITS_NAMES)
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


def _longest_line(chunk: bytes, feeds: int) -> int:
    """The longest line of ``chunk``, which has ``feeds`` line ends; where it has many, only its first line is
    measured, since the others are short on average."""
    if not feeds:
        return len(chunk)
    return chunk.find(b"\n") if feeds > len(chunk) // 1000 else max(map(len, chunk.split(b"\n")))
