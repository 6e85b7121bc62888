"""What all ranks do with run.dir together before they train: take its lock, and agree on what it holds."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from cluster.storage import store
from cluster.storage.lock import Lock, LockedError, hold
from configs import ConfigError
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.run import artifacts, run_status
from trainer.run.config import TrainConfig
from trainer.run.run_status import RunStatus


@dataclass(frozen=True)
class Plan:
    """A run that is to be trained: ``config``, with the schedule that the run in run.dir began with.

    ``same_run``: run.dir holds this very run, so that its MLflow run goes on. ``datasets``: as RunStatus has
    them.
    """

    config: TrainConfig
    same_run: bool
    datasets: Mapping[str, str]


def plan(config: TrainConfig, group: Group, *, locked: bool = False) -> Plan | None:
    """The run that is to be trained; None if it is finished. A collective: rank 0 reads, all hear.

    ``locked``: this run holds the lock of run.dir. A finished run that MLflow does not have all of is
    delivered.

    Raises:
        ConfigError: run.dir holds anything else. EverywhereError: it cannot be read.
    """
    status = RunStatus("new")
    with collectives.first_rank_decides(group, ConfigError, store.StoreError):
        if group.rank == 0:
            status = run_status.inspect(config)
    status = collectives.object_from_first(group, status)
    if status.kind == "undelivered":
        with nullcontext() if locked else hold_lock(config.run.dir, group):
            artifacts.deliver(config, group)
        return None
    if status.kind == "finished":
        if group.rank == 0:
            say(f"{config.run.dir} holds this run, finished; nothing to do")
        return None
    says = locked and group.rank == 0  # once
    scheduled = _with_schedule(config, status.schedule_steps, says=says)
    return Plan(scheduled, status.same_run, status.datasets)


def _with_schedule(config: TrainConfig, steps: int, *, says: bool) -> TrainConfig:
    """``config`` with schedules of ``steps`` steps; 0 leaves them as they are. ``says``: that they differ."""
    if steps in (0, config.schedule_steps):
        return config
    if says and config.train.schedule_steps is None:
        say(
            f"train.steps is {config.train.steps} now; the schedules stay those of {steps} steps, as the "
            f"run began"
        )
    train = config.train.model_copy(update={"schedule_steps": steps})
    return config.model_copy(update={"train": train})


@contextmanager
def hold_lock(run_dir: str, group: Group) -> Iterator[Lock | None]:
    """The lock of ``run_dir``, which rank 0 holds for all, until the block ends; None on the other ranks.

    Raises:
        EverywhereError: another run holds it, or run.dir cannot be written to.
    """
    with ExitStack() as stack:
        lock = None
        with collectives.first_rank_decides(group, LockedError, store.StoreError):
            if group.rank == 0:
                token = os.environ.get("DNA_RUN_TOKEN")
                lock = stack.enter_context(hold(run_dir, name=run_status.LOCK, token=token))
        yield lock
