"""Runs, metrics and registered models in MLflow: the writing side.

``Run`` is told at once and fails at once; a training run goes by way of delivery.py, which waits for MLflow.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.process import signals
from configs import redact
from trainer.core.console import say
from trainer.tracking import mlflow_client
from trainer.tracking.mlflow_client import TrackError, library, sentence

_KEY = "run.key"  # the tag that a training run is found again by
_BATCH = 500  # points that wait, at most


class Point(NamedTuple):
    """One value of a metric; ``time`` in ms since 1970."""

    key: str
    value: float
    time: int
    step: int


class Tracker:
    """One MLflow run at a time, by single calls each of which may fail; what a training run needs of
    MLflow."""

    MOST = 1000  # points that one call takes

    def __init__(self, uri: str) -> None:
        self.uri, self.id, self.artifact_uri = uri, "", ""
        self._client: Any = None

    def open(
        self,
        *,
        experiment: str,
        name: str,
        artifact_uri: str | None,
        key: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        model: str | None = None,
    ) -> dict[str, int]:
        """The run with tag ``run.key`` = ``key``, made if there is none, RUNNING; the last step of each
        metric it has.

        ``model``: that it is to be registered as.

        Raises:
            TrackError: MLflow refused. ValueError: the experiment keeps its artifacts elsewhere.
        """
        if self._client:
            mlflow_client.reach(self.uri)
        else:
            self._client = mlflow_client.connect(self.uri)
        with sentence(f"MLflow at {redact(self.uri)}"):
            if model and not self.id:
                mlflow_client.refuse_prompt(self._client, model, uri=self.uri)
            if self.id:  # also if it was deleted since: then it is refused, and no other run is made
                run = self._client.get_run(self.id)
            else:
                identifier = mlflow_client.experiment(self._client, experiment, artifact_uri, uri=self.uri)
                run = self._keyed(identifier, key)
                if run is None:
                    self._tell_deleted(identifier, key)
                    self._client.create_run(identifier, run_name=name, tags={**tags, _KEY: key})
                    run = self._keyed(identifier, key)
                assert run, "the run that was just made is found"
            self._client.update_run(run.info.run_id, status="RUNNING")
            self.id, self.artifact_uri = run.info.run_id, run.info.artifact_uri
            self.tag(tags)
            # What may differ when a run is taken up again stays as it was first told: MLflow takes no second
            # value.
            self._params({key: value for key, value in params.items() if key not in run.data.params})
            found = self._client.get_run(self.id).data.to_proto().metrics
            return {metric.key: metric.step for metric in found}

    def _keyed(self, experiment: str, key: str) -> Any | None:
        """The run with this key. Where MLflow's client called again for a lost answer there are several: one
        stays."""
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'")
        first, *more = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)) or [None]
        for run in more:
            if not run.data.metrics:
                self._client.delete_run(run.info.run_id)
        return first

    def _tell_deleted(self, experiment: str, key: str) -> None:
        """A run that was deleted by hand is not brought back, but what its successor lacks is said."""
        deleted = library().entities.ViewType.DELETED_ONLY
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'", run_view_type=deleted)
        if any(run.data.metrics for run in found):
            gone = next(run.info.run_id for run in found if run.data.metrics)
            say(
                f"warning: MLflow run {gone}, which this run was told to, is deleted; a new one is made, "
                f"without the "
                "points up to now"
            )

    def send(self, points: Sequence[Point]) -> None:
        """At most MOST points, in one call."""
        with sentence(f"MLflow at {redact(self.uri)}"):
            metrics = [library().entities.Metric(p.key, p.value, p.time, p.step) for p in points]
            self._client.log_batch(self.id, metrics=metrics, synchronous=True)

    def tag(self, tags: Mapping[str, str]) -> None:
        with sentence(f"MLflow at {redact(self.uri)}"):
            entries = [library().entities.RunTag(key, redact(str(value))) for key, value in tags.items()]
            self._client.log_batch(self.id, tags=entries, synchronous=True)

    def attach(self, local: Path, folder: str | None = None) -> None:
        """Copy a local file, or all files of a folder, to the run's artifacts."""
        with sentence(f"MLflow artifacts at {redact(self.artifact_uri)}"):
            if local.is_dir():
                self._client.log_artifacts(self.id, str(local), folder)
            else:
                self._client.log_artifact(self.id, str(local), folder)

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        with sentence(f"MLflow artifacts at {redact(self.artifact_uri)}"):
            self._client.log_dict(self.id, dict(values), name)

    def register(self, model: str, folder: str) -> str:
        """The version of ``model`` made of the run's artifact ``folder``, with alias candidate: its number.

        A version that an earlier call has made of this run is taken, not a second one made.
        """
        with sentence(f"registered model {model}"):
            mlflow_client.refuse_prompt(self._client, model, uri=self.uri)
            try:
                self._client.create_registered_model(model)
            except library().exceptions.MlflowException as fault:
                if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self.artifact_uri}/{folder}"
            if not self._versions(model, source):
                self._client.create_model_version(model, source, self.id)
                for again in self._versions(model, source)[
                    1:
                ]:  # MLflow's client called again for a lost answer
                    self._client.delete_model_version(model, again)
            version = self._versions(model, source)[0]
            self._client.set_registered_model_alias(model, "candidate", version)
            return version

    def _versions(self, model: str, source: str) -> list[str]:
        """The versions of ``model`` that were made of ``source``, a folder of this run's, oldest first."""
        found = self._client.search_model_versions(f"run_id = '{self.id}'")
        numbers = [
            int(version.version) for version in found if version.name == model and version.source == source
        ]
        return [str(number) for number in sorted(numbers)]

    def _params(self, params: Mapping[str, Any]) -> None:
        entries = [library().entities.Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), 100):
            self._client.log_batch(self.id, params=entries[start : start + 100], synchronous=True)

    def end(self, status: str) -> None:
        with sentence(f"MLflow at {redact(self.uri)}"):
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
            with signals.delayed():
                self._client = mlflow_client.connect(uri)
                with sentence(f"MLflow at {redact(uri)}"):
                    identifier = mlflow_client.experiment(self._client, experiment, artifact_uri, uri=uri)
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
        with signals.delayed():
            try:
                self.finish(status)
            except TrackError as second:
                if fault is None:
                    raise
                say(f"warning: {second}")
