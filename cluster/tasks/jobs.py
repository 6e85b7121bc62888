"""A function over many tasks, on Ray: a local one that starts by itself, or the cluster this process belongs
to."""

import contextlib
import heapq
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# Before the import: Ray reads these once. No usage reports; its own warning about GPUs is not for our users.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
    # The local Ray asks for a token of this process's own. Left to itself, Ray writes one to the home folder,
    # and every cluster started there later would ask for it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.process import host
from cluster.storage import store

T = TypeVar("T")
R = TypeVar("R")

_RESULTS_BYTES = 1 << 30  # tasks return summaries, not data: Ray's default would take a third of the memory
_RETRIES = 4  # of a task whose worker or node died, or whose store was out of reach
_BACKOFF = 1.0  # seconds before the first retry; doubled with each further one
_PATIENCE = 10.0  # seconds that tasks get to end once another has failed, or the user has had enough
_LOOK = 5.0  # seconds, at most, between looks at how many CPUs a cluster has by now
_SOCKET = 107  # bytes that Linux takes as a socket's path
_BELOW = len(
    "/ray/session_2026-11-26_17-52-33_719043_1234567/sockets/plasma_store.1"
)  # what Ray puts below its TMPDIR


def cpus() -> int:
    """The cores that this process may use."""
    return host.usable()


@contextlib.contextmanager
def short_folder() -> Iterator[str | None]:
    """A way to Ray's temporary folder that is short enough for its sockets; None where its own way is.

    What Ray writes stays in the folder of RAY_TMPDIR or TMPDIR: the way is a link in /tmp, which goes with
    the block.

    Raises:
        RuntimeError: no link can be made.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "TMPDIR")
    taken = os.path.abspath(os.environ.get(variable) or "/tmp")
    if len(os.fsencode(taken)) + _BELOW <= _SOCKET:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = tempfile.mkdtemp(prefix="dna-ray-", dir="/tmp")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            os.makedirs(f"{taken}/ray", exist_ok=True)
            os.symlink(f"{taken}/ray", f"{folder}/ray")
        except OSError as fault:
            raise RuntimeError(
                f"cannot start a local Ray: {variable}={taken} is too long for its sockets, whose paths "
                f"begin with it and may have {_SOCKET} bytes, and no short way to it can be made "
                f"({fault}); set RAY_TMPDIR to a short folder"
            ) from fault
        yield f"{folder}/ray"


@contextlib.contextmanager
def join(address: str | None = None, *, local_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address``, else that of RAY_ADDRESS (set inside ``ray
    job submit``), else a local Ray of ``local_cpus`` CPUs (default: those of this process).

    What was started is stopped at the end, and a cluster is left as it is. Inside another block it uses that
    Ray.

    Raises:
        RuntimeError: the cluster does not answer or asks for another token, or no local Ray can be started.
    """
    if ray.is_initialized():
        yield
        return
    named, address = address, address or os.environ.get("RAY_ADDRESS")
    with contextlib.nullcontext() if address else short_folder() as folder:
        how: dict[str, Any] = (
            {"address": address}
            if address
            else {
                "address": "local",
                "num_cpus": local_cpus or cpus(),
                "include_dashboard": False,
                "object_store_memory": _RESULTS_BYTES,
                **({"_temp_dir": folder} if folder else {}),
            }
        )
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            _probe(address)
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own ends the process without a word
        except SystemExit:  # Ray's own, while it starts
            if callable(on_sigterm):
                on_sigterm(signal.SIGTERM, None)
            raise
        except Exception as fault:  # Ray's own are of any kind: a slow start is an Exception
            at = address if named else f"RAY_ADDRESS={address}"
            where = f"join the Ray cluster at {at}" if address else "start a local Ray"
            # Ray tells a wrong token from a cluster that is not there in its log alone.
            hint = (
                "; something listens there: do RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) "
                "hold the "
                "cluster's token?"
                if address and isinstance(fault, ConnectionError) and listens(address)
                else ""
            )
            raise RuntimeError(f"cannot {where}: {' '.join(str(fault).split())[:300]}{hint}") from fault
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def session(workers: int | None = None) -> Iterator[int]:
    """Ray for the length of the block, as ``join`` gives it; yields the number of tasks to run at once:
    ``workers``, else one for each CPU of the cluster, or of this process.

    Raises:
        RuntimeError: RAY_ADDRESS does not answer, or no local Ray can be started.
    """
    with join(local_cpus=workers):
        yield workers or max(1, int(ray.cluster_resources().get("CPU", 1)))


def run(
    function: Callable[..., R],
    tasks: Sequence[T],
    *,
    workers: int | None = None,
    on_result: Callable[[int, R], None] | None = None,
    on_retry: Callable[[int, str], None] | None = None,
    shared: Any = None,
) -> list[R]:
    """``function`` of every task, in the order of ``tasks``; at most ``workers`` at once, one CPU and thread
    each.

    Without ``workers`` as many as there are CPUs, also those of nodes that join the cluster meanwhile; where
    it has none, the first task waits for a node, and ``on_retry`` hears of it. Tasks are spread over the
    nodes. ``on_result(index, result)`` is called here as each one ends, in any order. With ``shared``, that
    object is sent to each node once and ``function(task, shared)`` is called; numpy arrays in it are
    read-only views of shared memory. ``function`` must be importable on the workers, and what it is given
    must mean the same in any working directory.

    A task whose worker or node dies, or that raises ``store.TransientError``, is tried again on any node
    after a pause that doubles each time; ``on_retry(index, reason)`` hears of it. Anything else that a task
    raises is raised here as itself, after those still running have ended or been killed, so that nothing is
    written any more once this returns.

    Raises:
        RuntimeError: a task's worker died each time, or the cluster was lost.
    """
    results: dict[int, R] = {}
    failures = dict.fromkeys(range(len(tasks)), 0)
    with session(workers):
        room = _Room(workers)
        remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(function)
        arguments = () if shared is None else (ray.put(shared),)
        fresh = iter(range(len(tasks)))
        again: list[
            tuple[float, int]
        ] = []  # a heap: when a task that failed may start; it then goes before fresh ones
        running: dict[Any, int] = {}
        try:
            while len(results) < len(tasks):
                slots = room.now()
                while len(running) < slots:
                    ripe = again and again[0][0] <= time.monotonic()
                    index = heapq.heappop(again)[1] if ripe else next(fresh, -1)
                    if index < 0:
                        break
                    running[remote.remote(tasks[index], *arguments)] = index
                pause = max(0.01, again[0][0] - time.monotonic()) if again and len(running) < slots else None
                if not running:
                    time.sleep(pause or 0)
                    continue
                if workers is None:
                    pause = min(_LOOK, pause or _LOOK)
                if room.is_missing() and on_retry:
                    on_retry(
                        next(iter(running.values())),
                        "no node of the Ray cluster has a CPU yet; waiting for one",
                    )
                for reference in ray.wait(list(running), num_returns=1, timeout=pause)[0]:
                    index = running.pop(reference)
                    try:
                        results[index] = _get(reference)
                    except (_WorkerLostError, store.TransientError) as fault:
                        failures[index] += 1
                        if failures[index] > _RETRIES:
                            raise
                        if on_retry:
                            on_retry(index, str(fault))
                        pause = _BACKOFF * 2 ** (failures[index] - 1) * random.uniform(0.8, 1.2)
                        heapq.heappush(again, (time.monotonic() + pause, index))
                    else:
                        if on_result:
                            on_result(index, results[index])
        finally:
            _stop(list(running))
    return [results[index] for index in range(len(tasks))]


def run_here_or_there(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    on_result: Callable[[int, R], None] | None = None,
) -> list[R]:
    """As ``run``, but in this process where one worker is all that is asked for, which spares the start of
    Ray."""
    if workers > 1:
        return run(function, tasks, workers=workers, on_result=on_result)
    results = []
    for index, task in enumerate(tasks):
        results.append(function(task))
        if on_result:
            on_result(index, results[-1])
    return results


class _Room:
    """How many tasks may run at once: ``workers``, else the CPUs that the cluster has now, at least 1."""

    def __init__(self, workers: int | None) -> None:
        self._workers, self._cpus, self._looked, self._since, self._told = (
            workers,
            1,
            -_LOOK,
            time.monotonic(),
            False,
        )

    def now(self) -> int:
        if self._workers:
            return self._workers
        if time.monotonic() - self._looked >= _LOOK:
            self._cpus, self._looked = int(ray.cluster_resources().get("CPU", 0)), time.monotonic()
        return max(1, self._cpus)

    def is_missing(self) -> bool:
        """Whether there has been no CPU for a while; it is said once."""
        if self._workers or self._cpus or self._told or time.monotonic() - self._since < _PATIENCE:
            return False
        self._told = True
        return True


class _WorkerLostError(RuntimeError):
    """A task ended without result or exception of its own: its worker, its node, or the cluster is gone."""


def listens(address: str, *, seconds: float = 10) -> bool:
    """Whether anything takes a connection at ``address`` (HOST:PORT)."""
    with contextlib.suppress(OSError):
        _probe(address, seconds)
        return True
    return False


def _probe(address: str | None, seconds: float = 10) -> None:
    """OSError within seconds where nothing listens at ``address``: Ray tries for minutes, and warns."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=seconds).close()


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as fault:
        cause = fault.cause if isinstance(fault.cause, Exception) else None
        raise cause or RuntimeError(f"a task failed: {fault}") from fault
    except RayError as fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise _WorkerLostError(f"a worker was lost ({type(fault).__name__}): {reason}") from fault


def _stop(running: list[Any]) -> None:
    """Let the tasks of ``running`` end; after _PATIENCE kill the workers of those that have not."""
    if not running:
        return
    # Ray 2.60 aborts the whole driver where a cancellation meets a task that is just ending: most end by
    # themselves.
    _, late = ray.wait(running, num_returns=len(running), timeout=_PATIENCE)
    for reference in late:
        ray.cancel(reference, force=True)
    for reference in late:
        with contextlib.suppress(
            Exception
        ):  # whatever it ends with, the fault that brought us here is the one to tell
            ray.get(reference, timeout=30)
