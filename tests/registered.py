"""A tiny network as a registered model of a SQLite MLflow, and a learnable task: made once for all tests."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import alphabet
from tests.datasets import markov_sequence, write_dataset
from trainer.models import pretrained
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.network import Network
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.registry import Registry

NAME = "toy"
_UNTOUCHED = "untouched.db"
CANDIDATE = f"models:/{NAME}@candidate"
MOTIF = "GATTACAGATTACA"
TASK_ROWS = {"train": 200, "dev": 60, "test": 50}


@dataclass(frozen=True)
class Registered:
    """Where everything lies: the tracking URI, the pretraining run's id, and the task's YAML."""

    folder: Path
    uri: str
    run_id: str
    task: Path


def tiny_network(*, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = ChordMixerConfig(
            num_layers=2, num_groups=4, group_channels=6, intermediate_size=32, num_summary=2, norm="layer"
        )
        return Network(ChordMixer(sizes), heads={}).eval()


def register(folder: Path, uri: str, *, seed: int, params: dict[str, object]) -> str:
    """The id of a finished run that logged a few metrics and registered ``tiny_network(seed)``."""
    spec = RunSpec(uri, "toys", "<toy & run>", params=params, artifact_uri=str(folder / "art"))
    with Run(spec) as run:
        for step in range(5):
            run.log(
                {
                    "loss/total": 2 - step / 10,
                    "loss/mlm": 1.4 - step / 10,
                    "lr": 1e-3,
                    "ema/momentum": 0.99,
                    "health/effective_rank": 2.0 + step,
                    "throughput/bp_per_s": 1000.0,
                },
                step=step + 1,
            )
        for step, accuracy in ((0, 0.25), (5, 0.33)):
            run.log(
                {
                    "val/mlm_accuracy": accuracy,
                    "val/student_mlm_accuracy": accuracy + 0.01,
                    "val/mlm_accuracy_majority": 0.30,
                    "val/mlm_accuracy_markov": 0.36,
                    "val/scored_positions": 10_000,
                },
                step=step,
            )
        network = tiny_network(seed=seed)
        where = folder / f"export{seed}"
        pretrained.write(str(where), network, dict(network.state_dict()), card="a toy")
        run.attach(where, "model")
        version = registered_before(run, NAME)
        run.tag({"model.version": version})
        return run.id


def registered_before(run: Run, model: str) -> str:
    """The number of a version as releases before logged models made it: of the run's artifact ``model``, with
    alias candidate and no tags."""
    client = run.client
    if model not in [each.name for each in client.search_registered_models()]:
        client.create_registered_model(model)
    made = client.create_model_version(model, f"{run.artifact_uri}/model", run.id)
    client.set_registered_model_alias(model, "candidate", made.version)
    return str(made.version)


def write_task(folder: Path) -> Path:
    """The YAML of a task in which class b has the motif, on either strand, and class a has not."""
    rng = np.random.default_rng(7)
    for role, count in TASK_ROWS.items():
        lines = ["sequence,label"]
        for i in range(count):
            codes = rng.integers(0, 4, int(rng.integers(38, 44))).astype(np.uint8)
            if i % 2:
                at = int(rng.integers(0, len(codes) - len(MOTIF)))
                codes[at : at + len(MOTIF)] = alphabet.encode(MOTIF.encode())[0]
                codes = alphabet.reverse_complement(codes) if rng.random() < 0.5 else codes
            lines.append(f"{alphabet.decode(codes).decode()},{'ab'[i % 2]}")
        (folder / f"{role}.csv").write_text("\n".join(lines) + "\n")
    path = folder / "motif.yaml"
    path.write_text(
        "name: motif\nlabels: [a, b]\nseeds: [0]\n"
        + "".join(f"{role}: {folder / role}.csv\n" for role in TASK_ROWS)
        + "finetune: {epochs: 2, batch: 20, lr: [3.0e-3], precision: fp32}\nprobe: {precision: fp32, C: "
        "[0.1, 1]}\n" + "kmer: {k: 3, C: [0.1, 1]}\n"
    )
    return path


def registered(factory: pytest.TempPathFactory) -> Registered:
    """The one of this test session."""
    return _make(factory.getbasetemp() / "registered")


@functools.cache
def _make(folder: Path) -> Registered:
    folder.mkdir()
    uri = f"sqlite:///{folder}/mlflow.db"
    dataset = write_dataset(
        folder / "data", {"train": [markov_sequence(9000, seed=1)], "val": [markov_sequence(3000, seed=2)]}
    )
    params = {
        "run.dir": str(folder / "run"),
        "data.uri": dataset,
        "data.length": 64,
        "track.registered_model": NAME,
        "note": "<script>alert(1)</script>",
    }
    run_id = register(folder, uri, seed=0, params=params)
    shutil.copy(folder / "mlflow.db", folder / _UNTOUCHED)
    return Registered(folder, uri, run_id, write_task(folder))


def own_database(shared: Registered, folder: Path) -> str:
    """The URI of a copy in ``folder`` of the database as it was before any test wrote to it."""
    return f"sqlite:///{shutil.copy(shared.folder / _UNTOUCHED, folder / 'mlflow.db')}"


def registry(where: Registered) -> Registry:
    return Registry(where.uri)
