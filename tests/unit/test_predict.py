"""python -m trainer.predict: every row, in order, with its other columns; mistakes are one sentence."""

import gzip
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests import kept
from tests.registered import CANDIDATE, Registered, registered
from trainer import load_task_model
from trainer.evaluation.tasks.kept import predict_command
from trainer.inference.readers.stream import SequenceChunk
from trainer.predict import main

SEQUENCES = ["ACGTTGCATTAGC", "gattacagattaca", "NNACGTRYACGT", "A"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = registered(tmp_path_factory)
    folder = tmp_path_factory.mktemp("predict") / "model"
    return kept.written(folder, kept.outcome(where, "classification", "finetune").model)


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


def predicted(model: str, source: Path, output: Path, *more: str) -> pd.DataFrame:
    assert main(["--model", model, "--input", str(source), "--output", str(output), *more]) == 0
    return (
        pd.read_parquet(output)
        if output.suffix == ".parquet"
        else pd.read_csv(output, sep=None, engine="python")
    )


def written(folder: Path, name: str) -> Path:
    """SEQUENCES as a file of the format that its name says, with other columns where it may have them."""
    path = folder / name
    table = pd.DataFrame({"id": [3, 1, 2, 7], "sequence": SEQUENCES, "note": ["a,b", None, 'q"', ""]})
    if ".fa" in name:
        text = "".join(
            f">{i} {i}th\n{letters[:5]}\n{letters[5:]}\n".replace("\n\n", "\n")
            for i, letters in zip(table["id"], SEQUENCES, strict=True)
        )
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    elif name.endswith(".parquet"):
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


@pytest.mark.parametrize("source", ["x.csv", "x.tsv.gz", "x.parquet", "x.fa", "x.fa.gz"])
@pytest.mark.parametrize("output", ["y.parquet", "y.csv", "y.tsv", "y.csv.gz"])
def test_every_format_gives_the_same_rows_in_order(
    model: str, tmp_path: Path, source: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predicted(model, written(tmp_path, source), tmp_path / output)
    expected = load_task_model(model).predict(SEQUENCES)
    own = ["name"] if ".fa" in source else ["id", "note"]
    assert list(table.columns) == [*own, "label", "p_a", "p_b"]
    assert list(table["label"]) == list(expected["label"])
    np.testing.assert_allclose(table[["p_a", "p_b"]], expected[["p_a", "p_b"]], rtol=1e-12)
    assert [str(value) for value in table[own[0]]] == ["3", "1", "2", "7"]
    if own == ["id", "note"]:
        assert (
            table["note"][0] == "a,b"
            and table["note"][2] == 'q"'
            and pd.isna(table["note"].replace("", None)[1])
        )
    out = capsys.readouterr().out
    assert f"{output}: 4 predictions of motif ({model}: finetune of toy version 1)" in out
    assert "2 ambiguous letters" in out


@pytest.mark.parametrize(
    ("kind", "columns"), [("regression", ["value"]), ("multilabel", ["label", "p_gc", "p_long"])]
)
def test_other_kinds_have_their_own_columns(
    where: Registered, tmp_path: Path, kind: str, columns: list[str]
) -> None:
    folder = kept.written(tmp_path / "model", kept.outcome(where, kind, "probe").model)
    table = predicted(folder, written(tmp_path, "x.csv"), tmp_path / "y.parquet")
    pd.testing.assert_frame_equal(
        table[columns], load_task_model(folder).predict(SEQUENCES), check_dtype=False
    )
    assert list(table.columns) == ["id", "note", *columns]


def test_columns_of_the_input_that_a_prediction_has_are_renamed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "x.csv"
    source.write_text("seq,label,p_a\nACGT,mine,1\nGGGG,yours,2\n")
    table = predicted(model, source, tmp_path / "y.csv", "--sequence-column", "seq")
    assert list(table.columns) == ["input_label", "input_p_a", "label", "p_a", "p_b"]
    assert list(table["input_label"]) == ["mine", "yours"]
    assert "the input's own label, p_a stands there with input_ before the name" in capsys.readouterr().out
    source.write_text("sequence,label,input_label\nACGT,mine,1\n")
    assert main(["--model", model, "--input", str(source), "--output", str(tmp_path / "z.csv")]) == 1
    assert "column 'label' would be passed on as 'input_label', which is the name of another; rename" in (
        capsys.readouterr().err
    )


def test_a_large_input_is_not_held(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chunk is read, of those before none but the last is still there."""
    alive: list[weakref.ref[SequenceChunk]] = []
    most = 0

    def many(uri: str, **given: object) -> Iterator[SequenceChunk]:
        nonlocal most
        for first in range(0, 30, 3):
            most = max(most, sum(ref() is not None for ref in alive))
            numbers = list(range(first, first + 3))
            chunk = SequenceChunk(["ACGT"] * 3, pa.table({"n": numbers}), numbers, 0, False)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    monkeypatch.setattr(predict_command, "read_sequences", many)
    table = predicted(model, tmp_path / "x.csv", tmp_path / "y.parquet")
    assert list(table["n"]) == list(range(30))
    assert most <= 1


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        ("sequence\nACGT\nAC!T\n", [], 1, "x.csv, line 3: byte b'!' at position 2 is no nucleotide letter"),
        ("sequence\n", [], 1, "x.csv has a header and no rows"),
        ("", [], 1, "x.csv is empty; the first line must name the columns 'sequence'"),
        ("seq\nACGT\n", [], 1, "x.csv has no column 'sequence', its columns are 'seq'"),
        (
            "sequence\nACGT\n",
            ["--output", "."],
            2,
            "output . is a folder; give the name of a file in it, such as",
        ),
        ("sequence\nACGT\n", ["--output", "x.csv"], 2, "--output x.csv is the input; give another name"),
        ("sequence\nACGT\n", ["--output", "y.npy"], 2, "output y.npy ends in .npy, which is no format here"),
        ("sequence\nACGT\n", ["--output", "y.xlsx"], 2, "which is no format here"),
        ("sequence\nACGT\n", ["--input", "none.csv"], 1, "none.csv: no such file"),
        ("sequence\nACGT\n", ["--input", "x.bed"], 2, "--input x.bed is a BED; give --reference"),
        ("sequence\nACGT\n", ["--model", CANDIDATE], 1, f"{CANDIDATE} is an encoder without a task"),
        (
            "sequence\nACGT\n",
            ["--model", "models:/toy-no@champion"],
            1,
            "registered model models:/toy-no@champion",
        ),
        ("sequence\nACGT\n", ["--model", "models:/toy@none"], 1, "registered model models:/toy@none"),
        (
            "sequence\nACGT\n",
            ["--model", "models:/toy"],
            2,
            "write models:/NAME@ALIAS or models:/NAME/VERSION",
        ),
        ("sequence\nACGT\n", ["--model", "nowhere"], 1, "nowhere holds no model: it has no task.json"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    model: str,
    where: Registered,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text(content)
    command = ["--model", model, "--input", "x.csv", "--output", "y.parquet", "--track-uri", where.uri]
    assert main([*command, *options]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert Path("x.csv").read_text() == content


def test_what_a_text_file_cannot_hold_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"sequence": ["ACGT"], "parts": [[1, 2]]}).to_parquet(tmp_path / "x.parquet")
    command = ["--model", model, "--input", str(tmp_path / "x.parquet"), "--output"]
    assert main([*command, str(tmp_path / "y.csv")]) == 1
    assert "column 'parts' holds list" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "y.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "y.parquet")["parts"][0].tolist() == [1, 2]
