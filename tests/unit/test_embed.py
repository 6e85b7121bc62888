"""trainer.embed: every record of a FASTA in a table that comes back whole, or one sentence."""

import bz2
import gzip
import lzma
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import alphabet
from data_prep.sources import compression, fasta
from tests import embedded
from tests.registered import CANDIDATE, registered, tiny_network
from trainer.embed import main
from trainer.inference.embed import output
from trainer.inference.embed.rows import Rows
from trainer.inference.embedding import embed
from trainer.inference.sequences import EncodedSequences


def sequences(lengths: list[int]) -> list[alphabet.Codes]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 4, n).astype(np.uint8) for n in lengths]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGT\n", "is not a FASTA: it starts with letters of a sequence, not with '>'"),
        (">a\nACGT\n>b\n>c\nA\n", "record b has no letters"),
        (">a\nACGT\nAC*T\n", r"record a: byte b'\*' at position 6"),
        ("", "is empty, not a FASTA"),
        (
            "> seq 0\nACGT\n> seq 1\nACGT\n",
            "'seq' is the name of records 1 and 2; a name is the first word",
        ),
        (">a\nACGT\n>\nACGT\n", "record 2 has no name"),
        (">a\nACGT\n>\x01\nACGT\n", r"the name of record 2, b'\\x01', is not readable"),
        (">a\nAC>GT\n", "record a: byte b'>' at position 2"),
        ("; of old\nACGT\n>a\nACGT\n", "it starts with letters of a sequence"),
    ],
)
def test_what_is_no_fasta(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x.fa").write_text(text)
    embedded.embed(embedded.model(tmp_path_factory), tmp_path / "x.fa", tmp_path / "e.csv", code=1)
    said = capsys.readouterr().err
    assert re.search(rf"^error: .*x\.fa.*{message}", said) and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.fa"]


def test_a_cut_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a\n" + b"ACGTTGCA" * 500)[:-12])
    with pytest.raises(ValueError, match=r"x.fa.gz is a damaged gzip file"):
        list(fasta.records(str(tmp_path / "x.fa.gz")))


FASTA = ">one of two\nACGTR\nAC\n>two\nGGTTAACC\n"
READ = [("one", "ACGTNAC"), ("two", "GGTTAACC")]


def letters(path: Path) -> list[tuple[str, str]]:
    return [(name, alphabet.decode(codes).decode()) for name, codes, _ in fasta.records(str(path))]


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mangled_fasta_has_the_same_records_or_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    text = FASTA.encode()
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        what = data.draw(st.sampled_from(["put", "mark", "ends", "lead", "utf-16", "blank"]))
        if what == "put":
            text = (
                text[:at]
                + data.draw(st.sampled_from([b"\n", b"\r", b"\0", b";", b"*", b"-", b"\xff"]))
                + text[at:]
            )
        elif what == "mark":
            text = b"\xef\xbb\xbf" + text
        elif what == "ends":
            text = text.replace(b"\n", data.draw(st.sampled_from([b"\r\n", b"\r"])))
        elif what == "lead":
            text = text.replace(b"\n>", b"\n >") if at % 2 else b" \n " + text
        elif what == "utf-16":
            text = text.decode("latin-1").encode("utf-16")
        else:
            text = text[:at] + data.draw(st.sampled_from([b" ", b"\t"])) + text[at:]
    path = tmp_path / "x.fa"
    pack = data.draw(st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress]))
    path.write_bytes(pack(text))
    found = attempt(path)
    # A mark may have become part of a name, which then is another right one.
    assert found is None or [each for _, each in found] == [each for _, each in READ], text


def attempt(path: Path) -> list[tuple[str, str]] | None:
    """The records, or None where they are refused in a sentence that names the file."""
    try:
        return letters(path)
    except ValueError as fault:
        said = str(fault)
    assert str(path) in said
    assert "\n" not in said
    return None


@given(st.integers(0, 200), st.sampled_from([gzip.compress, bz2.compress, lzma.compress]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_fasta_that_was_compressed_is_refused(
    tmp_path: Path, at: int, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(FASTA.encode())
    (tmp_path / "x.fa").write_bytes(whole[: at % len(whole)])
    assert attempt(tmp_path / "x.fa") is None


def test_lines_end_as_they_like_also_where_pieces_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FASTA.replace("\n", "\r\n").encode()
    for size in range(1, 9):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        monkeypatch.setattr(compression.store, "chunks", lambda uri, pieces=pieces: iter(pieces))
        assert letters(tmp_path / "x.fa") == READ


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "e.xlsx",
            "e.xlsx ends in .xlsx, which is no format here; the end of the name says the format: .parquet",
        ),
        ("e.parquet.gz", "ends in .parquet.gz, which is no format"),
        ("e.txt", "ends in .txt"),
        ("s3://b/e.h5?versionId=x.csv", "ends in .h5"),
        ("new/", "new/ is a folder; give the name of a file in it, such as new/embeddings.parquet"),
        (".", ". is a folder"),
        ("-", "- is no file; standard input and output are /dev/stdin"),
    ],
)
def test_another_name_is_refused_before_any_work(
    output: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        "--model",
        "models:/none@x",
        "--input",
        "none.fa",
        "--track-uri",
        f"sqlite:///{tmp_path}/none.db",
    ]
    assert main([*arguments, "--output", output]) == 2
    assert message in capsys.readouterr().err
    assert main([*arguments, "--output", "e.csv", "--length", "0"]) == 2
    assert "--length 0 must be at least 1" in capsys.readouterr().err


def test_a_pipe_that_is_empty_the_second_time_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["--model", "models:/none@x", "--input", str(pipe), "--output", "e.csv"]) == 2
    assert (
        f"{pipe} is a pipe or a device, and is read more than once; save it as a file"
        in capsys.readouterr().err
    )


def test_table_round_trip_through_the_registry(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    where = registered(tmp_path_factory)
    long, short = sequences([150, 20])
    text = (
        f">long one\n{alphabet.decode(long).decode()}\n\n>short\n{alphabet.decode(short).decode().lower()}\n"
    )
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(text.encode()))
    out = tmp_path / "out" / "e.parquet"
    arguments = ["--model", CANDIDATE, "--input", str(tmp_path / "x.fa.gz"), "--output", str(out)]
    assert main([*arguments, "--track-uri", where.uri]) == 0
    assert "windows of 64 bp" in capsys.readouterr().out, "the pretraining length"
    table = pd.read_parquet(out)
    assert list(table.columns) == ["name", "length", *(f"e{i}" for i in range(24))]
    assert table["name"].tolist() == ["long", "short"]
    assert table["length"].tolist() == [150, 20]
    windows = embed(
        tiny_network(), EncodedSequences.from_codes([long[:64], long[64:128], long[128:], short])
    ).mean_ND
    expected = (windows[0] * 64 + windows[1] * 64 + windows[2] * 22) / 150
    np.testing.assert_allclose(table.iloc[0, 2:].to_numpy(dtype=float), expected, atol=1e-5)
    np.testing.assert_allclose(table.iloc[1, 2:].to_numpy(dtype=float), windows[3], atol=1e-5)

    arguments[3] = str(tmp_path / "none.fa")
    out.unlink()
    assert main([*arguments, "--track-uri", where.uri]) == 1
    assert "none.fa: no such file" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_told_to_stop_it_leaves_no_half_of_a_file(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    signal_handlers: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = registered(tmp_path_factory)
    (tmp_path / "x.fa").write_text(FASTA)
    (tmp_path / "e.csv").write_text("of yesterday")
    arguments = [
        "--model",
        CANDIDATE,
        "--input",
        str(tmp_path / "x.fa"),
        "--output",
        str(tmp_path / "e.csv"),
        "--track-uri",
        where.uri,
    ]
    write = output._Text.write

    def stopped(writer: output._Text, rows: Rows) -> None:
        write(writer, rows)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(output._Text, "write", stopped)
        assert main(arguments) == code
    assert "no half of an output is left; the same command goes on from the parts" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "x.fa"]
    assert (tmp_path / "e.csv").read_text() == "of yesterday"
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "e.csv: 2 sequences, 15 bp, 24 numbers each (CSV; toy version" in out
    assert "1 ambiguous letters (IUPAC codes such as R or Y) were read as N" in out
    assert pd.read_csv(tmp_path / "e.csv")["name"].tolist() == ["one", "two"]
