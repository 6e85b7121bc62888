"""Sequences as codes, with their other columns, as they stream in: FASTA, .2bit, BED, tables and Parquet.

A record of a FASTA or .2bit may be a chromosome. It is held once, a byte for each letter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.process.progress import say
from cluster.storage import store
from configs import magic, redact
from data_prep import alphabet
from data_prep.sources import compression, fasta
from data_prep.sources import reference as genomes
from trainer.inference.readers.formats import format_of
from trainer.inference.readers.stream import read_sequences

_BATCH_ROWS = 1024
_BATCH_LETTERS = 1 << 22
_PIECE = 1 << 24  # letters of a contig of a .2bit that are decoded at once
_FASTA_STARTS = (b">", b";")


@dataclass(frozen=True)
class CodedRows:
    """Some rows of a file, in its order.

    Attributes:
        codes: uint8 [n] of each row; A, C, G, T, N.
        others: the other columns (of FASTA and .2bit: ``name``), text from text files.
        ambiguous: how many other IUPAC letters became N.
        cut: the last line of the file has no end, so the file may be cut.
    """

    codes: list[alphabet.Codes]
    others: pa.Table
    ambiguous: int
    cut: bool = False


def kind_of(uri: str) -> str:
    """The word twobit, or a key of FORMATS: by the name of the file, or, where that says nothing, by its
    first bytes. StoreError: it cannot be read."""
    form = format_of(uri)
    if form != "table":
        return form
    with store.open_read(uri) as file:
        if magic.format_of(file.read(16)) == magic.TWOBIT:
            return "twobit"
    start = next(compression.plain(uri), b"").removeprefix(b"\xef\xbb\xbf").lstrip(fasta.BLANKS)
    return "fasta" if start.startswith(_FASTA_STARTS) else form


def read_codes(
    uri: str, *, sequence_column: str = "sequence", reference: str | None = None, quiet: bool = False
) -> Iterator[CodedRows]:
    """The rows of the file at ``uri``, at least one. ``quiet``: what a user should know was said before.

    Raises:
        StoreError: it cannot be read.
        ValueError: one sentence that names the file, the line, row or record, and what is wrong there.
    """
    kind = kind_of(uri)
    if kind == "fasta":
        return _batches(fasta.records(uri))
    if kind == "twobit":
        return _batches(_contigs(uri, quiet))
    return _rows(uri, sequence_column, reference, quiet)


def _rows(uri: str, sequence_column: str, reference: str | None, quiet: bool) -> Iterator[CodedRows]:
    for chunk in read_sequences(uri, sequence_column=sequence_column, reference=reference, quiet=quiet):
        codes = [alphabet.encode(letters.encode())[0] for letters in chunk.letters]
        yield CodedRows(codes, chunk.others, chunk.ambiguous, chunk.cut)


def _batches(records: Iterator[fasta.Record]) -> Iterator[CodedRows]:
    names, codes, letters, ambiguous = list[str](), list[alphabet.Codes](), 0, 0
    for record in records:
        names.append(record.name)
        codes.append(record.codes)
        letters += len(record.codes)
        ambiguous += record.ambiguous
        del record  # it may be large, and the next one is read while this function waits
        if len(names) >= _BATCH_ROWS or letters >= _BATCH_LETTERS:
            rows = CodedRows(codes, pa.table({"name": pa.array(names, pa.string())}), ambiguous)
            names, codes, letters, ambiguous = [], [], 0, 0
            yield rows
            del rows
    if names:
        yield CodedRows(codes, pa.table({"name": pa.array(names, pa.string())}), ambiguous)


def _contigs(uri: str, quiet: bool) -> Iterator[fasta.Record]:
    """The contigs of the .2bit at ``uri``."""
    located, file = genomes.locate(uri), redact(uri)
    if located.empty_records and not quiet:
        say(f"{file}: {located.empty_records:,} of its sequences have no letters and are left out")
    for name, bp in located.contigs.items():
        codes, ambiguous = bytearray(), 0
        for start in range(0, bp, _PIECE):
            letters = genomes.fetch(located.handle, name, start, min(start + _PIECE, bp))
            try:
                found, _, more = alphabet.encode(letters, origin=start)
            except ValueError as fault:
                raise ValueError(f"{file}: contig {name}: {fault}") from fault
            codes += found.data
            ambiguous += more
        yield fasta.Record(name, np.frombuffer(codes, np.uint8), ambiguous)
