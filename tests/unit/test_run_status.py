"""What is found in a run.dir: nothing, a run to go on with, one that is finished, another run, something
else."""

import json
from pathlib import Path
from typing import Any

import pytest

import configs
from cluster.storage import store
from configs import ConfigError
from tests.examples.agreement import Agreement
from tests.s3 import S3
from tests.unit.test_checkpoint_files import WRITTEN, manifest, resealed
from trainer.losses.registry import LOSSES
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.checkpoint import manifests
from trainer.run.config import TrainConfig
from trainer.run.run_status import (
    Contents,
    FinishedNote,
    RunStatus,
    SavedRun,
    decide,
    differences,
    inspect,
    read_contents,
)


def config(run_dir: object, **changes: Any) -> TrainConfig:
    """``changes`` are dotted keys, "." as "__"; 20 steps unless told."""
    values: dict[str, Any] = {"run": {"dir": str(run_dir)}, "data": {"uri": "/data"}, "train": {"steps": 20}}
    for key, value in changes.items():
        node = values
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return TrainConfig.model_validate(values)


def checkpoint(saved: TrainConfig, step: int) -> str:
    """A whole checkpoint as files go; its manifest's URI."""
    uri = manifests.place(saved.run.dir, step)
    for name, data in WRITTEN.items():
        store.write_bytes(store.join(uri, name), data)
    whole = manifest(step, WRITTEN).model_copy(update={"config": configs.dump(saved)})
    store.write_bytes(store.join(uri, manifests.MANIFEST), whole.to_bytes())
    return store.join(uri, manifests.MANIFEST)


def exported(saved: TrainConfig) -> None:
    store.write_bytes(store.join(saved.run.dir, pretrained.WEIGHTS), b"weights")


@pytest.fixture(params=["local", "s3"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    s3: S3 = request.getfixturevalue("s3")
    return f"{s3.uri}/run"


def test_the_life_of_a_run(run_dir: str) -> None:
    one = config(run_dir)
    assert inspect(one) == RunStatus("new", same_run=False)
    store.write_bytes(store.join(run_dir, run_status.LOCK), b"")
    assert inspect(one) == RunStatus("new", same_run=False)
    run_status.write_config(one)
    assert inspect(one) == RunStatus("new", same_run=True)
    checkpoint(one, 10)
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)
    checkpoint(one, 20)
    assert inspect(one) == RunStatus("unfinished", 20, True, 20)
    exported(one)
    assert inspect(one) == RunStatus("undelivered", 20, True, 20), "killed between its export and the note"
    run_status.write_finished(run_dir, steps=one.train.steps, delivered=False)
    assert inspect(one) == RunStatus("undelivered", 20, True, 20)
    run_status.write_finished(run_dir, steps=one.train.steps, delivered=True)
    assert inspect(one) == RunStatus("finished", 20, True, 20)

    longer = config(run_dir, train__steps=30)
    assert inspect(longer) == RunStatus("unfinished", 20, True, 20), "the schedules stay those of 20 steps"
    run_status.write_config(longer)
    checkpoint(
        longer.model_copy(update={"train": longer.train.model_copy(update={"schedule_steps": 20})}), 30
    )
    assert inspect(longer) == RunStatus("unfinished", 30, True, 20)
    run_status.write_finished(run_dir, steps=longer.train.steps, delivered=True)
    assert inspect(longer) == RunStatus("finished", 30, True, 20)
    with pytest.raises(
        ConfigError,
        match=rf"^train.steps: 20 are fewer than the 30 that the run in {run_dir} has "
        r"behind it; give at least as many, or a new folder$",
    ):
        inspect(one)


def test_a_run_that_died_before_its_first_checkpoint(tmp_path: Path) -> None:
    """Its MLflow run goes on with the very same run only; another may begin in its place."""
    run_status.write_config(config(tmp_path))
    store.write_bytes(f"{tmp_path}/{run_status.TRACK}/key.json", b"{}")
    assert inspect(config(tmp_path)) == RunStatus("new", same_run=True)
    assert inspect(config(tmp_path, track__every=7)) == RunStatus("new", same_run=True)
    assert inspect(config(tmp_path, train__lr=1e-3)) == RunStatus("new", same_run=False)
    assert inspect(config(tmp_path, train__steps=30)) == RunStatus("new", same_run=False), (
        "its rates were other ones"
    )
    assert inspect(config(tmp_path, train__steps=30, train__schedule_steps=20)) == RunStatus(
        "new", same_run=True
    )


@pytest.mark.parametrize("name", ["genome.fa", "model.bin", "sub/.train_config.json", "checkpoints.txt"])
def test_files_of_something_else_are_left_alone(tmp_path: Path, name: str) -> None:
    store.write_bytes(f"{tmp_path}/{name}", b"1")
    with pytest.raises(
        ConfigError,
        match=rf"^run.dir: {tmp_path} holds files of something else \({name}\); give a new "
        r"folder$",
    ):
        inspect(config(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        ".train_config.json.x7_2ab1c",
        ".run.lock.abcdefgh",
        "not_finite.json",
        "checkpoints/.latest.json.abcdefgh",
        "track/queue.jsonl",
    ],
)
def test_what_a_killed_process_leaves_is_not_something_else(tmp_path: Path, name: str) -> None:
    store.write_bytes(f"{tmp_path}/{name}", b"1")
    assert inspect(config(tmp_path)) == RunStatus("new", same_run=False)


def test_a_damaged_config_of_a_run_that_has_no_checkpoint(tmp_path: Path) -> None:
    for damaged in (b"", b"[]", b"{}", b'{"train": 1}', b'{"train": {"steps": "x"}}', b"\xff"):
        (tmp_path / run_status.RESOLVED).write_bytes(damaged)
        assert inspect(config(tmp_path)) == RunStatus("new", same_run=False)


def test_a_model_without_the_config_of_its_run(tmp_path: Path) -> None:
    exported(config(tmp_path))
    sentence = rf"^run.dir: {tmp_path} holds a model without the config of its run; give a new folder$"
    for damaged in (None, b"{", b"[]"):
        if damaged is not None:
            (tmp_path / run_status.RESOLVED).write_bytes(damaged)
        with pytest.raises(ConfigError, match=sentence):
            inspect(config(tmp_path))


def test_a_finished_run_without_checkpoints(tmp_path: Path) -> None:
    """checkpoint.every 0, or of a version that had none; that version left no note either."""
    one = config(tmp_path)
    run_status.write_config(one)
    exported(one)
    assert inspect(one) == RunStatus("finished", 0, True, 20)
    run_status.write_finished(str(tmp_path), steps=one.train.steps, delivered=False)
    assert inspect(one) == RunStatus("undelivered", 0, True, 20)
    with pytest.raises(
        ConfigError,
        match=rf"^train.steps: {tmp_path} holds a run finished at 20 steps and no "
        r"checkpoint to go on from; give a new folder$",
    ):
        inspect(config(tmp_path, train__steps=21))
    with pytest.raises(ConfigError, match=r"^train.steps: 19 are fewer than the 20 "):
        inspect(config(tmp_path, train__steps=19))
    with pytest.raises(ConfigError, match=r"train.lr: was 0.0003, now 0.1$"):
        inspect(config(tmp_path, train__lr=0.1))


def test_a_damaged_note_does_not_finish_a_run(tmp_path: Path) -> None:
    """The export is of its first 20 steps, of 30 it has 25."""
    longer = config(tmp_path, train__steps=30, train__schedule_steps=20)
    run_status.write_config(longer)
    exported(longer)
    checkpoint(longer, 25)
    for damaged in (b"", b"[]", b'{"steps": "30"}', b'{"delivered": true}'):
        (tmp_path / run_status.FINISHED).write_bytes(damaged)
        assert inspect(longer) == RunStatus("unfinished", 25, True, 20)


ANOTHER = {
    "run.seed": (0, 1),
    "run.name": ("findna", "x"),
    "data.uri": ("/data", "/other"),
    "data.length": (1000, 500),
    "data.lanes": (48, 24),
    "data.on_corrupt": ("fail", "skip"),
    "model.num_layers": (40, 2),
    "model.norm": ("none", "layer"),
    "views.symmetric": (False, True),
    "views.masking.rate": (0.3, 0.2),
    "loss.mlm.weight": (1.0, 0.5),
    "ema.momentum": (0.996, 0.9),
    "train.global_batch": (64, 32),
    "train.zero_stage": (1, 2),
    "train.precision": ("fp32", "bf16"),
    "train.betas": ([0.9, 0.999], [0.9, 0.99]),
    "train.schedule_steps": (20, 40),
    "health.on_collapse": ("warn", "stop"),
    "val.every": (500, 9),
}


@pytest.mark.parametrize("key", ANOTHER)
def test_another_run_is_refused_by_every_key_that_differs(tmp_path: Path, key: str) -> None:
    was, now = ANOTHER[key]
    checkpoint(config(tmp_path), 10)
    with pytest.raises(ConfigError) as caught:
        inspect(config(tmp_path, **{key.replace(".", "__"): now}))
    assert str(caught.value) == (
        f"run.dir: {tmp_path} holds another run; give a new folder, or the keys it began with:"
        f"\n  {key}: was {was!r}, now {now!r}"
    )


def test_all_differences_are_said_at_once_and_keys_of_one_side_only(tmp_path: Path) -> None:
    checkpoint(config(tmp_path, views__teacher={"operations": {"deletion": 3}}), 10)
    mixture = [{"uri": "/data", "weight": 2.0}, {"uri": "/more", "weight": 1.0}]
    settings = {"zero_optimization": {"sub_group_size": 100}}
    with pytest.raises(ConfigError) as caught:
        inspect(config(tmp_path, data__uri=mixture, train__deepspeed=settings, run__seed=3))
    assert str(caught.value).split("\n  ")[1:] == [
        f"data.uri: was '/data', now {mixture!r}",
        "run.seed: was 0, now 3",
        "train.deepspeed.zero_optimization.sub_group_size: was None, now 100",
        "views.teacher.operations.deletion: was 3, now None",
    ]


def test_what_was_added_since_is_no_difference_while_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on with a code that has learned a new loss, or a new key of an old section."""
    saved = configs.dump(config(tmp_path))
    del saved["train"]["max_skipped"], saved["loss"]["mlm"]["soft_weight"], saved["health"]
    assert differences(saved, config(tmp_path)) == []
    changed = config(tmp_path, train__max_skipped=3)
    assert differences(saved, changed) == ["train.max_skipped: was 10, now 3"]
    monkeypatch.setitem(LOSSES, "agreement", Agreement)
    assert differences(saved, config(tmp_path)) == []
    used = config(tmp_path, loss__agreement={"weight": 0.5})
    assert differences(saved, used) == ["loss.agreement.weight: was 0.0, now 0.5"]
    # And back: a loss that is gone was not used.
    with_loss = configs.dump(config(tmp_path))
    monkeypatch.delitem(LOSSES, "agreement")
    assert "agreement" in with_loss["loss"] and differences(with_loss, config(tmp_path)) == []


def test_what_may_differ(tmp_path: Path) -> None:
    one = config(tmp_path / "moved")
    path = tmp_path / "moved"
    checkpoint(config(tmp_path / "elsewhere"), 10)
    (tmp_path / "elsewhere").rename(path)
    free = {
        "train__steps": 40,
        "train__micro_batch": 4,
        "data__workers": 3,
        "data__cache_dir": "/c",
        "data__cache_bytes": 0,
        "val": {"tasks": ["a.yaml"], "tasks_every": 7, "tasks_rows": 9},
        "checkpoint": {"every": 3, "keep_last": 9, "keep_every": 9, "max_failed": 1},
        "track": {"uri": "sqlite:///x.db", "artifact_uri": "/a", "experiment": "x", "registered_model": None},
    }
    assert inspect(config(path, **free)) == RunStatus("unfinished", 10, True, 20)
    for key, value in free.items():
        assert inspect(config(path, **{key: value})) == RunStatus("unfinished", 10, True, 20), key
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)


def test_the_schedule_is_the_one_that_the_run_began_with(tmp_path: Path) -> None:
    checkpoint(config(tmp_path, train__schedule_steps=50), 10)
    assert inspect(config(tmp_path)).schedule_steps == 50
    assert inspect(config(tmp_path, train__steps=60)).schedule_steps == 50
    assert inspect(config(tmp_path, train__steps=60, train__schedule_steps=50)).schedule_steps == 50
    with pytest.raises(ConfigError, match=r"\n  train.schedule_steps: was 50, now 60$"):
        inspect(config(tmp_path, train__steps=60, train__schedule_steps=60))


def test_the_newest_checkpoint_whose_manifest_can_be_read_says_whose_run_it_is(tmp_path: Path) -> None:
    one, newest = config(tmp_path), Path(checkpoint(config(tmp_path, run__seed=1), 20))
    checkpoint(one, 10)
    whole = newest.read_bytes()
    with pytest.raises(ConfigError, match=r"run.seed: was 1, now 0$"):
        inspect(one)
    newest.write_bytes(whole.replace(b'"step": 20', b'"step": 21'))
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)
    newest.unlink()
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)
    newest.write_bytes(whole)
    (newest.parent / manifests.SHARED).unlink()
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)
    Path(manifests.place(str(tmp_path), 10), manifests.MANIFEST).write_bytes(b"")
    assert inspect(one) == RunStatus("new", same_run=False), "that none can be read is said by the resume"


def test_another_version_of_the_format_is_refused(tmp_path: Path) -> None:
    Path(checkpoint(config(tmp_path), 1)).write_bytes(resealed(format_version=2))
    with pytest.raises(
        ConfigError,
        match=rf"^run.dir: {manifests.place(str(tmp_path), 1)}: it has format version 2 and "
        r"this code reads 1; go on with the version of this package that wrote it$",
    ):
        inspect(config(tmp_path))


def test_a_web_server_is_no_run_dir() -> None:
    with pytest.raises(
        store.StoreError, match=r"^cannot list https://\*\*\*@host/run: a web server has no listing"
    ):
        inspect(config("https://me:SECRET@host/run"))


def test_a_store_that_is_away_is_not_a_new_run(s3: S3) -> None:
    one = config(f"{s3.uri}/run")
    checkpoint(one, 10)
    for key in ("list-type", "manifest.json"):
        s3.proxy.clear()
        s3.fault("503", "GET", key)
        with pytest.raises(store.TransientError, match=r"gave up after 5 tries"):
            inspect(one)
    s3.proxy.clear()
    assert inspect(one) == RunStatus("unfinished", 10, True, 20)


def test_no_secret_is_shown_or_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = config(tmp_path, data__uri="https://me:SECRET@host/a?sig=SECRET")
    run_status.write_config(one)
    path = checkpoint(one, 10)
    for text in ((tmp_path / run_status.RESOLVED).read_text(), Path(path).read_text()):
        assert json.loads(text) and "https://***@host/a?..." in text and "SECRET" not in text
    assert inspect(config(tmp_path, data__uri="https://you:SECRET2@host/a?sig=new")).kind == "unfinished"
    with pytest.raises(ConfigError) as caught:
        inspect(config(tmp_path, data__uri="https://me:SECRET@host/b"))
    assert "\n  data.uri: was 'https://***@host/a?...', now 'https://***@host/b'" in str(caught.value)
    monkeypatch.setattr(store, "list_files", lambda uri: ["genome.fa"])
    with pytest.raises(ConfigError, match=r"^run.dir: s3://\*\*\*@bucket/x holds files of something else"):
        inspect(config("s3://key:SECRET@bucket/x"))


def test_an_object_that_stands_for_a_folder_is_no_file(s3: S3) -> None:
    """A console makes it with the folder; a new run begins there, and goes on there."""
    for key in ("run/", f"run/{manifests.FOLDER}/"):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"")
    saved = config(f"{s3.uri}/run")
    assert inspect(saved).kind == "new"
    run_status.write_config(saved)
    checkpoint(saved, 10)
    assert (inspect(saved).kind, inspect(saved).step) == ("unfinished", 10)


DUMPED = configs.dump(config("/run"))
LONGER = configs.dump(config("/run", train__steps=30))
OTHER = configs.dump(config("/run", run__seed=1))
MODEL = frozenset({pretrained.WEIGHTS})

DECISIONS: dict[str, tuple[Contents, RunStatus | str]] = {
    "nothing": (Contents(), RunStatus("new", same_run=False)),
    "begun": (Contents(begun=DUMPED), RunStatus("new", same_run=True)),
    "begun with other steps": (Contents(begun=LONGER), RunStatus("new", same_run=False)),
    "another began, and left nothing": (Contents(begun=OTHER), RunStatus("new", same_run=False)),
    "saved": (Contents(saved=SavedRun(7, DUMPED)), RunStatus("unfinished", 7, True, 20)),
    "saved, with longer schedules": (
        Contents(saved=SavedRun(7, configs.dump(config("/run", train__schedule_steps=90)))),
        RunStatus("unfinished", 7, True, 90),
    ),
    "saved, another began later": (
        Contents(begun=OTHER, saved=SavedRun(7, DUMPED)),
        RunStatus("unfinished", 7, True, 20),
    ),
    "last step saved, no export": (
        Contents(begun=DUMPED, saved=SavedRun(20, DUMPED)),
        RunStatus("unfinished", 20, True, 20),
    ),
    "export, no note": (
        Contents(MODEL, DUMPED, None, SavedRun(20, DUMPED)),
        RunStatus("undelivered", 20, True, 20),
    ),
    "export of a run of fewer steps": (
        Contents(MODEL, DUMPED, FinishedNote(10, delivered=True), SavedRun(15, DUMPED)),
        RunStatus("unfinished", 15, True, 20),
    ),
    "finished": (
        Contents(MODEL, DUMPED, FinishedNote(20, delivered=True), SavedRun(20, DUMPED)),
        RunStatus("finished", 20, True, 20),
    ),
    "finished, not delivered": (
        Contents(MODEL, DUMPED, FinishedNote(20, delivered=False), SavedRun(20, DUMPED)),
        RunStatus("undelivered", 20, True, 20),
    ),
    "finished without checkpoints": (
        Contents(MODEL, DUMPED, FinishedNote(20, delivered=True)),
        RunStatus("finished", 0, True, 20),
    ),
    "finished by a version that left no note": (Contents(MODEL, DUMPED), RunStatus("finished", 0, True, 20)),
    "a note without an export": (
        Contents(frozenset({run_status.FINISHED}), DUMPED, FinishedNote(20, delivered=True)),
        RunStatus("new", same_run=True),
    ),
    "a model alone": (Contents(MODEL), "run.dir: /run holds a model without the config of its run"),
    "a model and a note alone": (
        Contents(MODEL, finished=FinishedNote(20, delivered=True)),
        "run.dir: /run holds a model without the config of its run",
    ),
    "other files": (
        Contents(frozenset({"a", "b", "c", "d"})),
        "run.dir: /run holds files of something else (a, b, c); give a new folder",
    ),
    "another run": (
        Contents(saved=SavedRun(7, OTHER)),
        "run.dir: /run holds another run; give a new folder, or the keys it began with:\n"
        "  run.seed: was 1, now 0",
    ),
    "another run, finished": (Contents(MODEL, OTHER), "run.dir: /run holds another run"),
    "further than train.steps": (
        Contents(saved=SavedRun(25, LONGER)),
        "train.steps: 20 are fewer than the 25 that the run in /run has behind it",
    ),
    "finished further": (
        Contents(MODEL, LONGER, FinishedNote(30, delivered=True)),
        "train.steps: 20 are fewer than the 30 that the run in /run has behind it",
    ),
    "finished before, no checkpoint": (
        Contents(MODEL, DUMPED, FinishedNote(10, delivered=True)),
        "train.steps: /run holds a run finished at 10 steps and no checkpoint to go on from",
    ),
    "another version": (
        Contents(begun=DUMPED, other_version="s3://k:SECRET@b/x: it has format version 2"),
        "run.dir: s3://***@b/x: it has format version 2",
    ),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_what_contents_mean_is_decided_without_storage(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    for name in ("list_files", "read_bytes", "sizes", "exists"):
        monkeypatch.setattr(store, name, None)
    contents, expected = DECISIONS[case]
    if isinstance(expected, RunStatus):
        assert decide(contents, config("/run")) == expected
    else:
        with pytest.raises(ConfigError) as refused:
            decide(contents, config("/run"))
        assert str(refused.value).startswith(expected)


def test_contents_are_what_was_written(run_dir: str) -> None:
    one = config(run_dir)
    assert read_contents(run_dir) == Contents()
    run_status.write_config(one)
    path = checkpoint(one, 10)
    exported(one)
    run_status.write_finished(run_dir, steps=20, delivered=False)
    found = read_contents(run_dir)
    assert found.files >= {run_status.RESOLVED, run_status.FINISHED, pretrained.WEIGHTS}
    assert (found.begun, found.finished) == (configs.dump(one), FinishedNote(20, delivered=False))
    assert (found.saved, found.other_version) == (SavedRun(10, configs.dump(one)), None)
    store.write_bytes(path, resealed(format_version=2))
    found = read_contents(run_dir)
    assert found.saved is None and found.other_version and "it has format version 2" in found.other_version
    with pytest.raises(ConfigError, match=r"it has format version 2 and this code reads 1"):
        inspect(one)
