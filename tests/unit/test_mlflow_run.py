"""MLflow's side: every point arrives, aliases, and one sentence for what goes wrong."""

import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cluster.process.command import exit_code
from cluster.process.signals import Preempted
from tests.registered import registered_before
from trainer.tracking.mlflow_run import Run, RunSpec, TrackError
from trainer.tracking.registry import Registry


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def new_run(uri: str, folder: Path, **more: Any) -> Run:
    return Run(RunSpec(uri, "e", "r", artifact_uri=str(folder), **more))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def test_no_point_is_dropped_and_params_beyond_one_call_arrive(uri: str, artifacts: Path) -> None:
    with new_run(uri, artifacts, params={f"p{i}": i for i in range(230)}) as run:
        for step in range(1, 1301):
            run.log({"loss/total": 1 / step, "lr": step}, step=step)
    history = Registry(uri).history(run.id, "loss/total")
    assert history["step"].tolist() == list(range(1, 1301))
    assert history["value"].tolist() == [1 / step for step in range(1, 1301)]
    assert len(Registry(uri).run(run.id).data.params) == 230


def test_a_run_that_raises_is_marked_failed(uri: str, artifacts: Path) -> None:
    run = new_run(uri, artifacts)

    def fail() -> None:
        with run:
            run.log({"x": 1.0}, step=1)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert Registry(uri).run(run.id).info.status == "FAILED"
    assert Registry(uri).history(run.id, "x")["value"].tolist() == [1.0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Preempted])
def test_a_run_that_is_stopped_is_marked_killed(uri: str, artifacts: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), new_run(uri, artifacts) as run:
        raise stop
    assert Registry(uri).run(run.id).info.status == "KILLED"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_no_signal_leaves_a_run_running(
    uri: str, artifacts: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, signal_handlers: None
) -> None:
    """It comes while the server has made the run and the client does not know it, and again while the run is
    ended."""
    create_run, set_terminated = mlflow.MlflowClient.create_run, mlflow.MlflowClient.set_terminated
    made = []

    def create(client: mlflow.MlflowClient, *given: Any, **more: Any) -> Any:
        run = create_run(client, *given, **more)
        made.append(run.info.run_id)
        signal.raise_signal(number)
        return run

    def end(client: mlflow.MlflowClient, *given: Any, **more: Any) -> None:
        signal.raise_signal(number)
        set_terminated(client, *given, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create)
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", end)
    assert exit_code(lambda: new_run(uri, artifacts) and 0, resumable=True) == code
    assert [Registry(uri).run(each).info.status for each in made] == ["KILLED"]


def test_a_run_whose_params_are_refused_does_not_stay_running(uri: str, artifacts: Path) -> None:
    with pytest.raises(TrackError, match="p"):
        new_run(uri, artifacts, params={"not/a param?": 1, "p" * 300: 2}, tags={"which": "refused"})
    (run,) = Registry(uri).tagged("e", {"which": "refused"})
    assert run.info.status == "FAILED"


def test_versions_of_releases_before_are_still_read(uri: str, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    for number in ("1", "2"):
        with new_run(uri, artifacts) as run:
            run.attach(tmp_path, "model")
            assert registered_before(run, "m") == number
    registry = Registry(uri)
    assert registry.version("models:/m@candidate").version == registry.version("models:/m/2").version
    assert (
        registry.download(registry.version("models:/m/1"), tmp_path / "got") / "weights"
    ).read_text() == "w"
    assert registry.champion("m") is None
    registry.set_alias("m", "champion", "1")
    assert str(registry.champion("m").version) == "1"


@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        (
            "models:/nobody@candidate",
            TrackError,
            r"registered model models:/nobody@candidate at sqlite:///.*not found; its models are m",
        ),
        (
            "models:/m/99",
            TrackError,
            r"registered model models:/m/99 at .*; its aliases are (none|@.*), its versions 1",
        ),
        (
            "nobody",
            ValueError,
            "nobody is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION",
        ),
    ],
)
def test_unknown_model_is_one_sentence(uri: str, model: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        Registry(uri).version(model)


def test_another_artifact_folder_for_an_experiment_is_refused(
    uri: str, artifacts: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"experiment e keeps its artifacts at .*; give another track\.experiment"
    ):
        new_run(uri, tmp_path)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, but it is long enough to look at" * 50)
    with pytest.raises(TrackError, match=r"MLflow at sqlite:///.*not a database"):
        new_run(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


def test_a_password_in_the_uri_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(TrackError) as fault:
        new_run("postgresql+nodriver://bob:secret@127.0.0.1/x", tmp_path)
    assert "secret" not in str(fault.value)


def test_reading_where_there_is_no_database_makes_none(tmp_path: Path) -> None:
    with pytest.raises(
        TrackError, match=r"no MLflow database at .*mlflow\.db; run from the folder of your runs"
    ):
        Registry(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())
