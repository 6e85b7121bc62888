"""MLflow runs that several processes write at once, and which of several runs counts.

MLflow has no transactions. It has one write that only one of several processes can make: a param of a run is
set once, and a second value is refused. All that must be decided once is decided by such a param.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from configs import redact
from trainer.tracking.mlflow_client import connect, library, track_errors

_FORGOTTEN = ("RESOURCE_DOES_NOT_EXIST",)


@dataclass(frozen=True)
class RunState:
    """What a run holds now; ``active``: it is there and not deleted."""

    params: Mapping[str, str]
    tags: Mapping[str, str]
    status: str
    active: bool


class SharedRuns:
    """The runs of one MLflow that this process shares with others. Its calls raise TrackError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = connect(uri)
        self._place = f"MLflow at {redact(uri)}"

    def read(self, run_id: str) -> RunState:
        with track_errors(f"run {run_id} at {redact(self.uri)}"):
            try:
                run = self._client.get_run(run_id)
            except library().exceptions.MlflowException as fault:
                if fault.error_code in _FORGOTTEN:
                    return RunState({}, {}, "", active=False)
                raise
        active = run.info.lifecycle_stage == library().entities.LifecycleStage.ACTIVE
        return RunState(run.data.params, run.data.tags, run.info.status, active)

    def settle(self, run_id: str, key: str, value: str) -> str:
        """The value of the param ``key``, which is ``value`` if no process has set another before."""
        with track_errors(self._place):
            try:
                self._client.log_param(run_id, key, value)
            except library().exceptions.MlflowException as fault:
                if fault.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                stands = self._client.get_run(run_id).data.params.get(key)
                if stands is None:  # refused for another reason
                    raise
                return str(stands)
            return str(self._client.get_run(run_id).data.params[key])

    def tag(self, run_id: str, key: str, value: str) -> None:
        with track_errors(self._place):
            self._client.set_tag(run_id, key, value)

    def elect(
        self, holder: str, key: str, *, find: Callable[[], str | None] = lambda: None, make: Callable[[], str]
    ) -> str:
        """The run that all processes agree on for ``key`` of the run ``holder``: its id.

        ``find`` gives one that is there already, else ``make`` makes one. What is first proposed stays; a run
        that was made too late is deleted. Where the one that stood was deleted since, the next is elected, by
        a param of its own.
        """
        params = self.read(holder).params
        for number in itertools.count(1):
            name = key if number == 1 else f"{key}.{number}"
            stands, made = params.get(name), ""
            if not stands:
                mine = find() or (made := make())
                stands = self.settle(holder, name, mine)
            if made and stands != made:
                self.drop(made)
            if self.read(stands).active:
                return stands
        raise AssertionError("count has no end")

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """End the run now, also one that has ended before."""
        with track_errors(self._place):
            self._client.set_terminated(run_id, status)

    def drop(self, run_id: str) -> None:
        """Delete a run, as the UI does: it can be restored."""
        with track_errors(self._place):
            self._client.delete_run(run_id)

    def add_point(self, run_id: str, key: str, value: float, *, step: int, time_ms: int) -> None:
        """Log a metric, unless the run has a point of it at this step. The same point twice is one."""
        with track_errors(self._place):
            history = self._client.get_metric_history(run_id, key)
            if step not in {point.step for point in history}:
                self._client.log_metric(run_id, key, value, timestamp=time_ms, step=step)
