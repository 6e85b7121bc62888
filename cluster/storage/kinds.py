"""What all kinds of filesystem share: the state of a file, and how a kind is recognised."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Stat:
    """Bytes (None: not known), a token that changes with the file, and whether the server sends ranges of
    it."""

    size: int | None
    version: str
    ranges: bool = True


def speaks(fs: Any, protocol: str) -> bool:
    """Whether the filesystem is of ``protocol``: "file", "s3", "gs", "az", "hf", "http" (and https)."""
    return protocol in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def run(fs: Any, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work`` on the loop of an asynchronous filesystem."""
    return asyncio.run_coroutine_threadsafe(work, fs.loop).result()


def is_cut(fault: Exception) -> bool:
    """Whether a body ended early, as aiohttp and botocore say it."""
    return type(fault).__name__ in {"ClientPayloadError", "IncompleteReadError"}
