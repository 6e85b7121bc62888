"""UCSC .2bit files, local ones, read in ranges with their soft mask. The only user of py2bit."""

import struct
from pathlib import Path

import py2bit

MAGIC = (b"\x1a\x41\x27\x43", b"\x43\x27\x41\x1a")  # either byte order


class TwoBit:
    """An open .2bit file. Handles belong to one process."""

    def __init__(self, path: str | Path, *, uri: str) -> None:
        """ValueError, naming ``uri``, for a file that is damaged or cut short."""
        self._uri = uri
        size, needed = Path(path).stat().st_size, _end(path, uri=uri)
        if size < needed:  # py2bit reads what is missing as T
            raise ValueError(f"{uri}: the .2bit file ends early, after {size} of {needed} bytes; get it again")
        try:
            self._file = py2bit.open(str(path), True)
        except RuntimeError as fault:
            raise ValueError(f"{uri}: damaged .2bit file ({' '.join(str(fault).split())}); get it again") from None

    def contigs(self) -> dict[str, int]:
        """Length of every sequence, in the file's order."""
        return {str(name): int(bp) for name, bp in self._file.chroms().items()}

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig``, lower case where soft-masked (N is upper case always).

        Raises:
            ValueError: the file is cut short.
        """
        try:
            letters: str = self._file.sequence(contig, start, end)
        except RuntimeError as fault:
            raise ValueError(f"{self._uri}: contig {contig} cannot be read ({' '.join(str(fault).split())}); "
                             "get it again") from None
        return letters.encode()


def _end(path: str | Path, *, uri: str) -> int:
    """Where the last sequence ends, by the header, the index and that sequence's record (UCSC's format description)."""
    with open(path, "rb") as file:
        try:
            order = "<" if file.read(4) == MAGIC[1] else ">"
            version, count, _ = struct.unpack(f"{order}3I", file.read(12))
            place = struct.Struct(f"{order}{'Q' if version else 'I'}")
            if not count:
                return 16  # a file without sequences, which py2bit refuses
            last = 0
            for _ in range(count):
                file.seek(file.read(1)[0], 1)
                last = max(last, place.unpack(file.read(place.size))[0])
            file.seek(last)
            (bases,) = struct.unpack(f"{order}I", file.read(4))
            for _ in range(2):  # runs of N, runs of lower case
                (runs,) = struct.unpack(f"{order}I", file.read(4))
                file.seek(8 * runs, 1)
            return file.tell() + 4 + -(-bases // 4)
        except (struct.error, IndexError):
            raise ValueError(f"{uri}: damaged .2bit file (its index is cut short); get it again") from None
