"""A run of MLflow that another process may have made: what is added to it later."""

import time
from collections.abc import Mapping

from trainer.tracking import mlflow_client
from trainer.tracking.mlflow_client import track_errors
from trainer.tracking.mlflow_run import MAX_POINTS, MlflowRun, Point, RunSpec


class KnownRun(MlflowRun):
    """A run that is there already, of any process; nothing about its status changes."""

    def __init__(self, uri: str, run_id: str) -> None:
        """Raises TrackError: there is no such run."""
        super().__init__(RunSpec(uri, "", ""))
        self._client = mlflow_client.connect(uri)
        with track_errors(self._place):
            found = self._client.get_run(run_id)
        self.id, self.artifact_uri = run_id, found.info.artifact_uri
        self.metrics: dict[str, float] = found.data.metrics

    def record_changed(self, values: Mapping[str, float], *, step: int) -> None:
        """Send those of ``values`` that are not the run's last ones."""
        now = int(time.time() * 1000)
        changed = {key: value for key, value in values.items() if self.metrics.get(key) != value}
        for start in range(0, len(changed), MAX_POINTS):
            part = list(changed.items())[start : start + MAX_POINTS]
            self.send([Point(key, float(value), now, step) for key, value in part])
        self.metrics |= changed
