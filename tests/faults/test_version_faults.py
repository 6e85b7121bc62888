"""Whole runs that register versions while they train, killed at every moment between export, attachment and
registration: at the end each step is one version, with the files of that step."""

import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from cluster.process.exits import EXIT_PREEMPTED
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.faults import doomed
from tests.ranks import endings
from trainer.models import pretrained
from trainer.run import export
from trainer.tracking.registry import Registry

pytestmark = pytest.mark.faults
FATES = [
    ("half an export", 4, 0),
    ("export", 4, 0),
    ("attach", 1, 0),
    ("attach", 2, 0),
    ("registration", 2, 0),
    ("alias", 1, 0),
    ("publication", 4, 0),
    ("forward", 5, 1),
    ("told to stop", 4, 0),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    return write_dataset(tmp_path_factory.mktemp("data"), contigs, soft=True)


def settings(dataset: str, folder: Path, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "val": {"windows": 8, "every": 1000, "batch": 8},
        "train__steps": 6,
        "checkpoint": {"every": 2},
        "track": {
            "uri": f"sqlite:///{folder}/mlflow.db",
            "artifact_uri": str(folder / "art"),
            "registered_model": "m",
            "register_every": 2,
            "candidate": "always",
            "wait_s": 60,
        },
        "run__dir": str(folder / "run"),
    }
    return small_config(dataset, **given | changes)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: f"{fate[0]} {fate[1]}")
def test_a_run_that_ends_at_any_moment_goes_on_to_one_version_of_each_step(
    dataset: str, tmp_path: Path, fate: tuple[str, int, int]
) -> None:
    values = settings(dataset, tmp_path)
    first = endings(2, doomed.run, values, [fate])
    if fate[0] == "told to stop":
        assert {ending.value[0] for ending in first} == {EXIT_PREEMPTED}
    else:
        assert first[fate[2]].code == -signal.SIGKILL
    check_whole(endings(2, doomed.run, values), tmp_path)


def test_mlflow_is_away_while_it_trains_and_is_killed(dataset: str, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        away = settings(dataset, tmp_path)
        track = away["track"] | {"uri": f"http://127.0.0.1:{nobody.getsockname()[1]}", "wait_s": 0}
        for fate in (("forward", 5, 0), ("delivery", 0, 0)):
            ending = endings(2, doomed.run, away | {"track": track}, [fate])[0]
            assert ending.code == -signal.SIGKILL
    assert export.waiting(str(tmp_path / "run")) == [2, 4, 6]
    check_whole(endings(1, doomed.run, settings(dataset, tmp_path)), tmp_path)


def test_a_run_that_is_extended_gives_new_versions_and_leaves_the_old_ones(
    dataset: str, tmp_path: Path
) -> None:
    check_whole(endings(1, doomed.run, settings(dataset, tmp_path)), tmp_path)
    before = contents(tmp_path)
    longer = settings(dataset, tmp_path, train__steps=9, train__schedule_steps=6)
    (ending,) = endings(1, doomed.run, longer)
    assert ending.value[0] == 0, ending.value[1]
    after = contents(tmp_path)
    assert list(after) == [2, 4, 6, 8, 9]
    assert {step: after[step] for step in before} == before
    assert after[9] != after[6]


def check_whole(endings_: Any, folder: Path) -> None:
    for ending in endings_:
        assert ending.value[0] == 0, ending.value[1]
    found = contents(folder)
    assert list(found) == [2, 4, 6]
    assert len(set(found.values())) == 3
    run_dir = folder / "run"
    assert found[6] == (run_dir / pretrained.WEIGHTS).read_bytes()
    assert export.waiting(str(run_dir)) == []
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    version = registry.version("models:/m@candidate")
    assert version.tags["step"] == "6"
    steps = [0, 2, 4, 6]
    assert registry.history(version.run_id, "val/mlm_accuracy")["step"].tolist() == steps
    for step in (2, 4, 6):
        history = registry.history(version.run_id, "val/mlm_accuracy").set_index("step")["value"]
        (tagged,) = (v for v in versions(registry) if v.tags["step"] == str(step))
        assert float(tagged.tags["val.mlm_accuracy"]) == history[step]


def versions(registry: Registry) -> list[Any]:
    return list(registry.client.search_model_versions("name = 'm'"))


def contents(folder: Path) -> dict[int, bytes]:
    """The weights of each version by its step; each step once, with one logged model that is READY."""
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    found: dict[int, bytes] = {}
    for version in versions(registry):
        step = int(version.tags["step"])
        assert step not in found
        got = folder / f"got{len(list(folder.iterdir()))}"
        got.mkdir()
        found[step] = (registry.download(version, got) / pretrained.WEIGHTS).read_bytes()
        safetensors.torch.load(found[step])
    experiment = registry.client.get_experiment_by_name("findna")
    models = registry.client.search_logged_models([experiment.experiment_id])
    assert sorted((int(model.tags["step"]), str(model.status)) for model in models) == sorted(
        (step, "READY") for step in found
    )
    return dict(sorted(found.items()))
