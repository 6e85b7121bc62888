"""Checks of what a run reaches over the network: the store, MLflow, and the clocks of their servers."""

import contextlib
import email.utils
import http.client
import os
import re
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor.finding import Finding, graded
from cluster.storage import store
from configs import redact

_OBJECT = 8 << 20
_SKEW_S, _WRONG_S = 5.0, 300.0  # of a clock: a warning, a failure; S3 refuses 15 minutes
_CREDENTIALS = {  # by scheme: what to look at where a store does not accept them
    **dict.fromkeys(("s3", "s3a"), "the AWS_ variables"),
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(
        ("az", "abfs", "abfss"),
        "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    ),
}
_REFUSED = re.compile(
    r"(?i)^(?!.*(no credentials|\(\w*(Skewed|Signature|AccessKey|Token)\w*\)))"
    r".*(denied|forbidden|not permitted)"
)


@dataclass(frozen=True)
class _Step:
    """``run`` returns whether the store gave back what was written. ``right``: the right that S3 asks for."""

    name: str
    run: Callable[[], bool]
    right: str


@dataclass(frozen=True)
class _Failure:
    """``refused``: the store answers, but does not allow the step."""

    found: str
    advice: str
    refused: bool = False


def store_round_trip(uri: str) -> Iterator[Finding]:
    """8 MiB written below ``uri``, read back, listed and removed; each right that is missing, by its name."""
    shown = redact(uri)
    if urlsplit(uri).scheme in ("http", "https"):
        yield Finding(
            "store",
            "warning",
            f"{shown} is a web server: it takes no files, and nothing was tried",
            "it can be data.uri; give output and run.dir a folder or a bucket, and try that",
        )
        return
    if urlsplit(uri).scheme == "hf":
        yield from _only_read(uri)
        return
    times: dict[str, float] = {}  # seconds of each step that went well
    steps = _steps(store.join(uri, f"doctor-{os.urandom(6).hex()}"), times)
    for step in steps:
        if step.name == "read" and "write" not in times:
            continue
        start = time.perf_counter()
        right = step.right
        if not uri.startswith(("s3://", "s3a://")):
            right = f"the rights of this user in {shown}"
        failure = _try(step, uri, right)
        if not failure:
            times[step.name] = time.perf_counter() - start
            continue
        yield Finding(f"store, {step.name}", "FAILED", redact(failure.found), failure.advice)
        if step.name == "write" and not failure.refused:
            return  # the store is not there or does not answer, and the other steps would fail, too
    if len(times) == len(steps):
        took = ", ".join(f"{name} {times[name] * 1e3:.0f} ms" for name in times)
        speeds = " and ".join(f"{_OBJECT / 1e6 / times[name]:.0f} MB/s" for name in ("write", "read"))
        yield Finding("store", "ok", f"{shown}: {took} for 8 MiB, which is {speeds}")


def _steps(folder: str, done: Mapping[str, float]) -> list[_Step]:
    path, data = store.join(folder, "object"), os.urandom(_OBJECT)

    def write() -> bool:
        store.write_bytes(path, data)
        return True

    def remove() -> bool:
        store.remove(folder)
        return True

    return [
        _Step("write", write, "s3:PutObject and s3:GetObject, which checks what was written"),
        _Step("read", lambda: store.read_bytes(path) == data, "s3:GetObject"),
        _Step(
            "list",
            lambda: store.sizes(folder) == ({"object": _OBJECT} if "write" in done else {}),
            "s3:ListBucket",
        ),
        _Step("remove", remove, f"s3:DeleteObject and s3:ListBucket; then remove {redact(path)}"),
    ]


def _only_read(uri: str) -> Iterator[Finding]:
    """Whether ``uri`` of the Hugging Face Hub can be listed, or is a file that is there."""
    shown, start = redact(uri), time.perf_counter()
    fault = f"there is nothing at {shown}"
    try:
        files = store.sizes(uri)
        there = bool(files) or store.exists(uri)
    except (OSError, ValueError) as caught:
        there, fault = False, redact(str(caught))
    if not there:
        yield Finding("store, read", "FAILED", fault, "check the address, the network and HF_TOKEN")
        return
    count = f"{len(files)} file{'s' * (len(files) != 1)} listed" if files else "it is there"
    yield Finding("store, read", "ok", f"{shown}: {count}, in {(time.perf_counter() - start) * 1e3:.0f} ms")
    yield Finding("store, write", "ok", "not tried: hf:// is only read here")


def _try(step: _Step, uri: str, right: str) -> _Failure | None:
    try:
        if step.run():
            return None
    except (OSError, ValueError) as fault:
        if _REFUSED.search(str(fault)):
            return _Failure(str(fault), f"give the right to {step.name}: {right}", refused=True)
        return _Failure(str(fault), _advice(uri))
    return _Failure(f"{redact(uri)} does not give back what was written", "use another store")


def _advice(uri: str) -> str:
    """What to check where a store does not answer as it should."""
    variables = _CREDENTIALS.get(urlsplit(uri).scheme, "the AWS_, GOOGLE_ or AZURE_ variables")
    return f"check the address, the bucket's name, the network and {variables}"


def clock(name: str, url: str | None) -> Iterator[Finding]:
    """How far this machine's clock is from that of the server at ``url``, by the Date of any answer."""
    what, start = f"clock, {name}", time.time()
    if url is None:
        yield Finding(what, "ok", "not asked: it is on this machine")
        return
    try:
        _, headers, _ = _ask(url, "HEAD")
        date = email.utils.parsedate_to_datetime(headers.get("Date", "none")).timestamp()
        age = float(headers.get("Age", 0))  # of an answer out of a cache
    except (OSError, ValueError) as fault:
        found = f"{redact(url)} does not say: {fault}"
        yield Finding(what, "warning", found, "check the address and the network")
        return
    skew = (start + time.time()) / 2 - (date + age + 0.5)  # Date is in whole seconds
    yield graded(
        what,
        f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {url}",
        "let chrony or systemd-timesyncd set this machine's clock",
        fails=abs(skew) > _WRONG_S,
        warns=abs(skew) > _SKEW_S,
    )


def tracker(uri: str | None) -> Iterator[Finding]:
    """Whether MLflow at ``uri`` answers, or its SQLite file can be written."""
    if not uri:
        yield Finding("MLflow", "ok", "none given: runs go to sqlite:///mlflow.db in the working folder")
    elif urlsplit(uri).scheme in ("http", "https"):
        yield from _tracking_server(uri)
    elif uri.startswith("sqlite:///"):
        yield _tracking_file(Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute())
    else:
        yield Finding("MLflow", "ok", f"{redact(uri)} is not checked: only http(s) and sqlite are")


def _tracking_server(uri: str) -> Iterator[Finding]:
    advice = (
        "start the server, correct the address, or set MLFLOW_TRACKING_USERNAME and _PASSWORD for a login"
    )
    start = time.perf_counter()
    try:
        status, _, body = _ask(f"{uri.rstrip('/')}/health")
    except OSError as fault:
        yield Finding("MLflow", "FAILED", f"{redact(uri)}: {fault}", advice)
        return
    other = status != http.HTTPStatus.OK or body.strip() != b"OK"
    found = f"{redact(uri)} answers in {(time.perf_counter() - start) * 1e3:.0f} ms"
    found += f", but not as MLflow does ({status})" * other
    yield graded("MLflow", found, advice, fails=other and status not in (401, 403), warns=other)
    yield from clock("MLflow", uri)


def _tracking_file(path: Path) -> Finding:
    places = [path.parent, *([path] if path.exists() else [])]
    wrong = "; ".join(f"{place} cannot be written" for place in places if not os.access(place, os.W_OK))
    try:
        database = sqlite3.connect(path if path.exists() and not wrong else ":memory:")
        with contextlib.closing(database):
            database.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as fault:
        wrong = f"{path}: {fault}"
    advice = "give another file, or the right to write there"
    return graded("MLflow", wrong or str(path), advice, fails=bool(wrong))


def _ask(url: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and first bytes of an answer, also of a refusal. It sends no password.

    Raises:
        OSError: there is no answer.
    """
    opener = urllib.request.OpenerDirector()  # urllib's own follows redirects, to a server with another clock
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        bare = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
        with opener.open(urllib.request.Request(bare, method=method), timeout=5) as answer:
            return answer.status, answer.headers, answer.read(64)
    except (OSError, http.client.HTTPException, ValueError) as fault:  # urllib keeps the reason inside
        reason = getattr(fault, "reason", None) or f"no answer of a web server ({type(fault).__name__})"
        raise OSError(str(reason)) from fault
