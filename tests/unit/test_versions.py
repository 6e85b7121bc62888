"""Exports become versions of a registered model: once each, also when any call to MLflow is the last one of
a process; none ever changes; old ones go, unless something points to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from trainer.tracking.messages import Export
from trainer.tracking.mlflow_run import Point, ResumableRun, Run, RunSpec, TrackError
from trainer.tracking.registry import Registry
from trainer.tracking.versions import WINDOWS_TAG, Registering, Versions

MODEL = "bob's model"
CALLS = [
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_outputs",
    "log_batch",
    "create_registered_model",
    "create_model_version",
    "update_model_version",
    "set_registered_model_alias",
    "set_logged_model_tags",
]


class Killed(BaseException):
    """The process ends here."""


class Exports:
    """The exports that wait: step -> what their weights hold."""

    def __init__(self) -> None:
        self.waiting: dict[int, str] = {}

    def fetch(self, step: int, folder: Path) -> bool:
        if step in self.waiting:
            (folder / "model.safetensors").write_text(self.waiting[step])
        return step in self.waiting

    def remove(self, step: int) -> None:
        self.waiting.pop(step, None)


class Training:
    """A training run that logs, exports and delivers."""

    def __init__(self, folder: Path, key: str, **settings: Any) -> None:
        model = settings.pop("model", MODEL)
        windows = settings.pop("windows", "aa")
        self.exports = Exports()
        spec = RunSpec(
            f"sqlite:///{folder}/mlflow.db",
            "e",
            f"run {key}",
            artifact_uri=str(folder / "art"),
            key=key,
            params={"model.name": "findna", "run.seed": 1, "val.every": 3},
            tags={WINDOWS_TAG: windows, "dataset.manifest_sha256": "d" * 64},
            registered_model=model,
        )
        self.run = ResumableRun(spec)
        self.run.open()
        given: dict[str, Any] = {"candidate": "better", "keep": 0} | settings
        self.versions = Versions(
            self.run, Registering(fetch=self.exports.fetch, remove=self.exports.remove, **given)
        )
        self.registry = Registry(spec.uri)

    def validate(self, step: int, accuracy: float) -> None:
        names = {"val/mlm_accuracy": accuracy, "val/mlm_accuracy_markov": 0.36, "loss/total": 1.0}
        self.run.send([Point(name, value, 1000 + step, step) for name, value in names.items()])

    def export(self, step: int, accuracy: float, weights: str = "w") -> None:
        self.validate(step, accuracy)
        self.exports.waiting[step] = f"{weights}{step}"
        self.deliver(step)

    def deliver(self, step: int) -> None:
        self.versions.deliver(Export(0, step, 1_500_000 * step))

    def own(self, model: str = MODEL) -> dict[int, Any]:
        """The versions of this run by step; each step once."""
        found = self.registry.client.search_model_versions(f"run_id = '{self.run.id}'")
        found = [version for version in found if version.name == model]
        by_step = {int(version.tags["step"]): version for version in found}
        assert len(by_step) == len(found)
        return dict(sorted(by_step.items()))

    def models(self) -> dict[int, Any]:
        found = self.registry.client.search_logged_models([self.run.experiment_id])
        found = [model for model in found if model.source_run_id == self.run.id]
        by_step = {int(model.tags["step"]): model for model in found}
        assert len(by_step) == len(found)
        return dict(sorted(by_step.items()))

    def weights(self, step: int, into: Path) -> str:
        into.mkdir(exist_ok=True)
        return (self.registry.download(self.own()[step], into) / "model.safetensors").read_text()

    @property
    def candidate(self) -> Any:
        return self.registry.version(f"models:/{MODEL}@candidate")


def test_a_version_with_its_facts_and_a_logged_model_with_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path, "a")
    training.export(6, 0.41)
    (version,) = training.own().values()
    run_id = training.run.id
    assert (
        version.tags.items()
        >= {
            "step": "6",
            "bp": "9000000",
            "run.id": run_id,
            "dataset.manifest_sha256": "d" * 64,
            "val.mlm_accuracy": "0.41",
            WINDOWS_TAG: "aa",
            "candidate": "yes",
            "candidate.reason": f"step 6 becomes candidate of {MODEL}: it has had none",
        }.items()
    )
    assert training.candidate.version == version.version
    assert f"registered {MODEL} version 1 as candidate (run {run_id})\n" in capsys.readouterr().err
    for part in (
        "Step 6, accuracy 0.4100.\n",
        f"the teacher of run `run a` ({run_id})",
        "9.0 Mbp on data with manifest `dddddddddddd`",
        "| this version&emsp; | 0.4100 |\n| Markov&emsp; | 0.3600 |\n",
        "When it was registered: step 6 becomes candidate",
        f"python -m cluster finetune --model models:/{MODEL}/1 --tasks",
    ):
        assert part in version.description
    (model,) = training.models().values()
    assert (str(model.status), model.name, model.model_type) == ("READY", "bob_s_model-step-6", "encoder")
    assert model.params == {"model.name": "findna", "run.seed": "1"}
    assert model.tags["mlflow.note.content"] == version.description
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": MODEL, "version": "1"}]
    about = training.registry.client.get_registered_model(MODEL).description
    assert about.startswith("DNA encoders pretrained by self-distillation") and "- `champion`:" in about
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "val/mlm_accuracy": (0.41, 6),
        "val/mlm_accuracy_markov": (0.36, 6),
    }
    run = training.registry.run(run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert run.data.tags["model.version"] == "1"
    history = training.registry.client.get_metric_history(run_id, "val/mlm_accuracy")
    assert [(point.step, point.timestamp) for point in history] == [(6, 1006)]
    assert training.weights(6, tmp_path / "got") == "w6"
    assert training.exports.waiting == {}


def test_a_run_without_a_registered_model_has_a_logged_one(tmp_path: Path) -> None:
    training = Training(tmp_path, "a", model=None)
    for _ in range(2):
        training.export(6, 0.41)
    assert list(training.models()) == [6]
    assert training.registry.client.search_registered_models() == []


def test_the_candidate_stays_where_the_new_version_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    month = Training(tmp_path, "month")
    month.export(6, 0.45)
    toy = Training(tmp_path, "toy")
    toy.export(3, 0.30)
    assert month.candidate.run_id == month.run.id
    reason = (
        f"version 1 stays candidate of {MODEL}: held-out accuracy 0.3000 of step 3 is below its 0.4500 on "
        "the same windows; to move it all the same, set the alias in MLflow, or train with "
        "track.candidate=always"
    )
    version = toy.own()[3]
    assert (version.tags["candidate"], version.tags["candidate.reason"]) == ("no", reason)
    assert f"When it was registered: {reason}." in version.description
    assert f"registered {MODEL} version 2 (run {toy.run.id}); {reason}\n" in capsys.readouterr().err
    Training(tmp_path, "others", windows="bb").export(3, 0.9)
    assert month.candidate.run_id == month.run.id
    month.export(9, 0.45)
    assert month.candidate.tags["step"] == "9"
    Training(tmp_path, "wanted", candidate="always").export(3, 0.1)
    assert month.candidate.tags["val.mlm_accuracy"] == "0.1"


def test_a_better_candidate_of_another_run_that_came_in_between_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Training(tmp_path, "a"), Training(tmp_path, "b")
    ours.export(3, 0.4)
    honest, calls = MlflowClient.create_model_version, []

    def create(client: MlflowClient, *args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:  # both have been compared with the same standing one
            theirs.export(6, 0.6)
        return honest(client, *args, **more)

    monkeypatch.setattr(MlflowClient, "create_model_version", create)
    ours.export(6, 0.5)
    assert ours.candidate.run_id == theirs.run.id
    late = ours.own()[6]
    assert late.tags["candidate"] == "no"
    assert "0.5000 of step 6 is below its 0.6000" in late.tags["candidate.reason"]
    assert late.tags["candidate.reason"] in late.description


def test_a_version_never_changes_and_steps_come_once(tmp_path: Path) -> None:
    training = Training(tmp_path, "a")
    training.export(2, 0.3)
    training.export(4, 0.4)
    again = Training(tmp_path, "a")  # goes on after an earlier step, and does these again
    for step in (2, 4):
        again.export(step, 0.3, weights="other")
    again.export(8, 0.4)
    assert list(again.own()) == [2, 4, 8]
    assert [again.weights(step, tmp_path / f"got{step}") for step in (2, 4, 8)] == ["w2", "w4", "w8"]
    assert again.exports.waiting == {}


def test_an_export_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(tmp_path, "a")
    training.deliver(2)
    assert "warning: the export of step 2 is gone; it gives no version\n" in capsys.readouterr().err
    assert (training.own(), training.models()) == ({}, {})


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_makes_nothing_twice_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before a call, and after one whose answer never came; then the run goes on."""
    for number, call in enumerate(CALLS):
        name = f"{MODEL}{number}"
        training = Training(tmp_path, f"run {number}", model=name)
        training.validate(2, 0.4)
        training.exports.waiting[2] = "w2"
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, killing(getattr(MlflowClient, call), after=after))
            with pytest.raises(Killed):
                training.deliver(2)
        again = Training(tmp_path, f"run {number}", model=name)
        again.exports.waiting = training.exports.waiting
        assert again.exports.waiting, "it is removed when all else is done"
        again.deliver(2)
        (version,) = again.own(name).values()
        (model,) = again.models().values()
        assert str(model.status) == "READY"
        assert version.tags["model.id"] == model.model_id
        assert version.description
        assert again.registry.version(f"models:/{name}@candidate").version == version.version
        assert {metric.key for metric in model.metrics} == {"val/mlm_accuracy", "val/mlm_accuracy_markov"}
        run = again.registry.run(again.run.id)
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        assert len(again.registry.client.get_metric_history(again.run.id, "val/mlm_accuracy")) == 1


def killing(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def instead(*args: Any, **kwargs: Any) -> Any:
        if after:
            call(*args, **kwargs)
        raise Killed

    return instead


def test_old_versions_go_unless_something_points_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, "a", keep=2)
    client = training.registry.client
    for step in (1, 2):
        training.export(step, 0.9 if step == 2 else 0.1)
    client.create_registered_model("m-task")
    client.create_model_version("m-task", "x", tags={"encoder.name": MODEL, "encoder.version": "1"})
    training.export(3, 0.1)
    with Run(RunSpec(training.run.spec.uri, "e", "t", tags={"model.name": MODEL, "model.version": "3"})):
        pass
    for step in (4, 5):
        training.export(step, 0.1)
    client.create_registered_model("copies")
    client.create_model_version("copies", f"models:/{MODEL}/5", training.run.id)
    # 1: a fine-tuned model, 2: the candidate, 3: a fine-tuning run, 5: a copy.
    folder = tmp_path / "art" / "models"
    assert list(training.own()) == [1, 2, 3, 4, 5]
    gone = training.models()[4]
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_logged_model", killing(client.delete_logged_model, after=False))
        with pytest.raises(Killed):
            training.export(6, 0.1)
    assert (list(training.own()), list(training.models())) == ([1, 2, 3, 5, 6], [1, 2, 3, 4, 5, 6])
    training.deliver(6)  # the next process does what is left of it
    assert list(training.own()) == list(training.models()) == [1, 2, 3, 5, 6]
    assert not list((folder / gone.model_id).rglob("*.*"))
    for step in training.own():
        assert training.weights(step, tmp_path / f"got{step}") == f"w{step}"


def test_all_stay_where_none_are_to_go(tmp_path: Path) -> None:
    training = Training(tmp_path, "a", keep=0)
    for step in range(1, 5):
        training.export(step, 0.1 * step)
    assert list(training.own()) == list(training.models()) == [1, 2, 3, 4]


def test_the_name_of_a_prompt_is_refused(tmp_path: Path) -> None:
    Training(tmp_path, "a").registry.client.register_prompt("words", template="x")
    training = Training(tmp_path, "b")
    training.run.spec.__dict__["registered_model"] = "words"  # it became a prompt's while the run trained
    with pytest.raises(TrackError, match=r"^words is the name of a prompt at .*; give another track\."):
        training.export(2, 0.1)
