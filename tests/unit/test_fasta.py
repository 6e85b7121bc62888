"""data_prep.sources.fasta: the same records out of any cut of any text, or one sentence that refuses it."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import alphabet
from data_prep.sources import fasta

ROOT = Path(__file__).resolve().parents[2]
LINES = st.sampled_from(
    [b">a x>y\n", b">b/1\r\n", b">c\t\r", b"ACGT\n", b"acgtN\r\n", b"GG", b"\n", b"\r", b" T \n", b"N" * 99]
)
FIRST = (b"", b"\xef\xbb\xbf", b"; of old > times\n;\n", b"\n \t", b"\xef\xbb\xbf\r; x\r\n")


def cut(text: bytes, places: list[int]) -> Iterator[bytes]:
    """``text`` in pieces, cut at ``places`` (modulo its length)."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return (text[start:end] for start, end in pairwise(edges))


def naive(text: bytes) -> list[tuple[str, bytes]]:
    records: list[tuple[str, bytes]] = []
    for line in text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b">"):
            records.append((line[1:].split()[0].decode(), b""))
        elif records:
            records[-1] = (records[-1][0], records[-1][1] + b"".join(line.split()))
    return records


def distinct(lines: list[bytes]) -> bytes:
    """``lines`` as text: a header begins a line, and each has a name of its own."""
    return b"".join(
        b"\n>%d" % number + line[1:] if line.startswith(b">") else line for number, line in enumerate(lines)
    )


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FIRST), st.lists(LINES, max_size=20), st.lists(st.integers(0, 500), max_size=8))
def test_records_are_the_same_whatever_the_cut(first: bytes, lines: list[bytes], places: list[int]) -> None:
    text = b">first\n" + distinct(lines)
    found: list[tuple[str, bytes]] = []
    for piece in fasta.pieces(cut(first + text, places), uri="u"):
        if piece.number > len(found):
            assert piece.letters == b"", "a record begins with a piece without letters"
            found.append((piece.name, b""))
        found[-1] = (piece.name, found[-1][1] + piece.letters)
    assert found == naive(text)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=9))
def test_records_as_codes(tmp_path: Path, lines: list[bytes]) -> None:
    text = b">first\nR\n" + distinct(lines).replace(b"x>y", b"x\nK")
    (tmp_path / "x.fa").write_bytes(text)
    if empty := next((name for name, letters in naive(text) if not letters), ""):
        with pytest.raises(ValueError, match=f"x.fa: record {empty} has no letters"):
            list(fasta.records(str(tmp_path / "x.fa")))
        return
    for (name, letters), record in zip(naive(text), fasta.records(str(tmp_path / "x.fa")), strict=True):
        codes, _, ambiguous = alphabet.encode(letters)
        assert (record.name, record.codes.tolist(), record.ambiguous) == (name, codes.tolist(), ambiguous)


def test_two_records_of_one_name() -> None:
    text = b">seq 0\nAC\n>b\nAC\n> seq\t1\nGG\n"
    with pytest.raises(
        ValueError, match=r"u: 'seq' is the name of records 1 and 3; a name is the first word after '>'"
    ):
        list(fasta.pieces([text], uri="u"))


def test_the_reader_needs_no_library_of_builds() -> None:
    code = (
        "import sys, data_prep.sources.fasta; "
        "print(sorted({'pyfaidx', 'py2bit', 'ray', 'webdataset', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
