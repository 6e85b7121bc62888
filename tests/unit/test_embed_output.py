"""The outputs of trainer.embed: every format holds the same numbers, as a whole or not at all."""

import contextlib
import errno
import io
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr

from cluster.storage import store
from tests import embedded
from tests.embedded import embed, letters_of, numbers, small_chunks, table, write_fasta
from tests.s3 import S3
from trainer.inference.embed import shape, zarr_output

RECORDS = letters_of({"a": 90, "b,c": 20, "d": 64})
LENGTHS = [90, 20, 64]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> str:
    return embedded.model(tmp_path_factory)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "x.fa", RECORDS)


MODES = {
    "record": ("--strands", "both"),
    "window": ("--each", "window", "--strands", "separate", "--length", "40", "--overlap", "8"),
    "letter": ("--pooling", "letters"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["csv", "TSV", "csv.gz", "tsv.gz", "npy", "pq", "zarr", ""])
def test_the_end_of_the_name_says_the_format(
    where: str,
    tmp_path: Path,
    source: Path,
    mode: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same rows as in a Parquet, also where they are written in several groups."""
    wanted = table(where, source, tmp_path / "w.parquet", *MODES[mode])
    monkeypatch.setattr(shape, "GROUP_BYTES", 4 * 24 * 20)
    output = embed(where, source, tmp_path / (f"e?.{end}" if end else "e?"), *MODES[mode])
    names = [name for name in wanted.columns if name[1:].isdigit()]
    assert names[: embedded.HIDDEN] == [f"e{i}" for i in range(embedded.HIDDEN)]
    assert names[embedded.HIDDEN :] == [f"r{i}" for i in range(embedded.HIDDEN)] * (mode == "window")
    if end == "npy":
        found = np.load(output)
        assert found.dtype == np.float32
        assert found.tobytes() == wanted[names].to_numpy().tobytes()
        assert f"an .npy holds no names: row i is {mode} i of the input" in capsys.readouterr().out
        return
    if end == "zarr":
        group = zarr.open_group(str(output), mode="r")
        assert group["embeddings"][:].tobytes() == wanted[names].to_numpy().tobytes()
        return
    if end in ("pq", ""):
        found = pd.read_parquet(output)
        assert pq.ParquetFile(output).num_row_groups == -(-len(wanted) // (20 if mode != "window" else 10))
    else:
        assert output.read_bytes()[:2] == (b"\x1f\x8b" if end.endswith("gz") else b"na")
        found = pd.read_csv(
            output,
            sep="\t" if end.lower().startswith("tsv") else ",",
            compression="gzip" if end.endswith("gz") else None,
            dtype=dict(wanted.dtypes),
        )
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)


def test_an_npy_is_as_numpy_writes_it(where: str, tmp_path: Path, source: Path) -> None:
    output = embed(where, source, tmp_path / "e.npy")
    np.save(tmp_path / "w.npy", np.load(output))
    assert output.read_bytes() == (tmp_path / "w.npy").read_bytes()


def test_into_a_pipe_go_the_same_bytes_without_parts(
    where: str,
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_chunks(monkeypatch, 50)
    wanted = embed(where, source, tmp_path / "e.csv", "--length", "20").read_bytes()
    os.mkfifo(pipe := tmp_path / "pipe.csv")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        embed(where, source, pipe, "--length", "20")
        assert read.result(10) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "pipe.csv", "x.fa"]
    embed(where, source, pipe, "--workers", "1", code=2)
    assert f"--workers needs an --output that is a file or folder, not {pipe}" in capsys.readouterr().err


# zarr.


def test_a_zarr_says_what_each_row_is_and_what_decided_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shape, "GROUP_BYTES", 4 * 24)
    monkeypatch.setattr(zarr_output, "_ENTRIES", 2)
    frame = pd.DataFrame(
        {
            "sequence": list(RECORDS.values()),
            "text": ["ä", None, ""],
            "whole": [1, 2, 3],
            "part": [0.5, None, 2],
            "yes": [True, False, True],
            "embeddings": [7, 8, 9],
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")
    source = tmp_path / "x.parquet"
    group = zarr.open_group(str(embed(where, source, tmp_path / "r.zarr", "--layer", "1")), mode="r")
    assert group.metadata.zarr_format == 3
    weights = group.attrs["weights_sha256"]
    assert len(weights) == 64
    assert dict(group.attrs) == {
        "model": where,
        "version": "",
        "weights_sha256": weights,
        "pooling": "mean",
        "layer": 1,
        "strands": "both",
        "each": "record",
        "length": 1000,
        "overlap": 0,
        "precision": "fp32",
    }
    assert group["embeddings"].chunks == (1, 24)
    assert {name: array[:].tolist() for name, array in group.arrays() if name != "embeddings"} == {
        "text": ["ä", "", ""],
        "whole": [1, 2, 3],
        "part": [0.5, pytest.approx(float("nan"), nan_ok=True), 2.0],
        "yes": [True, False, True],
        "input_embeddings": [7, 8, 9],
        "length": LENGTHS,
    }
    assert group["whole"].dtype == np.int64 and group["yes"].dtype == bool

    options = ("--each", "window", "--length", "40")
    group = zarr.open_group(str(embed(where, source, tmp_path / "w.zarr", *options)), mode="r")
    assert group["start"][:].tolist() == [0, 40, 80, 0, 0, 40]
    assert group["end"][:].tolist() == [40, 80, 90, 20, 40, 64]
    assert group["whole"][:].tolist() == [1, 1, 1, 2, 3, 3]

    group = zarr.open_group(str(embed(where, source, tmp_path / "l.zarr", "--pooling", "letters")), mode="r")
    assert group["embeddings"].shape == (sum(LENGTHS), 24)
    assert group["offset"][:].tolist() == [0, 90, 110, 174]
    assert group["whole"][:].tolist() == [1, 2, 3], "an entry for each record"
    letters = table(where, source, tmp_path / "l.parquet", "--pooling", "letters")
    second = slice(*group["offset"][1:3])
    assert group["embeddings"][second].tobytes() == numbers(letters[letters["whole"] == 2]).tobytes()


def test_columns_that_an_output_cannot_hold_are_refused_before_anything_is_computed(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, column, end, message in (
        (
            "l",
            [[1], [2]],
            "zarr",
            "column 'l' holds list<element: int64>, which a zarr cannot; write .parquet",
        ),
        (
            "l",
            [[1], [2]],
            "csv",
            "column 'l' holds list<element: int64>, which a text file cannot; write .par",
        ),
        (
            "w",
            pd.array([1, None], "Int64"),
            "zarr",
            "column 'w' holds int64 and has no value in some rows, w",
        ),
        ("b", [b"x", b"y"], "zarr", "column 'b' holds binary, which a zarr cannot"),
        (
            "a/b",
            [1, 2],
            "zarr",
            "the input's column 'a/b' cannot be the name of an array of a zarr; rename it",
        ),
        ("", [1, 2], "zarr", "the input's column '' cannot be the name of an array"),
        ("input_length", [1, 2], "csv", "column 'length' would be passed on as 'input_length', which is the"),
    ):
        frame = pd.DataFrame({"sequence": ["ACGT", "AC"], name: column})
        if name == "input_length":
            frame["length"] = [4, 2]
        frame.to_parquet(tmp_path / "x.parquet")
        embed(where, tmp_path / "x.parquet", tmp_path / f"y.{end}", code=1)
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_a_zarr_that_is_there_is_replaced_only_on_demand(
    where: str, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = embed(where, source, tmp_path / "e.zarr", "--pooling", "letters")
    before = contents(output)
    embed(where, source, output, code=2)
    assert f"output {output} is there; give another name, or --overwrite to replace it" in (
        capsys.readouterr().err
    )
    assert contents(output) == before
    embed(where, source, output, "--overwrite")
    assert set(zarr.open_group(str(output), mode="r")) == {"embeddings", "name", "length"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.zarr", "x.fa"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_on_an_object_store_no_half_of_a_zarr_is_taken_for_a_whole_one(
    where: str, tmp_path: Path, source: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"{s3.uri}/e.zarr"
    s3.fault("denied", "PUT", "e.zarr/zarr.json")
    embed(where, source, output, code=1)
    assert "error: cannot write s3://" in capsys.readouterr().err
    assert not s3.objects(), "what was written is removed"
    s3.proxy.clear()

    # What a killed command leaves: it is replaced without a word, and what is not of us is not.
    for name in ("UNFINISHED", "embeddings/zarr.json", "embeddings/c/7/0"):
        store.write_bytes(f"{output}/{name}", b"")
    with pytest.raises(FileNotFoundError):
        zarr.open_group(output, mode="r")
    embed(where, source, output)
    assert not [name for name in s3.objects() if "UNFINISHED" in name or "/7/" in name]
    embed(where, source, output, code=2)
    assert "e.zarr is there; give another name, or --overwrite" in capsys.readouterr().err
    embed(where, source, output, "--overwrite")
    group = zarr.open_group(output, mode="r")
    assert group["embeddings"][:].tobytes() == numbers(table(where, source, tmp_path / "w.pq")).tobytes()
    for name in ("config.json", "model.safetensors"):
        store.put_file(Path(where, name), f"{s3.uri}/model/{name}")
    store.put_file(source, f"{s3.uri}/x.fa")
    there = [f"{s3.uri}/{name}" for name in ("model", "x.fa", "r.parquet")]
    embed(there[0], there[1], there[2], "--pooling", "max")
    wanted = table(where, source, tmp_path / "m.pq", "--pooling", "max")
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(store.read_bytes(there[2]))), wanted)
    store.write_bytes(f"{s3.uri}/old.zarr/.zgroup", b"")
    embed(where, source, f"{s3.uri}/old.zarr", code=2)
    assert "old.zarr is there; give another name" in capsys.readouterr().err


# A disk that fills up.


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file may grow above so many bytes: of a full disk the kernel would say as little."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("end", ["parquet", "csv", "npy", "zarr"])
def test_a_disk_that_fills_up_leaves_no_half_of_an_output(
    where: str, tmp_path: Path, source: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"e.{end}"
    if end != "zarr":
        output.write_text("of yesterday")
    with small_files(8192):
        embed(where, source, output, "--pooling", "letters", code=1)
    said = capsys.readouterr().err
    assert said == f"error: cannot write {said.split()[3][:-1]}: {os.strerror(errno.EFBIG)}\n"
    assert output.name in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"x.fa", output.name} - {"e.zarr"})
    assert end == "zarr" or output.read_text() == "of yesterday"


def test_where_no_part_can_be_written_what_is_done_stays(
    where: str,
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_chunks(monkeypatch, 80)
    options = ("--pooling", "letters", "--length", "20")
    output = tmp_path / "e.npy"
    with small_files(8192):  # too small for a part of 64 letters and more, not for one of 20
        embed(where, source, output, *options, code=1)
    said = capsys.readouterr().err
    assert "e.npy.parts/part-00000000.arrow: File too large" in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy.parts", "x.fa"]
    assert [path.name for path in (tmp_path / "e.npy.parts").iterdir()] == ["key"]
    embed(where, source, output, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "x.fa"]
