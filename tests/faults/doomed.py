"""A whole training run on this rank, and what befalls it at a step: run on every rank by the tests of
faults."""

import contextlib
import io
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from mlflow import MlflowClient

from cluster.process.command import exit_code
from cluster.process.heartbeat import heartbeat
from cluster.process.signals import StopSignals
from cluster.storage import remote, store
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.engine import Engine
from trainer.engine.process_group import init_distributed
from trainer.models import pretrained
from trainer.run import train as training
from trainer.run.checkpoint import save
from trainer.run.config import TrainConfig
from trainer.run.train import train

Fate = tuple[str, int, int]  # what, at which step, on which rank


def run(
    values: dict[str, Any], fates: Sequence[Fate] = (), environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """(exit code, what was said) of the run, unless it is killed. Steps take 0.1 s, so that saves keep up
    with them."""
    os.environ |= environment or {}
    init_distributed(torch.device("cpu"))
    group, said = Group.of(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.ExitStack() as stack:
        stops = StopSignals()
        stack.enter_context(_before(Engine, "backward", None, lambda: time.sleep(0.1)))
        for what, step, rank in fates:
            if rank == group.rank:
                stack.enter_context(FATES[what](step))

        def command() -> int:
            try:
                return train(
                    TrainConfig.model_validate(values), device=torch.device("cpu"), group=group, stops=stops
                )
            except RuntimeError as fault:
                if lost := collectives.lost_peers(fault):
                    raise RuntimeError(lost) from fault
                raise

        code = exit_code(command, main=group.rank == 0)
        stops.close()
    return code, said.getvalue()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _before(
    owner: Any, name: str, step: int | None, act: Callable[[], None], *, call: int = 1
) -> Iterator[None]:
    """``act`` before the ``call``-th call of owner.name in ``step``, or in every step."""
    original, calls = getattr(owner, name), {}

    def instead(*args: Any, **kwargs: Any) -> Any:
        now = heartbeat.read().step
        if step in (None, now):
            calls[now] = calls.get(now, 0) + 1
            if calls[now] == call:
                act()
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, instead):
        yield


@contextlib.contextmanager
def _saving(owner: Any, name: str, step: int, *, half: bool = False) -> Iterator[None]:
    """Die when owner.name is called for the checkpoint of ``step``; with ``half``, once some of its file is
    written."""
    original = getattr(owner, name)

    def instead(*args: Any, **kwargs: Any) -> Any:
        uris = [each for each in args if isinstance(each, str) and f"step-{step:08d}" in each]
        if uris and half:
            with store.publish(uris[0]) as file:
                file.write(b"half of it" * 100)
                file.flush()
                die()
        if uris:
            die()
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, instead):
        yield


@contextlib.contextmanager
def _exporting(step: int) -> Iterator[None]:
    """Die when half of the weights of the export of ``step`` are written."""
    publish = store.publish

    @contextlib.contextmanager
    def instead(uri: str) -> Iterator[Any]:
        with publish(uri) as file:
            if f"step-{step:08d}/{pretrained.WEIGHTS}" in uri:
                file.write(b"half of it")
                file.flush()
                die()
            yield file

    with mock.patch.object(store, "publish", instead):
        yield


@contextlib.contextmanager
def _of_mlflow(name: str, number: int) -> Iterator[None]:
    """Die before the ``number``-th call of this method of MLflow's client."""
    original, calls = getattr(MlflowClient, name), itertools.count(1)

    def instead(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            die()
        return original(*args, **kwargs)

    with mock.patch.object(MlflowClient, name, instead):
        yield


@contextlib.contextmanager
def _clock_jumps(step: int) -> Iterator[None]:
    """The wall's clock is an hour late from ``step`` on, and then a day early."""
    real = time.time

    def jumping() -> float:
        now = heartbeat.read().step
        return real() - 3600 * (now == step) + 86400 * (now > step)

    with mock.patch.object(time, "time", jumping):
        yield


FATES: dict[str, Callable[[int], Any]] = {
    "forward": lambda step: _before(Engine, "forward", step, die),
    "backward": lambda step: _before(Engine, "backward", step, die, call=2),  # within the accumulation
    "collective": lambda step: _before(collectives, "sum_over_ranks", step, die),
    "checkpoint": lambda step: _saving(save, "_put", step, half=True),
    "publication": lambda step: _saving(save.Saver, "_publish", step),
    "upload": lambda step: _saving(remote, "upload", step),
    "half an export": lambda step: _exporting(step),
    "export": lambda step: _saving(pretrained, "write_stream", step),
    "attach": lambda number: _of_mlflow("log_model_artifacts", number),  # of the number-th version
    "registration": lambda number: _of_mlflow("create_model_version", number),
    "alias": lambda number: _of_mlflow("set_registered_model_alias", number),
    "delivery": lambda step: _before(training, "publish", None, die),  # the run is marked as finished
    "clock": _clock_jumps,
    "told to stop": lambda step: _before(
        Engine, "backward", step, lambda: os.kill(os.getpid(), signal.SIGTERM)
    ),
    "interrupted": lambda step: _before(
        Engine, "backward", step, lambda: os.kill(os.getpid(), signal.SIGINT)
    ),
}
