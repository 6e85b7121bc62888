"""Files of web servers, on the session of fsspec's HTTPFileSystem, but not through its methods: its info and
exists treat every error as a missing file, and its ranges accept a whole body as a part of the file.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.storage.kinds import Stat, is_cut, run
from cluster.storage.retry import ShortError, attempt, failure


def options(*, timeout: float) -> dict[str, Any]:
    """Options for HTTPFileSystem: timeouts, and bytes as they are stored, without compression."""
    from aiohttp import ClientTimeout  # heavy, and always there with this filesystem

    return {
        "client_kwargs": {
            "timeout": ClientTimeout(total=None, sock_connect=min(10, timeout), sock_read=timeout),
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    }


def stat(fs: Any, url: str) -> Stat:
    """The file's state now."""
    return run(fs, _stat(fs, url))


def fetch(fs: Any, url: str, start: int, end: int | None, headers: Mapping[str, str] | None = None) -> bytes:
    """Bytes [start, end), or fewer where the body ends early; ``headers``: to send beside the range."""
    return run(fs, _range(fs, url, start, end, headers or {}))


def stream(fs: Any, uri: str, url: str, size: int) -> Iterator[bytes]:
    """The whole file from one request, in pieces of at most ``size`` bytes; TransientError if the body is
    cut."""
    body = attempt(uri, "read", lambda: run(fs, get(fs, url)))
    began, done, total = time.monotonic(), 0, body.content_length
    try:
        while piece := run(fs, body.content.read(size)):
            done += len(piece)
            yield piece
    except Exception as fault:  # a second request would start from 0 again: that is for the caller to decide
        cut = ShortError(f"got {done} of {total or 'more'} bytes") if is_cut(fault) else fault
        raise failure(cut, uri, "read", tries=1, spent=time.monotonic() - began) from fault
    finally:
        fs.loop.call_soon_threadsafe(body.close)


async def get(fs: Any, url: str, **headers: str) -> Any:
    """The answer to a GET, its body not read yet. FileNotFoundError, or aiohttp's error for a refusal."""
    session = await fs.set_session()
    body = await session.get(fs.encode_url(url), headers=headers)
    empty = body.status == 416 and headers.get("Range") == "bytes=0-0"  # an empty file has no first byte
    if not empty:
        check(body, url)
    return body


def check(body: Any, url: str) -> None:
    """Close ``body`` and raise its error if it is a refusal."""
    if body.status >= 400:
        body.close()
        if body.status in (404, 410):
            raise FileNotFoundError(url)
        body.raise_for_status()


async def _stat(fs: Any, url: str) -> Stat:
    # A GET of one byte, not a HEAD: a presigned URL allows nothing else, and it shows whether ranges work.
    async with await get(fs, url, Range="bytes=0-0") as body:
        size = body.content_length
        if body.status != 200:
            total = body.headers.get("Content-Range", "*/0").rpartition("/")[2]
            size = int(total) if total.isdigit() else None
        known = [body.headers.get("ETag"), body.headers.get("Last-Modified"), size]
        return Stat(size, " ".join(str(each) for each in known if each is not None), body.status != 200)


async def _range(fs: Any, url: str, start: int, end: int | None, headers: Mapping[str, str]) -> bytes:
    wanted = {**headers, "Range": f"bytes={start}-{'' if end is None else end - 1}"}
    async with await get(fs, url, **wanted) as body:
        skip, data = start if body.status == 200 else 0, bytearray()  # 200: the server sends all of it
        try:
            while skip and (piece := await body.content.read(min(skip, 1 << 20))):
                skip -= len(piece)
            while end is None or len(data) < end - start:
                piece = await body.content.read(1 << 20 if end is None else end - start - len(data))
                if not piece:
                    break
                data += piece
        except Exception as fault:
            if not is_cut(fault) or end is None:
                raise  # otherwise fetch reports how much came
        return bytes(data)
