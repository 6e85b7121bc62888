"""UCSC .2bit files, local ones, read in ranges with their soft mask. The only user of py2bit."""

from pathlib import Path

import py2bit

MAGIC = (b"\x1a\x41\x27\x43", b"\x43\x27\x41\x1a")  # either byte order


class TwoBit:
    """An open .2bit file. Handles belong to one process."""

    def __init__(self, path: str | Path, *, uri: str) -> None:
        """ValueError, naming ``uri``, for a file that is damaged or cut short."""
        self._uri = uri
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
