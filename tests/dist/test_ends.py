"""Runs that end by themselves, through the whole of trainer.run.train: what is said, logged and left
behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.dist.test_collapse import PLANTED
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.run.hooks import Hook, StepOutcome
from trainer.run.train import train
from trainer.run.train_state import TrainState
from trainer.tracking.registry import Registry

STEPS = 80  # the planted collapse is there by step 61


class CountRows(Hook):
    """As a user adds one."""

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        step.metrics["mine/rows"] = float(len(step.batch.ids_B4) * state.step)


def endings(runs: list[dict[str, Any]]) -> list[str]:
    """What each run, which has a hook of the user's, raises; "" for one that comes to its end."""
    init_distributed(torch.device("cpu"))
    said = []
    for values in runs:
        try:
            config = TrainConfig.model_validate(values)
            train(config, device=torch.device("cpu"), group=Group.of(), hooks=[CountRows()])
            said.append("")
        except RuntimeError as fault:
            said.append(str(fault))
    return said


def refusals(runs: list[list[dict[str, Any]]]) -> list[str]:
    """What this rank raises of each run, whose values are those of its rank."""
    init_distributed(torch.device("cpu"))
    said = []
    for values in runs:
        group = Group.of()
        with pytest.raises((ValueError, OSError)) as fault:
            train(TrainConfig.model_validate(values[group.rank]), device=torch.device("cpu"), group=group)
        said.append(f"{type(fault.value).__name__}: {fault.value}")
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    write_dataset(folder / "data", contigs, soft=True)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    common = {
        "val__windows": 8,
        "val__every": 1000,
        "track__uri": f"sqlite:///{folder}/mlflow.db",
        "train__steps": STEPS,
    }

    def run(name: str, **changes: Any) -> dict[str, Any]:
        place = {"run__dir": str(folder / name.split()[0]), "run__name": name}
        return small_config(str(folder / "data"), **common, **place, **changes)

    runs = {
        "collapse": run("collapse", health__on_collapse="stop", **PLANTED),
        "warned": run("warned", **PLANTED),
        "blown": run("blown", train__lr=1e30, train__max_skipped=3),
        "blown again": run("blown again", train__lr=1e30, train__max_skipped=3),
    }
    return dict(zip(runs, on_ranks(1, endings, list(runs.values()))[0], strict=True))


def history(folder: Path, run: str, metric: str) -> dict[int, float]:
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    experiment = registry.client.get_experiment_by_name("findna").experiment_id
    (found,) = registry.runs(experiment, f"attributes.run_name = '{run}'")
    assert found.info.status == ("FINISHED" if run == "warned" else "FAILED")
    table = registry.history(found.info.run_id, metric)
    return dict(zip(table["step"].tolist(), table["value"].tolist(), strict=True))


def test_a_collapse_ends_the_run_or_is_logged(said: dict[str, str], folder: Path) -> None:
    assert "the teacher is one-hot on the same prototype for all samples" in said["collapse"]
    assert said["collapse"].endswith("; with health.on_collapse=warn the run would go on")
    assert said["warned"] == ""
    flags = history(folder, "warned", "batch_health/collapsed")
    assert list(flags) == list(range(10, STEPS + 1, 10))
    assert flags[10] == 0
    assert sum(flags.values()) >= 1
    assert list(history(folder, "warned", "batch_health/prototype_usage")) == list(flags)
    assert history(folder, "warned", "mine/rows") == {step: 24.0 * step for step in range(1, STEPS + 1)}
    first = min(step for step, flag in flags.items() if flag)
    assert history(folder, "collapse", "batch_health/collapsed") == {
        s: f for s, f in flags.items() if s <= first
    }


def test_steps_that_are_not_finite_end_the_run_which_can_be_started_again(
    said: dict[str, str], folder: Path
) -> None:
    path = folder / "blown" / "not_finite.json"
    for run in ("blown", "blown again"):
        assert said[run].startswith("step 4: no finite loss and gradient in 3 steps in a row")
        assert said[run].endswith(f"the samples are listed in {path}")
        assert history(folder, run, "train/skipped_steps") == {2: 1.0, 3: 2.0, 4: 3.0}
        assert list(history(folder, run, "loss/total")) == [1]
    saved = json.loads(path.read_text())
    assert [step["step"] for step in saved["steps"]] == [2, 3, 4]
    assert all(len(step["samples"]) == 24 for step in saved["steps"])


def test_what_mlflow_refuses_ends_all_ranks_before_the_first_step(said: dict[str, str], folder: Path) -> None:
    client = Registry(f"sqlite:///{folder}/mlflow.db").client
    client.delete_experiment(client.create_experiment("gone"))
    values = small_config(
        str(folder / "data"),
        val__windows=8,
        val__every=1000,
        run__dir=str(folder / "refused"),
        track={"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "gone"},
    )
    both = on_ranks(2, endings, [values])
    assert both[0] == both[1]
    assert both[0][0].startswith(f"experiment gone at sqlite:///{folder}/mlflow.db was deleted; restore it")
    assert not (folder / "refused" / "checkpoints").exists()


def test_a_finished_run_that_mlflow_refuses_ends_all_ranks(said: dict[str, str], folder: Path) -> None:
    """MLflow has not got all of it; its experiment is deleted meanwhile."""
    client = Registry(f"sqlite:///{folder}/mlflow.db").client
    client.delete_experiment(client.create_experiment("gone since"))
    values = small_config(
        str(folder / "data"),
        run__dir=str(folder / "undelivered"),
        track={"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "gone since"},
    )
    config = TrainConfig.model_validate(values)
    run_status.write_config(config)
    (folder / "undelivered" / pretrained.WEIGHTS).write_bytes(b"weights")
    run_status.write_finished(config.run.dir, steps=config.train.steps, delivered=False)
    both = on_ranks(2, endings, [values])
    assert both[0] == both[1]
    assert both[0][0].startswith(
        "the run is finished and its export is in run.dir, but it is not registered: experiment gone since at"
    )


def test_data_that_no_run_can_use_end_all_ranks_and_are_told_once(folder: Path) -> None:
    """Also where they are missing on one node alone, which the others would wait for."""
    write_dataset(
        folder / "blank",
        {"train": [markov_sequence(30_000, seed=1)], "val": [np.full(3_000, 4, np.uint8)]},
        soft=True,
    )

    def run(data: str, **changes: Any) -> dict[str, Any]:
        return small_config(str(folder / data), run__dir=str(folder / "refused"), val__windows=8, **changes)

    good, missing, blank, long = run("data"), run("nowhere"), run("blank"), run("data", data__length=1 << 20)
    first, second = on_ranks(2, refusals, [[missing] * 2, [good, missing], [blank] * 2, [long] * 2])
    assert [text.split(":")[0] for text in first] == [
        "StoreError",
        "ElsewhereError",
        "ValueError",
        "ValueError",
    ]
    assert [text.split(":")[0] for text in second] == [
        "ElsewhereError",
        "StoreError",
        *["ElsewhereError"] * 2,
    ]
    for text, part in zip(
        [first[0], second[1], first[2], first[3]],
        [
            "no dataset at",
            "no dataset at",
            "has no letter A, C, G or T to score",
            "does not fit the blocks of",
        ],
        strict=True,
    ):
        assert part in text
