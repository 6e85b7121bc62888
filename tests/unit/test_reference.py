"""data_prep.reference: FASTA as it really comes; each mess is read right or refused in one sentence."""

import gzip
import os
from pathlib import Path

import pytest

from cluster.store import StoreError
from data_prep.reference import Reference, fetch, prepare

WELL_FORMED = b">a desc\nACGT\nAC\n>b\nGg\n"


def opened(folder: Path, content: bytes, name: str = "x.fa") -> Reference:
    (folder / name).write_bytes(content)
    return prepare(str(folder / name), cache=folder / "cache")


def letters(reference: Reference) -> dict[str, bytes]:
    whole = {contig: fetch(reference, contig, 0, bp) for contig, bp in reference.contigs.items()}
    for contig, text in whole.items():  # every base on its own too: an index that is a little off shows there
        assert b"".join(fetch(reference, contig, i, i + 1) for i in range(len(text))) == text
    return whole


@pytest.mark.parametrize(("content", "in_place"), [
    (WELL_FORMED, True),
    (WELL_FORMED.replace(b"\n", b"\r\n"), True),
    (WELL_FORMED[:-1], True),
    (b"; a comment\n" + WELL_FORMED, True),
    (WELL_FORMED.replace(b"\n", b"\r"), False),
    (b">a\nACGT\n\nAC\n\n>b\nGg\n\n\n", False),
    (b"\n\n>a\nAC\nACGT\n\n>b\nGg", False),
    (b">a\nACGT\r\nAC\n>b\nGg\n", False),
    (gzip.compress(WELL_FORMED), False),
    (gzip.compress(WELL_FORMED[:17]) + gzip.compress(WELL_FORMED[17:]), False),  # members, as bgzip writes them
], ids=["plain", "crlf", "no-final-newline", "comment", "cr", "blank", "uneven", "mixed-ends", "gzip", "members"])
def test_messes_that_are_read(tmp_path: Path, content: bytes, in_place: bool) -> None:
    reference = opened(tmp_path, content)
    expected = {"a": b"ACGTAC", "b": b"Gg"} if b"AC\nACGT" not in content else {"a": b"ACACGT", "b": b"Gg"}
    assert letters(reference) == expected
    assert (reference.path == str(tmp_path / "x.fa")) == in_place
    assert sorted(os.listdir(tmp_path)) == ["cache", "x.fa"], "nothing may be written beside a source"


@pytest.mark.parametrize("content", [
    b">a\nACGT\nACGTACGG\n>b\nGG\n", b">b\nGG\n>a\nACGT\nACGTACGG\n", b">a\nACGT\nACGTACGG\n\n>b\nGG\n\n",
])
def test_a_longer_last_line_which_pyfaidx_would_misread(tmp_path: Path, content: bytes) -> None:
    assert letters(opened(tmp_path, content)) == {"a": b"ACGTACGTACGG", "b": b"GG"}


def test_same_text_same_digest_however_it_is_packed(tmp_path: Path) -> None:
    plain = opened(tmp_path, WELL_FORMED)
    packed = opened(tmp_path, gzip.compress(WELL_FORMED), "y.fa.gz")
    assert plain.sha256 == packed.sha256
    assert list(plain.contigs.items()) == [("a", 6), ("b", 2)]


def test_empty_records_are_left_out_and_counted(tmp_path: Path) -> None:
    reference = opened(tmp_path, b">a\n>b\nGG\n>c\n>d|x/y z\nTT\n>e\n")
    assert letters(reference) == {"b": b"GG", "d|x/y": b"TT"}
    assert reference.empty_records == 3


TEXT = b">a\n" + b"ACGT" * 5000 + b"\n"


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty, not a FASTA"),
    (gzip.compress(b""), "is empty, not a FASTA"),
    (b"hello\n", "is not a FASTA: it starts with b'hello"),
    (b"; only this\n", "is not a FASTA: no line starts with '>'"),
    (b">a\n>b\n", "no sequence in its 2 records"),
    (b">a 1\nAC\n>b\nG\n>a 2\nGG\n", 'contig name "a" stands there twice'),
    (b">a\nAC\n>\nAC\n", "record 2 has no name after its '>'"),
    (">a\nAC\u00e9GT\n".encode(), r"contig a: byte b'\\xc3' at position 2 is no nucleotide letter"),
    (b">a\xff\nAC\n", "the name of record 1, .* is not readable text"),
    (gzip.compress(TEXT)[:-12], "the gzip stream ends early, after .* bytes of text"),
    (gzip.compress(TEXT)[:-8] + b"\0" * 8, "damaged gzip after .* bytes of text"),
    (b"\x43\x27\x41\x1a" + b"\0" * 12, r"is a .2bit file, which is not read yet; convert it to FASTA"),
])
def test_messes_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        opened(tmp_path, content)
    assert str(tmp_path / "x.fa") in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not [name for name in os.listdir(tmp_path / "cache") if name.endswith(".json")]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"cannot look up {tmp_path}/none.fa: no such file"):
        prepare(str(tmp_path / "none.fa"), cache=tmp_path)


def test_the_cache_is_used_and_follows_the_source(tmp_path: Path) -> None:
    first = opened(tmp_path, gzip.compress(WELL_FORMED))
    written = os.stat(first.path).st_mtime_ns
    assert prepare(first.uri, cache=tmp_path / "cache") == first
    assert os.stat(first.path).st_mtime_ns == written, "streamed twice"
    second = opened(tmp_path, gzip.compress(b">a\nTTT\n"))
    assert letters(second) == {"a": b"TTT"}


def test_a_remote_source_and_a_worker_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.fa").write_bytes(WELL_FORMED)
    there = prepare(f"file://{tmp_path}/r.fa", cache=tmp_path / "there")
    elsewhere = Reference(there.uri, "/no/such/r.fa", "/no/such/r.fai", there.sha256, there.contigs, 0)
    monkeypatch.setenv("DNA_CACHE", str(tmp_path / "here"))
    assert letters(elsewhere) == letters(there)
    changed = Reference(there.uri, "/no/such/r.fa", "/no/such/other.fai", "0" * 64, there.contigs, 0)
    with pytest.raises(ValueError, match="differs between machines: sha256 000000000000 here"):
        fetch(changed, "a", 0, 1)


def test_outside_a_contig_is_an_error_of_ours(tmp_path: Path) -> None:
    reference = opened(tmp_path, WELL_FORMED)
    with pytest.raises(AssertionError, match="a:5-7 is not inside its 6 bp"):
        fetch(reference, "a", 5, 7)
