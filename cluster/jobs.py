"""A function over many tasks, on Ray: a local one that starts by itself, or the cluster this process belongs to."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

# Before the import: Ray reads these once. No usage reports; its own warning about GPUs is not for our users.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
    # The local Ray asks for a token of this process's own. Left to itself, Ray writes one to the home folder, and every
    # cluster started there later would ask for it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
from ray.exceptions import RayError, RayTaskError

T = TypeVar("T")
R = TypeVar("R")

_RESULTS_BYTES = 128 << 20  # tasks return summaries, not data: Ray's default would take a third of the memory
_RETRIES = 3  # of a task whose worker died; a task that raises is not tried again


@contextlib.contextmanager
def session(workers: int | None = None) -> Iterator[int]:
    """Ray for the length of the block; gives the number of tasks to run at once.

    Joins the cluster of RAY_ADDRESS (set inside ``ray job submit``) where there is one, else starts a local Ray of
    ``workers`` CPUs (default: those of this process) and stops it at the end. Inside another session it uses that one.

    Raises:
        RuntimeError: RAY_ADDRESS does not answer, or no local Ray can be started.
    """
    address = os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {} if address else {
            "address": "local", "num_cpus": workers or len(os.sched_getaffinity(0)),
            "include_dashboard": False, "object_store_memory": _RESULTS_BYTES,
        }
        try:
            _probe(address)
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
        except (RayError, OSError, RuntimeError, ValueError) as fault:
            where = f"join the Ray cluster at RAY_ADDRESS={address}" if address else "start a local Ray"
            raise RuntimeError(f"cannot {where}: {' '.join(str(fault).split())[:300]}") from fault
    try:
        yield workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if started:
            ray.shutdown()


def run(function: Callable[[T], R], tasks: Sequence[T], *, workers: int | None = None,
        on_result: Callable[[int, R], None] | None = None) -> list[R]:
    """``function`` of every task, in the order of ``tasks``; at most ``workers`` at once, one CPU and thread each.

    ``on_result(index, result)`` is called here as each one ends, in any order. ``function`` must be importable on the
    workers. A task whose worker dies is tried again; what a task raises is raised here as itself, after the tasks still
    running have stopped, so that nothing is written any more once this returns.

    Raises:
        RuntimeError: a task's worker died each time, or the cluster was lost.
    """
    results: dict[int, R] = {}
    with session(workers) as slots:
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        waiting = iter(enumerate(tasks))
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < slots and (following := next(waiting, None)) is not None:
                    running[remote.remote(following[1])] = following[0]
                if not running:
                    break
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    index = running.pop(reference)
                    results[index] = _get(reference, index)
                    if on_result:
                        on_result(index, results[index])
        finally:
            _stop(list(running))
    return [results[index] for index in range(len(tasks))]


def _probe(address: str | None) -> None:
    """OSError within seconds where nothing listens at ``address``: Ray tries for minutes, and warns."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _get(reference: Any, index: int) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as fault:
        cause = fault.cause if isinstance(fault.cause, Exception) else None
        raise cause or RuntimeError(f"task {index} failed: {fault}") from fault
    except RayError as fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        kind = type(fault).__name__
        raise RuntimeError(f"task {index} was lost after {_RETRIES} retries ({kind}): {reason}") from fault


def _stop(running: list[Any]) -> None:
    for reference in running:
        ray.cancel(reference)  # raises KeyboardInterrupt in the task, whose temporary files then go
    for reference in running:
        with contextlib.suppress(Exception):  # whatever it ends with, the fault that brought us here is the one to tell
            ray.get(reference, timeout=30)
