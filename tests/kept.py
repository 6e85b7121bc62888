"""Small tasks of each kind on the tiny registered network, and their fitted units."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tests.registered import NAME, Registered, tiny_network
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.modes import compute_unit
from trainer.evaluation.tasks.fitting.prepared import PreparedTask, prepare
from trainer.evaluation.tasks.results.results import Unit, UnitOutcome
from trainer.evaluation.tasks.rows.data import load
from trainer.models import pretrained

KINDS = ("classification", "regression", "multilabel")


def task_of(files: Path, kind: str = "classification", *, name: str = "motif") -> TaskConfig:
    """A task on the sequences of the registered motif task, whose labels are made of them."""
    folder = files / f"of-{kind}"
    if not folder.exists():
        folder.mkdir()
        for role in ("train", "dev", "test"):
            lines = (files / f"{role}.csv").read_text().splitlines()[1:]
            rows = [line.split(",") for line in lines]
            text = "".join(f"{letters},{_label(kind, letters, label)}\n" for letters, label in rows)
            (folder / f"{role}.csv").write_text("sequence,label\n" + text)
    values = {role: str(folder / f"{role}.csv") for role in ("train", "dev", "test")}
    labels = {"classification": {"labels": ["a", "b"]}, "multilabel": {"labels": ["gc", "long"]}}.get(
        kind, {}
    )
    sections = {
        "finetune": {"epochs": 1, "batch": 20, "lr": [3e-3], "precision": "fp32", "norm": "batch"},
        "probe": {"precision": "fp32", "C": [0.1], "pooling": "layers"},
        "seeds": [0],
    }
    return TaskConfig.model_validate({"name": name, "kind": kind, **labels, **values, **sections})


def _label(kind: str, letters: str, label: str) -> str:
    gc = np.isin(list(letters), ["G", "C"]).mean()
    if kind == "regression":
        return f"{100 * gc:.3f}"
    if kind == "multilabel":
        return '"' + ",".join(["gc"] * bool(gc > 0.45) + ["long"] * (len(letters) > 40)) + '"'
    return label


def prepared(where: Registered, kind: str = "classification") -> PreparedTask:
    return _prepared(where.folder, kind)


@functools.cache
def _prepared(files: Path, kind: str) -> PreparedTask:
    task, network = task_of(files, kind), tiny_network()
    folder = files / "config-only"
    pretrained.write(str(folder), network, dict(network.state_dict()), card="")
    config = pretrained.read_config(str(folder))
    return prepare(network, config, task=task, data=load(task), device=torch.device("cpu"))


def outcome(where: Registered, kind: str, mode: str) -> UnitOutcome:
    """Of a unit; computed once for all tests."""
    return _outcome(where.folder, kind, mode)


@functools.cache
def _outcome(files: Path, kind: str, mode: str) -> UnitOutcome:
    made = _prepared(files, kind)
    return compute_unit(made, Unit(NAME, "1", made.task.name, mode, 0))


def written(folder: Path, files: Mapping[str, bytes]) -> str:
    """The files in ``folder``, which is made."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)
