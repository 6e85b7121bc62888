"""A doorbell for --watch: any call rings it, once; MLflow is told of it for as long as it hangs there."""

import shutil
import socket
from pathlib import Path

import pytest
import requests

from configs import ConfigError
from tests.registered import registered
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry
from trainer.workers import doorbell as module
from trainer.workers.doorbell import doorbell


@pytest.fixture
def registry(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    uri = registered(tmp_path_factory).uri
    return Registry(f"sqlite:///{shutil.copy(uri.removeprefix('sqlite:///'), tmp_path / 'mlflow.db')}")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_call_rings_it_once_and_mlflow_knows_of_it_meanwhile(registry: Registry, port: int) -> None:
    url = f"https://8.8.8.8:{port}/"
    with doorbell(registry, url):
        (before,) = registry.client.list_webhooks()
        assert (before.url, before.name) == (url, "cluster-finetune-watch")
    assert list(registry.client.list_webhooks()) == []
    registry.client.create_webhook("cluster-finetune-watch", url, ["model_version_alias.created"])
    with doorbell(registry, url) as bell:
        assert len(registry.client.list_webhooks()) == 1, "what a killed process has left is replaced"
        assert not bell.rung()
        answer = requests.post(
            f"http://127.0.0.1:{port}/", json={"entity": "model_version_alias"}, timeout=10
        )
        assert answer.status_code == 204
        assert [bell.rung(), bell.rung()] == [True, False]
    with pytest.raises(requests.ConnectionError):
        requests.post(f"http://127.0.0.1:{port}/", timeout=10)


def test_where_mlflow_takes_no_webhook_a_warning_says_so(
    registry: Registry, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with doorbell(registry, f"http://watcher.example:{port}/") as bell:
        assert not bell.rung()
    err = capsys.readouterr().err
    assert err.startswith(f"warning: webhook http://watcher.example:{port}/ at MLflow sqlite:///")
    assert err.endswith("; new versions are looked for at intervals alone\n")


def test_a_fault_of_the_work_is_no_fault_of_the_bell(registry: Registry, port: int) -> None:
    with pytest.raises(TrackError, match="gone"), doorbell(registry, f"https://w.example:{port}/"):
        raise TrackError("gone")


def test_a_port_that_is_taken_is_refused(registry: Registry, port: int) -> None:
    bell = module.Doorbell()
    url = f"https://w.example:{port}/"
    refused = pytest.raises(ConfigError, match="--webhook https://w")
    with module.listening(url, bell), refused, doorbell(registry, url):
        pass
    with doorbell(registry, None) as silent:
        assert not silent.rung()
