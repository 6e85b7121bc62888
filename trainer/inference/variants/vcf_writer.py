"""A VCF with the scores of its variants in INFO; all else of its lines stays as it was."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from configs import ConfigError, redact
from trainer.inference.parts import ChangedError
from trainer.inference.variants import bgzip
from trainer.inference.variants.alleles import Variant
from trainer.inference.variants.vcf import Vcf

BGZIP = "VCF, bgzip"
FORMATS = {".vcf": "VCF", ".vcf.gz": BGZIP}
PREFIX = "DNA"
_FIELDS = {  # column of the table -> end of the field's name, type, description
    "llr": ("LLR", "Float", "masked log-likelihood ratio of ALT against REF (natural logarithm)"),
    "embedding_distance": ("DIST", "Float", "distance between the mean hidden states of the two windows"),
    "max_local_change": ("LOCAL", "Float", "largest distance between a letter's hidden states in them"),
    "status": ("STATUS", "String", "ok, or why ALT has no scores, with _ for blanks"),
}
_NAME = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")


@dataclass(frozen=True)
class Fields:
    """The INFO fields of scores: ``prefix`` begins their names, ``about`` says in the header what computed
    them."""

    prefix: str
    about: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.prefix):
            raise ConfigError(
                f"--prefix {self.prefix!r} cannot begin the name of an INFO field: a letter, then letters, "
                "digits, _ and ."
            )

    def name(self, column: str) -> str:
        return f"{self.prefix}_{_FIELDS[column][0]}"

    def refuse_present(self, vcf: Vcf, info: Collection[str]) -> None:
        """ValueError where the VCF has such fields already, in its header or among ``info``, those of its
        records."""
        header = vcf.header()
        for name in map(self.name, _FIELDS):
            if name in info or any(line.startswith(f"##INFO=<ID={name},") for line in header):
                raise ValueError(
                    f"{redact(vcf.uri)} has INFO field {name} already; give another --prefix than "
                    f"{self.prefix}"
                )

    def header(self, columns: Sequence[str]) -> list[str]:
        """Lines for the header of a VCF with the scores ``columns``."""
        return [f"##{self.prefix}_SCORES={self.about}"] + [
            f'##INFO=<ID={self.name(column)},Number=A,Type={kind},Description="{text}">'
            for column, (_, kind, text) in _FIELDS.items()
            if column in columns
        ]

    def info(self, rows: Mapping[str, Sequence[float | str | None]]) -> str:
        """The fields of a record: ``rows`` has a value for each of its alternate alleles."""
        return ";".join(
            f"{self.name(column)}={','.join(map(_text, values))}"
            for column, values in rows.items()
            if column in _FIELDS
        )


def _text(value: float | str | None) -> str:
    if value is None:
        return "."
    # A value of INFO has no blank, comma, semicolon or equals sign.
    return re.sub(r"[\s,;=]+", "_", value) if isinstance(value, str) else f"{value:.6g}"


def write(
    file: IO[bytes], vcf: Vcf, tables: Iterator[pa.Table], *, fields: Fields, columns: Sequence[str], end: str
) -> None:
    """``vcf`` with the scores of ``tables``, to ``file``, which stays open.

    Args:
        tables: a row for each alternate allele in the order of ``vcf``; each ends where a record does.
        columns: those of ``tables`` that become fields of INFO.
        end: a key of FORMATS.

    Raises:
        ChangedError: ``vcf`` is no longer what ``tables`` are of.
    """
    records = vcf.records()
    with bgzip.opened(file) if FORMATS[end] == BGZIP else contextlib.nullcontext(file) as target:
        *meta, names = vcf.header()
        _write_lines(target, [*meta, *fields.header(columns), names])
        for table in tables:
            values, at, written = {name: table[name].to_pylist() for name in columns}, 0, []
            scored = [
                Variant(*row) for row in zip(*(table[n].to_pylist() for n in Variant._fields), strict=True)
            ]
            while at < table.num_rows:
                record = next(records, None)
                until = at + (len(record.alts) if record else 0)
                if record is None or scored[at:until] != record.variants:
                    raise ChangedError(f"{redact(vcf.uri)} changed while it was read; give the command again")
                info = fields.info({name: column[at:until] for name, column in values.items()})
                written.append(record.line if record.alts == (".",) else record.with_info(info))
                at = until
            _write_lines(target, written)


def _write_lines(target: IO[bytes] | bgzip.Writer, lines: Sequence[str]) -> None:
    target.write("".join(f"{line}\n" for line in lines).encode())
