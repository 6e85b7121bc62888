"""Runs, metrics and registered models in MLflow. The only user of mlflow.

``Run`` is told at once and fails at once; a training run goes by way of delivery.py, which waits for MLflow.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from cluster import stops, store
from configs import redact
from trainer.progress import say

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 keep silent for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # and so does one that waits for 120 s
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

_KEY = "run.key"  # the tag that a training run is found again by
_BATCH = 500  # points that wait, at most


class TrackError(RuntimeError):
    """MLflow refused or did not answer; the message is one sentence that names the URI or model.

    ``passes``: it may be otherwise in a while, since MLflow is out of reach, or too busy.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


class Point(NamedTuple):
    """One value of a metric; ``time`` in ms since 1970."""

    key: str
    value: float
    time: int
    step: int


class Tracker:
    """One MLflow run at a time, by single calls each of which may fail; what a training run needs of MLflow."""

    MOST = 1000  # points that one call takes

    def __init__(self, uri: str) -> None:
        self.uri, self.id, self.artifact_uri = uri, "", ""
        self._client: Any = None

    def reach(self) -> None:
        """TrackError, within seconds, if nobody answers at the host of the URI: MLflow itself would try for long."""
        found = urlsplit(self.uri)
        # Where a proxy leads to the host, as HTTPS_PROXY and NO_PROXY have it, only a call shows who answers.
        proxy = requests.utils.select_proxy(self.uri, requests.utils.get_environ_proxies(self.uri, no_proxy=None))
        if found.scheme in ("http", "https") and found.hostname and not proxy:
            try:
                port = found.port or (443 if found.scheme == "https" else 80)
                socket.create_connection((found.hostname, port), timeout=5).close()
            except OSError as fault:
                raise TrackError(f"MLflow at {shown(self.uri)}: {fault.strerror or fault}", passes=True) from fault

    def open(
        self, *, experiment: str, name: str, artifact_uri: str | None, key: str, params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> dict[str, int]:  # fmt: skip
        """The run with tag ``run.key`` = ``key``, made if there is none, RUNNING; the last step of each metric it has.

        Raises:
            TrackError: MLflow refused. ValueError: the experiment keeps its artifacts elsewhere.
        """
        self.reach()
        with sentence(f"MLflow at {shown(self.uri)}"):
            self._client = self._client or mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            if self.id:  # also if it was deleted since: then it is refused, and no other run is made
                run = self._client.get_run(self.id)
            else:
                identifier = _experiment(self._client, experiment, artifact_uri)
                run = self._keyed(identifier, key)
                if run is None:
                    self._client.create_run(identifier, run_name=name, tags={**tags, _KEY: key})
                    run = self._keyed(identifier, key)
                assert run, "the run that was just made is found"
            self._client.update_run(run.info.run_id, status="RUNNING")
            self.id, self.artifact_uri = run.info.run_id, run.info.artifact_uri
            self.tag(tags)
            # What may differ when a run is taken up again stays as it was first told: MLflow takes no second value.
            self._params({key: value for key, value in params.items() if key not in run.data.params})
            found = self._client.get_run(self.id).data.to_proto().metrics
            return {metric.key: metric.step for metric in found}

    def _keyed(self, experiment: str, key: str) -> Any | None:
        """The run with this key. Where MLflow's client called again for a lost answer there are several: one stays."""
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'")
        first, *more = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)) or [None]
        for run in more:
            if not run.data.metrics:
                self._client.delete_run(run.info.run_id)
        return first

    def send(self, points: Sequence[Point]) -> None:
        """At most MOST points, in one call."""
        with sentence(f"MLflow at {shown(self.uri)}"):
            metrics = [Metric(p.key, p.value, p.time, p.step) for p in points]
            self._client.log_batch(self.id, metrics=metrics, synchronous=True)

    def tag(self, tags: Mapping[str, str]) -> None:
        with sentence(f"MLflow at {shown(self.uri)}"):
            entries = [RunTag(key, redact(str(value))) for key, value in tags.items()]
            self._client.log_batch(self.id, tags=entries, synchronous=True)

    def attach(self, local: Path, folder: str | None = None) -> None:
        """Copy a local file, or all files of a folder, to the run's artifacts."""
        with sentence(f"MLflow artifacts at {shown(self.artifact_uri)}"):
            if local.is_dir():
                self._client.log_artifacts(self.id, str(local), folder)
            else:
                self._client.log_artifact(self.id, str(local), folder)

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        with sentence(f"MLflow artifacts at {shown(self.artifact_uri)}"):
            self._client.log_dict(self.id, dict(values), name)

    def register(self, model: str, folder: str) -> str:
        """The version of ``model`` made of the run's artifact ``folder``, with alias candidate: its number.

        A version that an earlier call has made of this run is taken, not a second one made.
        """
        with sentence(f"registered model {model}"):
            try:
                self._client.create_registered_model(model)
            except MlflowException as fault:
                if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self.artifact_uri}/{folder}"
            if not self._versions(model, source):
                self._client.create_model_version(model, source, self.id)
                for again in self._versions(model, source)[1:]:  # MLflow's client called again for a lost answer
                    self._client.delete_model_version(model, again)
            version = self._versions(model, source)[0]
            self._client.set_registered_model_alias(model, "candidate", version)
            return version

    def _versions(self, model: str, source: str) -> list[str]:
        """The versions of ``model`` that were made of ``source``, a folder of this run's, oldest first."""
        found = self._client.search_model_versions(f"run_id = '{self.id}'")
        numbers = [int(version.version) for version in found if version.name == model and version.source == source]
        return [str(number) for number in sorted(numbers)]

    def _params(self, params: Mapping[str, Any]) -> None:
        entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), 100):
            self._client.log_batch(self.id, params=entries[start : start + 100], synchronous=True)

    def end(self, status: str) -> None:
        with sentence(f"MLflow at {shown(self.uri)}"):
            self._client.set_terminated(self.id, status)


class Run(Tracker):
    """A run whose every call is made at once: what goes wrong is raised; ``with`` ends it."""

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        name: str,
        artifact_uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> None:
        super().__init__(uri)
        self._pending: list[Point] = []
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        try:
            with sentence(f"MLflow at {shown(uri)}"), stops.wait():
                self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
                identifier = _experiment(self._client, experiment, artifact_uri)
                run = self._client.create_run(identifier, run_name=name, tags=all_tags)
                self.id, self.artifact_uri = run.info.run_id, run.info.artifact_uri
                self._params(params or {})
        except BaseException as fault:
            if self.id:
                self._end_after(fault)
            raise

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step``, sent with others in one call, the last of them by ``finish``."""
        now = int(time.time() * 1000)
        self._pending += [Point(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._pending) >= _BATCH:
            self._flush()

    def record(self, results: Mapping[str, float]) -> None:
        """Log a run's results at once, as step 0."""
        now = int(time.time() * 1000)
        self.send([Point(key, value, now, 0) for key, value in results.items()])

    def finish(self, status: str = "FINISHED") -> None:
        """Send what waits, then end the run."""
        self._flush()
        self.end(status)

    def _flush(self) -> None:
        while self._pending:
            part, self._pending = self._pending[: self.MOST], self._pending[self.MOST :]
            self.send(part)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        self._end_after(fault)

    def _end_after(self, fault: BaseException | None) -> None:
        """FINISHED, FAILED, or KILLED where the process was told to stop."""
        status = "FINISHED" if fault is None else "FAILED" if isinstance(fault, Exception) else "KILLED"
        with stops.wait():
            try:
                self.finish(status)
            except TrackError as second:
                if fault is None:
                    raise
                say(f"warning: {second}")


def shown(uri: str) -> str:
    """``uri`` without a password."""
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _experiment(client: Any, name: str, artifact_uri: str | None) -> str:
    """The id of the experiment, made if there is none. ValueError if it keeps its artifacts elsewhere."""
    found = client.get_experiment_by_name(name)
    if not found:
        try:
            return str(client.create_experiment(name, artifact_uri))
        except MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another run made it at the same time, or it was made by a call whose answer was lost.
        found = client.get_experiment_by_name(name)
    if artifact_uri and store.absolute(found.artifact_location) != store.absolute(artifact_uri):
        raise ValueError(
            f"experiment {name} keeps its artifacts at {found.artifact_location}, not at {artifact_uri}; "
            "give another track.experiment or leave track.artifact_uri out"
        )
    return str(found.experiment_id)


@contextmanager
def sentence(what: str) -> Iterator[None]:
    """What MLflow raises in the block becomes a TrackError about ``what``."""
    try:
        yield
    except TrackError:
        raise
    except MlflowException as fault:
        raise TrackError(f"{what}: {_line(fault.message)}", passes=_passes(fault)) from fault
    except requests.exceptions.RequestException as fault:
        raise TrackError(f"{what}: {_line(fault)}", passes=True) from fault
    except Exception as fault:  # a database's faults come as SQLAlchemy's, a missing driver as ImportError
        # Artifacts go to their store past MLflow: a folder's faults are OSError, those of S3 botocore's and boto3's.
        library = type(fault).__module__.split(".")[0]
        if library in ("sqlalchemy", "botocore", "boto3") or isinstance(fault, ImportError | OSError):
            raise TrackError(f"{what}: {_line(fault)}", passes="is locked" in str(fault)) from fault
        raise


def _line(fault: object) -> str:
    """On one line, without the passwords of the URIs that MLflow's messages quote."""
    return str(redact(" ".join(str(fault).split())))


def _passes(fault: MlflowException) -> bool:
    """Whether MLflow was out of reach, or its server had a fault of its own, rather than refused."""
    text = str(fault.message)
    ill = isinstance(fault, RestException) and fault.get_http_status_code() >= 500
    return ill or any(words in text for words in (
        "failed with exception", "failed with timeout exception", "failed with error code 5", "is locked"))  # fmt: skip
