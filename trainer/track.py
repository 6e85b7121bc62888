"""Runs, metrics and registered models in MLflow, and the progress on the terminal. The only user of mlflow.

Metrics are sent in batches by MLflow's own asynchronous queue, off the step's path; finish() waits for all of them.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from cluster import store
from configs import redact
from trainer.config import default_tracking_uri

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 keep silent for minutes
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

_SEND_EVERY_S = 5.0
_BATCH = 500  # MLflow takes at most 1000 metrics a call


class TrackError(RuntimeError):
    """MLflow refused or did not answer; the message is one sentence that names the URI or model."""


class Run:
    """One MLflow run: log, tag, attach files, register; ``with`` ends it FINISHED or FAILED."""

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
        self._uri = uri
        self._pending: list[Metric] = []
        self._sent: list[Any] = []
        self._last_send = time.monotonic()
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        with _sentence(f"MLflow at {_shown(uri)}"):
            self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            if found and artifact_uri and store.absolute(found.artifact_location) != store.absolute(artifact_uri):
                raise ValueError(
                    f"experiment {experiment} keeps its artifacts at {found.artifact_location}, not at {artifact_uri}; "
                    "give another track.experiment or leave track.artifact_uri out"
                )
            identifier = found.experiment_id if found else self.client.create_experiment(experiment, artifact_uri)
            run = self.client.create_run(identifier, run_name=name, tags=all_tags)
            self.id: str = run.info.run_id
            self.artifact_uri: str = run.info.artifact_uri
            entries = [Param(key, str(value)[:6000]) for key, value in (params or {}).items()]
            for start in range(0, len(entries), 100):
                self.client.log_batch(self.id, params=entries[start : start + 100])

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Queue ``metrics`` of ``step``; nothing is dropped."""
        now = int(time.time() * 1000)
        self._pending += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._pending) >= _BATCH or time.monotonic() - self._last_send > _SEND_EVERY_S:
            self._send()

    def record(self, results: Mapping[str, float]) -> None:
        """Log a run's results at once, as step 0; the queue of ``log`` would hold them for a second."""
        now = int(time.time() * 1000)
        with _sentence(f"MLflow at {_shown(self._uri)}"):
            self.client.log_batch(self.id, metrics=[Metric(key, value, now, 0) for key, value in results.items()])

    def tag(self, tags: Mapping[str, str]) -> None:
        with _sentence(f"MLflow at {_shown(self._uri)}"):
            self.client.log_batch(self.id, tags=[RunTag(key, redact(str(value))) for key, value in tags.items()])

    def attach(self, local: Path, folder: str | None = None) -> None:
        """Copy a local file, or all files of a folder, to the run's artifacts."""
        with _sentence(f"MLflow artifacts at {_shown(self.artifact_uri)}"):
            if local.is_dir():
                self.client.log_artifacts(self.id, str(local), folder)
            else:
                self.client.log_artifact(self.id, str(local), folder)

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        with _sentence(f"MLflow artifacts at {_shown(self.artifact_uri)}"):
            self.client.log_dict(self.id, dict(values), name)

    def register(self, model: str, folder: str) -> str:
        """A new version of ``model`` from the run's artifact ``folder``, with alias candidate: its number."""
        with _sentence(f"registered model {model}"):
            try:
                self.client.create_registered_model(model)
            except MlflowException as fault:
                if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self.client.create_model_version(model, f"{self.artifact_uri}/{folder}", self.id)
            self.client.set_registered_model_alias(model, "candidate", version.version)
            return str(version.version)

    def finish(self, status: str = "FINISHED") -> None:
        """Deliver every queued metric, then end the run. TrackError if any was not delivered."""
        self._send()
        with _sentence(f"MLflow at {_shown(self._uri)}"):
            for operation in self._sent:
                operation.wait()
            self.client.set_terminated(self.id, status)

    def _send(self) -> None:
        self._last_send = time.monotonic()
        with _sentence(f"MLflow at {_shown(self._uri)}"):
            while self._pending:
                part, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
                operation = self.client.log_batch(self.id, metrics=part, synchronous=False)
                self._sent.append(operation)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.finish()
        else:
            try:
                self.finish("FAILED")
            except TrackError as second:
                say(f"warning: {second}")


class Registry:
    """Reading side: registered models, runs, and their metrics."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or default_tracking_uri()
        local = self.uri.removeprefix("sqlite:///")
        if local != self.uri and not Path(local).exists():  # MLflow would make one, only to find it empty
            raise TrackError(f"no MLflow database at {Path(local).absolute()}; run from the folder of your runs, or "
                             "name the database")  # fmt: skip
        with _sentence(f"MLflow at {_shown(self.uri)}"):
            self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def version(self, model_uri: str) -> Any:
        """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means (name, version, run_id, source)."""
        reference = model_uri.removeprefix("models:/")
        name, at, alias = reference.partition("@")
        bare, _, number = reference.rpartition("/")
        if reference == model_uri or not (at or bare):
            raise ValueError(f"{model_uri} is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
        with _sentence(f"registered model {model_uri} at {_shown(self.uri)}"):
            if at:
                return self.client.get_model_version_by_alias(name, alias)
            return self.client.get_model_version(bare, number)

    def download(self, version: Any, into: Path) -> Path:
        """The version's files in a local folder below ``into``."""
        with _sentence(f"files of {version.name} version {version.version}"):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=version.source, dst_path=str(into), tracking_uri=self.uri
            )
            return Path(found)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        with _sentence(f"registered model {name}"):
            self.client.set_registered_model_alias(name, alias, version)

    def champion(self, name: str) -> Any | None:
        """The version with alias champion, or None."""
        with _sentence(f"registered model {name} at {_shown(self.uri)}"):
            aliases = self.client.get_registered_model(name).aliases
            return self.client.get_model_version(name, aliases["champion"]) if "champion" in aliases else None

    def run(self, run_id: str) -> Any:
        with _sentence(f"run {run_id} at {_shown(self.uri)}"):
            return self.client.get_run(run_id)

    def history(self, run_id: str, metric: str) -> pd.DataFrame:
        """Columns step and value, every point ever logged, by step."""
        with _sentence(f"run {run_id} at {_shown(self.uri)}"):
            points = self.client.get_metric_history(run_id, metric)
        return pd.DataFrame({"step": [p.step for p in points], "value": [p.value for p in points]}).sort_values("step")

    def experiment_of(self, run_id: str | None) -> str | None:
        """The name of a run's experiment; None if there is no such run any more."""
        try:
            return self.client.get_experiment(self.client.get_run(run_id).info.experiment_id).name if run_id else None
        except MlflowException:
            return None

    def tagged(self, experiment: str, tags: Mapping[str, str], *, finished: bool = False) -> list[Any]:
        """Runs of an experiment, by its name, that carry all ``tags``, oldest first."""
        with _sentence(f"MLflow at {_shown(self.uri)}"):
            found = self.client.get_experiment_by_name(experiment)
        where = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        where += ["attributes.status = 'FINISHED'"] * finished
        return self.runs(found.experiment_id, " and ".join(where)) if found else []

    def runs(self, experiment_id: str, where: str) -> list[Any]:
        """Runs of an experiment that match an MLflow filter, oldest first."""
        with _sentence(f"MLflow at {_shown(self.uri)}"):
            found, token = [], None
            while True:
                page = self.client.search_runs([experiment_id], where, order_by=["start_time ASC"], page_token=token)
                found += list(page)
                token = page.token
                if not token:
                    return found


class Progress:
    """Steps done: a bar on a terminal, otherwise a line a minute. Silent where ``shown`` is False."""

    def __init__(self, total: int, *, shown: bool, done: int = 0) -> None:
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not (shown and terminal))
        self._total, self._done, self._next_line = total, done, time.monotonic() + 60

    def advance(self, note: str) -> None:
        self._done += 1
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        if self._lines and (time.monotonic() >= self._next_line or self._done == self._total):
            self._next_line = time.monotonic() + 60
            say(f"step {self._done}/{self._total}  {note}")

    def close(self) -> None:
        self._bar.close()


def say(text: str) -> None:
    """One line to the terminal, past any progress bar."""
    tqdm.write(text, file=sys.stderr)


def _shown(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


@contextmanager
def _sentence(what: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as fault:
        raise TrackError(f"{what}: {' '.join(str(fault.message).split())}") from fault
    except Exception as fault:  # a database's faults come as SQLAlchemy's, a missing driver as ImportError
        if type(fault).__module__.startswith("sqlalchemy") or isinstance(fault, ImportError):
            raise TrackError(f"{what}: {' '.join(str(fault).split())}") from fault
        raise
