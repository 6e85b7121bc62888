"""data_prep.dataset.shares and `stats` of mixtures: what training reads of each assembly."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.dataset.read import load_manifest
from data_prep.dataset.shares import shares, shares_table
from data_prep.shards import MANIFEST, Source
from tests.commands import exit_code
from tests.datasets import markov_sequence, write_dataset
from trainer.core.collectives import Group
from trainer.data.dataset import Dataset
from trainer.data.loader import Reader
from trainer.data.sampling import Phase, SamplingPlan


def mixture(folder: Path) -> list[str]:
    """Two datasets; the first of two assemblies, which it calls toy and other."""
    uris = [
        write_dataset(
            folder / name,
            {"train": [markov_sequence(bp, seed=seed) for seed, bp in enumerate(lengths)]},
            block_bp=1024,
        )
        for name, lengths in (("a", (30_720, 10_240)), ("b", (20_480,)))
    ]
    manifest = load_manifest(uris[0])
    (toy,) = manifest.sources
    other = replace(toy, name="other", weight=2.0)
    tree = json.loads(replace(manifest, sources=(toy, other)).to_bytes())
    for shard in tree["shards"]["train"]:
        for block in shard["blocks"]:
            block["assembly"] = "other" if block["contig"] == "train1" else "toy"
    (folder / "a" / MANIFEST).write_text(json.dumps(tree))
    return uris


def test_shares_are_what_training_reads(tmp_path: Path) -> None:
    uris = mixture(tmp_path)
    weights = [3.0, 1.0]
    found = shares([(uri, load_manifest(uri), w) for uri, w in zip(uris, weights, strict=True)])
    assert [(each.assembly, each.weight) for each in found] == [("toy", 1.0), ("other", 2.0), ("toy", 1.0)]
    assert [each.share for each in found] == pytest.approx([0.75 * 0.6, 0.75 * 0.4, 0.25])
    assert [each.bp for each in found][:2] == [
        {"train": 30_720, "val": 0, "test": 0},
        {"train": 10_240, "val": 0, "test": 0},
    ]
    plan = SamplingPlan(weights, [Phase(0, 64)], seed=0, flank=0, lanes=4, global_batch=64)
    datasets = [Dataset(uri, "train") for uri in uris]
    reader = Reader(datasets, plan=plan, group=Group(0, 1))
    seen = Counter[tuple[int, str]]()
    for step in range(60):
        for number, _, block, _ in reader.batch(step).ids_B4.tolist():
            seen[number, datasets[number].blocks[block][1].assembly] += 1
    reader.close()
    read = np.array([seen[0, "toy"], seen[0, "other"], seen[1, "toy"]]) / seen.total()
    assert read == pytest.approx([each.share for each in found], abs=0.02)


def test_the_table(tmp_path: Path) -> None:
    uris = mixture(tmp_path)
    text = shares_table(shares([(uri, load_manifest(uri), 1.0) for uri in uris]))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["assembly", "train", "val", "test", "weight", "of", "training"]
    assert lines[2] == ["1:other", "10,240", "0", "0", "2", "20.00%"]
    assert lines[-1] == ["2:", uris[1]]
    manifest = load_manifest(uris[0])
    own = {"weights": {"given": 1.0, "alpha": 1.0, "clade": "fish"}}
    sources: tuple[Source, ...] = (replace(manifest.sources[0], filters=own), manifest.sources[1])
    text = shares_table(shares([(uris[0], replace(manifest, sources=sources), 1.0)]))
    assert text.splitlines()[0].split()[:2] == ["assembly", "clade"] and " fish " in text
    nothing = replace(manifest, shards={"train": (), "val": (), "test": ()})
    assert [each.share for each in shares([(uris[0], nothing, 1.0)])] == [0.0, 0.0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = mixture(tmp_path)
    assert main(["stats", one]) == 0
    out = capsys.readouterr().out
    assert "other" in out and "40.00%" in out and "bytes/bp" in out
    assert main(["stats", one, other, "--weights", "3,1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[2]["share"] == 0.25
    assert main(["stats", one, other]) == 0
    assert "50.00%" in capsys.readouterr().out
    for arguments, message in (
        ([one, other, "--weights", "3"], "--weights: 1 were given for 2 datasets; give one for each"),
        ([one, other, "--picture", str(tmp_path / "p.png")], "--picture: it is of one dataset; give one URI"),
        ([one, one], f"given twice: {one}; give each dataset once"),
        ([one, "--weights", "-1"], "must be numbers above 0, not '-1'"),
        ([one, "--weights", "x"], "could not convert string to float: 'x'"),
    ):
        assert exit_code(main, ["stats", *arguments]) == 2
        assert message in capsys.readouterr().err
