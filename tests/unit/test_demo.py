"""The whole main job on a small generated genome: every command of it, the table and the report."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from trainer.demo import main
from trainer.run import demo
from trainer.tracking.mlflow_client import connect
from trainer.tracking.registry import Registry

ROOT = Path(__file__).resolve().parent.parent.parent


def run_demo(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DNA_DATA": str(folder / "nothing")}
    return subprocess.run(
        [sys.executable, "-m", "trainer.demo", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(300)
def test_demo_goes_from_a_generated_genome_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With names and places of the user's own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = run_demo(
        tmp_path,
        "--folder",
        "demo",
        "--genome-bp",
        "1000000",
        "--rows",
        "100",
        "--seeds",
        "1",
        "train.steps=60",
        "model.dilations=[1, 2, 4]",
        "val.every=30",
        "val.windows=256",
        "run.name=bob's",
        "track.experiment=bob's runs",
        "track.registered_model=bob's model",
        "track.uri=sqlite:///me@work.db",
        "run.dir=mine",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Genome: generated, since" in done.stdout
    table = done.stdout[done.stdout.index("\ngenome  ") :]
    (majority,) = [line for line in table.splitlines() if "majority letter" in line]
    assert float(majority.split(":")[1].split()[0]) > 3  # standard errors above, after 60 steps
    for mode in ("kmer", "onehot", "probe", "finetune", "scratch"):
        assert any(line.split()[:2] == ["synthetic", mode] for line in table.splitlines())
    for told in ("distillation", "synthetic, probe", "  20 neighbours"):
        assert any(line.startswith(told) for line in table.splitlines()), told
    (told,) = [line for line in table.splitlines() if line.startswith("distillation")]
    assert float(told.split("tells")[1].split()[0]) > 0.1, (
        "nats: the teacher of the shipped preset is not uniform"
    )
    (curve,) = [line for line in table.splitlines() if line.startswith("  20 neighbours")]
    assert curve.count(" → ") == 1 and "(floor " in curve  # steps 0 and 60
    (sentence,) = [line for line in table.splitlines() if line.startswith("synthetic: ")]
    assert "the same network from scratch" in sentence and "the floor" in sentence
    report = (tmp_path / "demo" / "report" / "index.html").read_text()
    assert "data:image/png;base64," in report
    assert "is kept as models:/bob's model-synthetic/1. To use it on sequences of your own:" in done.stdout
    predictions = pd.read_csv(tmp_path / "demo" / "predictions.csv", dtype=str)
    assert list(predictions.columns) == ["input_label", "label", "p_0", "p_1"] and len(predictions) == 5
    assert (tmp_path / "demo" / "predictions.csv").read_text() in done.stdout
    assert "Runs: mlflow ui --backend-store-uri sqlite:///me@work.db" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    registry = Registry(f"sqlite:///{tmp_path}/me@work.db")
    version = registry.version("models:/bob's model@candidate")
    assert registry.run(version.run_id).info.run_name == "bob's"
    assert registry.experiment_of(version.run_id) == "bob's runs"
    monkeypatch.chdir(tmp_path)
    assert main(["--folder", "demo"]) == 1
    assert capsys.readouterr().err.strip().endswith("File exists: 'demo'")


def test_a_failing_command_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(["--folder", "demo", "--generated", "--genome-bp", "10"]) in (1, 2)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert "data_prep synth" in out
    assert "trainer/main.py" not in out  # nothing after the command that failed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["data.uri=datasets/yeast"],
            "data.uri: the demo trains on the dataset that it makes; for another one use",
        ),
        (
            ["track.registered_model=null"],
            "track.registered_model: the demo fine-tunes the model that it registers",
        ),
        (
            ["track.registered_model=a/b"],
            "track.registered_model: MLflow takes no / or : in the name of a model",
        ),
        (["train.step=7"], "train.step: unknown key, did you mean 'steps'?"),
        (["--rows", "0"], "--rows: 0 must be at least 1"),
        (["--seeds", "0"], "--seeds: 0 must be at least 1"),
        (["--processes", "5"], "must both be divisible by the 5 processes"),
        (["run.dir=taken"], "run.dir: taken holds files of something else (notes)"),
    ],
)
def test_what_the_demo_cannot_honour_is_refused_before_any_work(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["--folder", "demo", "--generated", *arguments]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "taken"]


def test_the_demo_asks_for_the_experiment_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    client = connect("sqlite:///mlflow.db")
    client.delete_experiment(client.create_experiment("findna"))
    assert main(["--folder", "demo", "--generated"]) == 1
    assert (
        "error: experiment findna at sqlite:///mlflow.db was deleted; restore it" in capsys.readouterr().err
    )
    assert not (tmp_path / "demo").exists()


def test_a_password_in_an_override_is_not_printed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    assert demo._run_all([["python", "track.uri=postgresql://me:word@host/db", "run.name=a b"]], {}) == 0
    assert capsys.readouterr().out == "\n$ python track.uri=postgresql://***@host/db 'run.name=a b'\n"
