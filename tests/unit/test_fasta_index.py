"""data_prep.sources.fasta_index: which text is indexed where it lies, and what is rewritten."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import fasta_index
from tests.unit.test_fasta import LINES, cut, distinct, naive


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=20), st.lists(st.integers(0, 500), max_size=8))
def test_rewriting_keeps_the_records_whatever_the_cut(lines: list[bytes], places: list[int]) -> None:
    text = b">first\n" + distinct(lines)
    out = io.BytesIO()
    fasta_index.rewrite(cut(text, places), out, uri="u")
    assert naive(out.getvalue()) == naive(text)
    assert b"\r" not in out.getvalue()
    assert b"\n\n" not in out.getvalue()


def test_lines_of_what_is_rewritten_are_of_one_length() -> None:
    out = io.BytesIO()
    fasta_index.rewrite([b">a\n", *[b"ACGT" * 1000 + b"\n"] * 50], out, uri="u")
    lengths = [len(line) for line in out.getvalue().splitlines()]
    assert lengths == [
        2,
        fasta_index.WIDTH,
        fasta_index.WIDTH,
        fasta_index.WIDTH,
        200_000 - 3 * fasta_index.WIDTH,
    ]


@pytest.mark.parametrize(
    ("text", "regular"),
    [
        (b">a b\nACGT\nAC\n", True),
        (b">a\r\nAC\r\n", True),
        (b">a\r\nAC\n", False),
        (b">a\nA C\n", False),
        (b">a\nAC\t\n>b\nG\n", False),
        (b";c d\n>a\nAC\n", False),
        (b"\n>a\nAC\n", False),
        (b">a\rAC\n>b\rGG\n", False),
        (b">a\n\rAC\n\r", False),
        (b"\xef\xbb\xbf>a\nAC\n", False),
        (b">a\x1cb\nAC\n", False),
        (b">a\nAC\n >b\nAC\n", False),
        (">é\nAC\n".encode(), False),
        (b">a\n" + b"A" * (fasta_index.LONGEST_LINE + 1), False),
        (b">a\n" + b"A" * fasta_index.LONGEST_LINE + b"\nA\n", True),
    ],
)
def test_what_can_be_indexed_in_place(text: bytes, regular: bool) -> None:
    for step in (1 if len(text) < 99 else 65_536, 7 if len(text) < 99 else 1 << 19, len(text)):
        regularity = fasta_index.Regularity()
        for at in range(0, len(text), step):
            regularity.feed(text[at : at + step])
        assert bool(regularity) == regular, f"in pieces of {step}"
