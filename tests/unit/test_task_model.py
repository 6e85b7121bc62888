"""A fine-tuned model as files: what is loaded predicts what was fitted, to the bit; nothing else is read."""

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from tests import kept
from tests.registered import NAME, Registered, registered
from trainer import load_model, load_task_model
from trainer.evaluation.tasks.fitting import modes
from trainer.evaluation.tasks.fitting.prepared import prepare
from trainer.evaluation.tasks.kept import task_model, task_pyfunc
from trainer.evaluation.tasks.kept.task_model import TaskModel
from trainer.evaluation.tasks.results.results import Unit
from trainer.models import pretrained

MODES = ("probe", "finetune")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", kept.KINDS)
def test_a_loaded_model_predicts_what_was_fitted(
    where: Registered, tmp_path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one and the same fit: another, with another number of threads, differs by rounding."""
    prepared, fits = kept.prepared(where, kind), []
    unit = Unit(NAME, "1", prepared.task.name, mode, 0)
    with monkeypatch.context() as patch:
        fit_mode = modes.fit_mode
        patch.setattr(modes, "fit_mode", lambda *a, **more: fits.append(fit_mode(*a, **more)) or fits[-1])
        outcome = modes.compute_unit(prepared, unit)
    (fitted,) = fits
    model = task_model.load(kept.written(tmp_path / "model", outcome.model))
    for split in (prepared.data.dev, prepared.data.test):
        sequences = prepared.features.sequences(split)
        np.testing.assert_array_equal(model.predictions(sequences), fitted.predict(split))
    dev = prepared.features.sequences(prepared.data.dev)
    np.testing.assert_array_equal(model.predictions(dev), fitted.dev_prediction)
    for split, role in ((prepared.data.dev, "val"), (prepared.data.test, "test")):
        scores = model.kind.score(split.truth_N, model.predictions(prepared.features.sequences(split)))
        for name, value in scores.items():
            assert model.record.scores[f"{role}/{name}"] == value
            assert outcome.result.scores()[f"{role}/{name}"] == value
    again = task_model.pack(model, card=outcome.model["README.md"].decode())
    assert again == outcome.model, "what is written again has the same bytes"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
def test_sequences_of_any_length_alone_and_together(
    where: Registered, tmp_path: Path, mode: str, seed: int
) -> None:
    """A row does not depend on those beside it, nor on its strand or the case of its letters."""
    outcome = kept.outcome(where, "classification", mode)
    model = load_task_model(kept.written(tmp_path / "model", outcome.model))
    rng = np.random.default_rng(seed)
    sequences = ["".join(rng.choice(list("ACGTN"), int(n))) for n in rng.integers(1, 90, 7)]
    together = model.predict(sequences)
    assert list(together.columns) == ["label", "p_a", "p_b"]
    np.testing.assert_allclose(together["p_a"] + together["p_b"], 1)
    other = str.maketrans("ACGTN", "tgcan")
    for i, sequence in enumerate(sequences):
        for each in (sequence, sequence.lower(), sequence.translate(other)[::-1]):
            alone = model.predict([each])
            np.testing.assert_allclose(alone["p_a"][0], together["p_a"][i], atol=1e-6)


@pytest.mark.parametrize("strand", ["both", "given"])
@pytest.mark.parametrize(
    ("mode", "pooling", "norm"),
    [
        ("probe", "mean_max", "batch"),
        ("probe", "layers", "batch"),
        ("probe", "bins", "batch"),
        ("finetune", "mean", "batch"),
        ("finetune", "mean_max", "layer"),
        ("finetune", "bins", "layer"),
        ("finetune", "attention", "batch"),
    ],
)
def test_every_head_and_strand_is_kept(
    where: Registered, tmp_path: Path, mode: str, pooling: str, norm: str, strand: str
) -> None:
    task = kept.task_of(where.folder)
    recipe = task.finetune.model_copy(update={"norm": norm, "dropout": 0.2})
    task = task.model_copy(update={"finetune": recipe, "strand": strand})
    section = getattr(task, mode).model_copy(update={"pooling": (pooling,)})
    task = task.model_copy(update={mode: section})
    base = kept.prepared(where)
    prepared = prepare(
        base.network, base.export_config, task=task, data=base.data, device=torch.device("cpu")
    )
    outcome = modes.compute_unit(prepared, Unit(NAME, "1", task.name, mode, 0))
    folder = Path(kept.written(tmp_path / "model", outcome.model))
    model, data = task_model.load(str(folder)), prepared.data
    assert model.record.strand == strand
    sequences = prepared.features.sequences(data.test)
    assert model.kind.score(data.test.truth_N, model.predictions(sequences)) == outcome.result.test
    one, other = model.predict(["ACGTTGCATTAGCCG"]), model.predict(["CGGCTAATGCAACGT"])
    side_by_side = (mode, pooling) == ("probe", "bins")
    alike = strand == "both" and not side_by_side
    assert np.allclose(one["p_a"], other["p_a"], atol=1e-6) == alike
    words = {
        "given": "the given strand alone is read",
        "both": "is read side by side, the given one first" if side_by_side else "strands give is averaged",
    }
    assert model.record.preprocessing.endswith(words[strand])
    before = {"probe": ("mean_max", "both"), "finetune": ("mean", "both")}
    if (pooling, strand) == before[mode]:  # what earlier releases kept, as they wrote it
        record = json.loads((folder / task_model.TASK).read_text())
        del record["strand"], record["head"], record["features"]
        (folder / task_model.TASK).write_text(json.dumps(record))
        before = task_model.load(str(folder))
        np.testing.assert_array_equal(before.predictions(sequences), model.predictions(sequences))


def test_the_folder_is_an_encoder_too(where: Registered, tmp_path: Path) -> None:
    outcome = kept.outcome(where, "classification", "finetune")
    folder = kept.written(tmp_path / "model", outcome.model)
    assert outcome.model.keys() == {*pretrained.FILES, task_model.HEAD, task_model.TASK}
    assert "auto_map" not in pretrained.read_config(folder), "transformers would not read its head"
    network, model = load_model(folder), task_model.load(folder)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, model.reader.network.state_dict()[name], rtol=0, atol=0)
    card = outcome.model["README.md"].decode()
    assert "motif, from toy version 1" in card and f"{outcome.result.test['mcc']:.4f}" in card


def test_what_is_not_kept_has_no_files(where: Registered) -> None:
    for mode in ("kmer", "onehot", "scratch"):
        assert kept.outcome(where, "classification", mode).model == {}


def changed(folder: Path, **keys: object) -> None:
    path = folder / task_model.TASK
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def without(folder: Path, name: str) -> None:
    path = folder / task_model.HEAD
    tensors = safetensors.torch.load(path.read_bytes())
    del tensors[name]
    path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("mode", "damage", "message"),
    [
        (
            "finetune",
            lambda f: changed(f, format_version=2),
            "task.json .* format_version: Input should be 1",
        ),
        ("finetune", lambda f: changed(f, extra=2), "task.json .* extra: Extra inputs are not permitted"),
        ("finetune", lambda f: changed(f, kind="rank"), "kind 'rank' is not known, known are classification"),
        (
            "finetune",
            lambda f: (f / "task.json").write_text("{"),
            "task.json is no description .* Invalid JSON",
        ),
        (
            "finetune",
            lambda f: (f / "task.json").unlink(),
            "is an encoder without a task: it has no task.json",
        ),
        ("finetune", lambda f: changed(f, labels=["a", "b", "c"]), "head.safetensors does not fit task.json"),
        (
            "finetune",
            lambda f: without(f, "standardise.running_mean"),
            "Missing key.*standardise.running_mean",
        ),
        ("probe", lambda f: without(f, "linear.bias"), "head.safetensors does not fit task.json: it holds"),
        ("probe", lambda f: changed(f, labels=["a", "b", "c"]), "and should hold"),
        ("probe", lambda f: changed(f, features={}), "and should hold"),
        (
            "probe",
            lambda f: changed(f, features={"pooling": "layers", "layers": [7]}),
            r"does not fit task.json: it reads layers \[7\] of an encoder that has 2",
        ),
        ("probe", lambda f: changed(f, mode="finetune"), "head.safetensors does not fit task.json"),
        ("probe", lambda f: (f / "head.safetensors").write_bytes(b"x"), "does not fit task.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    where: Registered, tmp_path: Path, mode: str, damage: object, message: str
) -> None:
    outcome = kept.outcome(where, "classification", mode)
    folder = kept.written(tmp_path / "model", outcome.model)
    damage(Path(folder))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        task_model.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing holds no model: it has no task\.json"):
        load_task_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("kind", kept.KINDS)
def test_mlflow_gives_the_same_numbers(
    where: Registered, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's code there
    folder = kept.written(tmp_path / "model", kept.outcome(where, kind, "finetune").model)
    task_pyfunc.write_task_mlmodel(Path(folder))
    model: TaskModel = task_model.load(folder)
    letters = list(kept.prepared(where, kind).data.test.letters)
    loaded = mlflow.pyfunc.load_model(folder)
    found = loaded.predict(pd.DataFrame({"sequence": letters}))
    pd.testing.assert_frame_equal(found, model.predict(letters))
    schema = loaded.metadata.signature.outputs
    assert dict(zip(schema.input_names(), (str(t) for t in schema.input_types()), strict=True)) == {
        name: f"DataType.{kind}" for name, kind in model.columns.items()
    }
    assert len(loaded.predict(loaded.input_example)) == 2
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    names = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert [name for name in names if f"`{name}`" not in page] == [], "docs/models.md lists the files"
    with pytest.raises(ValueError, match="sequence 1: byte b'!'"):
        loaded.predict(pd.DataFrame({"sequence": ["!"]}))
