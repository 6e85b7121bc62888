"""MLflow's server behind a proxy that fails to order: training goes on, and MLflow has each point once."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.s3 import Proxy
from trainer.tracking import uploader
from trainer.tracking.mlflow_run import Run, RunSpec, TrackError
from trainer.tracking.outbox import FILE, Outbox
from trainer.tracking.uploader import Uploader
from trainer.tracking.version_text import WINDOWS_TAG
from trainer.tracking.versions import Registering

LOST = [
    "experiments/create",
    "experiments/get-by-name",
    "runs/search",
    "runs/create",
    "runs/update",
    "runs/log-batch",
    "runs/get",
    "mlflow-artifacts/artifacts",
]


# MLflow's own REST handlers and SQL store, without the other processes that `mlflow server` takes 8 s of CPU
# to start.
SERVER = """
import os, sys, threading
store, root, artifacts = sys.argv[1:]
os.environ |= {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_ARTIFACT_ROOT": root,
               "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts, "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true"}
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
from werkzeug.serving import make_server
initialize_backend_stores(store, default_artifact_root=root)
server = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()  # it ends with the tests, also when they are killed
"""
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a server in a process of its own, for all of these tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    command = [
        sys.executable,
        "-c",
        SERVER,
        f"sqlite:///{folder}/server.db",
        "mlflow-artifacts:/",
        str(folder / "artifacts"),
    ]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdin and process.stdout
        try:
            port = process.stdout.readline().decode().strip()
            assert port, (folder / "log").read_text()[-2000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait()


@pytest.fixture(scope="module")
def one_proxy(service: str) -> Iterator[Proxy]:
    with Proxy(service) as server:
        handler: Any = server.RequestHandlerClass

        class Fresh(handler):  # type: ignore[misc]
            """With a new connection for each call: a server closes those that have been idle."""

            def _forward(self, rule: Any) -> None:
                if self._service:
                    self._service.close()
                    self._service = None
                super()._forward(rule)

        server.RequestHandlerClass = Fresh
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.clear()
        server.shutdown()


@pytest.fixture
def proxy(one_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Without faults; a call is made once, and everybody's pauses are short."""
    for name, value in {
        "MAX_RETRIES": "0",
        "BACKOFF_FACTOR": "0",
        "BACKOFF_JITTER": "0",
        "TIMEOUT": "20",
    }.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setattr(uploader, "_PAUSE_S", 0.02)
    monkeypatch.setattr(uploader, "_MAX_PAUSE_S", 0.1)
    monkeypatch.setattr(uploader, "_EVERY_S", 0.05)
    one_proxy.clear()
    yield one_proxy
    one_proxy.clear()


@pytest.fixture
def begin(proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Uploader]:
    """Begins the MLflow run of this test, or goes on with it, in an experiment of its own."""
    name = re.sub(r"\W", "_", request.node.name)

    def make(
        folder: str = "outbox", *, after: int | None = None, uri: str = "", experiment: str = "", **more: Any
    ) -> Uploader:
        registering = more.pop("registering", None)
        spec = RunSpec(uri or proxy.url, experiment or name, "n", **{"key": name} | more)
        return Uploader(spec, tmp_path / folder, after=after, registering=registering)

    return make


class Kept:
    """What the server has, asked past the proxy: the one run of an experiment."""

    def __init__(self, service: str, experiment: str) -> None:
        self.client = MlflowClient(service, service)
        found = self.client.get_experiment_by_name(experiment)
        assert found
        self.runs = self.client.search_runs([found.experiment_id])
        assert len(self.runs) == 1, "one run has one MLflow run"
        self.id = self.runs[0].info.run_id
        self.run = self.client.get_run(self.id)

    def points(self, key: str) -> list[tuple[int, int]]:
        """(step, time), in the order of the steps."""
        return sorted((point.step, point.timestamp) for point in self.client.get_metric_history(self.id, key))

    def steps(self, key: str) -> list[int]:
        return [step for step, _ in self.points(key)]


@pytest.fixture
def kept(service: str, request: pytest.FixtureRequest) -> Callable[[], Kept]:
    return lambda: Kept(service, re.sub(r"\W", "_", request.node.name))


def log(run: Uploader, *steps: int) -> None:
    for step in steps:
        run.log({"loss": 1 / step, "lr": step * 1.0}, step=step)


@pytest.mark.parametrize("retries", ["0", "2"])
def test_lost_answers_of_every_call_make_nothing_twice(
    begin: Callable[..., Uploader],
    kept: Callable[[], Kept],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    retries: str,
) -> None:
    """MLflow's client tries again by itself: also a call that makes something."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    for call in LOST:
        for method in ("GET", "POST", "PUT"):
            proxy.fault(kind="lost", method=method, key=call, times=2)
    clock = iter(range(1_000, 9_000))
    with monkeypatch.context() as patch:
        patch.setattr(uploader, "_now_ms", lambda: next(clock))
        run = begin(params={f"p{i}": i for i in range(230)}, tags={"t": "u"})
        log(run, *range(1, 601))
        run.tag({"later": "yes"})
        run.attach_dict({"a": 1}, "config.yaml")
    run.end("KILLED", wait_s=60)
    there = kept()
    assert there.run.info.status == "KILLED"
    assert there.id == run.id
    for key in ("loss", "lr"):
        assert there.points(key) == [(step, 999 + step) for step in range(1, 601)]
    assert len(there.run.data.params) == 230
    assert {"t": "u", "later": "yes"}.items() <= there.run.data.tags.items()
    assert [each.path for each in there.client.list_artifacts(there.id)] == ["config.yaml"]


@pytest.mark.parametrize("kind", ["503", "500", "reset", "cut"])
def test_a_server_that_fails_for_a_while(
    begin: Callable[..., Uploader],
    kept: Callable[[], Kept],
    proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    run = begin()
    log(run, 1, 2)
    wait_for(lambda: run._outbox.waiting == 0)
    faults = [proxy.fault(kind=kind, method=method) for method in ("GET", "POST")]
    log(run, 3, 4)
    wait_for(lambda: sum(fault.met for fault in faults) >= 3)
    proxy.clear()
    log(run, 5)
    run.drain(60)
    assert kept().steps("loss") == kept().steps("lr") == [1, 2, 3, 4, 5]
    output = capsys.readouterr().err
    assert output.count(f"MLflow at {proxy.url} does not answer (") == output.count("answers again") == 1


def test_a_server_that_takes_calls_and_does_not_answer_delays_no_start(
    begin: Callable[..., Uploader],
    kept: Callable[[], Kept],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(uploader, "_START_S", 0.2)
    for method in ("GET", "POST"):
        proxy.fault(kind="timeout", method=method)
    run = begin()
    log(run, 1, 2)
    with pytest.raises(
        TrackError, match=r"does not answer within 0\.2 s; 2 messages wait in .*outbox\.sqlite, and the sa"
    ):
        run.drain(0)
    output = capsys.readouterr().err
    assert output.count(f"metrics wait in {tmp_path}/outbox/{FILE}, and training goes on") == 1
    proxy.clear()
    begin(after=2).drain(60)
    assert kept().steps("loss") == [1, 2]


def test_a_time_out_at_the_start_is_no_refusal(
    begin: Callable[..., Uploader],
    kept: Callable[[], Kept],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.fault(kind="timeout", times=1)
    run = begin()
    log(run, 1)
    run.drain(60)
    assert kept().steps("loss") == [1]
    assert "Read timed out" in capsys.readouterr().err


def test_a_run_that_is_deleted_is_reported_once_and_waits(
    begin: Callable[..., Uploader], kept: Callable[[], Kept], service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    log(run, 1)
    wait_for(lambda: run._outbox.waiting == 0)
    client = MlflowClient(service, service)
    client.delete_run(run.id)
    log(run, 2)
    wait_for(lambda: bool(run._warned))
    log(run, 3)
    with pytest.raises(TrackError, match=rf"{run.id} must be in the 'active' state.*; 2 messages wait in "):
        run.drain(0.3)
    output = capsys.readouterr().err
    assert output.count("refuses (") == 1
    assert "does not answer" not in output
    client.restore_run(run.id)
    again = begin(after=3)
    again.drain(60)
    assert again.id == run.id
    assert kept().steps("loss") == [1, 2, 3]


def test_artifacts_that_are_refused_do_not_end_the_thread(
    begin: Callable[..., Uploader],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kept: Callable[[], Kept],
) -> None:
    """A server with a folder of its own as artifact root has clients write there."""
    (tmp_path / "art").write_text("no folder")
    run = begin(artifact_uri=str(tmp_path / "art"))
    run.attach_dict({"a": 1}, "config.yaml")
    log(run, 1)
    wait_for(lambda: bool(run._warned))
    (tmp_path / "art").unlink()
    log(run, 2)
    run.drain(60)
    assert kept().steps("loss") == [1, 2]
    assert f"refuses (MLflow artifacts at {tmp_path}/art/" in capsys.readouterr().err


def test_statuses_values_that_are_no_numbers_and_a_clock_that_jumps_back(
    begin: Callable[..., Uploader], kept: Callable[[], Kept], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = iter([5_000, 4_000, 3_000, 2_000])
    with monkeypatch.context() as patch:
        patch.setattr(uploader, "_now_ms", lambda: next(times))
        run = begin()
        for step, value in ((0, float("nan")), (1, float("inf")), (2, 1.0)):
            run.log({"x": value}, step=step)
        run.end("KILLED", wait_s=60)
        assert kept().run.info.status == "KILLED"
        again = begin("other", after=1)
        assert kept().run.info.status == "RUNNING"
        again.log({"x": 2.0}, step=2)
    again.log({"x": 3.0}, step=3)
    again.end("FINISHED", wait_s=60)
    assert kept().run.info.status == "FINISHED"
    assert [step for step, _ in kept().points("x")] == [0, 1, 2, 3]
    assert [at for _, at in kept().points("x")][:3] == [5_000, 4_000, 3_000]


def test_registering_with_lost_answers_makes_one_version(
    begin: Callable[..., Uploader],
    proxy: Proxy,
    service: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer of each call that makes something is lost once, also with artifacts by way of the server."""

    def fetch(step: int, folder: Path) -> bool:
        (folder / "weights").write_text("w")
        return True

    client, removed = MlflowClient(service, service), list[int]()
    registering = Registering(fetch=fetch, remove=removed.append, candidate="better", keep=1)
    for retries, model in (("0", "lost0"), ("2", "lost2")):
        removed.clear()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
        for call in (
            "logged-models",
            "mlflow-artifacts",
            "runs/outputs",
            "registered-models/create",
            "model-versions/create",
            "model-versions/update",
            "registered-models/alias",
        ):
            for method in ("POST", "PUT", "PATCH"):
                proxy.fault(kind="lost", method=method, key=call, times=1)
        run = begin(
            model, key=model, registered_model=model, registering=registering, tags={WINDOWS_TAG: "aa"}
        )
        for step in (2, 4):
            run.log({"val/mlm_accuracy": 0.1 * step}, step=step)
            run.export(step, bp=step)
        run.drain(60, status="FINISHED")
        (version,) = client.search_model_versions(f"name = '{model}'")  # one is kept
        assert version.tags["step"] == "4"
        assert client.get_model_version_by_alias(model, "candidate").version == version.version
        assert removed == [2, 4]
        found = client.get_run(run.id)
        assert found.info.status == "FINISHED"
        (logged,) = (
            each
            for each in client.search_logged_models([found.info.experiment_id])
            if each.source_run_id == run.id
        )
        assert (str(logged.status), logged.model_id) == ("READY", version.tags["model.id"])
        assert [metric.value for metric in logged.metrics] == [0.4]
        assert [path.path for path in client.list_logged_model_artifacts(logged.model_id)] == ["weights"]


def test_a_password_is_in_no_sentence(proxy: Proxy, begin: Callable[..., Uploader], tmp_path: Path) -> None:
    uri = proxy.url.replace("//", "//bob:secret@")
    for method in ("GET", "POST"):
        proxy.fault(kind="reset", method=method)
    with pytest.raises(TrackError, match=r"MLflow at http://\*\*\*@127") as fault:
        Run(RunSpec(uri, "e", "n"))
    assert "secret" not in str(fault.value)
    run = begin(uri=uri)
    with pytest.raises(TrackError) as fault:
        run.drain(0)
    assert "secret" not in str(fault.value)


KILLED = """
import sys, time
from pathlib import Path
from trainer.tracking import uploader
from trainer.tracking.mlflow_run import RunSpec
uploader._EVERY_S = 0.05
now = uploader._now_ms

def logged_at():
    print(at := now(), flush=True)  # one line for each step
    return at

uploader._now_ms = logged_at
spec = RunSpec(sys.argv[1], sys.argv[2], "n", key=sys.argv[2])
run = uploader.Uploader(spec, Path(sys.argv[3]))
for step in range(1, 1_000_000):
    run.log({"loss": 1 / step, "lr": float(step)}, step=step)
    if step == 40:
        run.sync()
    time.sleep(0.005)
"""


def test_a_process_killed_in_the_middle_of_delivering(
    begin: Callable[..., Uploader],
    kept: Callable[[], Kept],
    proxy: Proxy,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """It goes on after step 40: what MLflow has of later steps stays, what waits of them is logged again."""
    name = re.sub(r"\W", "_", request.node.name)
    lost = proxy.fault(kind="lost", method="POST", key="log-batch", skip=3, times=1)
    output = tmp_path / "output"
    before = int(time.time() * 1000)
    with open(output, "wb") as file:
        command = [sys.executable, "-c", KILLED, proxy.url, name, str(tmp_path / "outbox")]
        process = subprocess.Popen(command, stdout=file)
    try:
        wait_for(lambda: lost.met >= 4 and output.read_bytes().count(b"\n") >= 80, 60)
    finally:
        process.kill()
        process.wait()
    killed = int(time.time() * 1000)
    delivered = kept().steps("loss")
    logged = dict(enumerate(map(int, output.read_text().splitlines()), start=1))
    assert delivered == list(range(1, len(delivered) + 1))
    assert all(before <= at <= killed for at in logged.values())
    waiting = Outbox(tmp_path / "outbox").first(9999)
    assert all(message and message.time == logged[message.step] for _, message in waiting)  # type: ignore[union-attr]
    again = begin(after=40)
    assert again.id == kept().id
    end = max(logged) + 60
    log(again, *range(41, end))
    again.drain(60)
    for key in ("loss", "lr"):
        points = kept().points(key)
        assert [step for step, _ in points] == list(range(1, end))
        for step, at in points:
            # The server may have been at a call when the process was killed.
            first = step <= 40 or step <= len(delivered) or at < killed
            assert at == logged[step] if first else at >= killed
        assert points[-1][1] >= killed


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_a_server_says_that_an_experiment_is_deleted_and_a_name_a_prompts(
    service: str, begin: Callable[..., Uploader]
) -> None:
    client = MlflowClient(service, service)
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    for make in (lambda: begin(experiment="gone"), lambda: Run(RunSpec(service, "gone", "n"))):
        with pytest.raises(
            TrackError, match=rf"^experiment gone at http://.* was deleted; restore it .* {gone}\) or"
        ):
            make()
    client.register_prompt("words", template="x")
    with pytest.raises(
        TrackError, match=r"^words is the name of a prompt at http://.*; give another track\."
    ):
        begin(registered_model="words")
