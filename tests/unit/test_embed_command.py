"""trainer.embed: every input and option against the naive forward, in any order and chunks the same bits."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import alphabet
from tests import embedded
from tests.embedded import embed, letters_of, numbers, small_chunks, states, table, write_fasta
from tests.unit.test_embed_windows import naive as naive_windows
from tests.unit.test_reference import twobit

LENGTH = 64


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> str:
    return embedded.model(tmp_path_factory)


def naive(letters: str, *, overlap: int, strand: int, length: int = LENGTH) -> np.ndarray:
    """[L, D]: of each letter the hidden states in the window where it is farthest from an edge."""
    windows, keeper = naive_windows(len(letters), length, overlap)
    of_windows = [states(letters[start:end], strand=strand) for start, end in windows]
    return np.stack([of_windows[w][letter - windows[w][0]] for letter, w in enumerate(keeper)])


# What is read.

RECORDS = letters_of({"long": 200, "short": 20, "exact": 64, "one": 1})


@pytest.mark.parametrize("overlap", [0, 45])
@pytest.mark.parametrize("strands", ["both", "forward", "separate"])
def test_pooled_letters_are_those_of_a_naive_loop(
    where: str, tmp_path: Path, overlap: int, strands: str
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    options = ["--length", "64", "--overlap", str(overlap), "--strands", strands]
    found = {
        pooling: table(where, source, tmp_path / "y.parquet", *options, "--pooling", pooling)
        for pooling in ("mean", "max", "letters")
    }
    assert list(found["mean"].columns[:2]) == ["name", "length"]
    assert found["mean"]["name"].tolist() == list(RECORDS)
    assert found["mean"]["length"].tolist() == [200, 20, 64, 1]
    assert list(found["letters"].columns[:2]) == ["name", "position"]
    for row, (name, letters) in enumerate(RECORDS.items()):
        of_strands = [naive(letters, overlap=overlap, strand=strand) for strand in (0, 1)]
        for pooling, frame in found.items():
            pool = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "letters": lambda x: x}[pooling]
            forward, reverse = map(pool, of_strands)
            rows = frame[frame["name"] == name] if pooling == "letters" else frame.iloc[row]
            frame_of = rows if pooling == "letters" else frame.iloc[[row]]
            got = numbers(frame_of) if pooling == "letters" else numbers(frame_of)[0]
            wanted = (forward + reverse) / 2 if strands == "both" else forward
            np.testing.assert_allclose(got, wanted, atol=2e-5)
            if strands == "separate":
                got = numbers(frame_of, "r")
                np.testing.assert_allclose(got if pooling == "letters" else got[0], reverse, atol=2e-5)
        of_record = found["letters"][found["letters"]["name"] == name]
        assert of_record["position"].tolist() == list(range(len(letters)))


def test_a_row_for_each_window_says_which_letters_it_keeps(where: str, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    frame = table(
        where, source, tmp_path / "y.parquet", "--each", "window", "--length", "64", "--overlap", "16"
    )
    assert list(frame.columns[:3]) == ["name", "start", "end"]
    for name, letters in RECORDS.items():
        rows = frame[frame["name"] == name]
        assert rows["start"].tolist() == [0, *rows["end"].tolist()[:-1]], "one behind the other"
        assert rows["end"].tolist()[-1] == len(letters)
        both = (naive(letters, overlap=16, strand=0) + naive(letters, overlap=16, strand=1)) / 2
        wanted = [both[start:end].mean(0) for start, end in zip(rows["start"], rows["end"], strict=True)]
        np.testing.assert_allclose(numbers(rows), wanted, atol=2e-5)


def test_summaries_of_a_long_record_are_weighted_by_the_letters_that_count(
    where: str, tmp_path: Path
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    options = ["--pooling", "summary", "--length", "64", "--overlap", "16"]
    windows = table(where, source, tmp_path / "w.parquet", *options, "--each", "window")
    records = table(where, source, tmp_path / "r.parquet", *options)
    assert numbers(records).shape == (4, 2 * embedded.HIDDEN), "two summary positions"
    for row, name in enumerate(RECORDS):
        of_record = windows[windows["name"] == name]
        weights = of_record["end"] - of_record["start"]
        wanted = np.average(numbers(of_record), axis=0, weights=weights)
        np.testing.assert_allclose(numbers(records)[row], wanted, atol=1e-5)


def test_a_layer_that_is_asked_for(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    by_layer = {
        layer: numbers(table(where, source, tmp_path / "y.parquet", *options))
        for layer, options in ((None, []), (2, ["--layer", "2"]), (0, ["--layer", "0"]))
    }
    assert by_layer[2].tobytes() == by_layer[None].tobytes() != by_layer[0].tobytes()
    embed(where, source, tmp_path / "z.parquet", "--layer", "3", code=2)
    assert "--layer 3 is not there: the model has 2 layers; give 0 (the input map) to 2" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "z.parquet").exists()


# The same bits.


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_has_the_same_bits_in_any_order_and_chunks(
    where: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=8))
    records = letters_of({f"r{i}": length for i, length in enumerate(lengths)})
    options = [
        *("--pooling", pooling := data.draw(st.sampled_from(["mean", "max", "summary", "letters"]))),
        *("--strands", data.draw(st.sampled_from(["both", "forward", "separate"]))),
        *("--length", "64", "--overlap", str(data.draw(st.sampled_from([0, 16])))),
    ]
    frame = table(where, write_fasta(folder / "x.fa", records), folder / "x.parquet", *options)
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, data.draw(st.sampled_from([1, 100, 500])))
        order = data.draw(st.permutations(list(records)))
        shuffled_file = write_fasta(folder / "y.fa", {name: records[name] for name in order})
        shuffled = table(where, shuffled_file, folder / "y.parquet", *options)
    # Where a record is cut into pieces follows from the size of a chunk, which is fixed. For other sizes only
    # letters, maxima and what lies in one piece has the same bits.
    for name, letters in records.items():
        rows, again = (
            np.ascontiguousarray(frame_of.loc[frame_of["name"] == name].drop(columns="name"))
            for frame_of in (frame, shuffled)
        )
        if pooling in ("letters", "max") or len(letters) <= 64:
            assert rows.tobytes() == again.tobytes()
        np.testing.assert_allclose(rows, again, rtol=1e-6)
    alone = data.draw(st.sampled_from(list(records)))
    one = table(where, write_fasta(folder / "z.fa", {alone: records[alone]}), folder / "z.parquet", *options)
    rows = frame.loc[frame["name"] == alone].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, one, check_exact=True)


def test_the_other_strand_has_the_same_numbers(where: str, tmp_path: Path) -> None:
    other = {
        name: alphabet.decode(alphabet.reverse_complement(alphabet.encode(letters.encode())[0])).decode()
        for name, letters in RECORDS.items()
    }
    files = [write_fasta(tmp_path / f"{i}.fa", records) for i, records in enumerate((RECORDS, other))]
    for pooling in ("mean", "max", "summary"):
        options = ["--pooling", pooling, "--length", "300"]
        given, reverse = (table(where, file, tmp_path / "y.parquet", *options) for file in files)
        assert numbers(given).tobytes() == numbers(reverse).tobytes()
        options += ["--strands", "separate"]
        given, reverse = (table(where, file, tmp_path / "y.parquet", *options) for file in files)
        assert numbers(given).tobytes() == numbers(reverse, "r").tobytes()


# Inputs.


@pytest.mark.parametrize("name", ["x.fa", "x.fna.gz", "x", "x.2bit", "x.csv", "x.tsv.gz", "x.parquet"])
def test_every_input_gives_the_same_numbers_and_its_other_columns_ride_along(
    where: str, tmp_path: Path, name: str
) -> None:
    wanted = numbers(table(where, write_fasta(tmp_path / "w.fa", RECORDS), tmp_path / "w.parquet"))
    source, options = tmp_path / name, []
    if name.endswith(("csv", "tsv.gz", "parquet")):
        frame = pd.DataFrame({"id": [4, 3, 2, 1], "dna": list(RECORDS.values()), "note": ["a", "b", "", "d"]})
        options = ["--sequence-column", "dna"]
        if name.endswith("parquet"):
            frame.to_parquet(source)
        else:
            frame.to_csv(source, index=False, sep="\t" if "tsv" in name else ",")
    elif name.endswith(".2bit"):
        source.write_bytes(twobit({key: letters.encode() for key, letters in RECORDS.items()}))
    else:
        text = write_fasta(source, RECORDS).read_bytes()
        source.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    frame = table(where, source, tmp_path / "y.parquet", *options)
    assert numbers(frame).tobytes() == wanted.tobytes()
    if options:
        assert list(frame.columns[:3]) == ["id", "note", "length"]
        assert [str(value) for value in frame["id"]] == ["4", "3", "2", "1"]
        assert frame["note"].tolist()[:2] == ["a", "b"]
    else:
        assert frame["name"].tolist() == list(RECORDS)


def test_a_bed_with_other_names_of_contigs(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genome = letters_of({"chr1": 200, "chr2": 100, "chrM": 50})
    write_fasta(tmp_path / "g.fa", genome)
    bed = "1\t10\t60\tp\t0\t+\nchr2\t0\t100\tq\t0\t-\nMT\t5\t50\tr\t0\t.\n"
    (tmp_path / "x.bed").write_text(bed)
    options = ["--reference", str(tmp_path / "g.fa")]
    frame = table(where, tmp_path / "x.bed", tmp_path / "y.parquet", *options)
    assert capsys.readouterr().err == (
        f"contigs 1, MT of {tmp_path / 'x.bed'} were read as chr1, chrM of the reference\n"
    ), "once"
    cut = {"p": genome["chr1"][10:60], "q": genome["chr2"], "r": genome["chrM"][5:50]}
    wanted = table(where, write_fasta(tmp_path / "w.fa", cut), tmp_path / "w.parquet")
    assert numbers(frame).tobytes() == numbers(wanted).tobytes()
    assert list(frame.columns[:7]) == ["chrom", "start", "end", "label", "score", "strand", "length"]
    assert frame["chrom"].tolist() == ["1", "chr2", "MT"], "as the BED has them"
    windows = table(where, tmp_path / "x.bed", tmp_path / "z.parquet", *options, "--each", "window")
    assert list(windows.columns[1:3]) == ["input_start", "input_end"]
    assert "the input's own start, end stands there with input_ before the name" in capsys.readouterr().out


# What is wrong is one sentence, and leaves nothing.


def refused(
    capsys: pytest.CaptureFixture[str], where: str, source: Path, output: Path, *options: str, code: int
) -> str:
    before = sorted(output.parent.iterdir())
    embed(where, source, output, *options, code=code)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert sorted(output.parent.iterdir()) == before
    return said


def test_inputs_that_are_refused(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fasta(tmp_path / "g.fa", {"chr1": "ACGT" * 5})
    reference = ("--reference", str(tmp_path / "g.fa"))
    pd.DataFrame({"seq": ["ACGT"]}).to_parquet(tmp_path / "x.parquet")
    pd.DataFrame({"sequence": []}, dtype=str).to_parquet(tmp_path / "none.parquet")
    for name, text in {
        "far.bed": "chr1\t0\t9\nchr1\t10\t21\n",
        "other.bed": "chrQ\t0\t9\n",
        "empty.fa": "",
        "empty.csv": "sequence,id\n",
        "empty.bed": "# nothing\n",
        "late.csv": "sequence,id\n" + "ACGT,1\n" * 1500 + "ACJT,2\n",
    }.items():
        (tmp_path / name).write_text(text)
    for name, options, code, message in (
        ("x.parquet", (), 1, "has no column 'sequence', its columns are 'seq'; give the right name as seq"),
        ("none.parquet", (), 1, "none.parquet has columns and no rows"),
        ("far.bed", reference, 1, "line 2: [10, 21) reaches beyond the end of contig chr1, which has 20 bp"),
        ("other.bed", reference, 1, "line 1: ?g.fa has no contig 'chrQ'; it has chr1"),
        ("far.bed", (), 2, "far.bed is a BED; give --reference, the genome that its intervals are cut from"),
        ("empty.fa", (), 1, "empty.fa is empty, not a FASTA"),
        ("empty.csv", (), 1, "empty.csv has a header and no rows"),
        ("empty.bed", reference, 1, "empty.bed has no intervals"),
        ("late.csv", (), 1, "late.csv, line 1502: byte b'J' at position 2 is no nucleotide letter"),
        ("nowhere.fa", (), 1, "nowhere.fa: no such file"),
    ):
        said = refused(capsys, where, tmp_path / name, tmp_path / "y.parquet", *options, code=code)
        for part in message.split("?"):
            assert part in said


def test_options_that_are_refused(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.zarr").write_text("")
    for output, options, message in (
        (
            "y.csv",
            ["--overlap", "64", "--length", "64"],
            "--overlap 64 must be below the windows' length, wh",
        ),
        ("y.csv", ["--overlap", "1000"], "--overlap 1000 must be below the windows' length, which is 1000"),
        ("y.csv", ["--overlap", "-1"], "--overlap -1 must be at least 0"),
        ("y.csv", ["--length", "0"], "--length 0 must be at least 1"),
        ("y.csv", ["--workers", "0"], "--workers 0 must be at least 1"),
        ("y.csv", ["--pooling", "letters", "--each", "window"], "a row for each letter; leave out --each"),
        ("y.csv", ["--layer", "-1"], "--layer -1 is not there: the model has 2 layers"),
        ("y.xlsx", [], "y.xlsx ends in .xlsx, which is no format here"),
        ("folder.csv", [], "folder.csv is a folder; give the name of a file in it"),
        ("file.zarr", [], "file.zarr is a file, and a zarr is a folder; give another name"),
        ("x.fa", [], "is the input; give another name"),
        ("y.csv", ["--colour", "name"], "--colour is for --picture"),
        ("y.csv", ["--picture", "p.pdf"], "p.pdf says another format; a PNG is written, name it .png"),
        ("y.csv", ["--picture", "p.png", "--projection", "umap"], "umap needs umap-learn, which is not inst"),
    ):
        assert message in refused(capsys, where, source, tmp_path / output, *options, code=2)
    said = refused(
        capsys, where, source, tmp_path / "y.csv", "--picture", "p.png", "--colour", "kind", code=1
    )
    assert "x.fa has no column 'kind' for --colour; it has name" in said
    said = refused(capsys, str(tmp_path / "none"), source, tmp_path / "y.csv", code=1)
    assert "none is no export: it has no config.json; give models:/NAME@ALIAS, or the folder" in said


def test_an_input_that_changes_meanwhile_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    survey = embedded.command.source.survey

    def then_changed(*args: object, **options: object) -> object:
        found = survey(*args, **options)
        write_fasta(source, RECORDS | {"one": "A"} | {"more": "ACGT"})
        return found

    monkeypatch.setattr(embedded.command.source, "survey", then_changed)
    said = refused(capsys, where, source, tmp_path / "y.parquet", code=1)
    assert "x.fa changed while it was read; give the command again" in said
