"""trainer.inference.variants.alleles and windows: what is wrong with an allele, and where it stands."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.inference.variants.alleles import Change, Variant, codes_of, fault, in_all_places, trimmed
from trainer.inference.variants.genome import Genome
from trainer.inference.variants.windows import Placed, Unscored, place

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def genome(**contigs: str) -> Genome:
    sizes = {name: len(letters) for name, letters in contigs.items()}
    return Genome(sizes, lambda name, start, end: contigs[name][start:end].encode(), uri="x.fa")


@pytest.mark.parametrize(
    ("ref", "alt", "words"),
    [
        ("A", ".", "no alternate allele"),
        ("A", "*", "an allele that an upstream deletion takes away"),
        ("A", "<DEL>", "a symbolic allele"),
        ("A", "<NON_REF>", "a symbolic allele"),
        ("A", "A[chr2:5[", "a breakend"),
        ("A", "]chr2:5]A", "a breakend"),
        ("A", ".A", "a breakend"),
        ("A", "N", "ALT has other letters than A C G T"),
        ("AN", "A", "REF has other letters than A C G T"),
        ("A", "a", "ALT is REF"),
        ("a", "t", ""),
        ("ACG", "T", ""),
    ],
)
def test_alleles_that_have_no_score(ref: str, alt: str, words: str) -> None:
    assert fault(ref, alt) == words


@pytest.mark.parametrize(
    ("ref", "alt", "change"),
    [
        ("A", "T", (10, 11, "T")),
        ("CAT", "CGT", (11, 12, "G")),  # the letters around are VCF's
        ("CAT", "GAC", (10, 13, "GAC")),
        ("CA", "C", (11, 12, "")),
        ("C", "CGG", (11, 11, "GG")),
        ("AT", "GTA", (10, 12, "GTA")),
        ("CAA", "CA", (12, 13, "")),
    ],
)
def test_what_both_alleles_have_is_left_out(ref: str, alt: str, change: tuple[int, int, str]) -> None:
    start, end, letters = change
    assert trimmed(10, codes_of(ref.encode()), codes_of(alt.encode())) == Change(
        start, end, codes_of(letters.encode())
    )


def spellings(contig: str, changed: str) -> list[Variant]:
    """All ways to write, with one letter before it, the one insertion or deletion that makes ``changed`` of
    ``contig``."""
    size = abs(len(contig) - len(changed))
    longer, found = max(contig, changed, key=len), []
    for start in range(1, len(longer) - size + 1):
        if longer[:start] + longer[start + size :] == min(contig, changed, key=len):
            long, short = longer[start - 1 : start + size], longer[start - 1]
            ref, alt = (long, short) if len(contig) > len(changed) else (short, long)
            found.append(Variant("c", start, ref, alt))
    return found


@given(st.text("AC", min_size=3, max_size=40), st.integers(1, 4), st.booleans(), st.data())
@settings(deadline=None, max_examples=200)
def test_every_spelling_of_an_insertion_or_deletion_has_one_window(
    longer: str, size: int, is_deletion: bool, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(longer) - 1))
    shorter = longer[:at] + longer[at + size :]
    assume(len(shorter) == len(longer) - size)
    contig, changed = (longer, shorter) if is_deletion else (shorter, longer)
    length = data.draw(st.integers(8, 100))
    found = spellings(contig, changed)
    placed = [place(variant, genome(c=contig), length=length) for variant in found]
    assert found and len(set(placed)) == 1
    if isinstance(placed[0], Placed):
        site = placed[0].site
        start = contig.encode().translate(bytes.maketrans(b"ACGT", b"\0\1\2\3")).find(site.codes)
        assert start >= 0
        mirrored = place(
            Variant(
                "c",
                len(contig) - found[0].pos - len(found[0].ref) + 2,
                found[0].ref.translate(COMPLEMENT)[::-1],
                found[0].alt.translate(COMPLEMENT)[::-1],
            ),
            genome(c=contig.translate(COMPLEMENT)[::-1]),
            length=length,
        )
        assert isinstance(mirrored, Placed)
        other = bytes(3 - code for code in reversed(mirrored.window))
        assert other == placed[0].window
        assert len(site.codes) - mirrored.site.end == site.start


def test_of_a_long_repeat_the_middle_is_taken() -> None:
    contig = codes_of(b"G" + b"A" * 100 + b"G")
    first = in_all_places(Change(1, 2, b""), contig, first=0)
    last = in_all_places(Change(100, 101, b""), contig, first=0)
    assert first == last and first.start - 1 == 101 - first.end and 16 <= first.end - first.start <= 17


@pytest.mark.parametrize(
    ("pos", "left", "letters"),
    [(1, 0, 9), (3, 2, 9), (50, 4, 9), (98, 6, 9), (100, 8, 9)],
)
def test_flanks_are_equally_long_and_what_an_end_lacks_is_taken_from_the_other(
    pos: int, left: int, letters: int
) -> None:
    contig = "".join(np.random.default_rng(0).choice(list("ACGT"), 100))
    alt = "T" if contig[pos - 1] != "T" else "A"
    placed = place(Variant("c", pos, contig[pos - 1], alt), genome(c=contig), length=10)
    assert isinstance(placed, Placed)
    assert (placed.site.start, len(placed.site.codes)) == (left, letters)
    assert placed.site.codes == codes_of(contig.encode())[pos - 1 - left : pos - 1 - left + letters]


def test_a_short_contig_is_the_window() -> None:
    placed = place(Variant("c", 2, "c", "g"), genome(c="acgtn"), length=1000)
    assert placed == Placed((codes_of(b"ACGTN"), 1, 2), codes_of(b"G"))


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (("d", 1, "A", "C"), "the reference has no such contig"),
        (("c", 0, "A", "C"), "outside the contig, which has 12 letters"),
        (("c", 12, "AC", "C"), "outside the contig, which has 12 letters"),
        (("c", 2, "A", "C"), "reference mismatch: the reference has C"),
        (("c", 7, "A", "C"), "reference mismatch: the reference has N"),
        (("c", 1, "ACG", "ACT"), "ok"),
        (("c", 1, "A", "AGATTACA"), "an allele longer than half the window"),
        (("r", 2, "AA", "A"), "an allele whose repeat is longer than half the window"),
        (("x", 2, "AC", "A"), "ok"),
    ],
)
def test_variants_that_do_not_fit(variant: tuple[str, int, str, str], words: str) -> None:
    found = place(Variant(*variant), genome(c="ACGTACRTACGT", x="NACNNNNNNN", r="CAAAAAAAAAG"), length=20)
    assert (found.status if isinstance(found, Unscored) else "ok") == words


def test_a_byte_that_is_no_letter_is_named() -> None:
    with pytest.raises(ValueError, match=r"x.fa, contig c from 1 on: byte b'!' at position 2 is no"):
        place(Variant("c", 1, "A", "C"), genome(c="AC!GT"), length=10)
