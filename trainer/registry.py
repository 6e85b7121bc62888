"""The reading side of MLflow: registered models, their files, runs and what they logged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.paths import expand_uri
from trainer.config import default_tracking_uri
from trainer.track import TrackError, sentence, shown  # before mlflow, which reads the environment that it sets

import mlflow  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip


class Registry:
    """Reading side: registered models, runs, and their metrics."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = expand_uri(uri) if uri else default_tracking_uri()
        local = self.uri.removeprefix("sqlite:///")
        if local != self.uri and not Path(local).exists():  # MLflow would make one, only to find it empty
            raise TrackError(f"no MLflow database at {Path(local).absolute()}; run from the folder of your runs, or "
                             "name the database")  # fmt: skip
        with sentence(f"MLflow at {shown(self.uri)}"):
            self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def version(self, model_uri: str) -> Any:
        """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means (name, version, run_id, source)."""
        reference = model_uri.removeprefix("models:/")
        name, at, alias = reference.partition("@")
        bare, _, number = reference.rpartition("/")
        if reference == model_uri or not (at or bare):
            raise ValueError(f"{model_uri} is no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
        with sentence(f"registered model {model_uri} at {shown(self.uri)}"):
            if at:
                return self.client.get_model_version_by_alias(name, alias)
            return self.client.get_model_version(bare, number)

    def download(self, version: Any, into: Path) -> Path:
        """The version's files in a local folder below ``into``."""
        with sentence(f"files of {version.name} version {version.version}"):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=version.source, dst_path=str(into), tracking_uri=self.uri
            )
            return Path(found)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        with sentence(f"registered model {name}"):
            self.client.set_registered_model_alias(name, alias, version)

    def champion(self, name: str) -> Any | None:
        """The version with alias champion, or None."""
        with sentence(f"registered model {name} at {shown(self.uri)}"):
            aliases = self.client.get_registered_model(name).aliases
            return self.client.get_model_version(name, aliases["champion"]) if "champion" in aliases else None

    def run(self, run_id: str) -> Any:
        with sentence(f"run {run_id} at {shown(self.uri)}"):
            return self.client.get_run(run_id)

    def history(self, run_id: str, metric: str) -> pd.DataFrame:
        """Columns step and value, every point ever logged, by step."""
        with sentence(f"run {run_id} at {shown(self.uri)}"):
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
        with sentence(f"MLflow at {shown(self.uri)}"):
            found = self.client.get_experiment_by_name(experiment)
        where = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        where += ["attributes.status = 'FINISHED'"] * finished
        return self.runs(found.experiment_id, " and ".join(where)) if found else []

    def runs(self, experiment_id: str, where: str) -> list[Any]:
        """Runs of an experiment that match an MLflow filter, oldest first."""
        with sentence(f"MLflow at {shown(self.uri)}"):
            found, token = [], None
            while True:
                page = self.client.search_runs([experiment_id], where, order_by=["start_time ASC"], page_token=token)
                found += list(page)
                token = page.token
                if not token:
                    return found
