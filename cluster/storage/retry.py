"""Faults of the outside world: one sentence that names the URI, and trying again where the reason may pass.

What may pass: 500, 503, 429, timeouts, a lost connection, a body cut short. What will not, and is not tried
again: no such key or bucket, denied, full. The libraries below do not retry by themselves (but for aiohttp,
once and at once, where a connection that had been in use turns out to be closed), so two variables bound the
whole:

DNA_STORE_RETRY_SECONDS    waits between the 5 tries, in all (default 30): 2, 4, 8, 16 s, less a random part
DNA_STORE_TIMEOUT_SECONDS  how long one try waits for the next bytes (default 30); for a connection at most 10
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from http.client import responses
from typing import TypeVar

from configs import redact

T = TypeVar("T")
TRIES = 5
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
_STAYS = {"SSLError", "ClientSSLError"}  # among the above: a certificate does not mend in half a minute
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
    """It failed for a reason that may pass, after all tries; the message says how many and over how many
    seconds."""


class ShortError(OSError):
    """Fewer bytes came, or stand there, than were asked for; for use inside ``attempt``."""


def attempt(uri: str, what: str, operation: Callable[[], T], *, tries: int = TRIES) -> T:
    """``operation()``, called again while its fault may pass.

    Raises:
        TransientError: it failed ``tries`` times. StoreError: a fault that will not pass. Both: "cannot WHAT
        URI: why".
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
    """Any fault of the outside world in the block as one StoreError that names ``uri``."""
    try:
        yield
    except Exception as fault:
        failed = failure(fault, uri, what)
        if failed is fault:
            raise
        raise failed from fault


def failure(fault: Exception, uri: str, what: str, *, tries: int = 0, spent: float = 0) -> Exception:
    """What to raise for ``fault``: itself if it is ours, or no fault of the outside world (a mistake in the
    code)."""
    if (
        type(fault) is RuntimeError
        and isinstance(fault.__cause__, Exception)
        and _is_of_a_library(fault.__cause__)
    ):
        fault = fault.__cause__  # adlfs says of an upload no more than that it failed
    names = {kind.__name__ for kind in type(fault).__mro__}
    answers = (getattr(each, "response", None) for each in (fault, fault.__cause__))
    answer = next(
        (each for each in answers if isinstance(each, dict) and "Error" in each), None
    )  # botocore's
    passes = bool(names & _PASSES) and not names & _STAYS
    if isinstance(fault, StoreError):
        return fault
    if isinstance(fault, FileNotFoundError):
        reason = "no such file or bucket"
    elif answer:
        code, status = (
            str(answer["Error"].get("Code")),
            answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
        )
        reason = f"{answer['Error'].get('Message') or responses.get(status, 'no reason given')} ({code})"
        passes = code in _BUSY or _may_pass(status)
    elif "ClientResponseError" in names:  # aiohttp's; its text has the whole URL
        status = getattr(fault, "status", 0)
        reason, passes = f"{responses.get(status, 'no reason given')} ({status})", _may_pass(status)
    elif status := _http_status(fault):
        words = (
            str(getattr(fault, "message", None) or fault).strip().partition("\n")[0]
        )  # Azure's go on for ten lines
        words = words.removesuffix(f", {status}") or responses.get(status, "no reason given")
        reason = "no such file or bucket" if status == 404 else f"{words} ({status})"
        passes = _may_pass(status)
    elif isinstance(fault, OSError) or _is_of_a_library(fault):
        passes = passes or getattr(fault, "retryable", False) is True  # google.auth's
        known = (
            isinstance(fault, OSError) and (fault.errno or 0) > 0
        )  # negative: of the resolver, which says it itself
        reason = os.strerror(fault.errno or 0) if known and isinstance(fault, OSError) else str(fault)
    else:
        return fault
    reason = redact(" ".join(reason.split()))[:240] or type(fault).__name__  # botocore quotes whole patterns
    text = f"cannot {what} {redact(uri)}: {reason}"
    if not passes or not tries:
        return StoreError(text)
    return TransientError(
        f"{text}; gave up after {tries} tr{'y' if tries == 1 else 'ies'} over {spent:.1f} s"
    )


def seconds(name: str, default: float) -> float:
    """The environment variable ``name``, at least 0. ValueError if it is no number."""
    text = os.environ.get(name) or str(default)
    try:
        return max(0.0, float(text))
    except ValueError as fault:
        raise ValueError(f"{name} is {text!r}; give a number of seconds") from fault


def _http_status(fault: Exception) -> int:
    """The status with which one of Google's or Azure's stores refused; 0 if ``fault`` is no refusal of
    theirs."""
    values = (
        getattr(fault, name, "") for name in ("code", "status_code")
    )  # gcsfs and google.api_core; azure.core
    found = [int(value) for value in map(str, values) if value.isdigit()] if _is_of_a_library(fault) else []
    return next((status for status in found if 400 <= status < 600), 0)


def _is_of_a_library(fault: Exception) -> bool:
    # gcsfs says a refusal with status 400 as a ValueError.
    return type(fault).__module__.split(".")[0] in _LIBRARIES or str(fault).startswith("Bad Request: ")


def _may_pass(status: int) -> bool:
    return status in (408, 425, 429) or (status >= 500 and status not in _NEVER)
