"""The config section ``track``: which MLflow, and what goes there."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cluster.process import paths
from configs import Section
from configs.numbers import Positive
from trainer.tracking import names


def default_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in the working folder, which a bare ``mlflow ui`` shows."""
    return paths.expand_uri(os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db")


class Track(Section):
    """Which MLflow, and what goes there.

    Attributes:
        register_every: steps between two versions of registered_model; 0: one at the end alone.
        register_keep: the newest versions of this run that stay; 0: all.
        candidate: when the alias of this name moves to a new version: see candidate.py.
        every: steps between two readings of throughput and memory.
        system_metrics: whether the first rank's machine is watched.
        report_every: steps between two reports while the run trains; 0: none, at the end neither.
        wait_s: seconds that a finished run waits for an MLflow that is away.
    """

    uri: Annotated[str, AfterValidator(names.tracking)] = Field(
        default_factory=default_tracking_uri, validate_default=True
    )
    artifact_uri: str | None = None
    experiment: Annotated[str, AfterValidator(names.experiment)] = "findna"
    registered_model: Annotated[str, AfterValidator(names.model)] | None = "findna"
    register_every: Annotated[int, Field(ge=0)] = 0
    register_keep: Annotated[int, Field(ge=0)] = 5
    candidate: Literal["better", "always"] = "better"
    every: Positive = 50
    system_metrics: bool = True
    report_every: Annotated[int, Field(ge=0)] = 1000
    wait_s: Annotated[float, Field(ge=0)] = 60.0

    @field_validator("uri", "artifact_uri")
    @classmethod
    def _expanded(cls, uri: str | None) -> str | None:
        return uri and paths.expand_uri(uri)

    @model_validator(mode="after")
    def _has_a_name(self) -> "Track":
        if self.register_every and self.registered_model is None:
            raise ValueError("register_every needs the name of a model in registered_model, or must be 0")
        return self
