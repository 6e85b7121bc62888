"""A kept model behind `mlflow models serve`, started elsewhere, gives the numbers of the model itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests import kept
from tests.registered import Registered, registered, tiny_network
from trainer import embed_sequences, load_task_model
from trainer.evaluation.encoder_pyfunc import write_encoder_mlmodel
from trainer.evaluation.tasks.kept.task_pyfunc import write_task_mlmodel
from trainer.models import pretrained

pytestmark = pytest.mark.faults

SEQUENCES = ["ACGTTGCATTAGC", "gattacagattaca", "NNACGTRYACGT", "A" * 300]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    return registered(tmp_path_factory)


@contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """The address of a scoring server of ``model``, started in ``folder`` as a user would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(400):
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail(log.read_text())
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def asked(address: str, sequences: list[str]) -> tuple[int, Any]:
    body = json.dumps({"dataframe_split": {"columns": ["sequence"], "data": [[s] for s in sequences]}})
    request = urllib.request.Request(
        f"{address}/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as fault:
        return fault.code, json.loads(fault.read())


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_http_gives_the_numbers_of_the_model(where: Registered, tmp_path: Path, kind: str) -> None:
    folder = kept.written(tmp_path / "model", kept.outcome(where, kind, "finetune").model)
    write_task_mlmodel(Path(folder))
    expected = load_task_model(folder).predict(SEQUENCES)
    (tmp_path / "elsewhere").mkdir()
    with served(folder, tmp_path / "elsewhere") as address:
        status, answer = asked(address, SEQUENCES)
        assert status == 200
        found = pd.DataFrame(answer["predictions"])
        assert list(found.columns) == list(expected.columns)
        for column in expected.columns:
            if column == "label":
                assert list(found[column]) == list(expected[column])
            else:
                np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=1e-6)
        status, answer = asked(address, ["ACGT", "AC!T"])
        assert status == 400
        assert "sequence 2: byte b'!' at position 2 is no nucleotide letter" in json.dumps(answer)


def test_an_encoder_is_served_too(tmp_path: Path) -> None:
    network = tiny_network()
    folder = tmp_path / "encoder"
    pretrained.write(str(folder), network, dict(network.state_dict()), card="a toy")
    write_encoder_mlmodel(folder)
    with served(str(folder), tmp_path) as address:
        status, answer = asked(address, SEQUENCES)
        assert status == 200
        np.testing.assert_allclose(
            pd.DataFrame(answer["predictions"]), embed_sequences(network, SEQUENCES), rtol=0, atol=1e-6
        )
