"""The variants of one file with their measured effects, each in its window of the reference.

A table (CSV, TSV, Parquet) has the columns chrom, pos (from 1, as in a VCF), ref, alt, the effect, and where
``variant.window_columns`` names them, the ends of the window that was measured. A VCF has the effect in INFO.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cluster.storage import store
from configs import redact
from data_prep import alphabet
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows.table import LabelReader, Table
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.inference.readers.formats import FORMATS, format_of
from trainer.inference.readers.rows import Wanted
from trainer.inference.variants.alleles import Variant
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.vcf import Vcf
from trainer.inference.variants.windows import Unscored, place

_COLUMNS = ("chrom", "pos", "ref", "alt")
_VCF = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
_INFO = 7  # its column
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
    file, vcf = redact(uri), _vcf(uri)
    unit = vcf.unit if vcf else FORMATS[format_of(uri, config.format)].unit
    letters, labels, numbers, rows = list[str](), list[str](), list[int](), list[VariantRow]()
    left_out: Counter[str] = Counter()
    where = f"{file}, {unit}"
    for cells in _of_vcf(vcf, config, where=where) if vcf else _cells(uri, config, where=where):
        label = label_reader.label(cells.effect, f"{where} {cells.number}")
        placed = place(cells.variant, genome, length=config.variant.length)
        if isinstance(placed, Unscored):
            left_out[placed.status.partition(":")[0]] += 1
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


def _vcf(uri: str) -> Vcf | None:
    """The VCF or BCF at ``uri``, if its name says that it is one."""
    name = store.basename(uri if store.is_local(uri) else redact(uri).partition("?")[0]).lower()
    return Vcf(uri) if name.endswith(_VCF) else None


def _of_vcf(vcf: Vcf, config: TaskConfig, *, where: str) -> Iterator[_Cells]:
    """The alternate alleles of a VCF. A field of INFO has one effect for all of them, or one for each."""
    label_column, ends = config.label_column, config.variant.window_columns
    assert isinstance(label_column, str), "the config has checked it"
    for record in vcf.records():
        here = f"{where} {record.number}"
        info = dict(field.partition("=")[::2] for field in record.columns[_INFO].split(";"))

        def field(name: str, info: dict[str, str] = info, here: str = here) -> str:
            if name not in info:
                raise ValueError(f"{here}: INFO has no {name!r}; give the right name of the field")
            return info[name]

        effects = field(label_column).split(",")
        if len(effects) not in (1, len(record.alts)):
            raise ValueError(
                f"{here}: {label_column} has {len(effects)} values, and ALT {len(record.alts)} alleles; one "
                "for all or one for each is needed"
            )
        window = (
            (_whole(field(ends[0]), ends[0], here), _whole(field(ends[1]), ends[1], here)) if ends else None
        )
        for number, variant in enumerate(record.variants):
            yield _Cells(record.number, variant, (effects[number % len(effects)],), window)


def _whole(text: str, column: str, where: str) -> int:
    if not (text.isdecimal() and text.isascii()):
        raise ValueError(f"{where}: {column} is {text[:20]!r}, and must be a whole number")
    return int(text)
