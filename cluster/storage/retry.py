"""Errors of the outside world: one sentence that names the URI, and retries where the cause may pass.

Retried: 500, 503, 429, timeouts, a lost connection, a body cut short. Not retried: no such key or bucket,
denied, full. The libraries below do not retry themselves (only aiohttp does, once and at once, if a
connection that it reuses is closed), so two variables limit the whole:

DNA_STORE_RETRY_SECONDS    waits between the 5 tries, in all (default 30): 2, 4, 8, 16 s, less a random part
DNA_STORE_TIMEOUT_SECONDS  how long one try waits for the next bytes (default 30); for a connection at most 10
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import responses
from typing import Any, TypeVar

from configs import redact

T = TypeVar("T")
TRIES = 5
_MISSING, _NO_REASON = "no such file or bucket", "no reason given"
# Names, not types: importing botocore and aiohttp costs a second, and a local run needs neither.
_PASSES = {
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "TimeoutError",
    "FSTimeoutError",
    "FlexibleChecksumError",
    "ShortError",
    # of Google's libraries: a checksum that differs, no answer in time, no way to the server of tokens
    "ChecksumError",
    "RetryError",
    "TransportError",
    # of Azure's: no connection, or one that was lost
    "ServiceRequestError",
    "ServiceResponseError",
}
_LIBRARIES = {
    "botocore",
    "aiobotocore",
    "aiohttp",
    "s3fs",
    "gcsfs",
    "google",
    "adlfs",
    "azure",
    "requests",
    "urllib3",
    "fsspec",
}
_STAYS = {"SSLError", "ClientSSLError"}  # subclasses of the above that do not pass in half a minute
_BUSY = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "InternalError",
    "OperationAborted",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
}  # S3 sends some of them with a status of 400
_NEVER = {501, 505, 507, 508, 511}  # of 500 and above; 507 is a full disk


class StoreError(OSError):
    """A read or write failed; the message is one sentence that names the URI."""


class TransientError(StoreError):
    """All tries failed, for a reason that may pass; the message says how many, over how many seconds."""


class ShortError(OSError):
    """Fewer bytes came, or are stored, than expected; for use inside ``attempt``."""


def attempt(uri: str, what: str, operation: Callable[[], T], *, tries: int = TRIES) -> T:
    """The result of ``operation()``, which is called again if its error may pass.

    Raises:
        TransientError: it failed ``tries`` times. StoreError: an error that will not pass. Both say "cannot
        WHAT URI: why".
    """
    began, budget = time.monotonic(), seconds("DNA_STORE_RETRY_SECONDS", 30)
    for number in range(1, tries + 1):
        try:
            return operation()
        except Exception as fault:
            failed = failure(fault, uri, what, tries=number, spent=time.monotonic() - began)
            if failed is fault:
                raise
            if number == tries or not isinstance(failed, TransientError):
                raise failed from fault
        time.sleep(budget * 2 ** (number - 1) / (2 ** (tries - 1) - 1) * random.uniform(0.5, 1))
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def named(uri: str, what: str) -> Iterator[None]:
    """Any error of the outside world in the block becomes one StoreError that names ``uri``."""
    try:
        yield
    except Exception as fault:
        failed = failure(fault, uri, what)
        if failed is fault:
            raise
        raise failed from fault


def failure(fault: Exception, uri: str, what: str, *, tries: int = 0, spent: float = 0) -> Exception:
    """What to raise for ``fault``: itself if it is a StoreError, or a mistake in the code."""
    if isinstance(fault, StoreError):
        return fault
    cause = fault.__cause__
    if type(fault) is RuntimeError and isinstance(cause, Exception) and _is_of_a_library(cause):
        fault = cause  # adlfs raises a bare RuntimeError for an upload that failed
    reason = _reason(fault)
    if reason is None:
        return fault
    words = redact(" ".join(reason.text.split()))[:240]  # botocore quotes whole patterns
    text = f"cannot {what} {redact(uri)}: {words or type(fault).__name__}"
    if not reason.passes or not tries:
        return StoreError(text)
    count = f"{tries} tr{'y' if tries == 1 else 'ies'}"
    return TransientError(f"{text}; gave up after {count} over {spent:.1f} s")


@dataclass(frozen=True)
class _Reason:
    """``passes``: whether the same operation may succeed a moment later."""

    text: str
    passes: bool


def _reason(fault: Exception) -> _Reason | None:
    """Why an operation failed; None if ``fault`` is no error of the outside world."""
    names = {kind.__name__ for kind in type(fault).__mro__}
    passes = bool(names & _PASSES) and not names & _STAYS
    if isinstance(fault, FileNotFoundError):
        return _Reason(_MISSING, passes)
    if answer := _botocore_answer(fault):
        code = str(answer["Error"].get("Code"))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = answer["Error"].get("Message") or responses.get(status, _NO_REASON)
        return _Reason(f"{message} ({code})", code in _BUSY or _may_pass(status))
    if "ClientResponseError" in names:  # aiohttp's; its text has the whole URL
        status = getattr(fault, "status", 0)
        return _Reason(f"{responses.get(status, _NO_REASON)} ({status})", _may_pass(status))
    if status := _http_status(fault):
        # The first line: Azure's messages have ten.
        message = str(getattr(fault, "message", None) or fault).strip().partition("\n")[0]
        message = message.removesuffix(f", {status}") or responses.get(status, _NO_REASON)
        return _Reason(_MISSING if status == 404 else f"{message} ({status})", _may_pass(status))
    if not (isinstance(fault, OSError) or _is_of_a_library(fault)):
        return None
    passes = passes or getattr(fault, "retryable", False) is True  # google.auth's
    number = (fault.errno or 0) if isinstance(fault, OSError) else 0
    # A negative number is the resolver's, with a text of its own.
    return _Reason(os.strerror(number) if number > 0 else str(fault), passes)


def _botocore_answer(fault: Exception) -> dict[str, Any] | None:
    """The service's answer in an error of botocore, or of s3fs, which raises others because of it."""
    answers = (getattr(each, "response", None) for each in (fault, fault.__cause__))
    return next((each for each in answers if isinstance(each, dict) and "Error" in each), None)


def seconds(name: str, default: float) -> float:
    """The environment variable ``name``, at least 0. ValueError if it is no number."""
    text = os.environ.get(name) or str(default)
    try:
        return max(0.0, float(text))
    except ValueError as fault:
        raise ValueError(f"{name} is {text!r}; give a number of seconds") from fault


def _http_status(fault: Exception) -> int:
    """The status with which Google's or Azure's store refused; 0 if ``fault`` is something else."""
    # The first name is that of gcsfs and google.api_core, the second that of azure.core.
    values = (getattr(fault, name, "") for name in ("code", "status_code"))
    found = [int(value) for value in map(str, values) if value.isdigit()] if _is_of_a_library(fault) else []
    return next((status for status in found if 400 <= status < 600), 0)


def _is_of_a_library(fault: Exception) -> bool:
    # gcsfs raises a ValueError for a refusal with status 400.
    return type(fault).__module__.split(".")[0] in _LIBRARIES or str(fault).startswith("Bad Request: ")


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in _NEVER)
