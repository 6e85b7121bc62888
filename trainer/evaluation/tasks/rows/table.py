"""The labelled rows of one file, checked: letters that are nucleotides, labels that the task has."""

from collections.abc import Callable
from dataclasses import dataclass

from configs import redact
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.inference.readers import labels
from trainer.inference.readers.formats import FORMATS, format_of
from trainer.inference.readers.letters import checked
from trainer.inference.readers.rows import Wanted, short


@dataclass(frozen=True)
class Table:
    """The rows of one file: letters A, C, G, T, N in upper case, labels as the task has them, and the number
    of each row's line, row or record (from 1).

    Attributes:
        unit: what ``numbers`` count: line, row or record.
        ambiguous: letters of other IUPAC codes that became N.
        cut: the last line has no end, so the file may be cut.
        variants: of a file of variants, what each row has beside its window, which are its letters.
        remark: a sentence about rows that are left out, or "".
    """

    uri: str
    letters: tuple[str, ...]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    unit: str
    ambiguous: int
    cut: bool
    variants: tuple[VariantRow, ...] = ()
    remark: str = ""

    def at(self, row: int) -> str:
        return f"{self.uri}, {self.unit} {self.numbers[row]}"


@dataclass(frozen=True)
class LabelReader:
    """How the cells of a row become its label.

    Attributes:
        known: the task's labels; empty, where any text may be one.
        check: raises ValueError for a label that the task does not have; the text follows the label.
        columns: more than one label column: each says yes or no to the label of its name. Else ().
    """

    known: tuple[str, ...]
    check: Callable[[str], object]
    columns: tuple[str, ...] = ()

    def label(self, cells: tuple[str, ...], where: str) -> str:
        """The label; ValueError, which begins with ``where``."""
        try:
            text = labels.named(cells, self.columns) if self.columns else labels.meant(cells[0], self.known)
        except ValueError as fault:
            raise ValueError(f"{where}: {fault}") from fault
        try:
            self.check(text)
        except ValueError as fault:
            raise ValueError(f"{where}: label {short(text)} {fault}") from fault
        return text


def read(uri: str, *, wanted: Wanted, label_reader: LabelReader, form: str | None = None) -> Table:
    """The table at ``uri``; ``form``: its format, a key of FORMATS, else by its name.

    Raises:
        StoreError: it cannot be read.
        ValueError: one sentence that names the file, the line, row or record, and what is wrong there.
    """
    found = FORMATS[format_of(uri, form)]
    file = redact(uri)
    letters, texts, numbers, ambiguous, cut = list[str](), list[str](), list[int](), 0, False
    for batch in found.read(uri, wanted):
        for number, sequence, cells in zip(batch.numbers, batch.sequences, batch.labels, strict=True):
            where = f"{file}, {found.unit} {number}"
            texts.append(label_reader.label(cells, where))
            sequence, became_n = checked(sequence, where)
            letters.append(sequence)
            ambiguous += became_n
        numbers.extend(batch.numbers)
        cut = batch.cut
    return Table(file, tuple(letters), tuple(texts), tuple(numbers), found.unit, ambiguous, cut)
