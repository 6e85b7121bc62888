"""Variants as windows of the reference around them, with and without the alternate allele.

The flanks on both sides are equally long, so that the window of the other strand is the same one. What one
side lacks at a contig's end is taken from the other.
"""

from typing import NamedTuple

import numpy as np

from data_prep import alphabet
from trainer.inference.variants import alleles
from trainer.inference.variants.alleles import Change, Variant
from trainer.inference.variants.genome import Genome

FLANK = 4  # letters on both sides of alleles of different lengths that are masked with them
_SHOWN = 20  # letters in a status


class Site(NamedTuple):
    """A window of a contig, as bytes of codes, and the letters [start, end) of the window that an alternate
    allele takes the place of."""

    codes: bytes
    start: int
    end: int


class Unscored(NamedTuple):
    """Why a variant has no scores, in words."""

    status: str


TOO_LONG = Unscored("an allele longer than half the window")
TOO_LONG_REPEAT = Unscored("an allele whose repeat is longer than half the window")
NO_CONTIG, OUTSIDE, MISMATCH = "the reference has no such contig", "outside the contig", "reference mismatch"
MISFITS = (NO_CONTIG, OUTSIDE, MISMATCH)  # how the status of a variant begins that is not of this reference


class Placed(NamedTuple):
    """A variant that can be scored: its window, and the codes of the alternate allele."""

    site: Site
    alt: bytes

    @property
    def window(self) -> bytes:
        """The window with the alternate allele."""
        codes, start, end = self.site
        return codes[:start] + self.alt + codes[end:]

    @property
    def is_substitution(self) -> bool:
        """Whether both alleles are equally long."""
        return len(self.alt) == self.site.end - self.site.start


def place(variant: Variant, genome: Genome, *, length: int) -> Placed | Unscored:
    """``variant`` in its window of at most ``length`` letters; or why it cannot be scored.

    Raises:
        ValueError: a byte of the reference is no letter. StoreError: it cannot be read.
    """
    if words := alleles.fault(variant.ref, variant.alt):
        return Unscored(words)
    contig = genome.names.find(variant.chrom)
    if contig is None:
        return Unscored(NO_CONTIG)
    size, start = genome.sizes[contig], variant.pos - 1
    if start < 0 or start + len(variant.ref) > size:
        return Unscored(f"{OUTSIDE}, which has {size} letters")
    ref, alt = (alleles.codes_of(allele.encode()) for allele in (variant.ref, variant.alt))
    change = alleles.trimmed(start, ref, alt)
    if change.longest > length // 2:
        return TOO_LONG
    around = 0 if len(ref) == len(alt) else length
    first, last = max(0, start - around), min(size, start + len(ref) + around)
    context = genome.codes(contig, first, last)
    there = context[start - first : start - first + len(ref)]
    if there != ref:
        return Unscored(f"{MISMATCH}: the reference has {_shown(there)}")
    everywhere = alleles.in_all_places(change, context, first=first)
    site = _site(everywhere, contig, genome, length=length)
    if everywhere.longest > len(site.codes) // 2:
        return TOO_LONG if change.longest > len(site.codes) // 2 else TOO_LONG_REPEAT
    return Placed(site, everywhere.alt)


def _site(change: Change, contig: str, genome: Genome, *, length: int) -> Site:
    flank = (length - (change.end - change.start)) // 2
    before, behind = change.start, genome.sizes[contig] - change.end
    left = min(before, flank + max(0, flank - behind))
    right = min(behind, flank + max(0, flank - before))
    codes = genome.codes(contig, change.start - left, change.end + right)
    return Site(codes, left, left + change.end - change.start)


def _shown(codes: bytes) -> str:
    letters = alphabet.decode(np.frombuffer(codes[:_SHOWN], np.uint8)).decode()
    return letters + "..." * (len(codes) > _SHOWN)
