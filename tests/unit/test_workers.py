"""``python -m cluster finetune`` on a local Ray: each unit once, over reruns, versions, drivers and stops."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster import __main__ as cluster
from cluster.tasks.pool import Ended, Pool
from tests.registered import CANDIDATE, NAME, Registered, own_database, register, registered
from trainer.inference.registered_model import RegisteredModel, open_model
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry
from trainer.tracking.shared_run import SharedRuns
from trainer.workers import command as workers_command
from trainer.workers import driver as driver_module
from trainer.workers import version_work
from trainer.workers.__main__ import main
from trainer.workers.command import WorkersRequest
from trainer.workers.driver import Driver
from trainer.workers.version_work import VersionWork

pytestmark = pytest.mark.usefixtures("local_ray")

MODES = ("kmer", "onehot", "probe", "finetune", "scratch")
Said = pytest.CaptureFixture[str]


@pytest.fixture
def where(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """The registered toy, in an MLflow of this test's own, and two tasks: one has several numbers of rows."""
    shared = registered(tmp_path_factory)
    uri = own_database(shared, tmp_path)
    text = shared.task.read_text()
    tasks = {"one": "", "two": "max_train_rows: [60, null, 999]\nseeds: [0, 1]\n"}
    for name, more in tasks.items():
        own = text.replace("seeds: [0]\n", "") if "seeds" in more else text
        (tmp_path / f"{name}.yaml").write_text(own.replace("name: motif", f"name: {name}") + more)
    found = Registered(tmp_path, uri, shared.run_id, tmp_path / "one.yaml")
    Registry(found.uri).client.set_model_version_tag(NAME, "1", "step", "5")  # as versions are registered
    return found


def command(where: Registered, *more: str, model: str = CANDIDATE) -> list[str]:
    quick = ["finetune.epochs=1", "finetune.lr=3e-3"]
    return ["--model", model, "--track-uri", where.uri, "--tasks", str(where.task), *quick, *more]


def children(where: Registered) -> list[Any]:
    return Registry(where.uri).tagged(None, {"finetune": "child", "model.name": NAME})


def units(where: Registered) -> Counter[tuple[str, ...]]:
    """How often each (version, task, settings, mode, seed) stands in MLflow; all of them finished."""
    runs = children(where)
    assert {run.info.status for run in runs} <= {"FINISHED"}
    keys = ("task", "settings", "mode", "seed")
    return Counter((run.data.tags["model.version"], *(run.data.params[key] for key in keys)) for run in runs)


def test_two_tasks_then_a_rerun_then_another_version(
    where: Registered, capsys: Said, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = where.folder / "rows.json"
    given = command(where, str(where.folder / "two.yaml"), "--json", str(rows))
    assert main(given) == 0
    out, err = capsys.readouterr()
    found = json.loads(rows.read_text())
    assert len(found) == 5 + 2 * 7, "999 rows are all rows, and what has no seed is one unit"
    assert units(where) == Counter(units(where).keys()) and len(units(where)) == 19
    assert out.count("\n") == 2 + 15
    assert "toy version 1: all done" in err
    assert re.search("champion of toy: .*version 1", err)

    registry = Registry(where.uri)
    pretraining = registry.run(where.run_id).data
    assert {name for name in pretraining.metrics if name.startswith("downstream/one/")} == {
        f"downstream/one/{mode}{split}_mcc" for mode in MODES for split in ("", "_dev")
    }
    two = [
        row["test/mcc"]
        for row in found
        if (row["task"], row["mode"], row["train_rows"]) == ("two", "scratch", 200)
    ]
    assert pretraining.metrics["downstream/two/scratch_mcc"] == pytest.approx(sum(two) / 2)
    (kept,) = registry.client.search_model_versions("name='toy-two'")
    held = {run.info.run_id: run.data.params for run in children(where) if "task_model" in run.data.tags}
    assert {params["train_rows"] for params in held.values() if params["task"] == "two"} == {"200"}
    assert held[kept.run_id]["task"] == "two", "of several numbers of rows only the largest keeps models"
    (parent,) = registry.tagged(None, {"finetune": "parent", "model.version": "1", "model.name": NAME})
    assert parent.data.tags["mlflow.parentRunId"] == where.run_id
    assert parent.info.status == "FINISHED" and "| two" in parent.data.tags["mlflow.note.content"]
    for child in children(where):
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.info.start_time <= child.info.end_time <= parent.info.end_time
        assert child.info.start_time < child.info.end_time, "it begins when the work began"
    assert str(registry.version(f"models:/{NAME}-one@champion").version) == "1"

    assert main(given) == 0
    again = capsys.readouterr()
    assert again.out == out, "the whole table"
    assert again.err.count("already in run") == 19 and len(children(where)) == 19

    register(registered(tmp_path_factory).folder, where.uri, seed=5, params={"train.steps": "7"})
    assert main(command(where, "seeds=[0,1]")) == 0
    said = capsys.readouterr().err
    assert said.count("computed for version 1, run ") == 3, "both floors, and from scratch of seed 0"
    new = [run for run in children(where) if run.data.tags["model.version"] == "2"]
    copied = {run.data.params["mode"] for run in new if "computed.by" in run.data.tags}
    assert copied == {"kmer", "onehot", "scratch"} and len(new) == 7
    second = next(run for run in new if run.data.tags.get("computed.by"))
    first = registry.run(second.data.tags["computed.by"])
    assert (first.data.params["mode"], first.data.metrics) == (
        second.data.params["mode"],
        second.data.metrics,
    )
    history = registry.history(registry.version(CANDIDATE).run_id, "downstream/one/probe_mcc")
    assert list(history["step"]) == [7]


def test_watching_takes_each_candidate_and_leaves_out_what_was_pruned(
    where: Registered,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
    signal_handlers: None,
) -> None:
    registry, done = Registry(where.uri), []
    folder = registered(tmp_path_factory).folder  # of the experiment's artifacts

    def candidate(number: int) -> None:
        register(folder, where.uri, seed=number, params={"train.steps": str(number)})
        registry.client.set_model_version_tag(NAME, str(number), "candidate", "yes")

    def told(request: WorkersRequest, driver: Driver, work: VersionWork) -> None:
        tell(request, driver, work)
        done.append(work.model.version)
        if done == ["2"]:
            candidate(3)
            candidate(4)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def opened(registry: Registry, uri: str) -> RegisteredModel:
        if uri.endswith("/3"):  # pretraining removes it between our look and our work
            registry.client.delete_model_version(NAME, "3")
        return open_model(registry, uri)

    tell = workers_command._tell
    monkeypatch.setattr(workers_command, "_tell", told)
    monkeypatch.setattr(driver_module, "open_model", opened)
    candidate(2)
    registry.client.delete_model_version(NAME, "1")  # before the watcher begins
    assert main(command(where, "modes=[kmer,probe]", "--watch", "--poll-s", "0.1")) == 75
    err = capsys.readouterr().err
    assert done == ["2", "4"]
    assert err.count("left out: registered model models:/toy/3 at ") == 1 and "Traceback" not in err
    assert {unit[0] for unit in units(where)} == {"2", "4"} and set(units(where).values()) == {1}
    for number in (2, 4):
        run_id = registry.version(f"models:/{NAME}/{number}").run_id
        for name in ("kmer_mcc", "probe_mcc", "probe_dev_mcc"):
            assert list(registry.history(run_id, f"downstream/one/{name}")["step"]) == [number]


def test_told_to_stop_it_leaves_nothing_half_done_and_goes_on(
    where: Registered, capsys: Said, monkeypatch: pytest.MonkeyPatch, signal_handlers: None
) -> None:
    waited, ended = Pool.wait, []

    def stops(pool: Pool, timeout_s: float) -> list[Ended]:
        if ended:  # and in MLflow by now
            os.kill(os.getpid(), signal.SIGTERM)
        found = waited(pool, timeout_s)
        ended.extend(one.key for one in found if hasattr(one.key, "unit"))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "wait", stops)
        assert main(command(where, "seeds=[0,1]")) == 75
    assert "told to stop; finished results are in MLflow; the same command computes what is" in (
        capsys.readouterr().err
    )
    assert 0 < sum(units(where).values()) < 7
    assert main(command(where, "seeds=[0,1]")) == 0
    assert set(units(where).values()) == {1} and len(units(where)) == 7


def test_a_result_is_put_into_mlflow_once_whoever_was_stopped_where(
    where: Registered, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the ledger counts the run, the run is removed; killed after it, the run is finished."""
    died: list[str] = []

    class Killed(BaseException):
        pass

    def settle(shared: SharedRuns, run_id: str, key: str, value: str) -> str:
        if key.startswith("done.") and "before" not in died and "-" not in key:
            died.append("before")
            raise Killed
        stands = honest(shared, run_id, key, value)
        if key.startswith("done.") and "-" not in key and len(died) == 1:
            died.append(value)
            raise Killed
        return stands

    honest = SharedRuns.settle
    given = command(where, "modes=[kmer,onehot]", "--lease-s", "0.1")
    with monkeypatch.context() as patch:
        patch.setattr(SharedRuns, "settle", settle)
        patch.setattr(VersionWork, "leave", lambda work: None)  # SIGKILL says no farewell
        for _ in range(2):
            with pytest.raises(Killed):
                main(given)
    assert [run.info.status for run in children(where)].count("RUNNING") == 2
    assert main(given) == 0
    assert set(units(where).values()) == {1} and len(units(where)) == 2
    assert died[1] in {run.info.run_id for run in children(where)}


def test_an_mlflow_that_goes_away_while_a_version_is_opened_or_closed_is_waited_for(
    where: Registered, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[str] = []
    opened, left = VersionWork.open, VersionWork.leave

    def once(what: str) -> None:
        if what not in away:
            away.append(what)
            raise TrackError(f"MLflow is away at {what}", transient=True)

    def opens(*given: Any) -> VersionWork:
        once("open")
        return opened(*given)

    def leaves(work: VersionWork) -> None:
        once("leave")
        left(work)

    monkeypatch.setattr(VersionWork, "open", opens)
    monkeypatch.setattr(VersionWork, "leave", leaves)
    assert main(command(where, "modes=[kmer]")) == 0
    out, err = capsys.readouterr()
    assert away == ["open", "leave"] and "kmer" in out and "Traceback" not in err
    assert len(units(where)) == 1


def test_what_follows_on_the_results_is_tried_again_by_the_same_command(
    where: Registered, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> list[str]:
        raise OSError("no space left, sqlite://user:secret@host/db")

    given = command(where, "modes=[kmer,probe]")
    with monkeypatch.context() as patch:
        patch.setattr(version_work, "keep_best", full)
        assert main(given) == 1
    assert "no space left" in capsys.readouterr().err
    (ledger,) = Registry(where.uri).tagged(None, {"finetune": "ledger"})
    failed = [value for key, value in ledger.data.params.items() if key.startswith("failed.")]
    assert len(failed) == 1 and "secret" not in failed[0]
    assert main(given) == 0
    assert str(Registry(where.uri).version(f"models:/{NAME}-one@champion").version) == "1"


def test_a_unit_that_fails_stops_no_other(where: Registered, capsys: Said) -> None:
    assert main(command(where, "modes=[kmer,scratch]", "finetune.lr=[1e30]")) == 1
    out, err = capsys.readouterr()
    assert re.search(
        r"error: version 1: one scratch seed 0: fine-tuning diverged at every learning rate", err
    )
    assert "kmer" in out and "Traceback" not in err
    status = {run.data.params["mode"]: run.info.status for run in children(where)}
    assert status == {"kmer": "FINISHED", "scratch": "FAILED"}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["finetune.epoch=3"], 2, "did you mean 'epochs'"),
        (["modes=[kmers]"], 2, "modes"),
        (["none.yaml"], 2, "config file none.yaml does not exist"),
        (["{task}"], 2, "2 of the tasks have the name 'one', by which results are told apart"),
        (["--json", "/"], 2, "output / is a folder"),
        (["test=/nowhere/test.csv"], 1, "/nowhere/test.csv: no such file"),
        (["--model", "models:/nobody@candidate"], 1, "registered model models:/nobody@candidate"),
        (["--model", f"models:/{NAME}@best"], 1, f"models:/{NAME}@best"),
        (["--model", "runs/x"], 2, "runs/x is no registered model; write models:/NAME@ALIAS"),
        (["--watch", "--model", f"models:/{NAME}/1"], 2, "--watch takes each version that gets an alias"),
        (
            ["--webhook", "https://w.example:8443/"],
            2,
            "--webhook is for --watch, which waits for new versions",
        ),
        (
            ["--watch", "--webhook", "https://w.example/"],
            2,
            "--webhook https://w.example/: a URL with a port",
        ),
        (
            ["--watch", "--webhook", "ftp://w.example:21/"],
            2,
            "--webhook ftp://w.example:21/: a URL with a port",
        ),
        (
            ["workers.gpus=1"],
            1,
            "task one: it needs a node with 1 CPU and 1 GPU, and the largest of 1 has 2 CPUs",
        ),
        (["workers.cpus=64"], 1, "task one: it needs a node with 64 CPUs, and the largest of 1 has 2 CPUs"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_before_any_work(
    where: Registered, more: list[str], code: int, message: str, capsys: Said
) -> None:
    assert main(command(where, *[word.format(task=where.task) for word in more])) == code
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not children(where)


def test_the_faults_of_all_tasks_are_told_at_once(where: Registered, capsys: Said) -> None:
    for name in ("a", "b"):
        text = where.task.read_text().replace("name: one", f"name: {name}")
        (where.folder / f"{name}.yaml").write_text(re.sub("train: .*", f"train: /no/{name}.csv", text))
    given = [str(where.folder / "a.yaml"), str(where.folder / "b.yaml")]
    assert main(command(where, *given)) == 1
    err = capsys.readouterr().err
    assert "/no/a.csv" in err and "/no/b.csv" in err
    assert main(command(where, *given, "seed=1", "finetune.batch=1")) == 2
    err = capsys.readouterr().err
    assert all(err.count(f"{name}.yaml") >= 1 for name in ("one", "a", "b"))


def test_the_command_is_reached_by_the_cluster_floor(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cluster"])
    with pytest.raises(SystemExit) as end:
        cluster.main(["finetune", "--help"])
    assert end.value.code == 0
    assert "--watch" in capsys.readouterr().out
    assert cluster.main(["--help"]) == 0
    assert "finetune" in capsys.readouterr().err
