"""The variants of one file with their measured effects, each in its window of the reference.

A table (CSV, TSV, Parquet) has the columns chrom, pos (from 1, as in a VCF), ref, alt, the effect, and where
``variant.window_columns`` names them, the ends of the window that was measured. A VCF has the effect in INFO.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from configs import redact
from data_prep import alphabet
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows.table import LabelReader, Table
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.inference.readers.formats import FORMATS, format_of
from trainer.inference.readers.rows import Wanted
from trainer.inference.variants.alleles import Variant
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.windows import Placed, place

_COLUMNS = ("chrom", "pos", "ref", "alt")
_SHOWN = 3  # reasons why variants are left out


class _Cells(NamedTuple):
    """A variant of the file, its number there, the text of its effect, and its measured window, if any."""

    number: int
    variant: Variant
    effect: tuple[str, ...]
    window: tuple[int, int] | None


def read(uri: str, *, config: TaskConfig, label_reader: LabelReader, genome: Genome) -> Table:
    """The variants at ``uri``; those without a score are left out, and ``Table.remarks`` says how many.

    Raises:
        StoreError: it or the reference cannot be read.
        ValueError: one sentence that names the file and line or row; or no variant is left.
    """
    file, unit = redact(uri), FORMATS[format_of(uri, config.format)].unit
    letters, labels, numbers, rows = list[str](), list[str](), list[int](), list[VariantRow]()
    left_out: Counter[str] = Counter()
    for cells in _cells(uri, config, where=f"{file}, {unit}"):
        label = label_reader.label(cells.effect, f"{file}, {unit} {cells.number}")
        placed = place(cells.variant, genome, length=config.variant.length)
        if not isinstance(placed, Placed):
            left_out[placed.partition(":")[0]] += 1
            continue
        letters.append(alphabet.decode(np.frombuffer(placed.site.codes, np.uint8)).decode())
        labels.append(label)
        numbers.append(cells.number)
        rows.append(VariantRow(placed, _from_centre(cells)))
    reasons = "; ".join(f"{count:,} {words}" for words, count in left_out.most_common(_SHOWN))
    if not rows:
        raise ValueError(f"{file} has no variant that can be scored ({reasons or 'it has none at all'})")
    remark = f"{file}: {left_out.total():,} variants are left out: {reasons}" if left_out else ""
    return Table(
        file,
        tuple(letters),
        tuple(labels),
        tuple(numbers),
        unit,
        ambiguous=0,
        cut=False,
        variants=tuple(rows),
        remark=remark,
    )


def _from_centre(cells: _Cells) -> float:
    """Letters from the middle of the variant to that of its measured window; 0 where none is given."""
    if cells.window is None:
        return 0.0
    middle = cells.variant.pos - 1 + len(cells.variant.ref) / 2
    return abs(middle - sum(cells.window) / 2)


def _cells(uri: str, config: TaskConfig, *, where: str) -> Iterator[_Cells]:
    label_column, ends = config.label_column, config.variant.window_columns or ()
    assert isinstance(label_column, str), "the config has checked it"
    wanted = Wanted(
        sequence_column=_COLUMNS[0],
        label_columns=(*_COLUMNS[1:], label_column, *ends),
    )
    for batch in FORMATS[format_of(uri, config.format)].read(uri, wanted):
        for number, chrom, cells in zip(batch.numbers, batch.sequences, batch.labels, strict=True):
            pos, ref, alt, effect, *window = (cell.strip() for cell in cells)
            here = f"{where} {number}"
            found = Variant(chrom.strip(), _whole(pos, "pos", here), ref, alt)
            start_end = None
            if window:
                start, end = (_whole(cell, name, here) for name, cell in zip(ends, window, strict=True))
                start_end = (start, end)
            yield _Cells(number, found, (effect,), start_end)


def _whole(text: str, column: str, where: str) -> int:
    if not (text.isdecimal() and text.isascii()):
        raise ValueError(f"{where}: {column} is {text[:20]!r}, and must be a whole number")
    return int(text)
