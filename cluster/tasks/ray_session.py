"""Ray for the length of a block: a local one that starts by itself, or a cluster that is there already."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import ray

from cluster.process import host, signals
from cluster.process.exits import brief

_OBJECTS_BYTES = 1 << 30  # tasks return summaries, not data: Ray's default would take a third of the memory
_SOCKET = 107  # bytes that Linux allows for the path of a socket
_BELOW = len("/ray/session_2026-11-26_17-52-33_719043_1234567/sockets/plasma_store.1")  # below Ray's TMPDIR
_PROBE_S = 10.0


@contextlib.contextmanager
def join(address: str | None = None, *, local_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address``, else that of RAY_ADDRESS (set inside ``ray
    job submit``), else a local Ray of ``local_cpus`` CPUs (default: those of this process).

    A local Ray is stopped at the end, and a cluster stays as it is. Inside another such block, this one uses
    the same Ray.

    Raises:
        RuntimeError: the cluster does not answer or asks for another token, or no local Ray can be started.
    """
    if ray.is_initialized():
        yield
        return
    named, address = address, address or os.environ.get("RAY_ADDRESS")
    with contextlib.nullcontext() if address else short_folder() as folder:
        try:
            _start({"address": address} if address else _local_options(local_cpus or host.usable(), folder))
        except Exception as fault:  # Ray raises errors of any kind: a slow start is a plain Exception
            cluster = f"join the Ray cluster at {named or f'RAY_ADDRESS={address}'}"
            what = cluster if address else "start a local Ray"
            hint = _token_hint(address, fault) if address else ""
            raise RuntimeError(f"cannot {what}: {brief(str(fault), 300)}{hint}") from fault
        except KeyboardInterrupt:  # told to stop while Ray started
            ray.shutdown()
            raise
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


def listens(address: str, *, seconds: float = _PROBE_S) -> bool:
    """Whether anything takes a connection at ``address`` (HOST:PORT)."""
    with contextlib.suppress(OSError):
        _probe(address, seconds)
        return True
    return False


@contextlib.contextmanager
def short_folder() -> Iterator[str | None]:
    """A folder for Ray whose path is short enough for its sockets; None where the default path is.

    Ray's files stay in the folder of RAY_TMPDIR or TMPDIR: the short path is a link in /tmp, which is removed
    after the block.

    Raises:
        RuntimeError: no link can be made.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "TMPDIR")
    given = os.path.abspath(os.environ.get(variable) or "/tmp")
    if len(os.fsencode(given)) + _BELOW <= _SOCKET:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = tempfile.mkdtemp(prefix="dna-ray-", dir="/tmp")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            os.makedirs(f"{given}/ray", exist_ok=True)
            os.symlink(f"{given}/ray", f"{folder}/ray")
        except OSError as fault:
            raise RuntimeError(
                f"cannot start a local Ray: {variable}={given} is too long for its sockets, whose paths "
                f"begin with it and may have {_SOCKET} bytes, and no short link to it can be made "
                f"({fault}); set RAY_TMPDIR to a short folder"
            ) from fault
        yield f"{folder}/ray"


def _local_options(cpus: int, folder: str | None) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _OBJECTS_BYTES,
        **({"_temp_dir": folder} if folder else {}),
    }


def _start(options: dict[str, Any]) -> None:
    """``ray.init``. Signals that come during it are handled at its end.

    Ray's own handler would raise SystemExit in the middle of anything, also where Python ignores exceptions
    (a hook of a fork): the signal would be lost, and the process would go on.
    """
    _probe(options["address"])
    with signals.delayed(), _without_handler_of_ray():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextlib.contextmanager
def _without_handler_of_ray() -> Iterator[None]:
    """Ray installs no handler of SIGTERM during the block."""
    utils = ray._private.utils
    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install


def _token_hint(address: str, fault: Exception) -> str:
    """Advice where the token may be wrong: Ray reports that in its log alone, as a cluster that is not
    there."""
    if not (isinstance(fault, ConnectionError) and listens(address)):
        return ""
    return (
        "; something listens there: do RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) hold the "
        "cluster's token?"
    )


def _probe(address: str, seconds: float = _PROBE_S) -> None:
    """OSError within ``seconds`` where nothing listens at ``address``: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=seconds).close()
