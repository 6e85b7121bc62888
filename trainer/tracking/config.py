"""The config section ``track``: which MLflow, and what goes there."""

import os
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from cluster.process import paths
from configs import Section
from configs.numbers import Positive
from trainer.tracking import names


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the working folder, which a bare ``mlflow ui`` shows."""
    return paths.expand_uri(os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db")


class Track(Section):
    """``every``: steps between two readings of throughput and memory. ``wait_s``: seconds that a finished run
    waits for an MLflow that is away. ``system_metrics``: whether the first rank's machine is watched.
    ``report_every``: steps between two reports while the run trains; 0: none, at the end neither."""

    uri: Annotated[str, AfterValidator(names.tracking)] = Field(
        default_factory=default_tracking_uri, validate_default=True
    )
    artifact_uri: str | None = None
    experiment: Annotated[str, AfterValidator(names.experiment)] = "findna"
    registered_model: Annotated[str, AfterValidator(names.model)] | None = "findna"
    every: Positive = 50
    system_metrics: bool = True
    report_every: Annotated[int, Field(ge=0)] = 1000
    wait_s: Annotated[float, Field(ge=0)] = 60.0

    @field_validator("uri", "artifact_uri")
    @classmethod
    def _expanded(cls, uri: str | None) -> str | None:
        return uri and paths.expand_uri(uri)
