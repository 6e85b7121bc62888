"""Runs in MLflow: the writing side.

``Run`` sends every call at once and raises what goes wrong: for fine-tuning. ``ResumableRun`` is found again
when its training resumes; uploader.py sends to it in the background and waits for an MLflow that is away.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cluster.process import signals
from configs import redact
from trainer.core.console import say
from trainer.tracking import mlflow_client
from trainer.tracking.inputs import DatasetInput
from trainer.tracking.mlflow_client import TrackError, library, track_errors
from trainer.tracking.provenance import EXPERIMENT_TAGS, NOTE

MAX_POINTS = 1000  # in one call
_BATCH = 500  # points that ``Run.log`` collects before it sends them
_PARAMS = 100  # in one call
_KEY = "run.key"
_PARENT = "mlflow.parentRunId"


class Point(NamedTuple):
    """One value of a metric; ``time`` in ms since 1970."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class RunSpec:
    """Which MLflow run, and what it holds from its first moment.

    Attributes:
        key: the value of its tag ``run.key``, by which a training run is found again.
        parent: the id of the run that it is a child of.
        registered_model: the name that its model will be registered under.
        inputs: the datasets that it reads.
        about: what the experiment is for, in markdown; stands where its description is still empty.
        start_ms: when its work began, in ms since 1970; None: now.
    """

    uri: str
    experiment: str
    name: str
    artifact_uri: str | None = None
    key: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    registered_model: str | None = None
    inputs: Sequence[DatasetInput] = ()
    about: str = ""
    start_ms: int | None = None

    @property
    def all_tags(self) -> dict[str, str]:
        """``tags``, and those that hold key and parent."""
        own = {_KEY: self.key, _PARENT: self.parent}
        return dict(self.tags) | {tag: value for tag, value in own.items() if value is not None}


class MlflowRun:
    """One MLflow run. Its methods are single calls that raise TrackError if MLflow refuses or is away."""

    def __init__(self, spec: RunSpec) -> None:
        """``id`` and ``artifact_uri`` are empty until MLflow has answered."""
        self.spec, self.id, self.artifact_uri = spec, "", ""
        self._client: Any = None

    @property
    def client(self) -> Any:
        """MLflow's own, once it has answered."""
        return self._client

    @property
    def _place(self) -> str:
        return f"MLflow at {redact(self.spec.uri)}"

    def _experiment_id(self) -> str:
        spec = self.spec
        found = mlflow_client.experiment_id(self._client, spec.experiment, spec.artifact_uri, uri=spec.uri)
        wanted = EXPERIMENT_TAGS | ({NOTE: spec.about} if spec.about else {})
        there = self._client.get_experiment(found).tags
        for key in wanted.keys() - there.keys():  # what somebody chose stays
            self._client.set_experiment_tag(found, key, redact(wanted[key]))
        return found

    def _send_inputs(self) -> None:
        """The datasets; MLflow keeps each once, however often it is told."""
        if self.spec.inputs:
            self._client.log_inputs(self.id, [each.to_mlflow() for each in self.spec.inputs])

    def send(self, points: Sequence[Point]) -> None:
        """At most MAX_POINTS points, in one call."""
        with track_errors(self._place):
            metrics = [library().entities.Metric(p.key, p.value, p.time, p.step) for p in points]
            self._client.log_batch(self.id, metrics=metrics, synchronous=True)

    def tag(self, tags: Mapping[str, str]) -> None:
        with track_errors(self._place):
            entries = [library().entities.RunTag(key, redact(str(value))) for key, value in tags.items()]
            self._client.log_batch(self.id, tags=entries, synchronous=True)

    def attach(self, local: Path, folder: str | None = None) -> None:
        """Copy a local file, or all files of a folder, to the run's artifacts."""
        with track_errors(f"MLflow artifacts at {redact(self.artifact_uri)}"):
            if local.is_dir():
                self._client.log_artifacts(self.id, str(local), folder)
            else:
                self._client.log_artifact(self.id, str(local), folder)

    def attach_dict(self, values: Mapping[str, Any], name: str) -> None:
        """``values`` as the artifact ``name``, a YAML or JSON file by its ending."""
        with track_errors(f"MLflow artifacts at {redact(self.artifact_uri)}"):
            self._client.log_dict(self.id, dict(values), name)

    def _send_params(self, params: Mapping[str, Any]) -> None:
        entries = [library().entities.Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS):
            self._client.log_batch(self.id, params=entries[start : start + _PARAMS], synchronous=True)

    def end(self, status: str) -> None:
        with track_errors(self._place):
            self._client.set_terminated(self.id, status)


class ResumableRun(MlflowRun):
    """The MLflow run of a training run, which is found again by its key.

    ``experiment_id`` is empty until MLflow has answered.
    """

    experiment_id = ""

    @property
    def page(self) -> str:
        """The address of the run in MLflow's UI, opened in Model training; "" where no server is known.

        What kind of experiment it shows, MLflow 3.17's UI takes from the address, not from the experiment.
        """
        uri = str(redact(self.spec.uri)).rstrip("/").replace("***@", "")
        if not (self.id and self.experiment_id and uri.startswith("http")):
            return ""
        return f"{uri}/#/experiments/{self.experiment_id}/runs/{self.id}?workflowType=machine_learning"

    def open(self) -> dict[str, int]:
        """The last step of each metric that MLflow has of this run. It is made if there is none, and RUNNING.

        May be called again, after a call whose outcome is not known.

        Raises:
            TrackError: MLflow refused. ValueError: the experiment keeps its artifacts elsewhere.
        """
        spec = self.spec
        if self._client:
            mlflow_client.check_reachable(spec.uri)
        else:
            self._client = mlflow_client.connect(spec.uri)
        with track_errors(self._place):
            if self.id:  # if it was deleted since, MLflow refuses it: no second run is made
                run = self._client.get_run(self.id)
            else:
                if spec.registered_model:
                    mlflow_client.refuse_prompt(self._client, spec.registered_model, uri=spec.uri)
                run = self._find_or_create()
            self._client.update_run(run.info.run_id, status="RUNNING")
            self.id, self.artifact_uri = run.info.run_id, run.info.artifact_uri
            self.experiment_id = run.info.experiment_id
            self.tag(spec.tags)
            # A parameter keeps its first value when a run resumes with another one: MLflow takes no second.
            there = run.data.params
            self._send_params({key: value for key, value in spec.params.items() if key not in there})
            self._send_inputs()
            found = self._client.get_run(self.id).data.to_proto().metrics
            return {metric.key: metric.step for metric in found}

    def points_of(self, step: int, *, prefix: str) -> dict[str, Any]:
        """MLflow's Metric of each key with this ``prefix`` that has a point at ``step``."""
        keys = [key for key in self._client.get_run(self.id).data.metrics if key.startswith(prefix)]
        histories = {key: self._client.get_metric_history(self.id, key) for key in sorted(keys)}
        return {key: point for key, points in histories.items() for point in points if point.step == step}

    def _find_or_create(self) -> Any:
        experiment = self._experiment_id()
        run = self._find(experiment)
        if run is None:
            self._warn_of_deleted(experiment)
            self._client.create_run(experiment, run_name=self.spec.name, tags=self.spec.all_tags)
            run = self._find(experiment)
        assert run, "the run that was just made is found"
        return run

    def _find(self, experiment: str) -> Any | None:
        """The run with this key. Of several, made because an answer was lost, the first stays."""
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{self.spec.key}'")
        first, *more = sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)) or [None]
        for run in more:
            if not run.data.metrics:
                self._client.delete_run(run.info.run_id)
        return first

    def _warn_of_deleted(self, experiment: str) -> None:
        """A run that a user deleted is not restored, but its points are missing from the new one."""
        deleted = library().entities.ViewType.DELETED_ONLY
        where = f"tags.`{_KEY}` = '{self.spec.key}'"
        found = self._client.search_runs([experiment], where, run_view_type=deleted)
        for run in [run for run in found if run.data.metrics][:1]:
            say(
                f"warning: MLflow run {run.info.run_id}, which held this run, is deleted; a new one is made, "
                "without the points up to now"
            )


class Run(MlflowRun):
    """A new run whose every call is made at once; ``with`` ends it."""

    def __init__(self, spec: RunSpec) -> None:
        """Raises TrackError: MLflow refused. ValueError: the experiment keeps its artifacts elsewhere."""
        super().__init__(spec)
        self._pending: list[Point] = []
        try:
            with signals.delayed():
                self._client = mlflow_client.connect(spec.uri)
                with track_errors(self._place):
                    made = self._client.create_run(
                        self._experiment_id(), spec.start_ms, run_name=spec.name, tags=spec.all_tags
                    )
                    self.id, self.artifact_uri = made.info.run_id, made.info.artifact_uri
                    self._send_params(spec.params)
                    self._send_inputs()
        except BaseException as fault:
            if self.id:
                self._end_after(fault)
            raise

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step``. They are sent together with others, at the latest by ``finish``."""
        now = int(time.time() * 1000)
        self._pending += [Point(key, float(value), now, step) for key, value in metrics.items()]
        if len(self._pending) >= _BATCH:
            self._flush()

    def record(self, results: Mapping[str, float]) -> None:
        """Send a run's results at once, as step 0."""
        now = int(time.time() * 1000)
        self.send([Point(key, value, now, 0) for key, value in results.items()])

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is pending, then end the run."""
        self._flush()
        self.end(status)

    def _flush(self) -> None:
        while self._pending:
            part, self._pending = self._pending[:MAX_POINTS], self._pending[MAX_POINTS:]
            self.send(part)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        self._end_after(fault)

    def _end_after(self, fault: BaseException | None) -> None:
        """FINISHED, FAILED, or KILLED if a signal stopped the process."""
        status = "FINISHED" if fault is None else "FAILED" if isinstance(fault, Exception) else "KILLED"
        with signals.delayed():
            try:
                self.finish(status)
            except TrackError as second:
                if fault is None:
                    raise
                say(f"warning: {second}")
