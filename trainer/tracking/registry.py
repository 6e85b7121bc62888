"""The reading side of MLflow: registered models, their files, runs and what they logged."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.process.paths import expand_uri
from configs import ConfigError, redact
from trainer.tracking import mlflow_client, names
from trainer.tracking.config import default_tracking_uri
from trainer.tracking.mlflow_client import TrackError, library, track_errors


class Registry:
    """One MLflow that is read from."""

    def __init__(self, uri: str | None = None) -> None:
        """ConfigError: ``uri`` is not one that MLflow accepts. TrackError: it has no database, or is away."""
        self.uri = expand_uri(uri) if uri else default_tracking_uri()
        try:
            names.tracking(self.uri)
        except ValueError as fault:
            raise ConfigError(redact(f"the tracking URI {self.uri} {fault}")) from fault
        local = names.database_file(self.uri)
        if local and not local.exists():  # MLflow would make one, only to find it empty
            raise TrackError(
                f"no MLflow database at {local.absolute()}; run from the folder of your runs, or "
                "name the database (an absolute path has a fourth /: sqlite:////PATH)"
            )
        self.client = mlflow_client.connect(self.uri, writes=False)

    def version(self, model_uri: str) -> Any:
        """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` names: MLflow's ModelVersion.

        Raises:
            ConfigError: ``model_uri`` has another form. TrackError: there is no such version.
        """
        try:
            name, alias, number = names.model_reference(model_uri)
        except ValueError as fault:
            raise ConfigError(str(fault)) from fault
        try:
            with track_errors(f"registered model {model_uri} at {redact(self.uri)}"):
                if alias:
                    return self.client.get_model_version_by_alias(name, alias)
                return self.client.get_model_version(name, number)
        except TrackError as fault:
            if fault.transient or not (there := self._what_there_is(name)):
                raise
            raise TrackError(f"{str(fault).rstrip('.')}; {there}") from fault

    def _what_there_is(self, name: str) -> str:
        """The aliases and versions of a model, or else the models; "" where MLflow does not say."""
        with suppress(Exception):
            models = {
                model.name: model for model in mlflow_client.all_pages(self.client.search_registered_models)
            }
            if name not in models:
                return f"its models are {_listed(models) or 'none'}"
            aliases = _listed(f"@{alias}" for alias in models[name].aliases) or "none"
            found = mlflow_client.all_pages(
                partial(self.client.search_model_versions, f"name={_quoted(name)}")
            )
            versions = sorted((str(version.version) for version in found), key=int)
            return f"its aliases are {aliases}, its versions {_listed(versions) or 'none'}"
        return ""

    def download(self, version: Any, into: Path) -> Path:
        """The version's files in a local folder below ``into``."""
        with track_errors(f"files of {version.name} version {version.version}"):
            found = library().artifacts.download_artifacts(
                artifact_uri=version.source, dst_path=str(into), tracking_uri=self.uri
            )
            return Path(found)

    def versions_of(self, run_id: str) -> list[Any]:
        """The versions that a run registered, oldest first, with their tags and aliases."""
        with track_errors(f"versions of run {run_id} at {redact(self.uri)}"):
            search = partial(self.client.search_model_versions, f"run_id = '{run_id}'")
            found = mlflow_client.all_pages(search)
            found.sort(key=lambda version: (version.name, int(version.version)))
            # A search leaves the aliases out.
            return [self.client.get_model_version(one.name, one.version) for one in found]

    def set_alias(self, name: str, alias: str, version: str) -> None:
        with track_errors(f"registered model {name}"):
            self.client.set_registered_model_alias(name, alias, version)

    def champion(self, name: str) -> Any | None:
        """The version with alias champion, or None."""
        with track_errors(f"registered model {name} at {redact(self.uri)}"):
            aliases = self.client.get_registered_model(name).aliases
            return self.client.get_model_version(name, aliases["champion"]) if "champion" in aliases else None

    def run(self, run_id: str) -> Any:
        with track_errors(f"run {run_id} at {redact(self.uri)}"):
            return self.client.get_run(run_id)

    def history(self, run_id: str, metric: str) -> pd.DataFrame:
        """Columns step and value, every point ever logged, by step."""
        with track_errors(f"run {run_id} at {redact(self.uri)}"):
            points = self.client.get_metric_history(run_id, metric)
        return pd.DataFrame(
            {"step": [p.step for p in points], "value": [p.value for p in points]}
        ).sort_values("step")

    def experiment_of(self, run_id: str | None) -> str | None:
        """The name of a run's experiment; None if there is no such run any more."""
        try:
            return (
                self.client.get_experiment(self.client.get_run(run_id).info.experiment_id).name
                if run_id
                else None
            )
        except library().exceptions.MlflowException:
            return None

    def usable(self, experiment: str) -> None:
        """TrackError if the experiment of this name was deleted: no run can be added to it."""
        with track_errors(f"MLflow at {redact(self.uri)}"):
            mlflow_client.refuse_deleted(self.client.get_experiment_by_name(experiment), uri=self.uri)

    def tagged(self, experiment: str | None, tags: Mapping[str, str], *, finished: bool = False) -> list[Any]:
        """Runs that have all ``tags``, oldest first, of the experiment with this name, or of all if None."""
        wanted = {key: str(value) for key, value in tags.items()}  # the number of a version may be an int
        where = [f"tags.`{key}` = {quoted}" for key, value in wanted.items() if (quoted := _quoted(value))]
        where += ["attributes.status = 'FINISHED'"] * finished
        found = self.runs(self._experiments(experiment), " and ".join(where))
        return [run for run in found if wanted.items() <= run.data.tags.items()]

    def _experiments(self, name: str | None) -> list[str]:
        """The id of the experiment with this name, or the ids of all."""
        with track_errors(f"MLflow at {redact(self.uri)}"):
            if name is None:
                found = mlflow_client.all_pages(self.client.search_experiments)
            else:
                found = [one for one in [self.client.get_experiment_by_name(name)] if one]
            return [experiment.experiment_id for experiment in found]

    def runs(self, experiments: str | Sequence[str], where: str) -> list[Any]:
        """Runs of one experiment or several, by id, that match the MLflow filter ``where``, oldest first."""
        ids = [experiments] if isinstance(experiments, str) else list(experiments)
        if not ids:
            return []
        search = partial(self.client.search_runs, ids, where, order_by=["start_time ASC"])
        with track_errors(f"MLflow at {redact(self.uri)}"):
            return mlflow_client.all_pages(search)


def _quoted(value: str) -> str:
    """``value`` for an MLflow filter, which knows two quotes and no way to escape them; "" if it has both."""
    return next((f"{quote}{value}{quote}" for quote in "'\"" if quote not in value), "")


def _listed(names: Iterable[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
