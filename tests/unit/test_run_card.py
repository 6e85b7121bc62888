"""What a run knows of itself, in the cards of its exports."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import configs
from cluster.process.processes import age_s
from data_prep import shards
from tests.datasets import markov_sequence, write_dataset
from tests.exports import network_of
from trainer.data.dataset import Dataset
from trainer.run import goodput, run_card
from trainer.run.config import TrainConfig
from trainer.run.run_card import RunCard

LENGTHS = [
    {"from_step": 0, "length": 100},
    {"from_step": 10, "length": 200},
    {"from_step": 40, "length": 400},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    contigs = {"train": [markov_sequence(9000, seed=1)], "val": [markov_sequence(3000, seed=2)]}
    return Dataset(write_dataset(tmp_path / "data", contigs), "train")


def config_of(dataset: Dataset, run_dir: Path) -> TrainConfig:
    values: dict[str, Any] = {
        "run": {"dir": str(run_dir), "seed": 5, "name": "mine"},
        "data": {"uri": [{"uri": dataset.uri, "weight": 2}], "length": LENGTHS},
        "train": {"steps": 60, "global_batch": 6},
    }
    return configs.validate(TrainConfig, values, source="test")


def card_of(config: TrainConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, **given: Any) -> RunCard:
    """With 7 FLOPs a letter of a window, on each of two ranks."""
    monkeypatch.setattr(run_card, "step_flops", lambda method, network, *, length: 7.0 * length)
    engine: Any = SimpleNamespace(
        group=SimpleNamespace(size=2), network=network_of("findna"), device=torch.device("cpu")
    )
    given = {"resumed_at": 0, "held_out": lambda step: {}} | given
    return run_card.run_card(config, engine, method=None, datasets=[dataset], **given)  # type: ignore[arg-type]


def row(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return found.split("|")[2].strip()


@pytest.mark.parametrize(
    ("step", "letters"),
    [(0, 0), (10, 1000), (11, 1200), (40, 7000), (60, 15_000)],
)
def test_letters_and_flops_are_counted_over_the_lengths(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, letters: int
) -> None:
    text = card_of(config_of(dataset, tmp_path / "run"), dataset, monkeypatch).at(step)
    assert f"({6 * letters:,} bp)" in row(text, "letters read")
    assert row(text, "FLOPs, by formula") == f"{2 * 7 * letters:.2e}"
    assert row(text, "devices") == "CPU, 2 processes"
    assert f"{step:,} steps of training" in text


def test_a_card_of_a_run_has_its_settings_and_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"val/mlm_accuracy": 0.5, "val/mlm_accuracy_markov": 0.4, "val/mlm_accuracy_majority": 0.3}
    given = {"held_out": {20: figures}.get}
    card = card_of(config_of(dataset, tmp_path / "run"), dataset, monkeypatch, **given)
    text = card.at(20)
    assert "# mine\n" in text and "`data`, weight 2" in text and dataset.digest in text
    assert row(text, "window, bp") == "400" and "200 from step 10" in row(text, "window by step")
    assert (row(text, "seed"), row(text, "windows in a batch")) == ("5", "6")
    assert row(text, r"**this model**") == "0.5000"
    assert dataset.manifest.sources[0].sha256 in text and shards.BUILD_INFO not in text


def test_time_counts_from_the_beginning_of_the_run_over_resumes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, name = config_of(dataset, tmp_path / "run"), "time since it began, with all pauses"
    own = age_s(os.getpid()) / 60
    fresh = float(row(card_of(config, dataset, monkeypatch).at(1), name).split()[0])
    assert fresh == pytest.approx(own, abs=0.3)
    kept = tmp_path / "run" / goodput.FILE
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"began": time.time() - 36_000, "applied_s": {}}))
    resumed = card_of(config, dataset, monkeypatch, resumed_at=1).at(1)
    assert row(resumed, name) == "10.0 hours"
    anew = row(card_of(config, dataset, monkeypatch).at(1), name)
    assert anew != "10.0 hours", "what lies there is of another run"
    kept.write_text("[]")
    assert row(card_of(config, dataset, monkeypatch, resumed_at=1).at(1), name) != "10.0 hours"


def test_a_card_without_all_that_says_what_the_config_knows(dataset: Dataset, tmp_path: Path) -> None:
    text = RunCard(config_of(dataset, tmp_path / "run"), network_of("findna")).at(3)
    assert "The data are not known here" in text and row(text, "seed") == "5"
