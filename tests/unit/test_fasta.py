"""data_prep.sources.fasta: the same records out of any cut of any mess, in bounded memory."""

import gzip
import io
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import fasta

LINES = st.sampled_from(
    [b">a x>y\n", b">b/1\r\n", b">c\t\r", b"ACGT\n", b"acgtN\r\n", b"GG", b"\n", b"\r", b" T \n", b"N" * 99]
)


def cut(text: bytes, places: list[int]) -> Iterator[bytes]:
    """``text`` in pieces, cut at ``places`` (modulo its length)."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return (text[start:end] for start, end in pairwise(edges))


def naive(text: bytes) -> list[tuple[bytes, bytes]]:
    records: list[list[bytes]] = []
    for line in text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b">"):
            records.append([line[1:].split()[0], b""])
        elif records:
            records[-1][1] += b"".join(line.split())
    return [(name, letters) for name, letters in records]


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=20), st.lists(st.integers(0, 500), max_size=8))
def test_rewriting_keeps_the_records_whatever_the_cut(lines: list[bytes], places: list[int]) -> None:
    # A header starts a line: one that follows letters without a line end would be a wrong letter.
    text = b">first\n" + b"".join(b"\n" + line if line.startswith(b">") else line for line in lines)
    out = io.BytesIO()
    fasta.rewrite(cut(text, places), out, uri="u")
    assert naive(out.getvalue()) == naive(text)
    assert b"\r" not in out.getvalue()
    assert b"\n\n" not in out.getvalue()


def test_lines_of_what_is_rewritten_are_of_one_length() -> None:
    out = io.BytesIO()
    fasta.rewrite([b">a\n", *[b"ACGT" * 1000 + b"\n"] * 50], out, uri="u")
    lengths = [len(line) for line in out.getvalue().splitlines()]
    assert lengths == [2, fasta.WIDTH, fasta.WIDTH, fasta.WIDTH, 200_000 - 3 * fasta.WIDTH]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    st.lists(st.integers(0, 2000), max_size=8),
    st.integers(0, 3),
    st.integers(1, 64),
)
def test_gunzip_of_any_members_whatever_the_cut(
    parts: list[bytes], places: list[int], zeros: int, size: int
) -> None:
    packed = b"".join(gzip.compress(part) for part in parts) + b"\0" * zeros
    pieces = list(fasta.gunzip(cut(packed, places), uri="u", size=size))
    assert b"".join(pieces) == b"".join(parts)
    assert all(0 < len(piece) <= size for piece in pieces)


@pytest.mark.parametrize("size", range(1, 30, 3))
def test_a_gzip_cut_anywhere_is_noticed(size: int) -> None:
    packed = gzip.compress(b"ACGTTGCA" * 20)
    assert size < len(packed)
    with pytest.raises(
        ValueError, match=r"u: the gzip stream ends early, after \d+ bytes of text; get it again"
    ):
        list(fasta.gunzip([packed[:size]], uri="u"))


def test_what_is_no_gzip_after_a_member() -> None:
    with pytest.raises(ValueError, match="u: damaged gzip after 4 bytes of text"):
        list(fasta.gunzip([gzip.compress(b"ACGT") + b"junk"], uri="u"))


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
        (b">a\n" + b"A" * (fasta.LONGEST_LINE + 1), False),
        (b">a\n" + b"A" * fasta.LONGEST_LINE + b"\nA\n", True),
    ],
)
def test_what_can_be_indexed_in_place(text: bytes, regular: bool) -> None:
    for step in (1 if len(text) < 99 else 65_536, 7 if len(text) < 99 else 1 << 19, len(text)):
        looked_at = fasta.Regularity()
        for at in range(0, len(text), step):
            looked_at.feed(text[at : at + step])
        assert bool(looked_at) == regular, f"in pieces of {step}"
