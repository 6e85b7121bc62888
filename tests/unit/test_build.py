"""data_prep.dataset.build: same input, same bytes; a manifest over all of it or none."""

import gzip
import hashlib
import http.server
import json
import os
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.storage import store
from configs import load, redact
from data_prep.__main__ import main
from data_prep.config import DataConfig
from data_prep.dataset.build import BuildStoppedError, Built, build
from data_prep.dataset.export import export
from data_prep.dataset.output import Output
from data_prep.dataset.read import load_manifest
from data_prep.dataset.stats import stats
from data_prep.dataset.verify import verify
from data_prep.shards import SPLITS
from tests.s3 import S3
from tests.unit.test_bed import read_bed
from trainer.sharing.card_facts import data_facts

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def fasta(small: Path) -> str:
    return str(small.parent / "genome.fa")


def made(fasta: str, output: Path | str, **changes: Any) -> Built:
    values = {
        "references": [{"name": "toy", "uri": fasta}],
        "output": str(output),
        "block_bp": 1024,
        "shard_bp": max(3000, changes.get("block_bp", 0)),
        "max_n_fraction": 1,
        "split": {"val": ["two/b"]},
    }
    return build(DataConfig.model_validate(values | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder) if name != "build.json"}


def records(path: Path) -> dict[str, str]:
    parts = (record.split("\n", 1) for record in path.read_text().split(">")[1:])
    return {header: letters.replace("\n", "") for header, letters in parts}


def test_workers_place_and_gzip_change_no_byte(small: Path, fasta: str, tmp_path: Path) -> None:
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(Path(fasta).read_bytes()))
    for name, source, workers in (
        ("one", fasta, 1),
        ("two", fasta, 2),
        ("eight", fasta, 8),
        ("gz", str(tmp_path / "g.fa.gz"), 2),
    ):
        made(source, tmp_path / name, workers=workers)
        assert contents(tmp_path / name) == contents(small), name
    assert str(tmp_path).encode() not in contents(small)["manifest.json"]
    assert len(contents(small)) == 3 + 2 + 3 + 2, (
        "3 train shards by size, 2 val; a BED each; leakage, manifest"
    )


def test_a_licence_stands_beside_the_bytes_that_it_does_not_change(
    small: Path, fasta: str, tmp_path: Path
) -> None:
    made(fasta, tmp_path / "o", references=[{"name": "toy", "uri": fasta, "licence": "CC0-1.0"}])
    assert contents(tmp_path / "o") == contents(small)
    config = json.loads((tmp_path / "o" / "build.json").read_bytes())["config"]
    assert config["references"][0]["licence"] == "CC0-1.0"
    manifest = load_manifest(str(tmp_path / "o"))
    (source,) = data_facts(str(tmp_path / "o"), manifest, "").sources
    assert (source.name, source.licence) == ("toy", "CC0-1.0")
    own = replace(manifest.sources[0], name="toy.S.1", filters={"haplotype": {"reference": "toy"}})
    (source,) = data_facts(str(tmp_path / "o"), replace(manifest, sources=(own,)), "").sources
    assert source.licence == "CC0-1.0", "a haplotype has that of its reference"


def test_export_gives_back_every_letter(small: Path, small_letters: dict[str, str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        export(str(small), split=split, fasta=str(tmp_path / f"{split}.fa"))
    kept = {
        f"toy:{name}:0-{len(letters)}": letters.replace("R", "N") for name, letters in small_letters.items()
    }
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
    with pytest.raises(
        ValueError, match=r"holds another dataset \(it differs in seed, split\); pass overwrite=true"
    ):
        made(fasta, copy, seed=1, split={"val": 0})
    (tmp_path / "changed.fa").write_text(Path(fasta).read_text().replace("GATTACA", "GATTATA"))
    with pytest.raises(
        ValueError, match=r"holds another dataset \(it differs in sources\); pass overwrite=true"
    ):
        made(str(tmp_path / "changed.fa"), copy)
    assert contents(copy) == contents(small)
    assert made(fasta, copy, overwrite=True, split={"val": 0}).fresh
    assert verify(str(copy)) == [], "the former val shards are gone"
    assert load_manifest(str(copy)).bp("val") == 0


def test_files_that_are_not_ours_stay(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").touch()
    with pytest.raises(
        ValueError, match=r"o is not empty and has no manifest.json \(other files.*pass overwrite"
    ):
        made(fasta, tmp_path / "o")
    assert made(fasta, tmp_path / "o", overwrite=True).fresh
    assert (tmp_path / "o" / "thesis.txt").exists()


def test_uri_output(small: Path, fasta: str, tmp_path: Path) -> None:
    made(fasta, f"file://{tmp_path}/uri")
    assert contents(tmp_path / "uri") == contents(small)
    with pytest.raises(BuildStoppedError, match="was written by a worker but is not seen from here"):
        made(fasta, "memory://build")  # each process has a memory of its own
    assert "manifest.json" not in store.list_files("memory://build")
    store.remove("memory://build")


def test_filters_and_n_share(fasta: str, tmp_path: Path) -> None:
    (tmp_path / "in.bed").write_text("one\t1000\t5000\n")
    (tmp_path / "out.bed").write_text("one\t2000\t2500\n")
    one = {
        "name": "toy",
        "uri": fasta,
        "include": str(tmp_path / "in.bed"),
        "exclude": [str(tmp_path / "out.bed")],
    }
    made(fasta, tmp_path / "a", references=[one], split={})
    assert read_bed(str(tmp_path / "a" / "train.bed")) == {"one": [(1000, 2000), (2500, 5000)]}
    built = made(fasta, tmp_path / "b", max_n_fraction=0.4, split={"val": ["three"]})
    assert built.dropped_blocks == 3, "every block of two/b has 60 % N"
    with pytest.raises(
        ValueError, match=r"split.val is asked for and would be empty: all of its 3 blocks have more N"
    ):
        made(fasta, tmp_path / "c", max_n_fraction=0.4)
    assert not (tmp_path / "c").exists()
    (tmp_path / "out.bed").write_text("chr1\t2000\t2500\n")
    with pytest.raises(
        ValueError, match=r"out.bed names no contig of it \(the BED has chr1; the reference one, three"
    ):
        made(fasta, tmp_path / "c", references=[one])


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (
            ">a\n" + "ACGT" * 2000 + "EACGT\n",
            {"split": {}},
            "contig a: byte b'E' at position 8000 is no nucleotide letter",
        ),
        (">a\n" + "N" * 3000 + "\n", {"split": {}, "max_n_fraction": 0.5}, "nothing is left to train on"),
        (">a\nACGT\n", {"split": {"val": ["a"]}}, "nothing is left to train on"),
        (">a\nACGT\n", {"split": {"val": ["b"]}}, "split.val: no contig matches 'b'; there are a"),
    ],
)
def test_a_fault_of_the_input_leaves_nothing(
    tmp_path: Path, content: str, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "x.fa").write_text(content)
    with pytest.raises(ValueError, match=message):
        made(str(tmp_path / "x.fa"), tmp_path / "o", **changes)
    assert not (tmp_path / "o").exists()


def test_a_build_cut_short_goes_on(small: Path, fasta: str, tmp_path: Path) -> None:
    """A folder in the way of shard 3 of 5 stops the build; without it the same command writes only what is
    missing."""
    output = tmp_path / "o"
    blocked = output / "train-000002.tar" / "x"
    blocked.mkdir(parents=True)  # a rename onto a folder that is not empty fails
    said = (
        r"cannot write .*/o/train-000002.tar: Is a directory; \d of 5 shards are done and stay, "
        r"there is no manifest yet, and the same command goes on"
    )
    with pytest.raises(BuildStoppedError, match=said):
        made(fasta, output)
    assert "manifest.json" not in os.listdir(output)
    (output / ".train-000001.tar.k1ll3d").write_bytes(b"what a killed worker leaves")
    with pytest.raises(
        ValueError, match=r"holds an unfinished build of another dataset \(it differs in seed\); pass"
    ):
        made(fasta, output, seed=9)
    blocked.rmdir()
    blocked.parent.rmdir()
    there = {name: os.stat(output / name).st_mtime_ns for name in os.listdir(output) if name.endswith(".tar")}
    (output / "val-000000.tar").write_bytes(
        (small / "val-000001.tar").read_bytes()
    )  # whole, but of other blocks
    built = made(fasta, output, workers=1)
    assert built.fresh
    assert contents(output) == contents(small)
    kept = [name for name, time in there.items() if os.stat(output / name).st_mtime_ns == time]
    assert built.found_shards == len(set(kept) - {"val-000000.tar"}) > 0


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "emptied"])
def test_what_is_damaged_is_written_anew_and_nothing_else(
    small: Path, fasta: str, tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "o"
    shutil.copytree(small, output)
    shard = output / "train-000001.tar"
    data = shard.read_bytes()
    others = {
        name: os.stat(output / name).st_mtime_ns
        for name in os.listdir(output)
        if name.endswith(".tar") and name != shard.name
    }
    if damage == "missing":
        shard.unlink()
    else:
        flipped = data[:700] + bytes([data[700] ^ 4]) + data[701:]
        shard.write_bytes({"cut": data[:-600], "flipped": flipped, "emptied": b""}[damage])
    assert verify(str(output)) != []
    if (
        damage == "flipped"
    ):  # of the right size: only verify reads it, and then the manifest or the shard must go
        assert not made(fasta, output).fresh
        (output / "manifest.json").unlink()
    assert made(fasta, output).fresh
    assert contents(output) == contents(small)
    assert {name: os.stat(output / name).st_mtime_ns for name in others} == others


def test_an_interrupt_keeps_what_is_finished(small: Path, fasta: str, tmp_path: Path) -> None:
    seen: list[str] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        assert 0 < done <= total
        if stage == "write" and done > 3000:
            raise KeyboardInterrupt

    values = {
        "references": [{"name": "toy", "uri": fasta}],
        "output": f"{tmp_path}/o",
        "block_bp": 1024,
        "shard_bp": 3000,
        "max_n_fraction": 1,
        "split": {"val": ["two/b"]},
    }
    with pytest.raises(KeyboardInterrupt):
        build(DataConfig.model_validate(values), on_progress=interrupt)
    assert "manifest.json" not in os.listdir(tmp_path / "o")
    assert set(seen) == {"leakage", "write"}
    built = build(DataConfig.model_validate(values))
    assert built.found_shards >= 1
    assert contents(tmp_path / "o") == contents(small)


def test_a_source_that_changes_meanwhile_gets_no_manifest(fasta: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.fa"
    shutil.copy(fasta, mine)

    def change(stage: str, done: int, total: int) -> None:
        mine.write_bytes(mine.read_bytes().replace(b"GATTACA", b"GATTATA"))
        os.utime(mine, ns=(1, 1))

    with pytest.raises(
        BuildStoppedError, match=r"mine.fa changed while it was read, so no manifest was written"
    ):
        build(
            DataConfig.model_validate(
                {
                    "references": [{"name": "toy", "uri": str(mine)}],
                    "max_n_fraction": 1,
                    "output": str(tmp_path / "o"),
                }
            ),
            on_progress=change,
        )
    assert "manifest.json" not in os.listdir(tmp_path / "o")


def test_a_letter_that_changes_under_the_index_is_named(fasta: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.fa"
    shutil.copy(fasta, mine)

    def spoil(stage: str, done: int, total: int) -> None:
        text = mine.read_bytes()
        mine.write_bytes(text.replace(b"GATTACA", b"GATEACA"))

    with pytest.raises((BuildStoppedError, ValueError), match=r"contig three: byte b'E' at position 3"):
        build(
            DataConfig.model_validate(
                {
                    "references": [{"name": "toy", "uri": str(mine)}],
                    "max_n_fraction": 1,
                    "block_bp": 1024,
                    "shard_bp": 1024,
                    "output": str(tmp_path / "o"),
                    "split": {"val": ["one"]},
                    "workers": 1,
                }
            ),
            on_progress=spoil,
        )
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_a_build_that_finishes_while_another_reads_is_not_overwritten(fasta: str, tmp_path: Path) -> None:
    """Both found the output empty; the later one looks again before it writes."""
    output = tmp_path / "o"
    began: list[str] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if not began:
            began.append(stage)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DNA_CACHE", str(tmp_path / "elsewhere"))  # as on another machine
                made(fasta, output, seed=1, workers=1)

    with pytest.raises(
        ValueError, match=r"holds another dataset \(it differs in seed\); pass overwrite=true"
    ):
        build(
            DataConfig.model_validate(
                {
                    "references": [{"name": "toy", "uri": fasta}],
                    "output": str(output),
                    "block_bp": 1024,
                    "shard_bp": 3000,
                    "max_n_fraction": 1,
                    "split": {"val": ["two/b"]},
                }
            ),
            on_progress=meanwhile,
        )
    assert began == ["leakage"]
    assert verify(str(output)) == []
    assert load_manifest(str(output)).seed == 1


def test_a_build_whose_place_is_taken_writes_no_manifest(fasta: str, tmp_path: Path) -> None:
    def take(stage: str, done: int, total: int) -> None:
        if done == total and stage == "write":
            info = json.loads((tmp_path / "o" / "build.json").read_bytes())
            info["plan"]["seed"] = 7
            (tmp_path / "o" / "build.json").write_text(json.dumps(info))

    with pytest.raises(ValueError, match=r"another build took .*/o meanwhile, so this one wrote no manifest"):
        build(
            DataConfig.model_validate(
                {
                    "references": [{"name": "toy", "uri": fasta}],
                    "max_n_fraction": 1,
                    "output": str(tmp_path / "o"),
                }
            ),
            on_progress=take,
        )
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_two_builds_of_one_machine_do_not_write_to_one_place(fasta: str, tmp_path: Path) -> None:
    seen: list[str] = []

    def again(stage: str, done: int, total: int) -> None:
        if not seen:
            with pytest.raises(
                ValueError, match=r"another build on this machine is writing to .*/o; wait for it"
            ):
                made(fasta, tmp_path / "o")
            seen.append(stage)

    build(
        DataConfig.model_validate(
            {
                "references": [{"name": "toy", "uri": fasta}],
                "max_n_fraction": 1,
                "output": str(tmp_path / "o"),
            }
        ),
        on_progress=again,
    )
    assert seen
    assert not made(fasta, tmp_path / "o", block_bp=262_144, shard_bp=64 << 20, split={}).fresh, (
        "the lock is gone"
    )


def test_one_place_by_any_of_its_names_is_one_build(fasta: str, tmp_path: Path, s3: S3) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    config = DataConfig.model_validate({"references": [{"name": "toy", "uri": fasta}], "output": "x"})
    for ways in (
        (
            f"{tmp_path}/o",
            f"{tmp_path}/o/",
            f"{tmp_path}/link/o",
            f"file://{tmp_path}/link/../{tmp_path.name}/o",
        ),
        (f"{s3.uri}/o", f"{s3.uri}/o/", f"s3a://{s3.bucket}/o"),
    ):
        with Output(ways[0], overwrite=False).alone():
            for way in ways:
                with pytest.raises(
                    ValueError, match=r"another build on this machine is writing to .*/o/?; wait"
                ):
                    build(config.model_copy(update={"output": way}))
    with Output(f"{s3.uri}/o", overwrite=False).alone(), Output(f"{s3.uri}/o2", overwrite=False).alone():
        pass


def test_what_is_beside_the_output_stays_and_markers_of_folders_are_no_files(fasta: str, s3: S3) -> None:
    """``overwrite`` of ``exp[1]`` once deleted what lies in ``exp1``, which it means as a pattern."""
    theirs = ["exp1/train-000000.tar", "exp1/manifest.json", "exp1/build.json", "exp/manifest.json"]
    for key in (*theirs, "exp[1]/"):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"" if key.endswith("/") else b"theirs")
    output = f"{s3.uri}/exp[1]"
    assert made(fasta, output).fresh
    first = s3.objects()
    assert made(fasta, output + "/", block_bp=2048, overwrite=True).fresh
    assert verify(output) == []
    assert {key: s3.objects()[key] for key in theirs} == dict.fromkeys(theirs, 6) and first.keys() > set(
        theirs
    )


def test_relative_paths_mean_the_same_on_workers(
    fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's workers run in the folder that it was started in; a file of the same name may lie there."""
    monkeypatch.chdir(tmp_path)
    letters = Path(fasta).read_text()
    Path("in").mkdir()
    Path("in/a.fa").write_text(letters)
    Path("in/b.fa").write_text(letters.replace("A", "C"))
    Path("in/keep.bed").write_text("one\t0\t4096\n")
    references = [{"name": name, "uri": [f"in/{name}.fa"], "include": ["in/keep.bed"]} for name in ("a", "b")]
    built = build(
        DataConfig.model_validate(
            {
                "references": references,
                "output": "out",
                "block_bp": 1024,
                "workers": 2,
                "shard_bp": 2048,
                "split": {"val": ["a:one"]},
            }
        )
    )
    assert (built.manifest.bp("train"), built.manifest.bp("val")) == (4096, 4096)
    assert [source.sha256 for source in built.manifest.sources] == [
        hashlib.sha256(Path(f"in/{name}.fa").read_bytes()).hexdigest() for name in "ab"
    ]
    for uri in ("out", "./out/", f"file://{tmp_path}/out"):
        assert verify(uri, workers=2) == []
        assert stats(uri, workers=2)[0].bp == 2 * 4096
        assert main(["leakage", uri, "--workers", "2"]) == 0
    assert capsys.readouterr().err == ""


def test_shards_of_other_letters_are_not_taken_for_ours(small: Path, fasta: str, tmp_path: Path) -> None:
    """The same blocks, whole and well-formed, but of a file that was different for a while."""
    other = tmp_path / "other.fa"
    other.write_text(Path(fasta).read_text().replace("ACGTTGCAAC", "ACGTTGCAAT"))
    output = tmp_path / "o"
    made(str(other), output)
    (output / "manifest.json").unlink()
    info = json.loads((output / "build.json").read_bytes())
    info["plan"]["sources"][0]["sha256"] = load_manifest(str(small)).sources[0].sha256
    (output / "build.json").write_text(json.dumps(info))
    built = made(fasta, output)
    assert built.found_shards == 2, "only those of the contig that is the same in both"
    assert contents(output) == contents(small)


def test_overwriting_that_was_cut_short_goes_on(small: Path, fasta: str, tmp_path: Path) -> None:
    output = tmp_path / "o"
    made(fasta, output, seed=3)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > 3000:
            raise KeyboardInterrupt

    values = {
        "references": [{"name": "toy", "uri": fasta}],
        "output": str(output),
        "block_bp": 1024,
        "shard_bp": 3000,
        "max_n_fraction": 1,
        "split": {"val": ["two/b"]},
        "overwrite": True,
    }
    with pytest.raises(KeyboardInterrupt):
        build(DataConfig.model_validate(values), on_progress=interrupt)
    assert build(DataConfig.model_validate(values)).found_shards >= 1
    assert contents(output) == contents(small)
    assert build(DataConfig.model_validate(values)).found_shards == 0, "a finished one is replaced as told"


def test_a_leakage_report_that_is_missing_is_made(small: Path, fasta: str, tmp_path: Path) -> None:
    made(fasta, tmp_path / "o", split={"val": ["two/b"], "leakage": "off"})
    assert not (tmp_path / "o" / "leakage.json").exists()
    built = made(fasta, tmp_path / "o")
    assert built.leakage
    assert built.found_shards == 5
    assert contents(tmp_path / "o") == contents(small)


def test_signatures_and_passwords_reach_no_file_and_no_message(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text("no sequence here")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/g.fa?X-Amz-Signature=SECRET"
        with pytest.raises(ValueError, match="is not a FASTA") as fault:
            made(uri, tmp_path / "o")
        assert "SECRET" not in redact(str(fault.value))
        (tmp_path / "g.fa").write_text(">a\n" + "ACGT" * 600 + "\n")
        stages: list[str] = []
        build(
            DataConfig.model_validate(
                {"references": [{"name": "g", "uri": uri}], "output": str(tmp_path / "o")}
            ),
            on_progress=lambda stage, *_: stages.append(stage),
        )
        server.shutdown()
    assert "SECRET" not in "".join(stages) + (tmp_path / "o" / "build.json").read_text()
    assert any(stage.startswith("read g.fa") for stage in stages)


def test_several_assemblies_and_bed_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = {name: "".join("ACGT"[i] for i in rng.integers(0, 4, 9000)) for name in ("x", "y")}
    for name in ("x", "y"):
        (tmp_path / f"{name}.fa").write_text(f">chr1\n{text[name]}\n>chr2\n{text[name][:3000][::-1]}\n")
    (tmp_path / "val.bed").write_text("chr1\t2000\t4000\tx\nchr2\t0\t500\n")
    (tmp_path / "test.bed").write_text("chr1\t8000\t9000\tgene7\n")
    references = [{"name": name, "uri": str(tmp_path / f"{name}.fa")} for name in ("x", "y")]
    split = {
        "val": {"bed": str(tmp_path / "val.bed")},
        "test": {"bed": [str(tmp_path / "test.bed")]},
        "gap": 100,
    }
    made("", tmp_path / "o", references=references, split=split)
    manifest = load_manifest(str(tmp_path / "o"))
    places = {
        split: [(b.assembly, b.contig, b.start, b.end) for _, b in manifest.blocks(split)] for split in SPLITS
    }
    covered = {split: sum(end - start for *_, start, end in places[split]) for split in SPLITS}
    assert covered["val"] == 2000 + 2 * 500, "a line with the name of an assembly counts for that one alone"
    assert covered["test"] == 2 * 1000
    assert covered["train"] == 2 * 12_000 - covered["val"] - covered["test"] - (2 * 100) - (2 * 100) - (
        2 * 100
    )
    assert all(
        start >= 4100 or end <= 1900 for a, c, start, end in places["train"] if (a, c) == ("x", "chr1")
    )
    assert verify(str(tmp_path / "o")) == []
    assert str(tmp_path) not in json.dumps(manifest.split), "a BED counts by its content"
    # The BED files that a build writes hold out the same again.
    again = {split: {"bed": str(tmp_path / "o" / f"{split}.bed")} for split in ("val", "test")}
    made("", tmp_path / "p", references=references, split=again | {"gap": 100})
    manifest = load_manifest(str(tmp_path / "p"))
    for name in SPLITS:
        assert [(b.assembly, b.contig, b.start, b.end) for _, b in manifest.blocks(name)] == places[name]
    (tmp_path / "test.bed").write_text("chr1\t3999\t4200\tx\n")
    with pytest.raises(ValueError, match="split: x:chr1:3999-4000 in both val and test"):
        made("", tmp_path / "q", references=references, split=split)
    (tmp_path / "test.bed").write_text("chr9\t0\t9\n")
    (tmp_path / "empty.bed").write_text("")
    with pytest.raises(
        ValueError, match=r"split.val: .*empty.bed names no contig .* \(the BED has nothing; they have"
    ):
        made("", tmp_path / "q", references=references, split={"val": {"bed": str(tmp_path / "empty.bed")}})
    (tmp_path / "far.bed").write_text("chr2\t2900\t3100\nchr2\t3000\t4000\n")
    said = (
        r"far.bed, line \d: chr2:3000-4000 lies beyond the contig's 3000 bp; is the BED of another "
        r"version of the"
    )
    with pytest.raises(ValueError, match=said):
        made("", tmp_path / "q", references=references, split={"val": {"bed": str(tmp_path / "far.bed")}})
    (tmp_path / "far.bed").write_text("chr2\t3000\t4000\n")
    with pytest.raises(ValueError, match=said):
        made(
            "", tmp_path / "q", references=[references[0] | {"exclude": str(tmp_path / "far.bed")}], split={}
        )
    (tmp_path / "more.bed").write_text("chr1\t0\t1000\tx\nchr1\t2000\t3000\tmm10\nchr1\t4000\t5000\n")
    made("", tmp_path / "m", references=references, split={"val": {"bed": str(tmp_path / "more.bed")}})
    assert load_manifest(str(tmp_path / "m")).bp("val") == 1000 + 2 * 1000, (
        "a line of another assembly counts for none"
    )
    with pytest.raises(
        ValueError, match=r"split.test: .*bed names no contig of the references \(the BED has chr9"
    ):
        made("", tmp_path / "q", references=references, split=split)


def test_what_leaks_is_reported_and_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, val = ("".join("ACGT"[i] for i in rng.integers(0, 4, 20_000)) for _ in range(2))
    pairs = str.maketrans("ACGT", "TGCA")
    val = val[:5000] + train[3000:6000].translate(pairs)[::-1] + val[8000:]
    (tmp_path / "g.fa").write_text(f">a\n{train}\n>b\n{val}\n")
    whole = made(str(tmp_path / "g.fa"), tmp_path / "o", split={"val": ["b"]}, block_bp=8192)
    assert whole.leakage
    pair = whole.leakage.pairs[0]
    assert (pair.of, pair.within, pair.bases) == ("val", "train", 20_000)
    assert 3000 - 4 * 31 <= pair.shared_bases <= 3000, "the copy lies within blocks but for their edges"
    assert (
        json.loads((tmp_path / "o" / "leakage.json").read_bytes())["pairs"][0]["shared_bases"]
        == pair.shared_bases
    )
    drop = {"val": ["b"], "leakage": "drop", "min_bp": 500}
    dropped = made(str(tmp_path / "g.fa"), tmp_path / "p", split=drop, block_bp=8192)
    (stretch,) = whole.leakage.stretches["val"]
    assert 0 < 8192 - stretch.end < 500, "what is left of its block is too short to stay"
    assert dropped.dropped_bp == 8192 - stretch.start
    assert load_manifest(str(tmp_path / "p")).bp("val") == 20_000 - dropped.dropped_bp
    left = made(
        str(tmp_path / "g.fa"),
        tmp_path / "q",
        split={"val": {"bed": str(tmp_path / "p" / "val.bed")}, "test": 0, "gap": 0},
        block_bp=8192,
    )
    assert left.leakage
    assert left.leakage.pairs[0].shared_bases == 0
    assert not made(str(tmp_path / "g.fa"), tmp_path / "p", split=drop, block_bp=8192).fresh
    with pytest.raises(ValueError, match=r"p holds another dataset \(it differs in split\)"):
        made(str(tmp_path / "g.fa"), tmp_path / "p", split={"val": ["b"]}, block_bp=8192)
    off = made(str(tmp_path / "g.fa"), tmp_path / "r", split={"val": ["b"], "leakage": "off"}, block_bp=8192)
    assert off.leakage is None
    assert contents(tmp_path / "r") == {
        n: c for n, c in contents(tmp_path / "o").items() if n != "leakage.json"
    }


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_of_which_all_leaks_is_not_dropped_without_a_word(tmp_path: Path, name: str) -> None:
    """Two strains that are nearly alike: nothing of chr2 of the one would be left, since it stands in the
    other."""
    rng = np.random.default_rng(0)
    one, two = ("".join("ACGT"[i] for i in rng.integers(0, 4, 6000)) for _ in range(2))
    for strain in "xy":
        (tmp_path / f"{strain}.fa").write_text(f">chr1\n{one}\n>chr2\n{two}\n")
        two = two[:2990] + "ACGT"["ACGT".index(two[2990]) - 1] + two[2991:]
    references = [{"name": strain, "uri": str(tmp_path / f"{strain}.fa")} for strain in "xy"]
    said = (
        rf"split.leakage drop leaves nothing of {name}: [\d,]+ of its 6,000 bp \(9\d.\d\d%\) also stand in "
        rf"train, "
        "and no piece of split.min_bp 100 is left; hold out what is less alike, or set leakage to report; of "
        "assemblies that are alike hold out the same contigs, which names without an assembly do"
    )
    drop = {"leakage": "drop", "min_bp": 100}
    with pytest.raises(ValueError, match=said):
        made("", tmp_path / "o", references=references, split={name: ["x:chr2"]} | drop)
    assert not (tmp_path / "o").exists()
    assert made("", tmp_path / "o", references=references, split={name: ["chr2"]} | drop).dropped_bp == 0


def test_credentials_of_a_uri_reach_no_file(fasta: str, tmp_path: Path) -> None:
    made(fasta, tmp_path / "o", references=[{"name": "toy", "uri": [fasta, "https://me:secret@host/x.fa"]}])
    text = (tmp_path / "o" / "build.json").read_text() + (tmp_path / "o" / "manifest.json").read_text()
    assert "https://***@host/x.fa" in text
    assert "secret" not in text


def test_the_first_alternative_that_exists(fasta: str, tmp_path: Path) -> None:
    two = {"name": "toy", "uri": [str(tmp_path / "none.fa"), fasta]}
    assert made(fasta, tmp_path / "a", references=[two]).fresh
    two["uri"] = [str(tmp_path / "none.fa"), str(tmp_path / "nor.fa")]
    with pytest.raises(
        ValueError, match=r"toy: none of its files can be read: .*none.fa does not exist; .*nor"
    ):
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


def test_an_output_that_is_only_read_is_refused_at_once(fasta: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(
        store.StoreError, match=r"cannot write hf://datasets/me/x: .* only read here; write to"
    ):
        made(fasta, "hf://datasets/me/x")
