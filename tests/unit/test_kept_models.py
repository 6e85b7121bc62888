"""Of an encoder's version, task and settings the best fine-tuned model is registered: once, despite kills."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import configs
from tests import kept
from tests.registered import CANDIDATE, NAME, Registered, own_database, registered, registry
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.evaluation.tasks.kept import kept_models, task_model
from trainer.evaluation.tasks.kept.kept_models import (
    Decision,
    Kept,
    decide,
    keep_best,
    name_of,
    refuse_name,
    store_model,
)
from trainer.evaluation.tasks.kept.registered_task import open_task_model
from trainer.evaluation.tasks.results.results import UnitOutcome
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.registry import Registry

SETTINGS = "0123456789ab"


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """The registered network in an MLflow of its own, since others count the runs of theirs."""
    shared = registered(tmp_path_factory)
    folder = tmp_path_factory.mktemp("kept")
    uri = own_database(shared, folder)
    Registry(uri).client.create_experiment("kept", str(folder / "art"))
    return replace(shared, uri=uri)


def of_task(where: Registered, task: str, mode: str, *, dev: float, seed: int = 0) -> UnitOutcome:
    """The outcome of a unit, as if it were of ``task`` and had this MCC on dev."""
    found = kept.outcome(where, "classification", mode)
    unit = replace(found.result.unit, task=task, seed=seed)
    result = replace(found.result, unit=unit, val={**found.result.val, "mcc": dev}, settings=SETTINGS)
    if not found.model:
        return UnitOutcome(result)
    record = task_model.TaskRecord.model_validate_json(found.model[task_model.TASK])
    record = record.model_copy(
        update={"task": task, "seed": seed, "settings": SETTINGS, "scores": result.scores()}
    )
    return UnitOutcome(result, {**found.model, task_model.TASK: record.model_dump_json().encode()})


def log(where: Registered, outcome: UnitOutcome) -> str:
    """The id of a finished run that holds the outcome, as fine-tuning logs it."""
    unit = outcome.result.unit
    params = {"task": unit.task, "mode": unit.mode, "seed": unit.seed, "settings": SETTINGS}
    tags = {"model.name": NAME, "model.version": "1", "finetune": "child"}
    with Run(RunSpec(where.uri, "kept", "a unit", params=params, tags=tags)) as run:
        run.record(outcome.result.scores())
        store_model(run, outcome)
        return run.id


def keep(where: Registered, task: str) -> list[str]:
    reader = registry(where)
    config = kept.task_of(where.folder, name=task)
    return keep_best(reader, reader.version(f"models:/{NAME}/1"), config, SETTINGS)


def versions(reader: Registry, name: str) -> list[Any]:
    found = reader.client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version))


def stored(where: Registered, reader: Registry, run_id: str) -> bool:
    return bool(reader.client.list_artifacts(run_id, "task_model"))


def test_of_several_numbers_of_rows_only_the_largest_keeps_a_model(where: Registered) -> None:
    reader = registry(where)
    task = configs.load(TaskConfig, where.task, ["name=curve", "modes=probe", "max_train_rows=[40,null,20]"])
    results = finetune(reader, CANDIDATE, task)
    rows = [result.rows["train"] for result in results]
    assert rows[:2] == [20, 40] and rows[2] > 40
    found = reader.tagged(None, {"finetune": "child"})
    found = [run for run in found if run.data.params["task"] == "curve"]
    held = [run for run in found if "task_model" in run.data.tags]
    assert len(found) == 3 and [run.data.params["train_rows"] for run in held] == [str(rows[2])]
    (version,) = versions(reader, name_of(NAME, "curve"))
    assert version.run_id == held[0].info.run_id


def test_fine_tuning_keeps_the_best_and_a_user_can_predict_with_it(
    where: Registered, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = registry(where)
    task = configs.load(TaskConfig, where.task, ["name=whole", "modes=[kmer,probe,finetune]", "seeds=[0,1]"])
    results = finetune(reader, CANDIDATE, task)
    best = max((r for r in results if r.unit.mode != "kmer"), key=lambda r: r.val["mcc"])
    version = reader.version(f"models:/{name_of(NAME, 'whole')}@champion")
    assert version.tags["mode"] == best.unit.mode and version.tags["seed"] == str(best.unit.seed)
    assert float(version.tags["test/mcc"]) == best.test["mcc"]
    assert version.tags["encoder.name"] == NAME and version.tags["encoder.version"] == "1"
    assert version.tags["encoder.run"] == where.run_id
    kmer = next(r for r in results if r.unit.mode == "kmer")
    (row,) = [line for line in version.description.splitlines() if line.startswith("| kmer")]
    assert f"{kmer.val['mcc']:.4f}&emsp; | {kmer.test['mcc']:.4f}" in row
    assert "python -m trainer.predict --model models:/toy-whole/1 --input" in version.description
    err = capsys.readouterr().err
    assert (
        f"whole: {best.unit.mode} seed {best.unit.seed}, the best on dev (MCC {best.val['mcc']:.3f})" in err
    )
    assert "toy-whole: version 1 is the champion (the first)" in err

    run = reader.run(version.run_id)
    (output,) = run.outputs.model_outputs
    model = reader.client.get_logged_model(output.model_id)
    assert str(model.status) == "READY"
    assert model.tags["mlflow.note.content"] == version.description
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "toy-whole", "version": "1"}]
    about = reader.client.get_registered_model("toy-whole").description
    assert "fine-tuned on the task whole" in about and "--model models:/toy-whole@champion" in about
    assert {m.key: m.value for m in model.metrics} == run.data.metrics
    with pytest.raises(
        configs.ConfigError, match="toy-whole is a model that was fine-tuned on the task whole, n"
    ):
        finetune(reader, "models:/toy-whole@champion", task)
    opened = open_task_model("models:/toy-whole@champion", track_uri=where.uri)
    assert opened.record.scores["test/mcc"] == best.test["mcc"]
    assert set(opened.predict(["ACGTACGT"]).columns) == {"label", "p_a", "p_b"}


def test_the_best_on_dev_is_registered_once_and_the_others_are_removed(where: Registered) -> None:
    reader, name = registry(where), "toy-once"
    assert keep(where, "once") == [], "nothing is there yet"
    low = log(where, of_task(where, "once", "finetune", dev=0.5))
    high = log(where, of_task(where, "once", "finetune", dev=0.7, seed=1))
    even = log(where, of_task(where, "once", "probe", dev=0.7))
    log(where, of_task(where, "once", "kmer", dev=0.9))
    first, second = keep(where, "once")
    assert first == "once: finetune seed 1, the best on dev (MCC 0.700), is kept as toy-once version 1"
    assert second == "toy-once: version 1 is the champion (the first)"
    (version,) = versions(reader, name)
    assert version.run_id == high
    assert not [run for run in (low, high, even) if stored(where, reader, run)]
    source = {p.name: p.read_bytes() for p in Path(version.source).rglob("*") if p.is_file()}
    assert {"MLmodel", "task.json", "head.safetensors", "requirements.txt"} <= source.keys()
    assert b"| finetune, mean of 2&emsp; | 0.6000" in source["README.md"]

    assert keep(where, "once") == []
    log(where, of_task(where, "once", "finetune", dev=0.6, seed=2))
    assert keep(where, "once") == [], "no better one"
    assert len(versions(reader, name)) == 1
    log(where, of_task(where, "once", "finetune", dev=0.8, seed=3))
    assert keep(where, "once")[1] == (
        "toy-once: version 2 is the champion (not below the standing one: dev mcc 0.8000, version 1 0.7000)"
    )
    assert {p.name: p.read_bytes() for p in Path(version.source).rglob("*") if p.is_file()} == source


class Killed(BaseException):
    pass


class Doomed:
    """A client whose call number ``at`` of those that write, from 0, is not made: the process ends."""

    def __init__(self, client: Any, at: int) -> None:
        self._client, self._at, self._calls = client, at, 0

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            self._calls += not name.startswith(("get_", "search_"))
            if self._calls > self._at:
                raise Killed
            return getattr(self._client, name)(*given, **more)

        return call


def test_killed_before_any_call_and_repeated_it_is_registered_once(
    where: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_models, "write_task_mlmodel", lambda folder, model_id: None)  # for time
    for at in itertools.count():
        task = f"killed-{at}"
        best = log(where, of_task(where, task, "finetune", dev=0.7))
        worse = log(where, of_task(where, task, "probe", dev=0.5))
        reader = registry(where)
        version, config = reader.version(f"models:/{NAME}/1"), kept.task_of(where.folder, name=task)
        reader.client = Doomed(reader.client, at)
        try:
            keep_best(reader, version, config, SETTINGS)
        except Killed:
            pass
        else:
            break
        keep(where, task)
        reader = registry(where)
        (found,) = versions(reader, f"toy-{task}")
        assert found.run_id == best and found.description and "champion.reason" in found.tags
        assert reader.champion(f"toy-{task}").version == found.version
        experiment = reader.run(best).info.experiment_id
        assert len(reader.client.search_logged_models([experiment], f"source_run_id = '{best}'")) == 1
        assert len(reader.run(best).outputs.model_outputs) == 1
        assert not stored(where, reader, best) and not stored(where, reader, worse)
        model = open_task_model(f"models:/toy-{task}@champion", track_uri=where.uri)
        assert model.record.task == task
        assert keep(where, task) == []
    assert at >= 10, "it makes so many calls"


def test_two_that_register_at_the_same_time_make_one_version(
    where: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second does all of its work between the first one's look for a version and its making one."""
    log(where, of_task(where, "both", "finetune", dev=0.7))
    reader = registry(where)
    version, config = reader.version(f"models:/{NAME}/1"), kept.task_of(where.folder, name="both")
    make, other = reader.client.create_model_version, [registry(where)]

    def interrupted(*given: Any, **more: Any) -> Any:
        if other:
            keep_best(other.pop(), version, config, SETTINGS)
        return make(*given, **more)

    monkeypatch.setattr(reader.client, "create_model_version", interrupted)
    keep_best(reader, version, config, SETTINGS)
    assert [v.version for v in versions(registry(where), "toy-both")] == [1]
    assert registry(where).champion("toy-both").version == 1


def test_names_that_cannot_be_are_refused_before_the_work(where: Registered) -> None:
    reader = registry(where)
    with pytest.raises(
        configs.ConfigError, match=r"task a/b: its models would be toy-a/b, but MLflow takes no /"
    ):
        refuse_name(reader, NAME, "a/b")
    reader.client.register_prompt("toy-prompt", "hello")
    with pytest.raises(
        configs.ConfigError, match="toy-prompt, which is the name of a prompt; give the task an"
    ):
        refuse_name(reader, NAME, "prompt")
    reader.client.create_registered_model("toy-mine")
    refuse_name(reader, NAME, "mine")
    reader.client.create_model_version("toy-mine", str(where.folder), await_creation_for=None)
    with pytest.raises(
        configs.ConfigError, match="toy-mine, which is the name of a model that is not fine-tuned"
    ):
        refuse_name(reader, NAME, "mine")
    refuse_name(reader, NAME, "once-more")


def one(version: str, dev: float, *, rows: str = "r", metric: str = "mcc") -> Kept:
    return Kept(version, metric, rows, dev)


@pytest.mark.parametrize(
    ("new", "standing", "moves", "reason"),
    [
        (one("1", 0.1), None, True, "the first"),
        (one("2", 0.5), one("1", 0.4), True, "not below the standing one: dev mcc 0.5000, version 1 0.4000"),
        (one("2", 0.5), one("1", 0.5), True, "not below the standing one"),
        (one("2", 0.4), one("1", 0.5), False, "version 1 stays champion: dev mcc 0.4000, version 1 0.5000"),
        (one("2", 0.9), one("1", 0.1, rows="s"), False, "it was scored on other dev rows"),
        (one("2", 0.9), one("1", 0.1, metric="pearson"), False, "scored on other dev rows"),
        (one("2", 0.9), one("1", 0.9, rows="", metric=""), False, "scored on other dev rows"),
        (one("2", 0.9), one("2", 0.9), False, "it is the champion already"),
    ],
)
def test_the_rule_of_the_alias(new: Kept, standing: Kept | None, moves: bool, reason: str) -> None:
    found = decide(new, standing)
    assert found == Decision(moves, found.reason) and reason in found.reason


def test_files_that_are_gone_are_one_sentence(where: Registered) -> None:
    run = log(where, of_task(where, "gone", "finetune", dev=0.7))
    reader = registry(where)
    shutil.rmtree(Path(reader.run(run).info.artifact_uri) / "task_model")
    with pytest.raises(RuntimeError, match=f"files of the fine-tuned model of run {run}"):
        keep(where, "gone")
