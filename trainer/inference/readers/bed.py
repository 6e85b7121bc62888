"""Rows of a BED file: intervals, whose sequences are cut from a reference; minus is reverse-complemented.

Without a header the columns are chrom, start, end, label (whatever ``label_column`` says), score and strand;
of five columns the last may be the strand. With one, ``chrom start end`` come first and the others are found
by their names, ``strand`` too. Tabs or blanks lie between them. Contigs may have another spelling than in the
reference (data_prep.sources.aliases); which ones did is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.process.progress import say
from configs import redact
from data_prep.sources import reference
from data_prep.sources.aliases import Renamed
from trainer.inference.readers import rows
from trainer.inference.readers.rows import Batch, Gather, Wanted, short
from trainer.inference.readers.text import lines

_BED = ("chrom", "start", "end", "label", "score", "strand")
_STARTS = {"start", "chromstart", "chrom_start"}
_STRANDS = "+-."
_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVNacgturyswkmbdhvn", b"TGCAAYRSWMKVHDBNtgcaayrswmkvhdbn")
_CONTIGS_SHOWN = 5


@dataclass(frozen=True)
class _Columns:
    """The names of the columns, and where the labels and the strand (None: there is none) stand."""

    names: list[str]
    labels_at: tuple[int, ...]
    strand_at: int | None
    others_at: tuple[int, ...]


class _Genome:
    """The reference at ``uri``; ``names``: the contigs as the BED calls them."""

    def __init__(self, uri: str) -> None:
        self._located = reference.locate(uri)
        self.names = Renamed(self._located.contigs)

    def cut(self, interval: tuple[str, int, int], where: str) -> bytes:
        """The letters of ``interval``. ValueError, which begins with ``where``, if it is not there."""
        named, start, end = interval
        handle, contigs = self._located.handle, self._located.contigs
        source, contig = redact(handle.uri), self.names.find(named)
        if contig is None:
            some = list(contigs)
            more = f" and {len(some) - _CONTIGS_SHOWN:,} more" if len(some) > _CONTIGS_SHOWN else ""
            raise ValueError(
                f"{where}: {source} has no contig {named!r}; it has {', '.join(some[:_CONTIGS_SHOWN])}{more}"
            )
        if end > (bp := contigs[contig]):
            raise ValueError(
                f"{where}: [{start}, {end}) reaches beyond the end of contig {contig}, which has {bp:,} bp "
                f"in {source}; is it another assembly?"
            )
        return reference.fetch(handle, contig, start, end)


def read(uri: str, wanted: Wanted) -> Iterator[Batch]:
    """The intervals of the BED at ``uri``, plain or compressed, with their sequences.

    Raises:
        StoreError: it or the reference cannot be read.
        ValueError: a line that is no interval of the reference or lacks its label; one sentence with the file
            and line.
    """
    file = redact(uri)
    if not wanted.reference:
        raise ValueError(f"{file} is a BED: set reference to the genome that its intervals are cut from")
    genome = _Genome(wanted.reference)
    columns: _Columns | None = None
    gather = Gather(None)
    number, ended = 0, True
    for line in lines(uri):
        ended = line.ended
        fields = _fields(line.text)
        where = f"{file}, line {line.number}"
        if columns is None and _is_header(fields):
            fields[0] = fields[0].lstrip("# ")
            columns = _named(fields, wanted, where)
        elif _is_remark(fields):
            continue
        else:
            columns = columns or _unnamed(fields, wanted, where)
            if not number:
                gather = Gather([columns.names[i] for i in columns.others_at] if wanted.others else None)
            number = line.number
            letters = genome.cut(_interval(fields, columns, where), where)
            if columns.strand_at is not None and _strand(fields[columns.strand_at], where) == "-":
                letters = letters.translate(_COMPLEMENT)[::-1]
            labels = tuple(fields[i] for i in columns.labels_at)
            if gather.add(number, letters.decode("latin-1"), labels, [fields[i] for i in columns.others_at]):
                yield gather.take()
    if not number:
        raise ValueError(f"{file} has no intervals: its lines are chrom, start, end, label")
    if not wanted.quiet and (renamed := genome.names.sentence(file)):
        say(renamed)
    yield gather.take(cut=not ended)


def _fields(line: str) -> list[str]:
    return [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]


def _is_header(fields: list[str]) -> bool:
    return len(fields) > 2 and fields[1].lower() in _STARTS


def _is_remark(fields: list[str]) -> bool:
    if not any(fields) or fields[0].startswith("#"):
        return True
    is_interval = len(fields) > 2 and _is_number(fields[1])
    return fields[0].split()[:1] in (["track"], ["browser"]) and not is_interval


def _named(names: list[str], wanted: Wanted, where: str) -> _Columns:
    if missing := [column for column in wanted.label_columns if column not in names]:
        raise ValueError(
            f"{where}: no column {missing[0]!r}, its columns are {', '.join(short(name) for name in names)}"
        )
    labels_at = tuple(rows.place_of(names, column, where) for column in wanted.label_columns)
    lower = [name.lower() for name in names]
    strand_at = rows.place_of(lower, "strand", where) if "strand" in lower else None
    others_at: tuple[int, ...] = ()
    if wanted.others:
        others_at = tuple(rows.place_of(names, name, where) for name in names)
    return _Columns(names, labels_at, strand_at, tuple(i for i in others_at if i not in labels_at))


def _unnamed(fields: list[str], wanted: Wanted, where: str) -> _Columns:
    if len(wanted.label_columns) > 1:
        raise ValueError(f"{where}: several label columns need a header: chrom, start, end, then their names")
    if wanted.label_columns and len(fields) < 4:
        raise ValueError(f"{where}: needs chrom, start, end, label, not {_shown(fields)}")
    names = [*_BED, *(f"column{i}" for i in range(len(_BED) + 1, len(fields) + 1))][: len(fields)]
    labels_at = (3,) if wanted.label_columns else ()
    others_at = tuple(i for i in range(len(fields)) if i not in labels_at)
    strand_at = 5 if len(fields) > 5 else None
    if len(fields) == 5 and fields[4] in _STRANDS:
        names[4], strand_at = "strand", 4
    return _Columns(names, labels_at, strand_at, others_at)


def _interval(fields: list[str], columns: _Columns, where: str) -> tuple[str, int, int]:
    if len(fields) != len(columns.names):
        raise ValueError(
            f"{where}: {len(fields)} field{'s' * (len(fields) != 1)}, and the lines before have "
            f"{len(columns.names)}"
        )
    if len(fields) < 3 or not fields[0] or not (_is_number(fields[1]) and _is_number(fields[2])):
        raise ValueError(
            f"{where}: needs contig, start and end, not {_shown(fields)}; start and end are whole numbers, "
            "of digits alone"
        )
    start, end = int(fields[1]), int(fields[2])
    if start >= end:
        raise ValueError(f"{where}: [{start}, {end}) has no letters; BED counts from 0, half-open")
    return fields[0], start, end


def _strand(text: str, where: str) -> str:
    if not text or text not in _STRANDS:
        raise ValueError(f"{where}: the strand is {short(text)}; + - and . are known")
    return text


def _shown(fields: list[str]) -> str:
    return short(" ".join(fields))


def _is_number(word: str) -> bool:
    return word.isdecimal() and word.isascii() and len(word) < 19
