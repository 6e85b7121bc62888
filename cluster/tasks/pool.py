"""Tasks of different size and needs on Ray, added and taken back while others run; heavy ones begin first.

``jobs.run`` is for many tasks that are alike, all of them known before the first starts.
"""

import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.storage import store
from cluster.tasks import jobs
from cluster.tasks.jobs import WorkerLostError

_REFRESH_S = 5.0  # between questions what the cluster has by now
_JOIN_S = 60.0  # for a node to join the cluster that has what a task needs
_PATIENCE_S = 2.0  # for running tasks to end by themselves when the pool is closed


@dataclass(frozen=True)
class Needs:
    """What a task takes of one node: CPUs, and a share of a GPU or several."""

    cpus: float = 1
    gpus: float = 0

    def fit(self, node: "Needs") -> bool:
        return self.cpus <= node.cpus and self.gpus <= node.gpus

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}{gpus}"


@dataclass(frozen=True)
class Ended:
    """A task that has ended: with ``result``, or with the ``fault`` that it raised."""

    key: Hashable
    result: Any = None
    fault: Exception | None = None


@dataclass
class _Task:
    key: Hashable
    function: Any
    arguments: tuple[Any, ...]
    needs: Needs
    order: tuple[Any, ...]
    failures: int = 0
    not_before: float = 0.0


@dataclass
class Pool:
    """To be used as a context, inside ``ray_session.session``; at its end all tasks that run are ended.

    Attributes:
        may_start: asked just before a task starts the first time; False drops it, and nothing more is heard
            of it. If it raises, the task goes on waiting, and ``wait`` raises that.
        on_retry: told the key and the reason when a task is tried again, because its worker or node died or
            its store was out of reach.
    """

    may_start: Callable[[Any], bool] = lambda key: True
    on_retry: Callable[[Any, str], object] = lambda key, reason: None
    _waiting: list[_Task] = field(default_factory=list)
    _running: dict[Any, _Task] = field(default_factory=dict)
    _nodes: list[Needs] = field(default_factory=list)
    _asked: float = -_REFRESH_S
    _unfit_since: float | None = None
    _submitted: int = 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        jobs.end_all(list(self._running), patience_s=_PATIENCE_S)

    def share(self, value: Any) -> Any:
        """A reference to ``value``, which is sent to each node once; to be given as an argument."""
        return ray.put(value)

    def submit(
        self, key: Hashable, function: Callable[..., Any], *arguments: Any, needs: Needs, order: Any
    ) -> None:
        """Run ``function(*arguments)`` once what it ``needs`` is free; of several, the lowest ``order``
        first. References among the arguments are given to the function as their values."""
        self._submitted += 1
        self._waiting.append(_Task(key, function, arguments, needs, (order, self._submitted)))
        self._waiting.sort(key=lambda task: task.order)

    @property
    def waiting(self) -> int:
        """Tasks that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def fault_of(self, needs: Needs) -> str:
        """Why no node of the cluster can ever give ``needs``, in words; "" if one can."""
        nodes = self._cluster()
        if any(needs.fit(node) for node in nodes):
            return ""
        largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=None)
        has = f"the largest of {len(nodes)} has {largest}" if largest else "there is none"
        return f"needs a node with {needs}, and {has}"

    def drop(self, wanted: Callable[[Any], bool]) -> None:
        """Forget the waiting tasks whose key is ``wanted``."""
        self._waiting = [task for task in self._waiting if not wanted(task.key)]

    def runs(self, wanted: Callable[[Any], bool]) -> bool:
        """Whether a task whose key is ``wanted`` runs."""
        return any(wanted(task.key) for task in self._running.values())

    def wait(self, timeout_s: float) -> list[Ended]:
        """The tasks that have ended, at the latest after ``timeout_s``; may be none."""
        refused = self._start()
        if refused:
            return refused
        pause = min([timeout_s, _REFRESH_S, *self._pauses()])
        if not self._running:
            time.sleep(pause)
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=pause)
        if ready:  # and those that ended meanwhile
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [ended for reference in ready if (ended := self._end(reference))]

    def _pauses(self) -> list[float]:
        now = time.monotonic()
        return [max(0.01, task.not_before - now) for task in self._waiting if task.not_before > now]

    def _end(self, reference: Any) -> Ended | None:
        """How a task ended; None if it is tried again."""
        task = self._running.pop(reference)
        try:
            return Ended(task.key, jobs.result_of(reference))
        except (WorkerLostError, store.TransientError) as fault:
            task.failures += 1
            pause = jobs.pause_after(task.failures)
            if pause is None:
                return Ended(task.key, fault=fault)
            task.not_before = time.monotonic() + pause
            self._waiting.insert(0, task)
            self.on_retry(task.key, str(fault))
            return None
        except Exception as fault:
            return Ended(task.key, fault=fault)

    def _start(self) -> list[Ended]:
        """Start what fits; the tasks that no node can ever take, as ended."""
        now, nodes = time.monotonic(), self._cluster()
        free = _sum(nodes, minus=[task.needs for task in self._running.values()])
        unfit = []
        for task in list(self._waiting):
            if task.not_before > now:
                continue
            if not any(task.needs.fit(node) for node in nodes):
                unfit.append(task)
            elif task.needs.fit(free):
                starts = bool(task.failures) or self.may_start(task.key)
                self._waiting.remove(task)
                if starts:
                    self._launch(task)
                    free = Needs(free.cpus - task.needs.cpus, free.gpus - task.needs.gpus)
        return self._refuse(unfit, now)

    def _launch(self, task: _Task) -> None:
        needs = task.needs
        # Ray ends a worker after each task with a GPU, since torch keeps the GPU that it began with. Where no
        # node has two, workers stay, and the next task need not import torch again.
        calls = 0 if all(node.gpus <= 1 for node in self._nodes) else int(needs.gpus > 0)
        remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_calls=calls,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )(task.function)
        self._running[remote.remote(*task.arguments)] = task

    def _refuse(self, unfit: list[_Task], now: float) -> list[Ended]:
        """Those of ``unfit`` that are given up. A node of a cluster may still join; the machine stays."""
        self._unfit_since = (self._unfit_since or now) if unfit else None
        grows = bool(os.environ.get("RAY_ADDRESS"))
        if not unfit or self._running or (grows and now - (self._unfit_since or now) < _JOIN_S):
            return []
        for task in unfit:
            self._waiting.remove(task)
        return [Ended(task.key, fault=RuntimeError(f"it {self.fault_of(task.needs)}")) for task in unfit]

    def _cluster(self) -> list[Needs]:
        """What each node has in all, those that run only."""
        if time.monotonic() - self._asked >= _REFRESH_S:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._nodes = [Needs(has.get("CPU", 0), has.get("GPU", 0)) for has in alive]
            self._asked = time.monotonic()
        return self._nodes


def _sum(nodes: list[Needs], *, minus: list[Needs]) -> Needs:
    return Needs(
        sum(node.cpus for node in nodes) - sum(taken.cpus for taken in minus),
        sum(node.gpus for node in nodes) - sum(taken.gpus for taken in minus),
    )
