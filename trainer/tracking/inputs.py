"""Datasets as inputs of an MLflow run: what stands in its column Dataset."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import store
from configs import redact
from trainer.tracking.mlflow_client import library

_DIGEST = 36  # characters; MLflow takes no more


@dataclass(frozen=True)
class DatasetInput:
    """One dataset, or one split of it, that a run reads.

    Attributes:
        name, digest: together they say which data these are; of a long digest the beginning.
        uri: where it lies.
        context: what the run does with it: training, validation, test.
        columns: name -> MLflow's type (string, long, double).
        profile: counts that the UI shows.
    """

    name: str
    digest: str
    uri: str
    context: str
    columns: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)

    def to_mlflow(self) -> Any:
        """MLflow's DatasetInput."""
        entities = library().entities
        uri = str(redact(store.absolute(self.uri)))
        kind = "local" if store.is_local(self.uri) else uri.split(":", 1)[0]
        columns = [{"name": name, "type": kind, "required": True} for name, kind in self.columns.items()]
        return entities.DatasetInput(
            entities.Dataset(
                name=self.name[:500],
                digest=self.digest[:_DIGEST],
                source_type=kind,
                source=json.dumps({"uri": uri}),
                schema=json.dumps({"mlflow_colspec": columns}),
                profile=json.dumps(dict(self.profile)),
            ),
            tags=[entities.InputTag("mlflow.data.context", self.context)],
        )
