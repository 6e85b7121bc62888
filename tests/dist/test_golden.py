"""Golden values: shards, samples, views and masks exactly, the losses of 20 steps within a tolerance."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.dist import golden

pytestmark = pytest.mark.timeout(300)  # builds a dataset and trains two small runs


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> dict[str, Any]:
    return golden.found(tmp_path_factory.mktemp("golden"))


def test_nothing_has_changed(found: dict[str, Any]) -> None:
    lines = golden.differences(found, golden.read())
    assert not lines, "\n".join(
        ["not the golden values; CONTRIBUTING.md says when they may be recorded anew:", *lines]
    )


def test_every_loss_and_split_is_in_it() -> None:
    recorded = golden.read()
    losses = {loss for run in recorded["losses"].values() for loss in run}
    assert losses == {"mlm", "distill", "patch", "contrastive", "koleo", "vicreg", "total"}
    assert {name.split("-")[0] for name in recorded["dataset"] if name.endswith(".tar")} == {
        "train",
        "val",
        "test",
    }
    assert {len(values) for run in recorded["losses"].values() for values in run.values()} == {golden.STEPS}


def test_every_change_is_found() -> None:
    recorded = golden.read()
    assert golden.differences(recorded, recorded) == []
    changed = copy.deepcopy(recorded)
    changed["dataset"]["manifest.json"] = "0" * 64
    changed["samples"]["plain"]["masks"] = "1" * 64
    changed["losses"]["plain"]["mlm"][4] *= 1.002
    changed["losses"]["plain"]["mlm"][5] *= 1.0005
    del changed["losses"]["coupled"]["koleo"]
    lines = golden.differences(changed, recorded)
    assert [line.split(":")[0] for line in lines] == [
        "dataset, manifest.json",
        "samples, plain, masks",
        "losses, coupled, koleo",
        "losses, plain, mlm, step 5",
    ]


def test_the_seed_decides_the_samples() -> None:
    one = {(0, (0, 0, 3, 1)): ([0, 1], [True, False], [2, 3], 0.5)}
    other = {(0, (0, 0, 3, 1)): ([0, 1], [False, True], [2, 3], 0.7)}
    ours, theirs = golden.sample_digests(one), golden.sample_digests(other)
    assert {key for key in ours if ours[key] != theirs[key]} == {"masks"}


def test_the_genome_has_all_that_shards_store() -> None:
    for name, length in golden.LENGTHS.items():
        letters = golden.letters(name, length)
        assert len(letters) == length
        assert set("ACGTacgtNR") <= set(letters)


def test_recording_writes_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(golden, "found", lambda folder: golden.read())
    golden.record(tmp_path / "golden.json")
    assert (tmp_path / "golden.json").read_text() == golden.FILE.read_text()
