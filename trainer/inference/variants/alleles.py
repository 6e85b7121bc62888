"""A variant's alleles: what is wrong with them, in words, and where they differ.

Letters are bytes of codes (alphabet.encode), so that slices and comparisons are those of Python's bytes.
"""

import re
from typing import NamedTuple

from data_prep import alphabet

OK = "ok"  # the status of a variant that has scores
_PLAIN = re.compile(r"[ACGT]+", re.IGNORECASE)
_BREAKEND = re.compile(r"[\[\]]|^\.|\.$")
_SHIFT = 16  # of an allele in a repeat at most: so that a long repeat is not masked as a whole


class Variant(NamedTuple):
    """One alternate allele, as its file has it. ``pos`` is that of VCF: of the first letter of ``ref``, from
    1."""

    chrom: str
    pos: int
    ref: str
    alt: str


class Change(NamedTuple):
    """Letters [start, end) of a contig, from 0, become ``alt``, which are bytes of codes."""

    start: int
    end: int
    alt: bytes

    @property
    def longest(self) -> int:
        """The letters of the longer allele."""
        return max(self.end - self.start, len(self.alt))


def fault(ref: str, alt: str) -> str:
    """Why such alleles have no score, in words; "" if they may have one."""
    if alt in ("", "."):
        return "no alternate allele"
    if alt == "*":
        return "an allele that an upstream deletion takes away"
    if alt.startswith("<"):
        return "a symbolic allele"
    if _BREAKEND.search(alt):
        return "a breakend"
    for name, allele in (("REF", ref), ("ALT", alt)):
        if not _PLAIN.fullmatch(allele):
            return f"{name} has other letters than A C G T"
    return "ALT is REF" if ref.upper() == alt.upper() else ""


def codes_of(letters: bytes) -> bytes:
    """``letters`` as codes. ValueError: a byte that is no letter, and its place from 0."""
    return alphabet.encode(letters)[0].tobytes()


def trimmed(start: int, ref: bytes, alt: bytes) -> Change:
    """Where ``alt``, in the place of ``ref`` at ``start``, changes the contig: without what both begin or end
    with, such as the letter that VCF puts before an insertion or deletion."""
    least = min(len(ref), len(alt))
    head = next((i for i in range(least) if ref[i] != alt[i]), least)
    least -= head
    tail = next((i for i in range(least) if ref[-1 - i] != alt[-1 - i]), least)
    return Change(start + head, start + len(ref) - tail, alt[head : len(alt) - tail])


def in_all_places(change: Change, context: bytes, *, first: int) -> Change:
    """An insertion or deletion with all letters before or behind which it may stand as well.

    In a repeat the same sequence has several spellings: the second A of CAAT is deleted, or the first. Their
    scores, and those of the reverse complement, are equal only if all letters that may be meant are taken for
    the allele. Of a long repeat these are its middle.

    Args:
        context: letters around it; ``first`` is where they begin.
    """
    start, end, alt = change.start - first, change.end - first, change.alt
    unit = context[start:end] or alt
    if (end > start and alt) or not unit:
        return change
    size = len(unit)
    right = left = 0
    while end + right < len(context) and context[end + right] == unit[right % size]:
        right += 1
    while left < start and context[start - 1 - left] == unit[-1 - left % size]:
        left += 1
    cut = max(0, left + right - _SHIFT + 1) // 2
    start, end = start - left + cut, end + right - cut
    behind = len(context) - end
    whole = context[: change.start - first] + alt + context[change.end - first :]
    return Change(first + start, first + end, whole[start : len(whole) - behind])
