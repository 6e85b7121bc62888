"""Sequences without labels, with their other columns, as they stream in: what a model is to predict."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs import redact
from trainer.inference.readers.formats import FORMATS, format_of
from trainer.inference.readers.letters import checked
from trainer.inference.readers.rows import Wanted


@dataclass(frozen=True)
class SequenceChunk:
    """Some rows of a file, in its order.

    Attributes:
        letters: A, C, G, T, N in upper case.
        others: a pyarrow table of the other columns (of a FASTA: ``name``): text from text files, their own
            types from Parquet.
        numbers: of each row's line, row or record, from 1.
        ambiguous: how many other IUPAC letters became N.
        cut: the last line of the file has no end, so the file may be cut.
    """

    letters: list[str]
    others: Any
    numbers: list[int]
    ambiguous: int
    cut: bool


def read_sequences(
    uri: str,
    *,
    sequence_column: str = "sequence",
    reference: str | None = None,
    form: str | None = None,
    quiet: bool = False,
) -> Iterator[SequenceChunk]:
    """The rows of the file at ``uri`` in chunks.

    Args:
        form: its format, a key of FORMATS, else by its name.
        quiet: what a user should know of it was said before.

    Raises:
        StoreError: it cannot be read.
        ValueError: one sentence that names the file, the line, row or record, and what is wrong there.
    """
    found, file = FORMATS[format_of(uri, form)], redact(uri)
    wanted = Wanted(sequence_column=sequence_column, reference=reference, others=True, quiet=quiet)
    for batch in found.read(uri, wanted):
        letters, ambiguous = list[str](), 0
        for number, sequence in zip(batch.numbers, batch.sequences, strict=True):
            text, became_n = checked(sequence, f"{file}, {found.unit} {number}")
            letters.append(text)
            ambiguous += became_n
        yield SequenceChunk(letters, batch.others, list(batch.numbers), ambiguous, batch.cut)
