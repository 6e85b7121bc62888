"""data_prep.sources.compression: the plain bytes, or a sentence that says what is damaged."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import magic
from data_prep.sources import compression
from tests.unit.test_fasta import cut


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


def plain(chunks: Iterator[bytes], kind: str, size: int = 1 << 20) -> list[bytes]:
    return list(compression.decompress(chunks, kind=kind, uri="u", size=size))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PACKERS)),
    st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    st.lists(st.integers(0, 2000), max_size=8),
    st.integers(0, 3),
    st.integers(1, 64),
)
def test_any_streams_whatever_the_cut(
    kind: str, parts: list[bytes], places: list[int], zeros: int, size: int
) -> None:
    packed = b"".join(map(PACKERS[kind], parts)) + b"\0" * (zeros if kind != "zstd" else 0)
    pieces = plain(cut(packed, places), kind, size)
    assert b"".join(pieces) == b"".join(parts)
    assert all(0 < len(piece) <= size for piece in pieces)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_file_of_one_letter_comes_in_pieces(kind: str) -> None:
    pieces = plain(iter([PACKERS[kind](b"N" * 5_000_000)]), kind, 1 << 16)
    assert b"".join(pieces) == b"N" * 5_000_000
    assert max(map(len, pieces)) <= 1 << 16


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_anywhere_is_noticed(kind: str) -> None:
    packed = PACKERS[kind](b"ACGTTGCA" * 20)
    for size in range(1, len(packed), 3):
        with pytest.raises(ValueError, match=f"u is a damaged {kind} file .*after .* bytes of text.; get it"):
            plain(iter([packed[:size]]), kind)


@pytest.mark.parametrize("kind", PACKERS)
def test_other_bytes_after_a_stream(kind: str) -> None:
    with pytest.raises(
        ValueError, match=rf"u is a damaged {kind} file \(.*after [04] bytes of text\); get it again"
    ):
        plain(iter([PACKERS[kind](b"ACGT") + b"junk"]), kind)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    assert magic.format_of(PACKERS[kind](b"x")[:10]) == magic.format_of(PACKERS[kind](b"")[:10]) == kind
    (tmp_path / "x").write_bytes(PACKERS[kind](b"ACGT"))
    assert b"".join(compression.plain(str(tmp_path / "x"))) == b"ACGT"


@pytest.mark.parametrize(
    "text", [b"", b"PAR1\t0\t9\n", b">PAR1", b"BZh1\t1\t2", b"CRAM1 slots=8\n", b"%PDF\t1\t2"]
)
def test_text_stays_as_it_is(tmp_path: Path, text: bytes) -> None:
    """PAR1 is a region of the human X and Y, and the name of a host or a contig may be any word."""
    (tmp_path / "x").write_bytes(text)
    assert b"".join(compression.plain(str(tmp_path / "x"))) == text


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"BAM\1", "a BAM file"), (b"CRAM\3", "a CRAM file"), (b"\x43\x27\x41\x1a", "a .2bit file")],
)
def test_what_holds_no_text_is_refused_by_its_format(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "x").write_bytes(start + bytes(99))
    with pytest.raises(
        ValueError, match=f"x is {kind}, not text; give it as plain text, gzip, bzip2, xz or zstd"
    ):
        list(compression.plain(str(tmp_path / "x")))
