"""Labelled tasks while the run trains: the teacher's embeddings are read by all ranks together, and the first
fits probe and neighbours to them beside the next steps."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.process.heartbeat import heartbeat
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.distill.method import Method
from trainer.evaluation.config import Validation
from trainer.evaluation.online.messages import Scores, TaskRows, ToRead
from trainer.evaluation.online.slices import SharedTask, embed_together, share_tasks
from trainer.evaluation.tasks.curve_names import downstream, online_scores
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures
from trainer.models.network import Network
from trainer.run.artifacts import Artifacts
from trainer.run.config import TrainConfig
from trainer.run.fit_process import FitError, FitProcess
from trainer.run.flops import embedding_flops, step_flops
from trainer.run.hooks import Hook, StepOutcome, is_due
from trainer.run.train_state import TrainState

_SHARE = 0.04  # of the steps' FLOPs that readings cost where nothing else is asked for
_ROUND = 10  # steps: such intervals are multiples
_POLL_S = 0.1
_STOPPED_S = 5.0  # that a run which is told to stop waits for a fit


def interval(asked: int | None, *, reading: float, step: float) -> int:
    """Steps between two readings: those that were ``asked`` for, or as many as make the FLOPs of a
    ``reading`` at most a _SHARE of those of the steps. ``step``: FLOPs of one."""
    if asked is not None:
        return asked
    return max(1, math.ceil(reading / (_SHARE * step * _ROUND))) * _ROUND


@dataclass(frozen=True)
class Due:
    """Embeddings of ``step`` to be fitted, [N, F] of each task and kind. ``metrics``: of the reading
    itself."""

    step: int
    embeddings: Sequence[Mapping[ProbeFeatures, Tensor]]
    metrics: Mapping[str, float]


class Fits:
    """The fits of the first rank, one after the other; nothing in them ends the run.

    One may be under way. The next waits until it is done, so that every reading is logged, in the order of
    the steps, and memory holds two at most.
    """

    def __init__(
        self,
        tasks: Sequence[TaskRows],
        process: FitProcess,
        log: Callable[[Mapping[str, float], int], None],
        *,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``stopping``: whether the run is told to stop, so that its state must be saved soon."""
        self._tasks, self._log, self._process = tasks, log, process
        self._stopping = stopping
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fits")
        self._latest: Future[None] | None = None
        self._given_up = self._closed = False

    def begin(self, due: Due) -> None:
        """Fit it from now on; ``wait`` comes before."""
        self._latest = self._thread.submit(self._fit, due)

    def wait(self) -> None:
        """Return when no fit is under way, from any thread; where the run is to stop, after some seconds at
        most."""
        stop_s = 0.0
        while self._latest and not self._given_up:
            try:
                self._latest.result(_POLL_S)
                return
            except TimeoutError:
                stop_s += _POLL_S if self._stopping() else 0.0
            if stop_s >= _STOPPED_S:
                self._given_up = True
                say("warning: the last reading of labelled tasks is left out, as the run is told to stop")

    def close(self) -> None:
        """End what is under way, unsaid: the run ends for another reason."""
        self._closed = True
        self._process.close()
        self._thread.shutdown()

    def _fit(self, due: Due) -> None:
        try:
            fitted = self._process.fit(due.embeddings)
        except FitError as fault:
            if self._closed:
                return
            say(f"warning: the labelled tasks are not read at step {due.step}: {fault}")
            return
        metrics, sentences = {**due.metrics, "online/fit_s": fitted.seconds}, []
        for task, scores in zip(self._tasks, fitted.scores, strict=True):
            metrics |= task_metrics(task, scores)
            sentences.append(
                f"{task.name} {task.heading} {scores.probe:.3f}, {scores.knn:.3f}, {scores.floor:.3f}"
            )
        self._log(metrics, due.step)
        say(f"step {due.step}, probe, neighbours and floor on dev: {'; '.join(sentences)}")


def task_metrics(task: TaskRows, scores: Scores) -> dict[str, float]:
    """The metrics of a task at one step, by their names in MLflow."""
    named = online_scores(task.metric, probe=scores.probe, knn=scores.knn, floor=scores.floor)
    return {downstream(task.name, score): value for score, value in named.items()}


class OpenTasks(NamedTuple):
    """The tasks of a run on this rank, and the process that fits, if this is the first."""

    shared: Sequence[SharedTask]
    process: FitProcess | None


@contextmanager
def open_tasks(val: Validation, group: Group, *, device: torch.device) -> Iterator[OpenTasks]:
    """The tasks of ``val``, which a process of the first rank reads, to be embedded on ``device``; a
    collective.

    Raises:
        ConfigError: on all ranks: a task cannot be read. EverywhereError: the process did not work.
    """
    if not val.tasks:
        yield OpenTasks([], None)
        return
    process = FitProcess(ToRead(val.tasks, val.tasks_rows))
    try:
        shared = share_tasks(process.read, group, device=device)
        yield OpenTasks(shared, process if group.rank == 0 else None)
    finally:
        process.close()


@contextmanager
def open_fits(
    tasks: OpenTasks, artifacts: Artifacts | None, *, stopping: Callable[[], bool]
) -> Iterator[Fits | None]:
    """The fits of ``tasks``, where this rank has their process and ``artifacts`` to log to; ``stopping`` as
    Fits."""
    if tasks.process is None or artifacts is None:
        yield None
        return
    fits = Fits(
        [task.rows for task in tasks.shared],
        tasks.process,
        lambda metrics, step: artifacts.log_late(metrics, step=step),
        stopping=stopping,
    )
    try:
        yield fits
    finally:
        fits.close()


class ReadTasks(Hook):
    """The teacher on labelled tasks every ``every`` steps and after the last; see ``open_fits``."""

    def __init__(self, tasks: Sequence[SharedTask], *, every: int, fits: Fits | None, group: Group) -> None:
        self._tasks, self._every, self._fits, self._group = tasks, every, fits, group
        self._began, self._spent_s = time.monotonic(), 0.0

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if self._tasks and (is_due(state.step, self._every) or step.is_last):
            self.run(state)
            step.paused = True

    def run(self, state: TrainState) -> None:
        """Read the teacher now; a collective."""
        if not self._tasks:
            return
        started = time.monotonic()
        with heartbeat.inside("labelled tasks", phase=True):
            teacher = state.teacher.module
            embeddings = [embed_together(teacher, task, group=self._group) for task in self._tasks]
        if self._fits:
            self._wait()
            now = time.monotonic()
            self._spent_s += now - started
            share = self._spent_s / (now - self._began)
            metrics = {"online/step_s": now - started, "online/time_share": share}
            self._fits.begin(Due(state.step, embeddings, metrics))

    def at_end(self, state: TrainState, stop_code: int) -> None:
        self._wait()

    def _wait(self) -> None:
        if self._fits:
            with heartbeat.inside("waiting for probes", phase=True, slow=True):
                self._fits.wait()


def task_hook(
    config: TrainConfig,
    *,
    tasks: Sequence[SharedTask],
    method: Method,
    network: Network,
    fits: Fits | None,
) -> ReadTasks:
    """The hook of ``config``; the first rank says how often it reads, and what that costs."""
    lengths = [length for task in tasks for length in task.slice.lengths]
    reading = embedding_flops(network, lengths)
    shortest = min(part.length for part in config.data.length)
    step = step_flops(method, network, length=shortest) * method.group.size
    every = interval(config.val.tasks_every, reading=reading, step=step)
    if fits:
        names = ", ".join(task.name for task in tasks)
        say(
            f"the teacher is read on {len(lengths):,} rows of {names} every {every:,} steps, at "
            f"{reading / (every * step):.1%} of their FLOPs"
        )
    return ReadTasks(tasks, every=every, fits=fits, group=method.group)
