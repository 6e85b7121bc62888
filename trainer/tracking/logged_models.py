"""The logged models of a training run in MLflow: one for each registered step, with files that never change.

A kill or a lost answer may leave one that is pending, or two: they are found again by run and step.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.tracking.mlflow_client import all_pages, library, track_errors
from trainer.tracking.mlflow_run import ResumableRun
from trainer.tracking.version_text import Facts

_STEP, _READY = "step", "READY"  # a tag, a status
_VALIDATION = "val/"
_PARAMS = ("model.", "loss.", "data.length", "train.global_batch", "run.seed", "parameters")


def step_of(tagged: Any) -> int:
    """The step of a logged model or version of ours; -1 of any other."""
    text = tagged.tags.get(_STEP, "")
    return int(text) if text.isdecimal() else -1


class LoggedModels:
    """Those of one run. Its methods may be called again after any outcome."""

    def __init__(self, run: ResumableRun, fetch: Callable[[int, Path], bool]) -> None:
        """``fetch``: see ``Registering`` in versions.py."""
        self._run, self._fetch = run, fetch

    def all(self) -> list[Any]:
        """MLflow's LoggedModels of the run, oldest first."""
        where = f"source_run_id = '{self._run.id}'"
        found = all_pages(
            lambda page_token: self._run.client.search_logged_models(
                [self._run.experiment_id], where, page_token=page_token
            )
        )
        return sorted(
            (each for each in found if step_of(each) >= 0), key=lambda each: each.creation_timestamp
        )

    def ready(self, facts: Facts) -> Any | None:
        """The logged model of this step, with its files and metrics; it is made if there is none.

        None if the export is gone. Files that are there stay as they are.
        """
        model = self._one_of(facts.step)
        if model is None or str(model.status) != _READY:
            with tempfile.TemporaryDirectory() as folder:
                if not self._fetch(facts.step, Path(folder)):
                    return None
                model = model or self._create(facts)
                self._run.client.log_model_artifacts(model.model_id, folder)
            self._run.client.finalize_logged_model(model.model_id, _READY)
        self._link(model, facts.step)
        return model

    def discard(self, model: Any) -> None:
        """Delete a logged model with its files: first these, so that a kill leaves it to be found again."""
        location = model.artifact_location
        with track_errors(f"files of {model.name} at {location}"):
            repository = library().artifacts.get_artifact_repository(
                location, tracking_uri=self._run.spec.uri
            )
            repository.delete_artifacts()
        self._run.client.delete_logged_model(model.model_id)

    def _one_of(self, step: int) -> Any | None:
        found = [model for model in self.all() if step_of(model) == step]
        found.sort(key=lambda model: str(model.status) != _READY)
        for duplicate in found[1:]:
            self.discard(duplicate)
        return found[0] if found else None

    def _create(self, facts: Facts) -> Any:
        params = self._run.client.get_run(self._run.id).data.params
        self._run.client.create_logged_model(
            self._run.experiment_id,
            name=re.sub(r"[/:.%\"'\s]", "_", f"{facts.model}-step-{facts.step}"),
            source_run_id=self._run.id,
            tags={_STEP: str(facts.step), "bp": str(facts.bp)},
            params={key: value for key, value in params.items() if key.startswith(_PARAMS)},
            model_type="encoder",
        )
        return self._one_of(facts.step)

    def _link(self, model: Any, step: int) -> None:
        """The run's validation at this step, as the model's metrics; and the model as an output of the run.

        The points are sent again as MLflow has them, so that the run's own stay as they are.
        """
        client, run = self._run.client, self._run
        linked = {metric.key for metric in model.metrics or ()}
        missing = [
            library().entities.Metric(
                point.key, point.value, point.timestamp, point.step, model_id=model.model_id
            )
            for key, point in run.points_of(step, prefix=_VALIDATION).items()
            if key not in linked
        ]
        if missing:
            client.log_batch(run.id, metrics=missing, synchronous=True)
        outputs = getattr(client.get_run(run.id).outputs, "model_outputs", None) or []
        if model.model_id not in {output.model_id for output in outputs}:
            client.log_outputs(run.id, [library().entities.LoggedModelOutput(model.model_id, step)])
