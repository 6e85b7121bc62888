"""A dataset that grows: equal shards stay, earlier manifests stay valid, and a kill leaves one of the two."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.storage import store
from data_prep.__main__ import main
from data_prep.config import DataConfig
from data_prep.dataset import output
from data_prep.dataset.build import BuildStoppedError, Built, build
from data_prep.dataset.growth import GROWTH
from data_prep.dataset.read import load_manifest
from data_prep.dataset.summary import summary
from data_prep.dataset.verify import verify
from data_prep.manifests import kept_name, open_manifest
from data_prep.shards import MANIFEST, SPLITS, Manifest
from trainer.data.dataset import Dataset

pytestmark = pytest.mark.usefixtures("local_ray")
NAMES = ("ape", "bat", "cow", "dog")


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("genomes"), np.random.default_rng(0)
    for name in NAMES:
        letters = ["".join(rng.choice(list("ACGT"), bp)) for bp in (5000, 2000)]
        (folder / f"{name}.fa").write_text("".join(f">chr{i}\n{s}\n" for i, s in enumerate(letters, 1)))
    return folder


def config_of(genomes: Path, uri: Path, names: tuple[str, ...] | str, **changes: Any) -> DataConfig:
    values = {
        "references": [{"name": name, "uri": str(genomes / f"{name}.fa")} for name in names],
        "output": str(uri),
        "block_bp": 1024,
        "shard_bp": 3072,
        "split": {"val": ["chr2"], "gap": 0},
        "workers": 1,
    }
    return DataConfig.model_validate(values | changes)


def grow(genomes: Path, uri: Path, *names: str, **changes: Any) -> Built:
    return build(config_of(genomes, uri, names, grow=True, **changes))


@pytest.fixture(scope="module")
def two(genomes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri = tmp_path_factory.mktemp("two") / "d"
    build(config_of(genomes, uri, ("ape", "bat")))
    return uri


def copy_of(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "d"))


def letters_of(uri: Path, digest: str | None = None) -> dict[tuple[str, ...], str]:
    """(split, assembly, contig, start) -> sha256 of the block's letters, of a manifest of the dataset."""
    found = {}
    for split in ("train", "val"):
        dataset = Dataset(str(uri), split, digest=digest)
        for number, (_, block) in enumerate(dataset.blocks):
            key = (split, block.assembly, block.contig, str(block.start))
            found[key] = hashlib.sha256(dataset.codes(number).tobytes()).hexdigest()
    return found


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    names = sorted(os.listdir(folder))
    return {name: ((folder / name).read_bytes(), os.stat(folder / name).st_mtime_ns) for name in names}


def test_adding_writes_the_new_shards_alone(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    before, old = files(uri), open_manifest(str(uri))
    built = grow(genomes, uri, "ape", "bat", "cow")
    assert built.grown and (built.grown.added, built.grown.removed, built.grown.changed) == (("cow",), (), ())
    after = files(uri)
    assert {name: of for name, of in after.items() if name in before and name.endswith(".tar")} == {
        name: of for name, of in before.items() if name.endswith(".tar")
    }
    new = {name for name in after if name.endswith(".tar")} - before.keys()
    cow = {s.name for split in SPLITS for s in built.manifest.shards[split] if s.blocks[0].assembly == "cow"}
    assert new == cow
    assert built.grown.kept_shards == sum(len(old.manifest.shards[split]) for split in SPLITS)
    assert verify(str(uri)) == []
    # The manifest before stays valid, and what is read by it is what it was.
    assert after[kept_name(old.digest)][0] == before[MANIFEST][0]
    assert letters_of(uri, old.digest) == letters_of(two)
    # What is read of the grown one is what a build of all three gives.
    whole = tmp_path / "whole"
    build(config_of(genomes, whole, ("ape", "bat", "cow")))
    assert letters_of(uri) == letters_of(whole)
    assert (uri / "train.bed").read_bytes() == (whole / "train.bed").read_bytes()
    assert (uri / "leakage.json").read_bytes() == (whole / "leakage.json").read_bytes()
    assert list(summary(built, config_of(genomes, uri, "abc")))[1] == (
        "the dataset has changed: added cow; 6 shards stay as they were, and so does the manifest before"
    )
    again = grow(genomes, uri, "ape", "bat", "cow")
    assert not again.fresh and files(uri) == after


def test_removing_changes_the_manifest_alone(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    before, old = files(uri), open_manifest(str(uri))
    built = grow(genomes, uri, "bat")
    assert built.grown and built.grown.removed == ("ape",) and built.grown.kept_shards == 3
    assert {block.assembly for split in SPLITS for _, block in built.manifest.blocks(split)} == {"bat"}
    tars = {name: of for name, of in files(uri).items() if name.endswith(".tar")}
    assert tars == {name: of for name, of in before.items() if name.endswith(".tar")}
    assert letters_of(uri, old.digest) == letters_of(two) and verify(str(uri)) == []
    # Back again, in another order: nothing has to be written.
    back = grow(genomes, uri, "bat", "ape")
    assert back.grown and back.grown.kept_shards == 6 and letters_of(uri) == letters_of(two)


def test_a_changed_genome_gets_new_names(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri, other = copy_of(two, tmp_path), tmp_path / "genomes"
    shutil.copytree(genomes, other)
    (other / "bat.fa").write_text((genomes / "cow.fa").read_text())
    old = open_manifest(str(uri))
    built = grow(other, uri, "ape", "bat")
    assert built.grown and built.grown.changed == ("bat",)
    assert verify(str(uri)) == [] and letters_of(uri, old.digest) == letters_of(two) != letters_of(uri)
    names = [shard.name for shard in built.manifest.shards["train"]]
    assert names == ["train-000000.tar", "train-000001.tar", "train-000004.tar", "train-000005.tar"]
    third = grow(genomes, uri, "ape", "bat", "dog")  # the former bat's are there; no number is given again
    assert [shard.name for shard in third.manifest.shards["train"]][2:] == [
        *("train-000002.tar", "train-000003.tar", "train-000006.tar", "train-000007.tar")
    ]
    assert letters_of(uri, old.digest) == letters_of(two)


def test_without_grow_another_dataset_is_refused_and_both_are_too(
    genomes: Path, two: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"differs in sources\); pass overwrite=true to .*, grow=true to"):
        build(config_of(genomes, two, ("ape", "bat", "cow")))
    with pytest.raises(ValidationError, match="grow keeps what is there and overwrite does not"):
        config_of(genomes, tmp_path, ("ape",), grow=True, overwrite=True)
    fresh = build(config_of(genomes, tmp_path / "new", ("ape",), grow=True))
    assert fresh.fresh and fresh.grown is None, "an output that is empty is built"


def test_a_damaged_shard_is_written_again(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    whole = (uri / "train-000001.tar").read_bytes()
    (uri / "train-000001.tar").write_bytes(whole[:-512])
    built = grow(genomes, uri, "ape", "bat", "cow")
    assert built.grown and (uri / "train-000001.tar").read_bytes() == whole and verify(str(uri)) == []


class Killed(BaseException):
    """A kill: nothing of ours is told."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Raises Killed before write or removal number ``moment`` of the output; gives how many there were."""
    count, real = [0], {"write_bytes": store.write_bytes, "remove": store.remove}

    def patched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == moment:
                raise Killed
            return real[name](*args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(output.store, name, patched(name))
    return lambda: count[0]


def test_killed_at_any_moment_the_old_manifest_or_the_new_one_is_there(
    genomes: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partners = {"between": ["*"], "k": 11, "window": 1}
    begin = tmp_path / "begin"
    build(config_of(genomes, begin, ("ape", "bat"), partners=partners))
    whole = Path(shutil.copytree(begin, tmp_path / "whole"))
    grow(genomes, whole, "ape", "cow", partners=partners)
    old, new = letters_of(begin), letters_of(whole)
    manifests = {(begin / MANIFEST).read_bytes(): old, (whole / MANIFEST).read_bytes(): new}
    wanted = {name: of for name, (of, _) in files(whole).items() if name != "build.json"}
    seen, moment = set(), 0
    while True:
        moment += 1
        uri = Path(shutil.copytree(begin, tmp_path / str(moment)))
        with monkeypatch.context() as patch:
            calls = killed_at(moment, patch)
            try:
                grow(genomes, uri, "ape", "cow", partners=partners)
            except Killed:
                pass
            else:
                assert calls() < moment
                break
        there = (uri / MANIFEST).read_bytes()
        assert letters_of(uri) == manifests[there], "never neither"
        seen.add(there)
        assert not [fault for fault in verify(str(uri)) if not fault.startswith(ALLOWED)]
        grow(genomes, uri, "ape", "cow", partners=partners)
        assert {name: of for name, (of, _) in files(uri).items() if name != "build.json"} == wanted, moment
        assert verify(str(uri)) == []
    assert len(seen) == 2 and moment > 8


# What follows from the manifest, and a growth that was cut short, verify names; the same build mends it.
ALLOWED = (
    "train.bed lists",
    "val.bed lists",
    "manifest.json differs",
    "growth.json: a growth was cut",
    "train-",
    "val-",
)


def test_a_growth_cut_short_says_so_and_the_manifest_before_stays(
    genomes: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy_of(two, tmp_path)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.dataset.output.Output.settle", broken)
        with pytest.raises(
            BuildStoppedError,
            match="the disk is full; 3 of 3 shards are done and stay, the manifest is the one before, and",
        ):
            grow(genomes, uri, "ape", "bat", "cow")
    assert (uri / MANIFEST).read_bytes() == (two / MANIFEST).read_bytes()
    assert f"{GROWTH}: a growth was cut short; the same build ends it" in verify(str(uri))
    assert grow(genomes, uri, "ape", "bat", "cow").found_shards == 3
    assert verify(str(uri)) == []


def test_another_build_that_took_the_output_is_not_overwritten(
    genomes: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, settle = copy_of(two, tmp_path), output.Output.settle

    def meanwhile(self: output.Output, shards: Any) -> None:
        settle(self, shards)
        manifest: Manifest = load_manifest(str(uri))
        (uri / MANIFEST).write_bytes(manifest.to_bytes().replace(b'"seed":0', b'"seed":7'))

    monkeypatch.setattr(output.Output, "settle", meanwhile)
    with pytest.raises(ValueError, match=r"another build took .* meanwhile, so this one wrote no manifest"):
        grow(genomes, uri, "ape", "bat", "cow")
    assert load_manifest(str(uri)).seed == 7


def test_overwrite_removes_what_growths_have_left(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    grow(genomes, uri, "ape", "cow")
    build(config_of(genomes, uri, ("dog",), overwrite=True))
    fresh = tmp_path / "fresh"
    build(config_of(genomes, fresh, ("dog",)))
    assert set(os.listdir(uri)) == set(os.listdir(fresh)) and verify(str(uri)) == []


def test_the_command_grows(
    genomes: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = copy_of(two, tmp_path)
    path = tmp_path / "config.yaml"
    references = "\n".join(
        f"  - {{name: {name}, uri: {genomes}/{name}.fa}}" for name in ("ape", "bat", "dog")
    )
    path.write_text(
        f"references:\n{references}\noutput: {uri}\nblock_bp: 1024\nshard_bp: 3072\nworkers: 1\n"
        "split: {val: [chr2], gap: 0}\n"
    )
    assert main(["build", "--config", str(path)]) == 1
    assert "grow=true to change it into this one" in capsys.readouterr().err
    assert main(["build", "--config", str(path), "grow=true"]) == 0
    assert "added dog; 6 shards stay" in capsys.readouterr().out


def test_prune_removes_what_only_earlier_manifests_need(
    genomes: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partners = {"between": ["*"], "k": 11, "window": 1}
    uri = tmp_path / "d"
    build(config_of(genomes, uri, ("ape", "bat"), partners=partners))
    first = open_manifest(str(uri)).digest
    grow(genomes, uri, "ape", "cow", partners=partners)
    second = open_manifest(str(uri)).digest
    grow(genomes, uri, "cow", "dog", partners=partners)
    (uri / "notes.txt").touch()
    now, then = letters_of(uri), letters_of(uri, second)
    assert main(["prune", str(uri), "--keep", "abc"]) == 1
    assert (
        f"keeps no manifest of sha256 abc; it has {kept_name(min(first, second))}" in capsys.readouterr().err
    )
    assert main(["prune", str(uri), "--keep", second]) == 0
    assert "removed 1 earlier manifests, 5 files of" in capsys.readouterr().out  # bat's 3 shards, its table
    assert (letters_of(uri), letters_of(uri, second)) == (now, then) and verify(str(uri)) == []
    with pytest.raises(store.StoreError, match=r"has manifest .* now, not"):
        letters_of(uri, first)
    assert main(["prune", str(uri)]) == 0
    assert letters_of(uri) == now and verify(str(uri)) == [] and (uri / "notes.txt").exists()
    named = {shard.name for split in SPLITS for shard in load_manifest(str(uri)).shards[split]}
    assert {name for name in os.listdir(uri) if name.endswith(".tar")} == named
    assert len([name for name in os.listdir(uri) if name.endswith(".bin")]) == 1
    (uri / GROWTH).touch()
    assert main(["prune", str(uri)]) == 1
    assert "a growth has not ended; run the same build to its end first" in capsys.readouterr().err
    assert main(["prune", str(tmp_path / "none")]) == 1
    assert "no dataset at" in capsys.readouterr().err


def test_a_plain_build_of_a_grown_dataset_mends_it_and_leaves_earlier_manifests(
    genomes: Path, two: Path, tmp_path: Path
) -> None:
    uri = copy_of(two, tmp_path)
    old = open_manifest(str(uri))
    grow(genomes, uri, "bat", "cow")
    whole, digest = files(uri), open_manifest(str(uri)).digest
    gone = open_manifest(str(uri)).manifest.shards["train"][2].name
    (uri / gone).unlink()
    mended = build(config_of(genomes, uri, ("bat", "cow")))
    assert mended.fresh and open_manifest(str(uri)).digest == digest
    assert (uri / gone).read_bytes() == whole[gone][0] and letters_of(uri, old.digest) == letters_of(two)
    assert verify(str(uri)) == [] and not build(config_of(genomes, uri, ("bat", "cow"))).fresh
    # A growth that was cut short after its manifest is ended by the same build without the key, too.
    (uri / GROWTH).write_bytes((uri / "build.json").read_bytes())
    (uri / "train.bed").write_text("")
    assert build(config_of(genomes, uri, ("bat", "cow"))).fresh
    assert verify(str(uri)) == [] and letters_of(uri, old.digest) == letters_of(two)


def test_overwrite_says_that_earlier_manifests_go(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    grow(genomes, uri, "bat")
    built = build(config_of(genomes, uri, ("dog",), overwrite=True))
    assert any(
        "1 earlier manifests go, and runs that began with them cannot go on" in w for w in built.warnings
    )
    assert not [name for name in os.listdir(uri) if name.startswith("manifest-")]


def test_a_licence_is_written_down_and_nothing_else(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    grow(genomes, uri, "ape")
    before = files(uri)
    references = [{"name": "ape", "uri": str(genomes / "ape.fa"), "licence": "CC0-1.0"}]
    wanted = config_of(genomes, uri, ("ape",), references=references)
    built = build(wanted)
    assert not built.fresh and built.licensed
    assert list(summary(built, wanted))[-1].endswith("already; the licences were written down")
    after = files(uri)
    assert {name for name in after if after[name] != before.get(name)} == {"build.json"}
    assert json.loads(after["build.json"][0])["config"]["references"][0]["licence"] == "CC0-1.0"
    assert not build(wanted).licensed and verify(str(uri)) == []


def test_the_partner_table_of_an_earlier_manifest_is_no_stray(genomes: Path, tmp_path: Path) -> None:
    uri = tmp_path / "d"
    build(config_of(genomes, uri, ("ape", "bat"), partners={"between": ["*"], "k": 11, "window": 1}))
    grow(genomes, uri, "ape", "bat")
    assert (uri / "partners.bin").exists() and verify(str(uri)) == []
    assert main(["prune", str(uri)]) == 0
    assert not (uri / "partners.bin").exists() and verify(str(uri)) == []


def test_other_names_of_contigs_change_no_letter(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri, table = copy_of(two, tmp_path), tmp_path / "aliases.tsv"
    table.write_text("chr1\tone\nchr2\ttwo\n")
    references = [
        {"name": name, "uri": str(genomes / f"{name}.fa"), "aliases": str(table)} for name in ("ape", "bat")
    ]
    built = grow(genomes, uri, references=references, split={"val": ["two"], "gap": 0})
    assert built.grown and built.grown.kept_shards == 6 and built.grown.changed == ()


def test_verify_names_what_an_earlier_manifest_lacks(genomes: Path, two: Path, tmp_path: Path) -> None:
    uri = copy_of(two, tmp_path)
    digest, ape = open_manifest(str(uri)).digest, load_manifest(str(uri)).shards["train"][0].name
    grow(genomes, uri, "bat")
    (uri / ape).unlink()
    assert verify(str(uri)) == [f"{ape} is missing, which {kept_name(digest)} names"]


def test_a_source_that_changes_meanwhile_leaves_the_manifest_before(
    genomes: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy_of(two, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.dataset.build.first_changed", lambda references: "cow.fa")
        with pytest.raises(BuildStoppedError, match=r"so no manifest was written; build again$"):
            grow(genomes, uri, "ape", "bat", "cow")
    assert (uri / MANIFEST).read_bytes() == (two / MANIFEST).read_bytes()
    assert grow(genomes, uri, "ape", "bat", "cow").found_shards == 3 and verify(str(uri)) == []


def test_a_finished_dataset_of_genomes_in_the_cache_needs_no_ray(
    genomes: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy_of(two, tmp_path)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr("data_prep.dataset.build.ray_session.session", refused)
    monkeypatch.setattr("cluster.tasks.jobs.run", refused)
    assert not build(config_of(genomes, uri, ("ape", "bat"))).fresh
