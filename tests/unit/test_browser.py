"""What a reviewer sees of a run in MLflow's UI, read in a real browser.

It trains by command, makes a report and fine-tunes first, and takes about a minute: see `make faults`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import configs
from tests import browser, commands
from tests.browser import Browser
from tests.datasets import markov_sequence, write_dataset
from tests.registered import Registered, registered
from tests.unit.test_main import ROOT, TINY
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.tracking.registry import Registry

pytestmark = [
    pytest.mark.faults,
    pytest.mark.browser,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing()),
]


@dataclass(frozen=True)
class Reviewed:
    """A small run that is finished and scored, and the window that shows it."""

    window: Browser
    run: Any
    parent: Any

    @property
    def experiment(self) -> str:
        return f"#/experiments/{self.run.info.experiment_id}"


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reviewed]:
    folder = tmp_path_factory.mktemp("browser")
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(5_000, seed=2)]}
    data, uri = write_dataset(folder / "data", contigs), f"sqlite:///{folder}/mlflow.db"
    given = [*TINY, f"data.uri={data}", f"run.dir={folder}/run", "run.name=seen", f"track.uri={uri}"]
    done = commands.run(
        ROOT / "trainer/main.py",
        [
            "--config",
            str(ROOT / "configs/train/demo.yaml"),
            *given,
            "train.steps=6",
            "track.report_every=1000",
        ],
        cwd=folder,
        environment={key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
    )
    assert done.returncode == 0, done.stderr
    registry = Registry(uri)
    task: Registered = registered(tmp_path_factory)
    score = configs.load(TaskConfig, task.task, ["modes=[kmer,probe]", "seeds=[0]"])
    finetune(registry, "models:/findna/1", score)
    (run,) = registry.tagged("findna", {"mlflow.runName": "seen"})
    (parent,) = registry.tagged("findna", {"finetune": "parent"})
    with browser.server(uri, folder) as address, Browser(address) as window:
        yield Reviewed(window, run, parent)


def test_the_experiment_opens_on_its_runs_and_says_what_it_is_for(reviewed: Reviewed) -> None:
    text = reviewed.window.open(
        reviewed.experiment, shows=["seen", "Model training", "DNA encoders pretrained"]
    )
    assert "Detect Issues" not in text  # that is what GenAI opens with


def test_a_run_tells_what_it_is_from_what_and_by_whom(reviewed: Reviewed) -> None:
    shown = [
        "Pretraining of a DNA encoder by self-distillation",
        "Result after step 6",
        "How to go on",
        "val/mlm_accuracy",
        "optim/lr",
        "main.py",
        "toy train",
        reviewed.run.data.tags["mlflow.user"],
        "git.dirty",
        "findna",
        "findna v1 fine-tuning",
    ]
    reviewed.window.open(f"{reviewed.experiment}/runs/{reviewed.run.info.run_id}", shows=shown)


def test_charts_stand_in_groups(reviewed: Reviewed) -> None:
    page = f"{reviewed.experiment}/runs/{reviewed.run.info.run_id}/model-metrics"
    reviewed.window.open(page, shows=["health", "loss", "optim", "val"])


def test_the_use_of_the_machine_has_a_page(reviewed: Reviewed) -> None:
    page = f"{reviewed.experiment}/runs/{reviewed.run.info.run_id}/system-metrics"
    reviewed.window.open(page, shows=["cpu_utilization_percentage"])


def test_report_and_log_are_read_in_place(reviewed: Reviewed) -> None:
    page = f"{reviewed.experiment}/runs/{reviewed.run.info.run_id}/artifacts"
    reviewed.window.open(f"{page}/report/index.html", shows=["Was anything learned?", "accuracy.png"])
    reviewed.window.open(f"{page}/log.txt", shows=["step 6: val accuracy", "registered findna version 1"])


def test_the_parent_of_the_fine_tuning_has_table_and_figures(reviewed: Reviewed) -> None:
    page = f"{reviewed.experiment}/runs/{reviewed.parent.info.run_id}"
    reviewed.window.open(page, shows=["Best on dev", "above floor", "best/motif/test_mcc", "seen"])
    reviewed.window.open(f"{page}/artifacts/summary/summary.html", shows=["scores.png", "motif"])


def test_the_version_has_a_page(reviewed: Reviewed) -> None:
    reviewed.window.open(
        "#/models/findna/versions/1",
        shows=["Version 1", "seen", "Step 6, accuracy 0.", "this version", "candidate.reason", "Inputs (1)"],
    )


def test_the_registered_model_says_what_its_aliases_promise(reviewed: Reviewed) -> None:
    reviewed.window.open(
        "#/models/findna", shows=["DNA encoders pretrained", "@ candidate", "Step 6, accuracy 0."]
    )


def test_what_is_started_ends_also_when_its_starter_is_killed() -> None:
    code = (
        "import subprocess, sys, time\nfrom tests import browser\n"
        "started = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "with browser.ended_at_last(started.pid):\n    print(started.pid, flush=True)\n    time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    os.kill(pid, 0)
    starter.kill()
    starter.communicate()
    browser.until(lambda: _is_gone(pid), what="the process that was started has ended")


def _is_gone(pid: int) -> bool:
    """Whether no such process is left, or only what nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_logged_model_has_its_version_and_metrics(reviewed: Reviewed) -> None:
    (output,) = reviewed.run.outputs.model_outputs
    shown = ["findna-step-6", "Step 6, accuracy 0.", "val/mlm_accuracy", "Model versions", "v1"]
    reviewed.window.open(f"{reviewed.experiment}/models/{output.model_id}", shows=shown)
