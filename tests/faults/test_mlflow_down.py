"""A real MLflow server that goes away: training goes on, and every point arrives once, with its own time."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import small_config
from tests.faults import doomed
from tests.ranks import endings
from trainer.models import pretrained
from trainer.tracking.mlflow_run import RunSpec
from trainer.tracking.registry import Registry
from trainer.tracking.uploader import Uploader


class Server:
    """``mlflow server`` on a port of its own, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        yield made
    finally:
        made.kill()


@pytest.mark.faults
def test_a_server_that_is_away_for_the_whole_run_and_then_killed_and_back(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    uri = write_dataset(tmp_path / "data", contigs, soft=True)
    common: dict[str, Any] = {
        "val__windows": 8,
        "val__every": 1000,
        "train__steps": 6,
        "checkpoint__every": 2,
        "track__wait_s": 0,
        "track__registered_model": "m",
    }
    away = small_config(uri, **common, run__dir=str(tmp_path / "run"), track__uri=server.uri)
    before = int(time.time() * 1000)
    ((code, output),) = (ending.value for ending in endings(1, doomed.run, away))
    trained = int(time.time() * 1000)
    assert code == 1
    assert output.count(f"warning: MLflow at {server.uri} does not answer") == 1
    assert (
        "error: the run is finished and its export is in run.dir, but it is not registered: MLflow at"
        in output
    )
    assert (tmp_path / "run" / pretrained.WEIGHTS).is_file()

    server.start()
    patient = small_config(
        uri, **common | {"track__wait_s": 60}, run__dir=str(tmp_path / "run"), track__uri=server.uri
    )
    ((code, output),) = (ending.value for ending in endings(1, doomed.run, patient))
    assert (code, "registered m version 1 as candidate" in output) == (0, True), output
    ((code, output),) = (ending.value for ending in endings(1, doomed.run, patient))
    assert (code, "holds this run, finished; nothing to do" in output) == (0, True), output
    registry = Registry(server.uri)
    run = registry.run(registry.version("models:/m@candidate").run_id)
    assert run.info.status == "FINISHED"
    points = registry.client.get_metric_history(run.info.run_id, "loss/total")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    assert all(before <= point.timestamp <= trained for point in points)
    assert run.data.tags["checkpoint.uri"] == str(tmp_path / "run" / pretrained.WEIGHTS)

    spec = RunSpec(server.uri, "e", "n", key="key", params={"a": 1}, tags={"t": "u"})
    uploader = Uploader(spec, tmp_path / "outbox")
    for step in range(1, 400):
        uploader.log({"x": step}, step=step)
        if step == 100:
            server.kill()
        if step == 300:
            server.start()
    uploader.drain(60)
    spec = dataclasses.replace(spec, params={"a": 2, "b": 3}, tags={"t": "v"})
    again = Uploader(spec, tmp_path / "elsewhere", after=350)
    for step in range(351, 500):
        again.log({"x": step}, step=step)
    again.end("KILLED", wait_s=60)
    run = registry.run(again.id)
    assert (run.info.status, again.id) == ("KILLED", uploader.id)
    assert (run.data.params, run.data.tags["t"]) == ({"a": "1", "b": "3"}, "v")
    assert registry.history(again.id, "x")["step"].tolist() == list(range(1, 500))
    assert "warning" not in capsys.readouterr().err.partition("answers again")[2]


@pytest.mark.faults
def test_a_finished_run_that_is_killed_before_mlflow_has_it(tmp_path: Path) -> None:
    """It logs nothing again, so all of its metrics are on the disk before it is marked as finished."""
    contigs = {"train": [markov_sequence(30_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    settings: dict[str, Any] = {
        "val__windows": 8,
        "val__every": 1000,
        "train__steps": 6,
        "checkpoint__every": 0,
        "track__registered_model": "m",
        "run__dir": str(tmp_path / "run"),
    }
    uri = write_dataset(tmp_path / "data", contigs, soft=True)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        away = small_config(uri, **settings, track__uri=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        (killed,) = endings(1, doomed.run, away, [("delivery", 0, 0)])
    assert killed.code == -signal.SIGKILL
    there = f"sqlite:///{tmp_path}/mlflow.db"
    ((code, output),) = (
        ending.value for ending in endings(1, doomed.run, small_config(uri, **settings, track__uri=there))
    )
    assert (code, "registered m version 1 as candidate" in output) == (0, True), output
    registry = Registry(there)
    run_id = registry.version("models:/m@candidate").run_id
    assert registry.history(run_id, "loss/total")["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert registry.history(run_id, "val/mlm_accuracy")["step"].tolist() == [0, 6]
