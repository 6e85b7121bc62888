"""A phased VCF and a reference -> the edits that make a haplotype of a sample.

As ``bcftools consensus -H 1`` and ``-H 2``: records are applied in their order; one that overlaps an earlier
one is left out. (An insertion or deletion may follow on the last letter of an earlier record, which it only
repeats.) Left as the reference, and counted: overlapping records, missing genotypes, alleles that are no
letters (``*``, ``<DEL>``, breakends), and haplotypes that a genotype does not have.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from configs import redact
from data_prep.sources.aliases import Renamed
from data_prep.sources.edits import Columns, Fetch, Writer
from data_prep.sources.vcf import records

_ALLELE = re.compile(r"[ACGTUNRYSWKMBDHV]+", re.IGNORECASE)
_WINDOW, _BEHIND = 1 << 20, 1 << 10  # letters of the reference that are held, and before a record
_NO_IUPAC = frozenset("ACGTU")
_LEFT_OUT = {  # what is counted beside "applied" -> in words
    "overlapping": "that overlap an earlier one",
    "missing": "without a genotype",
    "other": "of alleles that are no letters (*, <DEL>, breakends)",
    "haploid": "without this haplotype",
    "elsewhere": "on contigs that the reference does not have",
}


@dataclass(frozen=True)
class Base:
    """The reference of a VCF: its sha256, its contigs' lengths, their other names, its letters."""

    uri: str
    sha256: str
    contigs: dict[str, int]
    names: Renamed
    fetch: Fetch


@dataclass
class _Haplotype:
    """One haplotype while the VCF is read."""

    sample: str
    number: int
    writer: Writer
    columns: Columns = field(default_factory=Columns)
    frozen: int = -1  # the last letter of the record that was applied last
    inserted: bool = False  # it was longer than what it stands for
    counts: "Counter[str]" = field(default_factory=Counter)


def write_edits(
    vcfs: Sequence[str], wanted: Sequence[tuple[str, int]], base: Base, files: Sequence[IO[bytes]]
) -> None:
    """Writes the edits of each wanted (sample, 1 or 2) of the VCF or BCF files at ``vcfs`` to a file of
    ``files`` (edits.Edits), in one pass; memory is that of a contig's edits.

    Raises:
        StoreError: a VCF cannot be read.
        ValueError: it is damaged, not sorted, lacks a sample or genotypes, or is of another reference; or
            heterozygous genotypes are not phased.
    """
    found = [
        _Haplotype(sample, number, Writer(file)) for (sample, number), file in zip(wanted, files, strict=True)
    ]
    unphased = _Unphased()
    done = dict[str, int]()  # contig -> the number of its file
    window = _Window(base)
    contig, name, at = "", "", -1  # the contig, its name in the VCF, and the last record's place
    for number, uri in enumerate(vcfs):
        for record in records(uri, list(dict.fromkeys(sample for sample, _ in wanted))):
            if record.chrom != name:
                _end_contig(found, contig)
                contig, name, at = _contig(record.chrom, base, done, vcfs, number), record.chrom, -1
            if not contig:
                for haplotype in found:
                    haplotype.counts["elsewhere"] += 1
                continue
            if record.start < at:
                raise ValueError(
                    f"{redact(uri)} is not sorted: {name}:{record.pos} stands after {name}:{at + 1}; sort it "
                    "(bcftools sort)"
                )
            at = record.start
            _apply(record, found, contig, base, window, unphased, redact(uri))
        _end_contig(found, contig)
        contig, name = "", ""
    unphased.refuse()
    if not done:
        raise ValueError(f"{', '.join(map(redact, vcfs))}: no record is on a contig of {redact(base.uri)}")
    for haplotype in found:
        said = [base.names.sentence(", ".join(map(redact, vcfs))), _left_out(haplotype.counts)]
        haplotype.writer.finish(
            reference_sha256=base.sha256, counts=haplotype.counts, notes=list(filter(None, said))
        )


def _left_out(counts: "Counter[str]") -> str:
    """Says how many records were not applied, and why; "" if all were."""
    left = [f"{counts[key]:,} {words}" for key, words in _LEFT_OUT.items() if counts[key]]
    if not left:
        return ""
    done = f"{counts['applied']:,} records of its VCF are applied"
    return f"{done}, others are left as the reference: {'; '.join(left)}"


@dataclass
class _Unphased:
    """Heterozygous genotypes without a phase: how many, and the first."""

    count: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        self.count += 1
        self.first = self.first or where

    def refuse(self) -> None:
        if self.count:
            raise ValueError(
                f"{self.count:,} heterozygous genotypes are not phased (the first: {self.first}), so no "
                "haplotype has them; phase the VCF (| between the alleles), or leave such records out"
            )


def _contig(name: str, base: Base, done: dict[str, int], vcfs: Sequence[str], number: int) -> str:
    """The contig of the reference that VCF ``number`` calls ``name``; "" if it has none. ``done``: contig ->
    the number of the VCF that had it; it gets this one."""
    uri = vcfs[number]
    meant = base.names.meanings(name)
    if len(meant) > 1:
        raise ValueError(f"{redact(uri)}: contig {name!r} may mean {' or '.join(meant)} of the reference")
    if not meant:
        return ""
    base.names.note(name, meant[0])
    before = done.get(meant[0])
    if before == number:
        raise ValueError(
            f"{redact(uri)}: records of {name} stand in more than one place; sort the VCF (bcftools sort)"
        )
    if before is not None:
        raise ValueError(
            f"{redact(vcfs[before])} and {redact(uri)} both have records of {meant[0]}, but the records of a "
            "contig are read from one file; join the files (bcftools concat -a)"
        )
    done[meant[0]] = number
    return meant[0]


def _end_contig(found: Sequence[_Haplotype], contig: str) -> None:
    for haplotype in found:
        if contig:
            haplotype.writer.write(contig, haplotype.columns)
        haplotype.columns, haplotype.frozen, haplotype.inserted = Columns(), -1, False


def _apply(
    record: Any,
    found: Sequence[_Haplotype],
    contig: str,
    base: Base,
    window: "_Window",
    unphased: _Unphased,
    uri: str,
) -> None:
    """Adds the record to each haplotype that has one of its alternative alleles."""
    where = f"{uri}: {record.chrom}:{record.pos}"
    checked = False
    for haplotype in found:
        call = record.samples[haplotype.sample]
        alleles = call.allele_indices if "GT" in record.format else None
        if not alleles or all(allele is None for allele in alleles):
            haplotype.counts["missing"] += 1
            continue
        if len(alleles) > 1 and len(set(alleles)) > 1 and not call.phased:
            if haplotype is next(own for own in found if own.sample == haplotype.sample):
                unphased.add(f"{where}, sample {haplotype.sample}")
            continue
        if haplotype.number > len(alleles):
            haplotype.counts["haploid"] += 1
            continue
        allele = alleles[haplotype.number - 1]
        if not allele:
            haplotype.counts["missing"] += allele is None
            continue
        if not checked:
            _check(record, contig, base, window, where)
            checked = True
        _add(haplotype, record.start, record.ref, record.alleles[allele], contig, window)


def _check(record: Any, contig: str, base: Base, window: "_Window", where: str) -> None:
    """ValueError if the reference has other letters than the record's REF."""
    end, bp = record.start + len(record.ref), base.contigs[contig]
    if record.start < 0 or end > bp:
        raise ValueError(
            f"{where} (REF of {len(record.ref)} letters) lies beyond the {bp} bp of {contig}; is the VCF of "
            "another version of the genome?"
        )
    letters = window.letters(contig, record.start, end).decode("latin-1")
    for i, (theirs, ours) in enumerate(zip(record.ref.upper(), letters.upper(), strict=True)):
        # Where the reference has an ambiguity letter, REF may have N or any letter.
        if theirs != ours and ours in _NO_IUPAC and not (theirs == "T" and ours == "U"):
            raise ValueError(
                f"{where}: REF has another letter than the reference at {contig}:{record.start + i + 1}; is "
                "the VCF of another version of the genome?"
            )


def _add(haplotype: _Haplotype, start: int, ref: str, alt: str, contig: str, window: "_Window") -> None:
    if not _ALLELE.fullmatch(alt):
        haplotype.counts["other"] += 1
        return
    low, high = _common(ref.upper(), alt.upper())
    if start <= haplotype.frozen:
        # A mere insertion or deletion behind the letter that it repeats.
        repeats = low > 0 and len(ref) != len(alt) and low + high == min(len(ref), len(alt))
        if start < haplotype.frozen or not repeats or haplotype.inserted:
            haplotype.counts["overlapping"] += 1
            return
    haplotype.counts["applied"] += 1
    haplotype.frozen, haplotype.inserted = start + len(ref) - 1, len(alt) > len(ref)
    new = alt.upper().encode()
    if len(ref) == len(alt):
        old = window.letters(contig, start, start + len(ref))
        for i in range(low, len(alt) - high):
            if ref[i].upper() != alt[i].upper():
                haplotype.columns.add(start + i, start + i + 1, _masked(new[i : i + 1], old[i : i + 1]))
    else:
        first, end = start + low, start + len(ref) - high
        old = window.letters(contig, first, end) if end > first else b""
        before = window.letters(contig, first - 1, first) if first else b""
        haplotype.columns.add(first, end, _masked(new[low : len(new) - high], old, before))


def _masked(new: bytes, old: bytes, before: bytes = b"") -> bytes:
    """``new`` in lower case where ``old`` is, letter by letter; what is longer has the mask of the last
    letter of ``old``, or of that ``before``."""
    last = (old or before or b"A")[-1:]
    like = old + last * max(0, len(new) - len(old))
    return bytes(a | 32 if b >= ord("a") else a for a, b in zip(new, like, strict=False))


def _common(ref: str, alt: str) -> tuple[int, int]:
    """How many letters the two have in common at the start, and then at the end."""
    most = min(len(ref), len(alt))
    low = next((i for i in range(most) if ref[i] != alt[i]), most)
    high = next((i for i in range(most - low) if ref[-1 - i] != alt[-1 - i]), most - low)
    return low, high


class _Window:
    """Letters of the reference, read ahead."""

    def __init__(self, base: Base) -> None:
        self._base, self._contig, self._start, self._text = base, "", 0, b""

    def letters(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig``."""
        if contig != self._contig or start < self._start or end > self._start + len(self._text):
            first = max(0, start - _BEHIND)
            until = min(self._base.contigs[contig], max(end, first + _WINDOW))
            self._contig, self._start, self._text = contig, first, self._base.fetch(contig, first, until)
        return self._text[start - self._start : end - self._start]
