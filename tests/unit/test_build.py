"""data_prep.build: same input, same bytes; all of it or nothing."""

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster import store
from configs import load
from data_prep.build import Built, build
from data_prep.config import DataConfig
from data_prep.export import export
from data_prep.intervals import read_bed
from data_prep.read import load_manifest
from data_prep.shards import SPLITS
from data_prep.verify import verify

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def fasta(small: Path) -> str:
    return str(small.parent / "genome.fa")


def made(fasta: str, output: Path | str, **changes: Any) -> Built:
    values = {"references": [{"name": "toy", "uri": fasta}], "output": str(output), "block_bp": 1024,
              "shard_bp": 3000, "max_n_fraction": 1, "split": {"val": ["two/b"]}}
    return build(DataConfig.model_validate(values | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder) if name != "build.json"}


def records(path: Path) -> dict[str, str]:
    parts = (record.split("\n", 1) for record in path.read_text().split(">")[1:])
    return {header: letters.replace("\n", "") for header, letters in parts}


def test_workers_place_and_gzip_change_no_byte(small: Path, fasta: str, tmp_path: Path) -> None:
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(Path(fasta).read_bytes()))
    for name, source, workers in (("one", fasta, 1), ("two", fasta, 2), ("gz", str(tmp_path / "g.fa.gz"), 2)):
        made(source, tmp_path / name, workers=workers)
        assert contents(tmp_path / name) == contents(small), name
    assert str(tmp_path).encode() not in contents(small)["manifest.json"]
    assert len(contents(small)) == 3 + 1 + 2 + 3, "3 train shards by size, 2 val; a BED each; a manifest"


def test_export_gives_back_every_letter(small: Path, small_letters: dict[str, str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        export(str(small), split=split, fasta=str(tmp_path / f"{split}.fa"))
    kept = {f"toy:{name}:0-{len(letters)}": letters.replace("R", "N") for name, letters in small_letters.items()}
    held_out = f"toy:two/b:0-{len(small_letters['two/b'])}"
    assert records(tmp_path / "val.fa") == {held_out: kept.pop(held_out)}
    assert records(tmp_path / "train.fa") == kept
    with pytest.raises(ValueError, match="has nothing in its test split"):
        export(str(small), split="test", fasta=str(tmp_path / "test.fa"))
    assert not (tmp_path / "test.fa").exists()


def test_manifest_and_bed_say_what_is_there(small: Path, small_letters: dict[str, str]) -> None:
    manifest = load_manifest(str(small))
    assert manifest.sources[0].contigs == {name: len(letters) for name, letters in small_letters.items()}
    assert manifest.sources[0].iupac_to_n == 1
    assert manifest.bp("val") == len(small_letters["two/b"])
    assert read_bed(str(small / "train.bed")) == {"one": [(0, 7000)], "three": [(0, 7)]}
    assert json.loads((small / "build.json").read_bytes())["uris"] == [str(small.parent / "genome.fa")]


def test_again_is_already_done_and_another_is_refused(small: Path, fasta: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    before = {name: os.stat(copy / name).st_mtime_ns for name in os.listdir(copy)}
    assert not made(fasta, copy, workers=1).fresh
    assert {name: os.stat(copy / name).st_mtime_ns for name in os.listdir(copy)} == before
    with pytest.raises(ValueError, match=r"holds another dataset \(it differs in seed, split\); pass overwrite=true"):
        made(fasta, copy, seed=1, split={"val": 0})
    assert contents(copy) == contents(small)
    assert made(fasta, copy, overwrite=True, split={"val": 0}).fresh
    assert verify(str(copy)) == [], "the former val shards are gone"
    assert load_manifest(str(copy)).bp("val") == 0


def test_files_that_are_not_ours_stay(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"o is not empty and has no manifest.json .*; pass overwrite=true"):
        made(fasta, tmp_path / "o")
    assert made(fasta, tmp_path / "o", overwrite=True).fresh
    assert (tmp_path / "o" / "thesis.txt").exists()


def test_uri_output(small: Path, fasta: str, tmp_path: Path) -> None:
    made(fasta, f"file://{tmp_path}/uri")
    assert contents(tmp_path / "uri") == contents(small)
    with pytest.raises(ValueError, match="was written by a worker but is not seen from here"):
        made(fasta, "memory://build")  # each process has a memory of its own
    assert store.list_files("memory://build") == []


def test_filters_and_n_share(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "in.bed").write_text("one\t1000\t5000\n")
    (tmp_path / "out.bed").write_text("one\t2000\t2500\n")
    one = {"name": "toy", "uri": fasta, "include": str(tmp_path / "in.bed"), "exclude": [str(tmp_path / "out.bed")]}
    made(fasta, tmp_path / "a", references=[one], split={})
    assert read_bed(str(tmp_path / "a" / "train.bed")) == {"one": [(1000, 2000), (2500, 5000)]}
    built = made(fasta, tmp_path / "b", max_n_fraction=0.4)
    assert built.dropped_blocks == 3, "every block of two/b has 60 % N"
    (tmp_path / "out.bed").write_text("chr1\t2000\t2500\n")
    with pytest.raises(ValueError, match=r"out.bed names no contig of it \(the BED has chr1; the reference one, two/b"):
        made(fasta, tmp_path / "c", references=[one])


@pytest.mark.parametrize(("content", "changes", "message"), [
    (">a\n" + "ACGT" * 2000 + "EACGT\n", {"split": {}}, "contig a: byte b'E' at position 8000 is no nucleotide letter"),
    (">a\n" + "N" * 3000 + "\n", {"split": {}, "max_n_fraction": 0.5}, "nothing is left to train on"),
    (">a\nACGT\n", {"split": {"val": ["a"]}}, "nothing is left to train on"),
    (">a\nACGT\n", {"split": {"val": ["b"]}}, "split.val: no contig matches 'b'; there are a"),
])
def test_a_fault_of_the_input_leaves_nothing(
        tmp_path: Path, content: str, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "x.fa").write_text(content)
    with pytest.raises(ValueError, match=message):
        made(str(tmp_path / "x.fa"), tmp_path / "o", **changes)
    assert not (tmp_path / "o").exists()


def test_a_fault_of_the_output_takes_back_what_was_written(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "o" / "train-000002.tar").mkdir(parents=True)  # a rename onto a folder fails, after other shards
    with pytest.raises(store.StoreError, match=r"cannot write .*/o/train-000002.tar: Is a directory"):
        made(fasta, tmp_path / "o")
    assert os.listdir(tmp_path / "o") == ["train-000002.tar"]


def test_an_interrupt_takes_back_what_was_written(fasta: str, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        assert 0 < done <= total == 10_012
        if stage == "write" and done > 3000:
            assert os.listdir(tmp_path / "o")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(DataConfig.model_validate({
            "references": [{"name": "toy", "uri": fasta}], "output": f"{tmp_path}/o", "block_bp": 1024,
            "shard_bp": 3000, "max_n_fraction": 1}), on_progress=interrupt)
    assert not (tmp_path / "o").exists()


def test_credentials_of_a_uri_reach_no_file(fasta: str, tmp_path: Path) -> None:
    made(fasta, tmp_path / "o", references=[{"name": "toy", "uri": [fasta, "https://me:secret@host/x.fa"]}])
    text = (tmp_path / "o" / "build.json").read_text() + (tmp_path / "o" / "manifest.json").read_text()
    assert "https://***@host/x.fa" in text
    assert "secret" not in text


def test_the_first_alternative_that_exists(fasta: str, tmp_path: Path) -> None:
    two = {"name": "toy", "uri": [str(tmp_path / "none.fa"), fasta]}
    assert made(fasta, tmp_path / "a", references=[two]).fresh
    two["uri"] = [str(tmp_path / "none.fa"), str(tmp_path / "nor.fa")]
    with pytest.raises(ValueError, match=r"reference toy: none of its files is there: .*none.fa, .*nor.fa"):
        made(fasta, tmp_path / "b", references=[two])


def test_yeast(dna_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_DATA", str(dna_data))
    config = load(DataConfig, ROOT / "configs" / "data" / "yeast.yaml", [f"output={tmp_path}/yeast"])
    manifest = build(config).manifest
    assert [manifest.bp(split) for split in SPLITS] == [12_157_105 - 1_531_933, 1_531_933, 0]
    assert verify(f"{tmp_path}/yeast") == []
    export(f"{tmp_path}/yeast", split="val", fasta=f"{tmp_path}/IV.fa")
    source = gzip.decompress((dna_data / "genomes" / "sacCer_R64.fa.gz").read_bytes()).decode()
    four = next(record for record in source.split(">") if record.startswith("IV "))
    assert records(tmp_path / "IV.fa") == {"R64:IV:0-1531933": four.split("\n", 1)[1].replace("\n", "")}
