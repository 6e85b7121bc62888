"""GenBank flat files -> FASTA text, record by record. The only user of Biopython."""

import io
import warnings
from collections.abc import Iterator

from configs import redact
from data_prep.sources import compression, fasta

START = b"LOCUS "
_PIECE = 1 << 22  # letters of a piece
_SIZE = "Expected sequence length"  # how Biopython's warning of another length than LOCUS says begins


def text(chunks: Iterator[bytes], *, uri: str) -> Iterator[bytes]:
    """FASTA text of the GenBank flat file with the bytes ``chunks``: accession.version, and the letters in
    upper case, since the format has no mask (its letters are lower case always).

    Memory is that of one record. Features are not read.

    Raises:
        ValueError: damaged, cut short, or a record without letters (CONTIG alone); it names ``uri``.
    """
    from Bio.GenBank.Scanner import GenBankScanner  # only who reads GenBank needs it

    where, number = redact(uri), 0
    with io.TextIOWrapper(io.BufferedReader(compression.Reader(chunks)), encoding="latin-1") as file:
        scanner = GenBankScanner()
        while True:
            number += 1
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    record = scanner.parse(file, do_features=False)
                except (ValueError, AssertionError, AttributeError, IndexError) as fault:
                    raise _damaged(where, number, str(fault)) from fault
            if record is None:
                break
            if wrong := next((str(w.message) for w in said if str(w.message).startswith(_SIZE)), ""):
                raise _damaged(where, number, wrong)
            try:
                letters = bytes(record.seq)
            except ValueError as fault:  # Biopython's UndefinedSequenceError is one
                raise ValueError(_without(where, record.id)) from fault
            if not letters:
                raise ValueError(_without(where, record.id))
            yield f"{'' if number == 1 else chr(10)}>{record.id}\n".encode()
            yield from (letters[at : at + _PIECE] for at in range(0, len(letters), _PIECE))
    if number == 1:
        raise ValueError(f"{where} is not a GenBank file: it has no record")
    yield b"\n"


def is_genbank(start: bytes) -> bool:
    """Whether text that begins with ``start`` is a GenBank flat file."""
    return start.lstrip(fasta.BLANKS).startswith(START)


def _without(where: str, name: str) -> str:
    return (
        f"{where}: record {name} has no letters (a CONTIG line alone, as NCBI writes without 'Show sequence')"
        "; get it with its sequence (.gbff, or gbwithparts)"
    )


def _damaged(where: str, number: int, why: str) -> ValueError:
    return ValueError(
        f"{where} is a damaged GenBank file (record {number}: {' '.join(why.split()) or 'it ends early'}); "
        "get it again"
    )
