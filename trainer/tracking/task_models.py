"""Fine-tuned models in MLflow: files at the run that made them, then a LoggedModel and a version of a name.

Each call may be made again after a kill: what is there is used, and of two made at once the first stays.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import ConfigError, redact
from trainer.tracking import mlflow_client, names
from trainer.tracking.mlflow_client import library, track_errors
from trainer.tracking.mlflow_run import Run
from trainer.tracking.provenance import NOTE
from trainer.tracking.registry import Registry
from trainer.tracking.version_text import MODEL_VERSIONS, versions_text

_FOLDER = "task_model"  # of the run's artifacts
_STATE = "task_model"  # tag of a run: _STORED, "not the best", or _VERSION and which
_STORED, _VERSION = "stored", "version "
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_TASK = "task"  # tag of a registered model that holds fine-tuned ones


def store(run: Run, folder: Path) -> None:
    """Upload the files of a fine-tuned model to the run that made it, which then says so."""
    run.attach(folder, _FOLDER)
    run.tag({_STATE: _STORED})


@dataclass(frozen=True)
class TaskVersion:
    """What is registered: by which run, under which name, with what beside it."""

    name: str
    run: Any  # MLflow's
    task: str
    tags: Mapping[str, str]


class TaskModels:
    """The fine-tuned models of one MLflow. Its methods raise TrackError if MLflow refuses or is away."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._client = registry, registry.client

    def refuse_name(self, name: str, *, task: str) -> None:
        """ConfigError if the models of ``task`` cannot have the ``name``: MLflow takes it not, or it is a
        prompt's or an encoder's."""
        what = f"task {task}: its models would be {name}"
        try:
            names.model(name)
        except ValueError as fault:
            raise ConfigError(f"{what}, but {fault}; give the task another name") from fault
        with track_errors(f"registered model {name} at {redact(self._registry.uri)}"):
            if self._client.get_prompt(name) is not None:
                raise ConfigError(f"{what}, which is the name of a prompt; give the task another name")
            try:
                found = self._client.get_registered_model(name)
            except library().exceptions.MlflowException as fault:
                if fault.error_code != _MISSING:
                    raise
                return
            if found.latest_versions and _TASK not in found.tags:
                raise ConfigError(
                    f"{what}, which is the name of a model that is not fine-tuned on a task; give the task "
                    "another name"
                )

    def refuse_as_encoder(self, name: str) -> None:
        """ConfigError if ``name`` is that of fine-tuned models: they are used, and not fine-tuned again."""
        with track_errors(f"registered model {name} at {redact(self._registry.uri)}"):
            try:
                tags = self._client.get_registered_model(name).tags
            except library().exceptions.MlflowException as fault:
                if fault.error_code != _MISSING:
                    raise
                return  # who opens it says so
        if _TASK in tags:
            raise ConfigError(
                f"{name} is a model that was fine-tuned on the task {tags[_TASK]}, not an encoder; give the "
                "encoder that it was made of, or use it with python -m trainer.predict"
            )

    def is_stored(self, run: Any) -> bool:
        """Whether the files of a fine-tuned model lie at the run."""
        return bool(run.data.tags.get(_STATE) == _STORED)

    def is_registered(self, run: Any) -> bool:
        """Whether a version was made of the run's model."""
        return str(run.data.tags.get(_STATE, "")).startswith(_VERSION)

    def version_of(self, run: Any) -> tuple[str, str] | None:
        """The name and number of the version that was made of the run's model, if one was."""
        number, _, name = str(run.data.tags.get(_STATE, "")).removeprefix(_VERSION).partition(" of ")
        return (name, number) if self.is_registered(run) else None

    def fetch(self, run: Any, into: Path) -> Path:
        """The files of a run's model, in a local folder below ``into``."""
        with track_errors(f"files of the fine-tuned model of run {run.info.run_id}"):
            uri = f"{run.info.artifact_uri}/{_FOLDER}"
            found = library().artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(into), tracking_uri=self._registry.uri
            )
            return Path(found)

    def remove(self, run: Any) -> None:
        """Delete the files of a run's model, which is not the best; the run says so."""
        self.remove_files(run)
        self._set_state(run, "not the best")

    def close(self, run: Any, *, name: str, version: str) -> None:
        """The files of a run's model lie at a version now, and no more at the run, which says so."""
        self._set_state(
            run, f"{_VERSION}{version} of {name}"
        )  # first, since without files none is registered
        self.remove_files(run)

    def remove_files(self, run: Any) -> None:
        """Delete the files of a run's model, if there are any."""
        with track_errors(f"files of the fine-tuned model of run {run.info.run_id}"):
            place = library().artifacts.get_artifact_repository(
                run.info.artifact_uri, tracking_uri=self._registry.uri
            )
            place.delete_artifacts(_FOLDER)

    def _set_state(self, run: Any, state: str) -> None:
        with track_errors(f"run {run.info.run_id}"):
            self._client.set_tag(run.info.run_id, _STATE, state)

    def register(self, new: TaskVersion, make: Callable[[str], Path]) -> str:
        """The number of the version of ``new.name`` for the model of ``new.run``, made if there is none.

        Args:
            make: gives the folder to be uploaded, an MLflow model with the id that it is called with.
        """
        with track_errors(f"registered model {new.name}"):
            model = self._logged_model(new)
            if str(model.status) != "READY":
                self._client.log_model_artifacts(model.model_id, str(make(model.model_id)))
                self._link(new.run, model.model_id)
                self._client.finalize_logged_model(model.model_id, "READY")
            return self._version(new, model)

    def describe(self, name: str, version: str, description: str) -> None:
        """The description of a version and of its logged model, in markdown."""
        with track_errors(f"registered model {name}"):
            self._client.update_model_version(name, version, description)
            run = self._client.get_run(self._client.get_model_version(name, version).run_id)
            told = {MODEL_VERSIONS: versions_text(name, version), NOTE: description}
            for model in self._logged_models(run)[:1]:
                self._client.set_logged_model_tags(model.model_id, told)

    def tag(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        with track_errors(f"registered model {name}"):
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)

    def _logged_model(self, new: TaskVersion) -> Any:
        found = self._logged_models(new.run)
        if not found:
            self._client.create_logged_model(
                new.run.info.experiment_id,
                name=re.sub(r"[/:.%\"']", "_", new.name),  # it takes fewer characters than a registered one
                source_run_id=new.run.info.run_id,
                tags=dict(new.tags),
            )
            found = self._logged_models(new.run)
            for duplicate in found[1:]:
                self._client.delete_logged_model(duplicate.model_id)
        return found[0]

    def _logged_models(self, run: Any) -> list[Any]:
        """The LoggedModels of a run, oldest first."""
        where = f"source_run_id = '{run.info.run_id}'"
        found = self._client.search_logged_models([run.info.experiment_id], where)
        return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))

    def _link(self, run: Any, model_id: str) -> None:
        """The scores of the run are the model's, too, and the model is an output of the run."""
        entities = library().entities
        points = [
            entities.Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id)
            for point in run.data.to_proto().metrics
        ]
        self._client.log_batch(run.info.run_id, metrics=points, synchronous=True)
        there = self._client.get_run(run.info.run_id).outputs
        if model_id not in [output.model_id for output in there.model_outputs]:
            self._client.log_outputs(run.info.run_id, [entities.LoggedModelOutput(model_id, 0)])

    def _version(self, new: TaskVersion, model: Any) -> str:
        client = self._client
        mlflow_client.refuse_prompt(client, new.name, uri=self._registry.uri)
        try:
            client.create_registered_model(
                new.name,
                {_TASK: new.task},
                f"Encoders of {new.name.removesuffix('-' + new.task)} fine-tuned on the task {new.task}: of "
                "each version of the encoder, the model that is best on dev. `champion` is the best of them, "
                "on the same dev rows.\n\n"
                f"```\npython -m trainer.predict --model models:/{new.name}@champion --input sequences.fa "
                "--output predictions.parquet\n```",
            )
        except library().exceptions.MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not self._versions(new):
            client.create_model_version(
                new.name,
                model.artifact_location,
                new.run.info.run_id,
                tags=dict(new.tags),
                model_id=model.model_id,
            )
            for duplicate in self._versions(new)[1:]:  # made by another process, or as an answer was lost
                try:
                    client.delete_model_version(new.name, duplicate)
                except library().exceptions.MlflowException as fault:
                    if fault.error_code != _MISSING:
                        raise
        return self._versions(new)[0]

    def _versions(self, new: TaskVersion) -> list[str]:
        """The versions of the name that the run's model has, oldest first."""
        found = self._client.search_model_versions(f"run_id = '{new.run.info.run_id}'")
        return [str(n) for n in sorted(int(each.version) for each in found if each.name == new.name)]
