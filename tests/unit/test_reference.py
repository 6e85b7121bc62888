"""data_prep.sources.reference: FASTA and .2bit as they really come; each mess is read right or refused in one
sentence."""

import bz2
import gzip
import hashlib
import http.server
import lzma
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from cluster.storage.store import StoreError
from data_prep.alphabet import encode
from data_prep.sources import fasta, fasta_index
from data_prep.sources import reference as reference_module
from data_prep.sources.reference import changed, fetch, locate
from data_prep.sources.survey import Reference, prepare
from tests.unit.test_compression import zstd

WELL_FORMED = b">a desc\nACGT\nAC\n>b\nGg\n"


def opened(folder: Path, content: bytes, name: str = "x.fa") -> Reference:
    (folder / name).write_bytes(content)
    return prepare(str(folder / name), cache=folder / "cache")


def letters(reference: Reference) -> dict[str, bytes]:
    handle = reference.handle
    whole = {contig: fetch(handle, contig, 0, bp) for contig, bp in reference.contigs.items()}
    for contig, text in whole.items():  # every base on its own too: an index that is a little off shows there
        assert b"".join(fetch(handle, contig, i, i + 1) for i in range(len(text))) == text
    return whole


@pytest.mark.parametrize(
    ("content", "in_place"),
    [
        (WELL_FORMED, True),
        (WELL_FORMED.replace(b"\n", b"\r\n"), True),
        (WELL_FORMED[:-1], True),
        (b"; a comment\n\n;another > one\r\n" + WELL_FORMED, False),
        (b" " + WELL_FORMED, False),
        (b"\n\t" + WELL_FORMED, False),
        (gzip.compress(b"\r\n \t" + WELL_FORMED), False),
        (WELL_FORMED.replace(b">b", b" \t>b"), False),
        (b"\xef\xbb\xbf" + WELL_FORMED, False),
        (b"\xef\xbb\xbf\r\n; x\r\n " + WELL_FORMED, False),
        (gzip.compress(b"\xef\xbb\xbf" + WELL_FORMED), False),
        (WELL_FORMED.replace(b"a desc\n", b" a desc\r").replace(b"b\n", b"b\r"), False),
        (WELL_FORMED.replace(b"\n", b"\r"), False),
        (b">a\nACGT\n\nAC\n\n>b\nGg\n\n\n", False),
        (b"\n\n>a\nAC\nACGT\n\n>b\nGg", False),
        (b">a\nACGT\r\nAC\n>b\nGg\n", False),
        (gzip.compress(WELL_FORMED), False),
        (bz2.compress(WELL_FORMED), False),
        (lzma.compress(WELL_FORMED), False),
        (zstd(WELL_FORMED), False),
        (gzip.compress(WELL_FORMED[:17]) + gzip.compress(WELL_FORMED[17:]) + b"\0" * 9, False),
        (b">a\nAC GT\t\nAC\n>b\nGg\n", False),
        (b">a x\ty\nACGT\nAC\n>b z\nGg\n", True),
    ],
    ids=[
        "plain",
        "crlf",
        "no-final-newline",
        "comments",
        "blank-first",
        "tab-first",
        "blank-first-gz",
        "blank-later",
        "mark",
        "mark-and-more",
        "mark-gz",
        "cr-after-names",
        "cr",
        "blank",
        "uneven",
        "mixed-ends",
        "gzip",
        "bzip2",
        "xz",
        "zstd",
        "members",
        "white-space",
        "white-space-in-names",
    ],
)
def test_messes_that_are_read(tmp_path: Path, content: bytes, in_place: bool) -> None:
    reference = opened(tmp_path, content)
    expected = {"a": b"ACGTAC", "b": b"Gg"} if b"AC\nACGT" not in content else {"a": b"ACACGT", "b": b"Gg"}
    assert letters(reference) == expected
    assert (reference.handle.path == str(tmp_path / "x.fa")) == in_place
    assert sorted(os.listdir(tmp_path)) == ["cache", "x.fa"], "nothing may be written beside a source"


@pytest.mark.parametrize(
    "content",
    [
        b">a\nACGT\nACGTACGG\n>b\nGG\n",
        b">b\nGG\n>a\nACGT\nACGTACGG\n",
        b">a\nACGT\nACGTACGG\n\n>b\nGG\n\n",
    ],
)
def test_a_longer_last_line_which_pyfaidx_would_misread(tmp_path: Path, content: bytes) -> None:
    assert letters(opened(tmp_path, content)) == {"a": b"ACGTACGTACGG", "b": b"GG"}


def test_same_text_same_digest_however_it_is_packed(tmp_path: Path) -> None:
    plain = opened(tmp_path, WELL_FORMED)
    packed = opened(tmp_path, gzip.compress(WELL_FORMED), "y.fa.gz")
    assert plain.handle.sha256 == packed.handle.sha256
    assert list(plain.contigs.items()) == [("a", 6), ("b", 2)]


def test_empty_records_are_left_out_and_counted(tmp_path: Path) -> None:
    reference = opened(tmp_path, b">a\n>b\nGG\n>c\n>d|x/y z\nTT\n>e\n")
    assert letters(reference) == {"b": b"GG", "d|x/y": b"TT"}
    assert reference.empty_records == 3


TEXT = b">a\n" + b"ACGT" * 5000 + b"\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, not a FASTA"),
        (gzip.compress(b""), "is empty, not a FASTA"),
        (b"hello\n", "is not a FASTA: it starts with b'hello"),
        (b"; only this\n", "is not a FASTA: no line starts with '>'"),
        (b">a\n>b\n", "no sequence in its 2 records"),
        (b">a 1\nAC\n>b\nG\n>a 2\nGG\n", "'a' is the name of records 1 and 3; a name is the first word"),
        (
            b"> seq 0\nAC\n> seq 1\nGG\n",
            "'seq' is the name of records 1 and 2; a name is the first word after .*: rename or remove",
        ),
        (gzip.compress(b"> seq 0\nAC\n> seq 1\nGG\n"), "'seq' is the name of records 1 and 2"),
        (b"ACGT\n>a\nAC\n", "is not a FASTA: it starts with letters of a sequence, not with '>'"),
        (b"; c\nACGT\n>a\nAC\n", "is not a FASTA: it starts with letters of a sequence"),
        (gzip.compress(b"\xef\xbb\xbf; c\nACGT\n>a\nAC\n"), "is not a FASTA: it starts with letters"),
        (b"; one line > without an end", "no line starts with '>'"),
        (b">a\nAC\n; c\nGG\n", "contig a: byte b';' at position 2 is no nucleotide letter"),
        (b">a\nAC\n1 GG\n", "contig a: byte b'1' at position 2 is no nucleotide letter"),
        (b">a\nAC-GG*\n", "contig a: byte b'-' at position 2 is no nucleotide letter"),
        (b">a\nMKVLEF*\n", "contig a: byte b'L' at position 3 is no nucleotide letter"),
        (b">a\nACGT\n\x1a", "contig a: byte b'.x1a' at position 4 is no nucleotide letter"),
        (b">a\nACGT\n\xef\xbb\xbf>b\nGG\n", "contig a: byte b'.xef' at position 4 is no nucleotide letter"),
        (
            b"@r1\nACGT\n+\nIIII\n",
            "it starts with b'@r1.*; it looks like FASTQ or SAM, which must be converted",
        ),
        (b"##gff-version 3\nchr1\t.\n", "it looks like GFF"),
        (gzip.compress(gzip.compress(WELL_FORMED)), "it looks like gzip within a compressed file"),
        (
            gzip.compress(b"\x43\x27\x41\x1a" + b"\0" * 12),
            "it looks like a .2bit file within a compressed file, which must be conv",
        ),
        (b"<!DOCTYPE html>", "it looks like a web page"),
        (WELL_FORMED.decode().encode("utf-16"), "it looks like UTF-16 text"),
        (
            WELL_FORMED.decode().encode("utf-16-le"),
            "the name of record 1, .* is not readable text",
        ),
        (b">a\x01b\nAC\n", "the name of record 1, b'a.*x01b', is not readable text"),
        (
            gzip.compress(WELL_FORMED) + b"trailing",
            "is a damaged gzip file .*after 22 bytes of text.; get it again",
        ),
        (b">a\nAC\n>\nAC\n", "record 2 has no name after its '>'"),
        (">a\nAC\u00e9GT\n".encode(), r"contig a: byte b'\\xc3' at position 2 is no nucleotide letter"),
        (b">a\nACGT\nAC>GT\n", "contig a: byte b'>' at position 6 is no nucleotide letter"),
        (
            b">a\n" + b"ACGT" * 500 + b"\n>b\nACEG\n",
            "contig b: byte b'E' at position 2 is no nucleotide letter",
        ),
        (gzip.compress(b">" + b"x" * 70_000), "is not a FASTA: a header line is longer than 65536 bytes"),
        (b">a\xff\nAC\n", "the name of record 1, .* is not readable text"),
        (gzip.compress(TEXT)[:-12], "is a damaged gzip file .it ends early, after .* bytes of text"),
        (gzip.compress(TEXT)[:-8] + b"\0" * 8, "is a damaged gzip file .*after .* bytes of text"),
        (b"\x43\x27\x41\x1a" + b"\0" * 12, r"damaged .2bit file \(.*\); get it again"),
    ],
)
def test_messes_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        opened(tmp_path, content)
    assert str(tmp_path / "x.fa") in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not [name for name in os.listdir(tmp_path / "cache") if name.endswith(".npz")]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"cannot look up {tmp_path}/none.fa: no such file"):
        prepare(str(tmp_path / "none.fa"), cache=tmp_path)


def test_a_pipe_of_which_the_start_would_be_lost_is_refused(tmp_path: Path) -> None:
    """As <(zcat a.fa.gz) and /dev/stdin are."""
    os.mkfifo(tmp_path / "x.fa")
    with pytest.raises(
        ValueError, match=r"x\.fa is a pipe or a device, and is read more than once; save it as a file"
    ):
        locate(str(tmp_path / "x.fa"), cache=tmp_path / "cache")


def test_the_cache_is_used_and_follows_the_source(tmp_path: Path) -> None:
    first = opened(tmp_path, gzip.compress(WELL_FORMED))
    written = os.stat(first.handle.path).st_mtime_ns
    assert prepare(first.handle.uri, cache=tmp_path / "cache") == first
    assert os.stat(first.handle.path).st_mtime_ns == written, "streamed twice"
    second = opened(tmp_path, gzip.compress(b">a\nTTT\n"))
    assert letters(second) == {"a": b"TTT"}


@pytest.mark.parametrize("name", ["x.fa", "x.fa.gz", "x.2bit"])
def test_what_changes_a_file_and_not_its_bytes_is_no_change(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "x.fa": WELL_FORMED,
        "x.fa.gz": gzip.compress(WELL_FORMED),
        "x.2bit": twobit({"a": b"ACGTAC"}),
    }[name]
    reference, path = opened(tmp_path, content, name), tmp_path / name
    assert not changed(reference)
    with monkeypatch.context() as patch:
        patch.setattr(fasta, "text", None)  # nothing is read again
        patch.setattr(store, "chunks", None)
        path.chmod(0o444)
        os.link(path, tmp_path / "link")
        os.rename(path, tmp_path / "away")
        os.rename(tmp_path / "away", path)
        assert not changed(reference)
    os.utime(path, ns=(1, 1))
    assert not changed(reference), "touched: read again, and the same"
    os.unlink(path)
    path.write_bytes(content)
    assert not changed(reference), "another file of the same bytes"
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 32]) + content[-2:])
    os.utime(path, ns=(1, 1))
    assert changed(reference), "the size is the same, the time and the bytes are not"


def test_a_worker_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = opened(tmp_path, gzip.compress(WELL_FORMED))
    elsewhere = replace(there, handle=replace(there.handle, path="/no/such/r.fa", index="/no/such/r.fai"))
    monkeypatch.setenv("DNA_CACHE", str(tmp_path / "here"))
    assert letters(elsewhere) == letters(there)
    changed = replace(elsewhere.handle, sha256="0" * 64, path="/no/such/other.fa")
    host = socket.gethostname()
    with pytest.raises(
        ValueError, match=f"another file than the build was planned with: sha256 0{{12}} .* {host}"
    ):
        fetch(changed, "a", 0, 1)
    lost = replace(changed, uri=str(tmp_path / "lost.fa"))
    with pytest.raises(StoreError, match=f"lost.fa: no such file.* on host {host}; every node must reach it"):
        fetch(lost, "a", 0, 1)


@pytest.mark.parametrize("name", ["x.fa", "x.2bit"])
def test_another_file_at_the_same_place_on_this_machine_is_refused(tmp_path: Path, name: str) -> None:
    one, two = ({"a": b"ACGTACGT"}, {"a": b"TTTTTTTT"})
    write = twobit if name.endswith(".2bit") else lambda records: b">a\n" + records["a"] + b"\n"
    planned = opened(tmp_path, write(one), name).handle
    assert fetch(planned, "a", 0, 8) == b"ACGTACGT"
    (tmp_path / name).write_bytes(write(two))
    os.utime(tmp_path / name, ns=(1, 1))
    reference_module._open.cache_clear()  # as in a worker that opens it now
    with pytest.raises(ValueError, match=f"{name} is another file than the build was planned with"):
        fetch(planned, "a", 0, 8)


messy_line = st.sampled_from(
    [b"ACGT", b"acgtn", b"", b"", b"NNRY", b"AC GT", b"A\tC", b"G\vT", b"\r", b">x%d y", b"T" * 70]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(messy_line, min_size=1, max_size=12),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
)
def test_plain_and_packed_are_read_alike(tmp_path: Path, lines: list[bytes], end: bytes, last: bool) -> None:
    """Whatever the mess: the plain file, which may be indexed in place, gives what the packed one gives."""
    named = [line % i if b"%d" in line else line for i, line in enumerate([b">first", *lines])]
    text = end.join(named) + (end if last else b"")
    results = []
    for name, content in (("x.fa", text), ("x.fa.gz", gzip.compress(text))):
        try:
            results.append(str(letters(opened(tmp_path, content, name))))
        except ValueError as fault:
            results.append(str(fault).replace(".gz", ""))
    assert results[0] == results[1]


def test_where_n_and_ambiguity_letters_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.survey._SCAN", 7)
    text = b"ACNNNNNNNNNRYGTnnACGk"
    reference = opened(tmp_path, b">a\n" + text + b"\n>b\nACGT\n>c\nN\n")
    for runs, where in ((reference.n_runs, b"NnRYk"), (reference.ambiguous_runs, b"RYk")):
        covered = [i for start, end in runs["a"].tolist() for i in range(start, end)]
        assert covered == [i for i, letter in enumerate(text) if letter in where]
        assert "b" not in runs
    assert reference.n_runs["c"].tolist() == [[0, 1]]
    again = prepare(reference.handle.uri, cache=tmp_path / "cache")
    assert {c: runs.tolist() for c, runs in again.n_runs.items()} == {
        c: runs.tolist() for c, runs in reference.n_runs.items()
    }


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    first = opened(tmp_path, gzip.compress(WELL_FORMED))
    for path in (tmp_path / "cache").iterdir():
        if path.suffix in {".json", ".npz"}:
            path.write_bytes(b"not what it was")
    assert letters(prepare(first.handle.uri, cache=tmp_path / "cache")) == letters(first)
    (scan,) = (tmp_path / "cache").glob("*.npz")
    scan.write_bytes(scan.read_bytes()[:-40])
    assert prepare(first.handle.uri, cache=tmp_path / "cache").n_runs == {}
    Path(first.handle.path).unlink()
    assert letters(prepare(first.handle.uri, cache=tmp_path / "cache"))["a"] == b"ACGTAC"


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "x.fa").write_bytes(WELL_FORMED)
    with pytest.raises(
        StoreError, match=r"cannot use the cache folder .*/file/x: Not a directory; set DNA_CACHE"
    ):
        locate(str(tmp_path / "x.fa"), cache=tmp_path / "file" / "x")


def test_one_long_line_is_not_held_in_memory(tmp_path: Path) -> None:
    """A chromosome on one line of 9 MB: read right, and from a copy with short lines."""
    rng = np.random.default_rng(0)
    text = np.frombuffer(b"ACGTacgt", np.uint8)[rng.integers(0, 8, 9 << 20)].tobytes()
    reference = opened(tmp_path, b">long\n" + text + b"\n>short\nAC\n")
    assert reference.handle.path != str(tmp_path / "x.fa")
    assert fetch(reference.handle, "long", 0, len(text)) == text
    assert max(map(len, Path(reference.handle.path).read_bytes().split(b"\n"))) <= fasta_index.WIDTH
    assert fetch(reference.handle, "short", 0, 2) == b"AC"


def bgzip(data: bytes) -> bytes:
    """As the bgzip program writes it (SAM specification, 4.1): members of at most 64 KiB with their size,
    then EOF."""
    out = b""
    for start in range(0, len(data), 60_000):
        raw = gzip.compress(data[start : start + 60_000])[10:-8]
        crc_and_size = gzip.compress(data[start : start + 60_000])[-8:]
        head = b"\x1f\x8b\x08\x04" + b"\0" * 4 + b"\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(raw) + 25)
        out += head + raw + crc_and_size
    return out + bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def test_bgzip(tmp_path: Path) -> None:
    text = b">a\n" + b"ACGTTGCA\n" * 30_000
    reference = opened(tmp_path, bgzip(text), "x.fa.gz")
    assert fetch(reference.handle, "a", 0, 240_000) == b"ACGTTGCA" * 30_000
    with pytest.raises(ValueError, match=r"is a damaged gzip file \(it ends early"):
        opened(tmp_path, bgzip(text)[:-40], "y.fa.gz")


def twobit(sequences: dict[str, bytes], order: str = "<", version: int = 0) -> bytes:
    """A .2bit file as the format's description at UCSC has it: T 0, C 1, A 2, G 3, first base in the high
    bits."""
    place = f"{order}{'Q' if version else 'I'}"

    def runs(mask: np.ndarray) -> bytes:
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
        return struct.pack(
            f"{order}I{2 * len(edges)}I", len(edges), *edges[:, 0], *(edges[:, 1] - edges[:, 0])
        )

    index, records = b"", b""
    at = 16 + sum(1 + len(name) + struct.calcsize(place) for name in sequences)
    for name, letters in sequences.items():
        raw = np.frombuffer(letters, np.uint8)
        upper = np.frombuffer(letters.upper(), np.uint8)
        values = np.zeros(-(-len(raw) // 4) * 4, np.uint8)
        for value, letter in enumerate(b"TCAG"):
            values[: len(raw)][upper == letter] = value
        quads = values.reshape(-1, 4)
        packed = (
            (quads[:, 0] << 6 | quads[:, 1] << 4 | quads[:, 2] << 2 | quads[:, 3]).astype(np.uint8).tobytes()
        )
        masks = runs(upper == ord("N")) + runs(raw >= ord("a"))
        record = struct.pack(f"{order}I", len(raw)) + masks + b"\0" * 4 + packed
        index += bytes([len(name)]) + name.encode() + struct.pack(place, at + len(records))
        records += record
    return struct.pack(f"{order}4I", 0x1A412743, version, len(sequences), 0) + index + records


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text("ACGTNacgtn", min_size=1, max_size=80).map(str.encode), min_size=1, max_size=4))
def test_twobit_is_read_as_it_was_written(tmp_path: Path, texts: list[bytes]) -> None:
    sequences = {
        f"c{i}": text.replace(b"n", b"N") for i, text in enumerate(texts)
    }  # py2bit shows N in upper case
    reference = opened(tmp_path, twobit(sequences), "x.2bit")
    assert letters(reference) == sequences
    assert reference.handle.path == str(tmp_path / "x.2bit")


@pytest.mark.parametrize("lost", [1, 4, 25, 60, 150, 240, 250, 270])
def test_a_twobit_cut_short(tmp_path: Path, lost: int) -> None:
    """py2bit itself reads what is missing as T."""
    whole = twobit({"a": b"ACGT" * 100, "b": b"ACgtNN" * 60})
    said = (
        r"x.2bit: damaged .2bit file \((it ends early, after \d+ (of \d+ )?bytes|the runs .* do not "
        r"fit.*)\); get it"
    )
    with pytest.raises(ValueError, match=said):
        opened(tmp_path, whole[:-lost], "x.2bit")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ACGTNacgt", max_size=60).map(str.encode), min_size=1, max_size=4).filter(any),
    order=st.sampled_from("<>"),
    version=st.integers(0, 1),
    tail=st.integers(0, 9),
)
def test_a_twobit_of_either_byte_order_and_version(
    tmp_path: Path, texts: list[bytes], order: str, version: int, tail: int
) -> None:
    sequences = {f"c{i}": text for i, text in enumerate(texts)}
    reference = opened(tmp_path, twobit(sequences, order, version) + b"\0" * tail, "x.2bit")
    assert letters(reference) == {name: text for name, text in sequences.items() if text}
    assert (reference.handle.path == str(tmp_path / "x.2bit")) == (order == "<")


def test_a_large_twobit_is_turned_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.twobit._PIECE", 16)
    sequences = {"a": b"ACNNgt" * 50, "b": b"NaNcNgNt" * 9}
    assert letters(opened(tmp_path, twobit(sequences, ">", 1), "x.2bit")) == sequences


@pytest.mark.parametrize("order", "<>")
def test_a_twobit_that_says_less_than_it_holds_is_refused(tmp_path: Path, order: str) -> None:
    whole = bytearray(twobit({"aa": b"NNGT" * 9, "bb": b"GGCC" * 9}, order))
    one = struct.pack(f"{order}I", 1)
    first = 16 + 3  # the place of the first sequence, in the index
    for said, at, new in (
        ("bytes 23 to 30 belong to none of its 1 sequences", 8, one),
        ("sequence bb overlaps another part", first + 7, whole[first : first + 4]),
        ("its version is 7, known are 0 and 1", 4, struct.pack(f"{order}I", 7)),
        ("the runs of N of aa do not fit into its 36 bases", 38, struct.pack(f"{order}I", 35)),
        ("the name of sequence 2, .*, is not readable text", 24, b"\xff"),
        ("bytes 152 to 153 belong to none of its 2 sequences", len(whole), b"x"),
    ):
        content = bytes(whole[:at] + new + whole[at + len(new) :])
        with pytest.raises(ValueError, match=rf"x.2bit: damaged .2bit file \({said}\S*\); get it again"):
            opened(tmp_path, content, "x.2bit")
    with pytest.raises(ValueError, match=r"x.2bit: two sequences have the name aa; rename or remove one"):
        opened(tmp_path, bytes(whole[:24] + b"aa" + whole[26:]), "x.2bit")


def test_a_plain_file_with_the_name_of_a_packed_one(tmp_path: Path) -> None:
    assert letters(opened(tmp_path, WELL_FORMED, "x.fa.gz")) == {"a": b"ACGTAC", "b": b"Gg"}
    assert letters(opened(tmp_path, gzip.compress(WELL_FORMED), "y.fa")) == {"a": b"ACGTAC", "b": b"Gg"}


def test_twobit_of_ucsc(dna_data: Path, tmp_path: Path) -> None:
    reference = prepare(str(dna_data / "genomes" / "toga_hg38.micro_sample.2bit"), cache=tmp_path)
    assert reference.contigs == {"chr9": 540_549}
    text = fetch(reference.handle, "chr9", 0, 540_549)
    assert sum(letter >= ord("a") for letter in text) == 301_799, "as the file's own header counts it"
    assert reference.n_runs == {}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.fa", WELL_FORMED),
        ("x.fa.gz", gzip.compress(WELL_FORMED)),
        ("x.2bit", twobit({"a": b"ACGTAC", "b": b"Gg"})),
    ],
)
def test_over_http(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with serving(tmp_path) as url:
        reference = prepare(f"{url}/{name}", cache=tmp_path / "cache")
        with pytest.raises(StoreError, match=f"{url}/none.fa"):
            prepare(f"{url}/none.fa", cache=tmp_path / "cache")
    assert letters(reference) == {"a": b"ACGTAC", "b": b"Gg"}


def test_outside_a_contig_is_an_error_of_ours(tmp_path: Path) -> None:
    reference = opened(tmp_path, WELL_FORMED)
    with pytest.raises(AssertionError, match="a:5-7 gave 1 letters"):
        fetch(reference.handle, "a", 5, 7)


def test_real_genomes_are_read_to_the_letter(dna_data: Path, tmp_path: Path) -> None:
    """Every FASTA of the real data: digest, contigs, letters and runs of N against a plain reading of the
    text."""
    files = sorted((dna_data / "genomes").glob("*.gz"))
    assert len(files) > 10
    for file in files:
        text = gzip.decompress(file.read_bytes())
        reference = prepare(str(file), cache=tmp_path / "cache")
        assert reference.handle.sha256 == hashlib.sha256(text).hexdigest()
        records = {
            head.split()[0].decode(): body.replace(b"\n", b"").replace(b"\r", b"")
            for head, body in (record.split(b"\n", 1) for record in text.split(b">")[1:])
        }
        assert reference.contigs == {name: len(body) for name, body in records.items() if body}
        for name, body in records.items():
            assert fetch(reference.handle, name, 0, len(body)) == body
            is_n = np.zeros(len(body), np.bool_)
            for start, end in reference.n_runs.get(name, np.zeros((0, 2), np.int64)).tolist():
                is_n[start:end] = True
            assert np.array_equal(is_n, encode(body)[0] == 4)
