"""A study with real, tiny pretrainings and tasks: killed and stopped, it goes on and repeats nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from data_prep.synthetic import synthesise
from tests.faults.test_cluster_build import ROOT, wait_for
from trainer.tracking.registry import Registry

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]


def write_study(folder: Path) -> None:
    """Two arms of a tiny network on a generated genome and its task."""
    synthesise(str(folder / "genome"), bp=300_000)
    preset = {
        "run": {"dir": "x"},
        "data": {"uri": "dataset", "length": 128},
        "model": {"name": "dilated-conv", "hidden_size": 16, "dilations": [1, 2]},
        "loss": {"distill": {"weight": 0}, "contrastive": {"weight": 0.2, "mlp_size": 16, "embedding": 8}},
        "train": {"steps": 5, "global_batch": 24, "lr": 0.002},
        "val": {"every": 100, "windows": 32},
        "checkpoint": {"every": 20},
    }
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    data = {
        "references": [{"name": "generated", "uri": str(folder / "genome/genome.fa.gz")}],
        "output": "dataset",
        "block_bp": 16384,
        "shard_bp": 131072,
        "split": {"val": ["chr5"]},
        "workers": 1,
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    study = {
        "name": "tiny",
        "output": "out",
        "data": {"config": "data.yaml"},
        "pretrain": {"config": "preset.yaml", "flops": 3e10, "set": {"track.system_metrics": False}},
        "arms": {"scratch": {"scratch": True}, "masked": {"loss.contrastive.weight": 0}, "both": {}},
        "tasks": [
            {
                "configs": [str(ROOT / "configs/tasks/synthetic.yaml")],
                "set": {"max_train_rows": 100, "seeds": [0], "finetune": {"epochs": 1, "lr": 1e-3}},
            }
        ],
        "statistics": {"samples": 200},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


class Command:
    """``python -m cluster study`` in ``folder``, in a session of its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self._log = folder / f"log{number}.txt"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DNA_SYNTH": str(folder / "genome"),
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
        }
        with open(self._log, "w") as out:
            command = [sys.executable, "-m", "cluster", "study", "--config", "study.yaml", "--cpus", "2"]
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=out, stderr=out, env=environment, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def until(self, path: str, folder: Path) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.said
            return bool(list(folder.glob(path)))

        wait_for(there, f"{path}; said {self.said}", seconds=600)


def training(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if process.info["cwd"] == str(folder) and any(word.endswith("trainer/main.py") for word in words):
            found.append(process)
    return found


def test_a_study_that_is_killed_and_stopped_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    write_study(tmp_path)
    first = Command(tmp_path, 1)
    first.until("out/pretraining/*/checkpoints/step-*/manifest.json", tmp_path)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    wait_for(lambda: not training(tmp_path), "the end of what it had started", seconds=300)
    second = Command(tmp_path, 2)
    wait_for(lambda: bool(training(tmp_path)) or second.process.poll() is not None, second.said, seconds=600)
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(300) == 75, second.said
    assert "the same command goes on" in second.said and "Traceback" not in second.said
    assert not training(tmp_path)
    last = Command(tmp_path, 3)
    assert last.process.wait(900) == 0, last.said
    rows = pd.read_csv(tmp_path / "out/report/results.csv")
    found = sorted(zip(rows["arm"], rows["mode"], strict=True))
    networks = [(arm, mode) for arm in ("both", "masked") for mode in ("finetune", "probe")]
    assert found == sorted([*networks, ("floor", "kmer"), ("floor", "onehot"), ("scratch", "scratch")])
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(registry.client.search_model_versions("name='tiny'")) == 2
    again = Command(tmp_path, 4)
    assert again.process.wait(600) == 0, again.said
    assert again.said.count("pretrained before") == 2 and "already in run" in again.said
