"""MLflow itself: the only file that imports it. Its connection, its database, and its errors in one sentence.

Several runs may start at once on a database that does not exist yet. Each MLflow would make its tables step
by step, and all but one would fail. So the processes of one machine make them one at a time; tables that
another machine or another program is making are waited for.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import redact
from trainer.tracking import names

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 take minutes without a message
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds; MLflow's 120 do, too
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_TURN_S = 120.0  # how long a process waits for others of this machine that make the tables
_TABLES_S = 30.0  # how long it waits for tables that somebody else makes
_STALE_S = 3.0  # tables of another version that do not change for so long are not being made
_PAUSE_S = 0.3
# Errors of a database in which several processes make the same tables at the same time.
_RACES = re.compile(
    r"already exists|duplicate column|duplicate key|UNIQUE constraint failed|no such (table|column)|"
    r"expected to match|is locked|[Dd]eadlock|relation .* does not exist"
)
_OTHER_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+), but expected (\w+)\)")
_NO_ANSWER = re.compile(r"failed with (timeout )?exception|failed with error code 5|is locked")


class TrackError(RuntimeError):
    """MLflow refused or did not answer; the message is one sentence that names the URI or model.

    ``transient``: it may work later, since MLflow is out of reach or overloaded.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def library() -> Any:
    """The module ``mlflow``, imported at the first call: that takes seconds, and ranks that track nothing do
    without it.

    Raises:
        TrackError: it is not installed.
    """
    try:
        import mlflow
        import mlflow.artifacts
        import mlflow.entities
        import mlflow.exceptions
    except ModuleNotFoundError as fault:
        raise TrackError(
            f"runs are logged to MLflow, and {fault.name} is not installed: pip install mlflow"
        ) from fault
    for name in ("mlflow", "alembic"):  # importing it sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints tracebacks of what it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def system_monitors() -> list[Any]:
    """MLflow's monitors of this machine: of GPUs too where there are some and nvidia-ml-py is installed."""
    library()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    found: list[Any] = []
    for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(Exception):  # what this machine has not, or does not show
            found.append(monitor())
    return found


def connect(uri: str, *, writes: bool = True) -> Any:
    """MLflow's client of ``uri``, once its tables are complete; ``writes``: runs are written there, too.

    Raises:
        TrackError: nobody answers, it cannot be written, or its tables are of another version.
    """
    check_reachable(uri, writes=writes)
    with track_errors(f"MLflow at {redact(uri)}"):
        began, schema, since = time.monotonic(), "", 0.0
        while True:
            try:
                with _one_at_a_time(uri):
                    return library().MlflowClient(tracking_uri=uri, registry_uri=uri)
            except Exception as fault:
                now = time.monotonic()
                if other := _OTHER_SCHEMA.search(str(fault)):
                    if other[1] != schema:
                        schema, since = other[1], now
                    elif now - since > _STALE_S:
                        raise
                elif not _RACES.search(str(fault)):
                    raise
                if now - began > _TABLES_S:
                    if "is locked" in str(fault):
                        raise
                    raise TrackError(
                        f"MLflow at {redact(uri)}: its tables are not complete after {_TABLES_S:g} s "
                        f"({_in_one_line(fault)}); another process makes them, or was killed while it made "
                        "them: then name another database"
                    ) from fault
            time.sleep(_PAUSE_S)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """One process of this machine at a time if ``uri`` is a file. The lock is on its folder: no file is
    left."""
    path = names.database_file(uri)
    if path is None:
        yield
        return
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(OSError):  # waited too long, or the file system has no locks: who fails tries again
            stack.enter_context(exclusive(path.absolute().parent, wait_s=_TURN_S))
        yield


def check_reachable(uri: str, *, writes: bool = True) -> None:
    """TrackError, within seconds, if nobody answers at the host of ``uri``, or its file cannot be used.

    MLflow itself would go on trying for long.
    """
    if path := names.database_file(uri):
        problem = _file_problem(path, writes=writes)
        if problem:
            raise TrackError(f"MLflow at {redact(uri)}: {problem}")
        return
    found = urlsplit(uri)
    # Behind a proxy (HTTPS_PROXY, NO_PROXY) only a call shows who answers.
    proxy = requests.utils.select_proxy(uri, requests.utils.get_environ_proxies(uri, no_proxy=None))
    if found.scheme in ("http", "https") and found.hostname and not proxy:
        try:
            port = found.port or (443 if found.scheme == "https" else 80)
            socket.create_connection((found.hostname, port), timeout=5).close()
        except OSError as fault:
            text = f"MLflow at {redact(uri)}: {fault.strerror or fault}"
            raise TrackError(text, transient=True) from fault


def _file_problem(path: Path, *, writes: bool) -> str:
    """Why a process cannot use an SQLite file, or make it; "" if it can."""
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is no folder"
    remedy = "make it writable, or name another"
    if not path.exists() or writes:  # SQLite keeps its journal beside the file
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"this user cannot write to the folder {folder}; {remedy}"
        if path.exists() and not os.access(path, os.W_OK):
            return f"this user cannot write to {path}; {remedy}"
    return "" if not path.exists() or os.access(path, os.R_OK) else f"this user cannot read {path}"


def experiment_id(client: Any, name: str, artifact_uri: str | None, *, uri: str) -> str:
    """The id of the experiment, made if there is none.

    Raises:
        TrackError: it was deleted. ValueError: it keeps its artifacts elsewhere.
    """
    if artifact_uri:  # an unknown kind is refused now, not after the last step
        library().artifacts.get_artifact_repository(artifact_uri, tracking_uri=uri)
    found = client.get_experiment_by_name(name)
    if not found:
        try:
            return str(client.create_experiment(name, artifact_uri))
        except library().exceptions.MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another run made it at the same time, or it was made by a call whose answer was lost.
        found = client.get_experiment_by_name(name)
    refuse_deleted(found, uri=uri)
    if artifact_uri and store.absolute(found.artifact_location) != store.absolute(artifact_uri):
        raise ValueError(
            redact(
                f"experiment {name} keeps its artifacts at {found.artifact_location}, not at {artifact_uri}; "
                "give another track.experiment or leave track.artifact_uri out"
            )
        )
    return str(found.experiment_id)


def refuse_deleted(found: Any, *, uri: str) -> None:
    """TrackError, if an experiment was deleted: it keeps its name, and MLflow takes no run for it."""
    if found and found.lifecycle_stage == "deleted":
        raise TrackError(
            f"experiment {found.name} at {redact(uri)} was deleted; restore it (MLFLOW_TRACKING_URI="
            f"{redact(uri)} mlflow experiments restore --experiment-id {found.experiment_id}) or give "
            "another track.experiment"
        )


def refuse_prompt(client: Any, model: str, *, uri: str) -> None:
    """TrackError, if the name of a model is a prompt's: MLflow would add the model to the prompt's
    versions."""
    if client.get_prompt(model) is not None:
        raise TrackError(
            f"{model} is the name of a prompt at {redact(uri)}; give another track.registered_model"
        )


def all_pages(search: Callable[..., Any]) -> list[Any]:
    """All that a search of MLflow, which answers in pages, finds."""
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


@contextmanager
def track_errors(what: str) -> Iterator[None]:
    """An error of MLflow in the block becomes a TrackError about ``what``."""
    try:
        yield
    except TrackError:
        raise
    except requests.exceptions.RequestException as fault:
        raise TrackError(f"{what}: {_in_one_line(fault)}", transient=True) from fault
    except Exception as fault:
        # A database's errors are SQLAlchemy's, a missing driver's ImportError. Artifacts go to their store
        # without MLflow: a folder's errors are OSError, those of S3 botocore's and boto3's.
        origin = type(fault).__module__.split(".")[0]
        if origin == "mlflow":
            text = _in_one_line(getattr(fault, "message", fault))
            raise TrackError(f"{what}: {text}", transient=_is_transient(fault)) from fault
        libraries = ("sqlalchemy", "alembic", "botocore", "boto3")
        if origin in libraries or isinstance(fault, ImportError | OSError):
            locked = "is locked" in str(fault)
            raise TrackError(f"{what}: {_in_one_line(fault)}", transient=locked) from fault
        raise


def _in_one_line(fault: object) -> str:
    """The error without statements and passwords of URIs, which MLflow quotes, and with what to do."""
    text = " ".join(str(fault).split())
    text = re.split(r" \[SQL: | \(Background on this error", text)[0]
    if other := _OTHER_SCHEMA.search(text):
        return (
            f"its tables are of version {other[1]}, and MLflow {library().__version__} wants {other[2]}: "
            "back the database up and run `mlflow db upgrade` on its URI, or, if a newer MLflow made it, "
            "install that one"
        )
    if "Can't locate revision" in text:
        return f"{text}: a newer MLflow than {library().__version__} made its tables; install that one"
    if "readonly database" in text:
        return f"{text}; make its file and folder writable, or give another track.uri"
    if "is locked" in text:
        return f"{text} by another program, which has to end first"
    return str(redact(text))


def _is_transient(fault: Any) -> bool:
    """Whether MLflow was out of reach, or its server failed, and not: it refused."""
    text = str(getattr(fault, "message", fault))
    failed = isinstance(fault, library().exceptions.RestException) and fault.get_http_status_code() >= 500
    return failed or bool(_NO_ANSWER.search(text))
