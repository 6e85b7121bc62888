"""A function over many tasks, on Ray or in this process."""

import contextlib
import heapq
import os
import random
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage import store
from cluster.tasks.places import Homes, Nodes, Waiting, free
from cluster.tasks.ray_session import session

T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 4  # of a task whose worker or node died, or whose store was out of reach
_BACKOFF_S = 1.0  # before the first retry; doubled with each further one
_PATIENCE_S = 10.0  # for running tasks to end once another has failed, or the user has interrupted
_REFRESH_S = 5.0  # between questions how many CPUs the cluster has by now
_MOST_CPUS = 10_000  # that an autoscaler is asked for


@dataclass(frozen=True)
class Near:
    """Tasks of one ``key`` run on few nodes: those that have met it, in this run or, by ``homes``, before."""

    key: Callable[[Any], Hashable]
    homes: Homes = field(default_factory=Homes)


def run(
    function: Callable[..., R],
    tasks: Sequence[T],
    *,
    workers: int | None = None,
    on_result: Callable[[int, R], None] | None = None,
    on_retry: Callable[[int, str], None] | None = None,
    shared: Any = None,
    near: Near | None = None,
) -> list[R]:
    """``function`` of every task, in the order of ``tasks``; at most ``workers`` at once, one CPU and thread
    each.

    Without ``workers`` as many as there are CPUs, while nodes join the cluster and leave it; its autoscaler
    is asked for a CPU for each task. Where there is none, the first task waits for a node, and ``on_retry``
    is told. Tasks are spread over the nodes, or go where ``near`` says.
    ``on_result(index, result)`` is called here as each task ends, in any order. With ``shared``, that object
    is sent to each node once and ``function(task, shared)`` is called; numpy arrays in it are read-only views
    of shared memory. ``function`` must be importable on the workers, and its arguments must mean the same in
    any working directory.

    A task whose worker or node dies, or that raises ``store.TransientError``, is tried again on any node
    after a pause that doubles each time; ``on_retry(index, reason)`` is told. Anything else that a task
    raises is raised here as itself, after the tasks that run have ended or been killed, so that nothing is
    written any more once this returns.

    Raises:
        RuntimeError: a task's worker died each time, or the cluster was lost.
    """
    results: dict[int, R] = {}
    with session(workers):
        slots, queue = _Slots(workers), _Queue(tasks, near, Nodes(workers, _REFRESH_S))
        remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(function)
        arguments = () if shared is None else (ray.put(shared),)
        running: dict[Any, int] = {}
        try:
            while len(results) < len(tasks):
                count = slots.count(wanted=len(tasks) - len(results))
                while len(running) < count and (start := queue.pop(running.values())) is not None:
                    index, node = start
                    there = remote.options(scheduling_strategy=_on(node)) if node else remote
                    running[there.remote(tasks[index], *arguments)] = index
                pause = queue.pause() if len(running) < count else None
                if not running:
                    time.sleep(pause or 0)
                    continue
                if slots.are_missing() and on_retry:
                    reason = "no node of the Ray cluster has a CPU yet; waiting for one"
                    on_retry(next(iter(running.values())), reason)
                for reference in ray.wait(list(running), num_returns=1, timeout=slots.limit(pause))[0]:
                    index = running.pop(reference)
                    try:
                        results[index] = result_of(reference)
                    except (WorkerLostError, store.TransientError) as fault:
                        if not queue.put_back(index):
                            raise
                        if on_retry:
                            on_retry(index, str(fault))
                    else:
                        if on_result:
                            on_result(index, results[index])
        finally:
            slots.withdraw()
            end_all(list(running))
    return [results[index] for index in range(len(tasks))]


def run_here_or_there(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    on_result: Callable[[int, R], None] | None = None,
) -> list[R]:
    """As ``run``; with one worker in this process, which saves the start of Ray."""
    if workers > 1:
        return run(function, tasks, workers=workers, on_result=on_result)
    results = []
    for index, task in enumerate(tasks):
        results.append(function(task))
        if on_result:
            on_result(index, results[-1])
    return results


def pause_after(failures: int) -> float | None:
    """Seconds until a task that has failed so often is tried again; None if it has failed too often."""
    return None if failures > _RETRIES else _BACKOFF_S * 2 ** (failures - 1) * random.uniform(0.8, 1.2)


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=True)  # elsewhere, if the node is gone by then


class _Queue:
    """Which task starts next, and where: one that has failed, once its pause is over, before a fresh one."""

    def __init__(self, tasks: Sequence[Any], near: Near | None, nodes: Nodes) -> None:
        keys = [near.key(task) for task in tasks] if near else [None] * len(tasks)
        self._fresh = Waiting(keys, near.homes if near else Homes())
        self._nodes = nodes if near else None
        self._places: dict[int, str] = {}  # by task: the node that it was last sent to
        self._failures = [0] * len(tasks)
        self._again: list[tuple[float, int]] = []  # a heap: (when a failed task may start, its index)

    def pop(self, running: Collection[int] = ()) -> tuple[int, str | None] | None:
        """A task by index, and its node; None for any node. None if no task had better start now."""
        if self._again and self._again[0][0] <= time.monotonic():
            failed = heapq.heappop(self._again)[1]
            self._places.pop(failed, None)
            return failed, None
        slots = self._nodes.slots() if self._nodes else {}
        if len(slots) < 2:
            index = self._fresh.pop_any()
            return None if index is None else (index, None)
        for node in free(slots, [self._places.get(index) for index in running]):
            if (index := self._fresh.pop(node, slots)) is not None:
                self._places[index] = node
                return index, node
        return None

    def put_back(self, index: int) -> bool:
        """Start the task again after a pause; False if it has failed too often."""
        self._failures[index] += 1
        pause = pause_after(self._failures[index])
        if pause is None:
            return False
        heapq.heappush(self._again, (time.monotonic() + pause, index))
        return True

    def pause(self) -> float | None:
        """Seconds until a failed task may start; None if there is none."""
        return max(0.01, self._again[0][0] - time.monotonic()) if self._again else None


class _Slots:
    """How many tasks may run at once: ``workers``, else the CPUs that the cluster has now, at least 1."""

    def __init__(self, workers: int | None) -> None:
        self._workers, self._cpus, self._reported, self._requested = workers, 1, False, 0
        self._began, self._asked = time.monotonic(), -_REFRESH_S

    def count(self, *, wanted: int = 0) -> int:
        """``wanted``: how many could run at once, if there were room."""
        if self._workers:
            return self._workers
        if time.monotonic() - self._asked >= _REFRESH_S:
            self._cpus, self._asked = int(ray.cluster_resources().get("CPU", 0)), time.monotonic()
            self._request(wanted if wanted > self._cpus or self._requested else 0)
        return max(1, self._cpus)

    def withdraw(self) -> None:
        """Ask the autoscaler for nothing any more."""
        with contextlib.suppress(Exception):  # the cluster may be lost, and is not what to report
            self._request(0)

    def _request(self, cpus: int) -> None:
        """Ask an autoscaler for so many CPUs in all: Ray tells it only of tasks in queues of its own.
        Of several jobs on a cluster, the last to ask is heard."""
        cpus = min(cpus, _MOST_CPUS)
        if os.environ.get("RAY_ADDRESS") and cpus != self._requested:
            from ray.autoscaler import sdk  # a tenth of a second, which no worker need spend

            sdk.request_resources(num_cpus=cpus)
            self._requested = cpus

    def limit(self, pause: float | None) -> float | None:
        """``pause``, or less if the number of CPUs is to be asked for before its end; None for ever."""
        return pause if self._workers else min(_REFRESH_S, pause or _REFRESH_S)

    def are_missing(self) -> bool:
        """Whether there has been no CPU for a while; True only once."""
        waited = time.monotonic() - self._began
        if self._workers or self._cpus or self._reported or waited < _PATIENCE_S:
            return False
        self._reported = True
        return True


class WorkerLostError(RuntimeError):
    """A task ended without a result or an exception of its own: its worker, node or cluster is gone."""


def result_of(reference: Any) -> Any:
    """What a task of Ray returned; what it raised is raised as itself.

    Raises:
        WorkerLostError: its worker, node or cluster is gone.
    """
    try:
        return ray.get(reference)
    except RayTaskError as fault:
        cause = fault.cause if isinstance(fault.cause, Exception) else None
        raise cause or RuntimeError(f"a task failed: {fault}") from fault
    except RayError as fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise WorkerLostError(f"a worker was lost ({type(fault).__name__}): {reason}") from fault


def end_all(running: list[Any], *, patience_s: float | None = None) -> None:
    """Wait for the tasks of ``running`` to end; after ``patience_s`` kill the workers of the others."""
    if not running:
        return
    patience_s = _PATIENCE_S if patience_s is None else patience_s
    # Ray 2.60 aborts the whole driver if a task is cancelled just as it ends. Most end by themselves.
    _, late = ray.wait(running, num_returns=len(running), timeout=patience_s)
    for reference in late:
        ray.cancel(reference, force=True)
    for reference in late:
        with contextlib.suppress(Exception):  # the fault to raise is the one that led here
            ray.get(reference, timeout=30)
