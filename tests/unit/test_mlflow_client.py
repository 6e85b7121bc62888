"""What MLflow is found to be at the start: not there yet, locked, of another version, deleted, taken."""

import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy.exc
from mlflow import MlflowClient

from cluster.storage import lock
from trainer.tracking import mlflow_client
from trainer.tracking.mlflow_client import TrackError, connect
from trainer.tracking.mlflow_run import ResumableRun, Run, RunSpec
from trainer.tracking.registry import Registry
from trainer.tracking.uploader import Uploader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a deleted experiment "gone" and a prompt "words"; copied, since making one takes
    seconds."""
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    client = connect(f"sqlite:///{path}")
    client.delete_experiment(client.create_experiment("gone"))
    client.register_prompt("words", template="{{x}}")
    return path


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "me@work").mkdir()
    return Path(shutil.copy(made, tmp_path / "me@work" / "mlflow.db"))


def start(uri: str, folder: Path, experiment: str = "e", **more: Any) -> Callable[[], Uploader]:
    """A training run's beginning."""
    return lambda: Uploader(RunSpec(uri, experiment, "n", key="k", **more), folder / "outbox")


def test_runs_that_start_together_make_one_database(tmp_path: Path) -> None:
    """With MLflow's own migrations, in processes of their own, as runs of a sweep are."""
    code = (
        "import sys; from trainer.tracking.mlflow_client import connect; "
        "print(connect(sys.argv[1]).get_experiment('0').name)"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        output, fault = process.communicate(timeout=300)
        assert (process.returncode, output) == (0, "Default\n"), fault[-2000:]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"], "no lock is left behind"


def fake(monkeypatch: pytest.MonkeyPatch, *answers: Exception) -> list[str]:
    """MLflow's client fails with each of ``answers``, then comes; the URIs that it was asked for."""
    asked: list[str] = []
    coming = list(answers)

    def client(tracking_uri: str, registry_uri: str) -> str:
        asked.append(tracking_uri)
        if coming:
            raise coming.pop(0)
        return "client"

    monkeypatch.setattr(
        mlflow_client, "library", lambda: SimpleNamespace(MlflowClient=client, __version__="3.99")
    )
    monkeypatch.setattr(mlflow_client, "_PAUSE_S", 0.0)
    return asked


def database_says(text: str) -> Exception:
    return sqlalchemy.exc.OperationalError("ALTER TABLE x", {}, sqlite3.OperationalError(text))


def test_tables_that_somebody_else_makes_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program than ours, or another machine: these are the words of three runs that met in the
    migrations."""
    words = (
        "duplicate column name: step",
        "table experiments already exists",
        "database is locked",
        "no such table: alembic_version",
    )
    asked = fake(
        monkeypatch,
        *map(database_says, words),
        RuntimeError("Online migration expected to match one row when updating 'a' to 'b'; 0 found"),
        RuntimeError("Detected out-of-date database schema (found version None, but expected b)"),
        RuntimeError("Detected out-of-date database schema (found version a, but expected b)"),
    )
    assert connect(f"sqlite:///{tmp_path}/x.db") == "client"
    assert len(asked) == 8


def test_what_does_not_pass_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake(monkeypatch, database_says("disk I/O error"))
    with pytest.raises(
        TrackError, match=r"MLflow at sqlite:///.*x\.db: \(sqlite3\.OperationalError\) disk I/O error$"
    ):
        connect(f"sqlite:///{tmp_path}/x.db")
    assert len(asked) == 1
    monkeypatch.setattr(mlflow_client, "_TABLES_S", 0.0)
    fake(monkeypatch, database_says("table experiments already exists"))
    with pytest.raises(
        TrackError, match=r"not complete after 0 s .*killed while it made them: then name another database$"
    ):
        connect(f"sqlite:///{tmp_path}/x.db")


def test_processes_of_one_machine_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake(monkeypatch)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    met = threading.Event()
    real = fcntl.flock

    def flock(file: int, how: int) -> None:
        met.set()
        real(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    thread = threading.Thread(target=connect, args=(f"sqlite:///{tmp_path}/x.db",))
    thread.start()
    assert met.wait(60)
    assert not asked
    os.close(handle)
    thread.join(60)
    assert len(asked) == 1


@pytest.mark.parametrize("version", ["451aebb31d03", "ffffffffffff"])  # one of MLflow 1, and one to come
def test_tables_of_another_version_are_named_with_what_to_do(
    database: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
    connection.close()
    monkeypatch.setattr(mlflow_client, "_STALE_S", 0.0)
    uri = f"sqlite:///{database}"
    for begin in (start(uri, tmp_path), lambda: Registry(uri)):
        with pytest.raises(
            TrackError,
            match=rf"^MLflow at {uri}: its tables are of version {version}, and MLflow .* "
            r"wants \w+: back the database up and run `mlflow db upgrade`",
        ):
            begin()


def test_a_database_that_is_locked_may_be_free_later(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "_TABLES_S", 0.0)
    holder = sqlite3.connect(database)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        TrackError, match=r"database is locked by another program, which has to end first$"
    ) as fault:
        connect(f"sqlite:///{database}?timeout=0.1")
    assert fault.value.transient
    holder.close()


def test_a_database_that_cannot_be_written_is_read_but_takes_no_run(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow makes a folder of the name "file:"
    readonly = f"sqlite:///file:{database}?mode=ro&uri=true"
    message = (
        r"MLflow at sqlite:///.*: \(sqlite3\.OperationalError\) attempt to write a readonly database; "
        r"make its file"
    )
    for begin in (start(readonly, tmp_path), lambda: Run(RunSpec(readonly, "e", "n"))):
        with pytest.raises(TrackError, match=message):
            begin()
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(
        mlflow_client.os, "access", lambda path, mode: Path(path) != database or mode != os.W_OK
    )
    uri = f"sqlite:///{database}"
    with pytest.raises(
        TrackError, match=rf"^MLflow at {uri}: this user cannot write to {database}; make it writable"
    ):
        start(uri, tmp_path)()
    assert Registry(uri).tagged(None, {"a": "b"}) == []
    monkeypatch.setattr(mlflow_client.os, "access", lambda path, mode: Path(path) != database.parent)
    with pytest.raises(
        TrackError, match=rf"this user cannot write to the folder {database.parent}; make it writable"
    ):
        connect(f"sqlite:///{database.parent}/other.db")


def test_what_is_no_file_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackError, match=rf"{tmp_path} is a folder; name a file in it"):
        connect(f"sqlite:///{tmp_path}")
    with pytest.raises(TrackError, match=rf"{tmp_path}/file is no folder"):
        connect(f"sqlite:///{tmp_path}/file/x/mlflow.db")


def test_a_deleted_experiment_is_named_with_the_way_back(database: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{database}"
    found = MlflowClient(uri, registry_uri=uri).get_experiment_by_name("gone")
    message = (
        f"experiment gone at {uri} was deleted; restore it (MLFLOW_TRACKING_URI={uri} mlflow experiments "
        f"restore "
        f"--experiment-id {found.experiment_id}) or give another track.experiment"
    )
    for begin in (
        start(uri, tmp_path, experiment="gone"),
        lambda: Run(RunSpec(uri, "gone", "n")),
        lambda: Registry(uri).usable("gone"),
    ):
        with pytest.raises(TrackError, match=f"^{re.escape(message)}$"):
            begin()
    MlflowClient(uri, registry_uri=uri).restore_experiment(found.experiment_id)
    Registry(uri).usable("gone")
    Registry(uri).usable("not made yet")


def test_a_name_that_a_prompt_has_is_no_models(database: Path, tmp_path: Path) -> None:
    """MLflow itself adds the model to the prompt's versions."""
    uri = f"sqlite:///{database}"
    message = f"^words is the name of a prompt at {uri}; give another track.registered_model$"
    with pytest.raises(TrackError, match=message):
        start(uri, tmp_path, registered_model="words")()
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version FROM model_versions WHERE name = 'words'").fetchall() == [
            (1,)
        ]
    connection.close()


def test_artifacts_of_an_unknown_kind_are_refused_at_the_start(database: Path, tmp_path: Path) -> None:
    with pytest.raises(TrackError, match=r"Could not find a registered artifact repository for: foo://x"):
        start(f"sqlite:///{database}", tmp_path, artifact_uri="foo://x")()


def test_a_run_that_was_deleted_by_hand_has_a_successor_and_that_is_reported(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{database}"
    first = start(uri, tmp_path)()
    first.log({"x": 1.0}, step=1)
    first.drain(60)
    MlflowClient(uri, registry_uri=uri).delete_run(first.id)
    second = ResumableRun(RunSpec(uri, "e", "n", key="k"))
    second.open()
    assert second.id != first.id
    message = capsys.readouterr().err
    assert f"warning: MLflow run {first.id}, which held this run, is deleted; a new one is made" in message


def test_values_with_quotes_are_found(database: Path) -> None:
    uri = f"sqlite:///{database}"
    for value in ("bob's", 'the "first"', "both ' and \"", "100 %", "a\\b"):
        with Run(RunSpec(uri, "e", "n", tags={"of": value})) as run:
            pass
        for experiment in ("e", None):
            assert [found.info.run_id for found in Registry(uri).tagged(experiment, {"of": value})] == [
                run.id
            ]
