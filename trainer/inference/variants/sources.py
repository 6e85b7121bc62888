"""Where variants come from, in chunks: the records of a VCF, or all substitutions of the regions of a BED."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from configs import redact
from data_prep import alphabet
from data_prep.sources import bed
from trainer.inference.variants.alleles import Variant
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.scoring import CHUNK
from trainer.inference.variants.vcf import Vcf

MOST_LETTERS = 1_000_000  # of all regions
_PIECE = 128  # letters of a region that are read at once
_LETTERS = "ACGT"


class Chunk(NamedTuple):
    """Variants, and the column that names each, which is "id" or "region"."""

    variants: list[Variant]
    names: list[str]


class VcfSource:
    """The alternate alleles of a VCF that was read once.

    ``variants``: how many there are; ``sha256``: of what decides which.
    """

    column = "id"

    def __init__(self, uri: str, genome: Genome) -> None:
        """Raises: as ``Vcf.records``."""
        self.vcf, self.uri = Vcf(uri), uri
        self.variants, contigs, self.info, self.sha256, self.ended = self.vcf.survey()
        for contig in contigs:  # so that all that are called otherwise are known, also if nothing is computed
            genome.names.find(contig)

    def chunks(self) -> Iterator[Chunk]:
        """Each ends where a record does. ChangedError: the VCF is no longer the same."""
        return _chunks((record.variants, record.id) for record in self.vcf.surveyed(self.sha256))


def _chunks(found: Iterable[tuple[list[Variant], str]]) -> Iterator[Chunk]:
    """Of variants that stay together, and their name."""
    chunk = Chunk([], [])
    for variants, name in found:
        chunk.variants.extend(variants)
        chunk.names.extend([name] * len(variants))
        if len(chunk.variants) >= CHUNK:
            yield chunk
            chunk = Chunk([], [])
    if chunk.variants:
        yield chunk


class Region(NamedTuple):
    """Letters [start, end) of a contig by the name that the BED gives it, and what they are called."""

    chrom: str
    start: int
    end: int
    name: str


class Saturation:
    """The three substitutions of each letter of some regions; N has none. Attributes as of VcfSource."""

    column = "region"

    def __init__(self, uri: str, genome: Genome) -> None:
        """
        Raises:
            StoreError: the BED or the reference cannot be read.
            ValueError: the BED has a line that is no interval of the reference, no letters, or more than
                MOST_LETTERS; or a letter of the reference is none.
        """
        self.uri, self._genome = uri, genome
        self.regions = _regions(uri, genome)
        digest, known = hashlib.sha256(), 0
        for region in self.regions:
            known += sum(
                len(self._substitutions(region, start)) // 3
                for start in range(region.start, region.end, _PIECE)
            )
            digest.update(repr(region).encode())
        self.letters = sum(region.end - region.start for region in self.regions)
        self.unknown = self.letters - known
        self.variants, self.sha256 = 3 * known, digest.hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Each ends where a letter does, so that the substitutions of one share its window."""
        return _chunks(
            (self._substitutions(region, start), region.name)
            for region in self.regions
            for start in range(region.start, region.end, _PIECE)
        )

    def _substitutions(self, region: Region, start: int) -> list[Variant]:
        contig = self._genome.names.find(region.chrom)
        assert contig is not None, f"{region} was found before"
        codes = self._genome.codes(contig, start, min(start + _PIECE, region.end))
        letters = alphabet.decode(np.frombuffer(codes, np.uint8)).decode()
        return [
            Variant(region.chrom, pos, ref, alt)
            for pos, ref in enumerate(letters, start + 1)
            if ref in _LETTERS
            for alt in _LETTERS
            if alt != ref
        ]


def _regions(uri: str, genome: Genome) -> list[Region]:
    file, found, letters = redact(uri), [], 0
    for line in bed.read_lines(uri):
        where = f"{file}, line {line.number}"
        contig = genome.names.find(line.contig)
        if contig is None:
            raise ValueError(f"{where}: the reference has no contig {line.contig!r}; it has {genome.some()}")
        size = genome.sizes[contig]
        if line.end > size:
            raise ValueError(
                f"{where}: [{line.start}, {line.end}) reaches beyond the end of contig {line.contig}, which "
                f"has {size:,} bp; is it another assembly?"
            )
        letters += line.end - line.start
        name = line.name or f"{line.contig}:{line.start + 1}-{line.end}"
        found.append(Region(line.contig, line.start, line.end, name))
    if not letters:
        raise ValueError(f"{file} has no letters: its lines are chrom, start, end")
    if letters > MOST_LETTERS:
        raise ValueError(
            f"{file} has {letters:,} letters, and one command scores at most {MOST_LETTERS:,}; give it in "
            "several files"
        )
    return found
