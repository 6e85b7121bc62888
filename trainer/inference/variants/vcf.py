"""VCF files, plain or compressed, and BCF: their header and records as lines of text.

A record is kept as its line and not as htslib's: that reads 29.50 as 29.5, a wrong number as 0, and passes
over columns too many. What is wrong is refused here by its line.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pysam

from cluster.storage import store
from configs import redact
from data_prep.sources import compression
from trainer.inference.parts import ChangedError
from trainer.inference.readers.rows import short
from trainer.inference.readers.text import Line, lines
from trainer.inference.variants import bgzip
from trainer.inference.variants.alleles import Variant

COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
_INFO = COLUMNS.index("INFO")
_BCF = b"BCF\2"


class Record(NamedTuple):
    """A record: its number of line (of a BCF: of record), its columns as they stand there, its alternate
    alleles; one that is "." if it has none."""

    number: int
    columns: tuple[str, ...]  # those up to INFO, then the rest of the line as one
    alts: tuple[str, ...]

    @property
    def variants(self) -> list[Variant]:
        """One for each alternate allele."""
        chrom, pos, _, ref = self.columns[:4]
        return [Variant(chrom, int(pos), ref, alt) for alt in self.alts]

    @property
    def id(self) -> str:
        return self.columns[2]

    @property
    def line(self) -> str:
        return "\t".join(self.columns)

    def with_info(self, more: str) -> str:
        """Its line, with ``more`` at the end of INFO."""
        *before, info = self.columns[: _INFO + 1]
        info = more if info in ("", ".") else f"{info.rstrip(';')};{more}"
        return "\t".join([*before, info, *self.columns[_INFO + 1 :]])


class Survey(NamedTuple):
    """How many alternate alleles a VCF has, its contigs, the fields of INFO in its records, the sha256 of its
    text, and whether its last line has an end."""

    variants: int
    contigs: list[str]
    info: frozenset[str]
    sha256: str
    ended: bool


@dataclass(frozen=True)
class Vcf:
    """The VCF or BCF at ``uri``, to be read as often as needed."""

    uri: str

    @property
    def unit(self) -> str:
        """What the numbers of its records count."""
        return "record" if self._is_bcf() else "line"

    def header(self) -> list[str]:
        """The lines of the header; the last one names the columns.

        Raises: as ``records``.
        """
        return self._header(self._lines())

    def records(self) -> Iterator[Record]:
        """The records in their order.

        Raises:
            StoreError: it cannot be read.
            ValueError: it is no VCF, is damaged or cut short, or has a line that is no record: one sentence
                with the file and the line.
        """
        for _, record in self._records():
            if record is not None:
                yield record

    def _records(self) -> Iterator[tuple[Line, Record | None]]:
        """Each line behind the header, and the record that it is; None: a last one that is blank."""
        self._refuse_cut()
        found = self._lines()
        columns = self._header(found)[-1].count("\t") + 1
        for line in found:
            yield line, self._record(line, columns) if line.text else None

    def survey(self) -> Survey:
        """What it holds; all of it is read and checked. Raises as ``records``."""
        digest = hashlib.sha256("\n".join(self.header()).encode())
        variants, ended, contigs, info = 0, True, dict[str, None](), set[str]()
        for line, record in self._records():
            digest.update(f"\n{line.text}".encode())
            ended = line.ended
            if record:
                variants += len(record.alts)
                contigs[record.columns[0]] = None
                info.update(field.partition("=")[0] for field in record.columns[_INFO].split(";"))
        return Survey(variants, list(contigs), frozenset(info), digest.hexdigest(), ended)

    def surveyed(self, sha256: str) -> Iterator[Record]:
        """``records`` of the text whose survey gave ``sha256``. ChangedError, at its end, if it is no longer
        the same."""
        digest = hashlib.sha256("\n".join(self.header()).encode())
        for line, record in self._records():
            digest.update(f"\n{line.text}".encode())
            if record:
                yield record
        if digest.hexdigest() != sha256:
            raise ChangedError(f"{redact(self.uri)} changed while it was read; give the command again")

    def _header(self, found: Iterator[Line]) -> list[str]:
        file = redact(self.uri)
        first = next(found, None)
        if first is None:
            raise ValueError(f"{file} is empty, not a VCF")
        if not first.text.startswith("##fileformat=VCF"):
            raise ValueError(
                f"{file} is not a VCF: it starts with {short(first.text)}, not with ##fileformat=VCF"
            )
        header = [first.text]
        for line in found:
            header.append(line.text)
            if not line.text.startswith("##"):
                break
        if tuple(header[-1].split("\t")[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(
                f"{file}: the line that names the columns is missing: {' '.join(COLUMNS)}, with tabs between "
                f"them, before the first record"
            )
        return header

    def _record(self, line: Line, columns: int) -> Record:
        found = line.text.count("\t") + 1
        if found != columns:
            tabs = "; tabs lie between columns" if found == 1 else ""
            raise self._wrong(line, f"{found} column{'s' * (found != 1)}, and the header has {columns}{tabs}")
        fields = tuple(line.text.split("\t", len(COLUMNS)))
        chrom, pos, _, ref, alt = fields[:5]
        if not (pos.isdecimal() and pos.isascii() and len(pos) < 19):
            raise self._wrong(line, f"POS is {short(pos)}, not a whole number")
        alts = tuple(alt.split(","))
        if not (chrom and ref and all(alts)) or any(" " in each for each in (chrom, ref, alt)):
            raise self._wrong(line, "CHROM, REF or an allele of ALT is empty, or has a blank in it")
        return Record(line.number, fields, alts)

    def _wrong(self, line: Line, why: str) -> ValueError:
        return ValueError(f"{redact(self.uri)}, {self.unit} {line.number}: {why}")

    def _is_bcf(self) -> bool:
        return next(compression.plain(self.uri), b"").startswith(_BCF)

    def _refuse_cut(self) -> None:
        """ValueError for a bgzip without its last block: it may be cut between two blocks."""
        with store.open_read(self.uri) as file:
            if bgzip.is_bgzip(file.read(14)):
                file.seek(0, 2)
                file.seek(max(0, file.tell() - len(bgzip.END)))
                if file.read() != bgzip.END:
                    raise ValueError(
                        f"{redact(self.uri)} is cut short: bgzip's last block is missing; get it again"
                    )

    def _lines(self) -> Iterator[Line]:
        return self._lines_of_bcf() if self._is_bcf() else self._unbroken(lines(self.uri))

    def _unbroken(self, found: Iterator[Line]) -> Iterator[Line]:
        """ValueError for a blank line before another one, which is none of a VCF's."""
        for expected, line in enumerate(found, 1):
            if line.number != expected:
                raise ValueError(f"{redact(self.uri)}, line {expected} is blank; remove it")
            yield line

    def _lines_of_bcf(self) -> Iterator[Line]:
        file, number = redact(self.uri), 0
        with _on_disk(self.uri) as path, _htslib_is_silent():
            try:
                with pysam.VariantFile(path) as opened:
                    header = str(opened.header).splitlines()
                    yield from (Line(0, text, True) for text in header)
                    for number, record in enumerate(opened, 1):
                        yield Line(number, str(record).rstrip("\n"), True)
            except (OSError, ValueError) as fault:
                raise ValueError(
                    f"{file} is a damaged BCF ({' '.join(str(fault).split())}, after {number} records); get "
                    "it again"
                ) from fault


@contextlib.contextmanager
def _on_disk(uri: str) -> Iterator[str]:
    """The path of the file at ``uri``, or of a copy of it."""
    if store.is_local(uri):
        yield str(store.local_path(uri))
        return
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(store.chunks(uri))
        file.flush()
        yield file.name


@contextlib.contextmanager
def _htslib_is_silent() -> Iterator[None]:
    """It would write to stderr by itself."""
    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)
