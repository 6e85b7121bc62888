"""Single operations on a file of an fsspec filesystem, without retries: size and version, a range, an upload.

Web servers are asked on the session of fsspec's HTTPFileSystem, but not through its methods: its info and
exists treat every error as a missing file, and its ranges accept a whole body as a part of the file.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from cluster.process.heartbeat import heartbeat
from cluster.storage.retry import ShortError, attempt, failure

T = TypeVar("T")
PART = 50 << 20  # S3: an upload of twice as many bytes or more goes in parts, one in memory at a time


@dataclass(frozen=True)
class Stat:
    """Bytes (None: not known), a token that changes with the file, and whether the server sends ranges of
    it."""

    size: int | None
    version: str
    ranges: bool = True


def speaks(fs: Any, protocol: str) -> bool:
    """Whether the filesystem is of ``protocol``: "file", "s3", "http" (and https)."""
    return protocol in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def web_options(*, timeout: float) -> dict[str, Any]:
    """Options for HTTPFileSystem: timeouts, and bytes as they are stored, without compression."""
    from aiohttp import ClientTimeout  # heavy, and always there with this filesystem

    return {
        "client_kwargs": {
            "timeout": ClientTimeout(total=None, sock_connect=min(10, timeout), sock_read=timeout),
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    }


def stat(fs: Any, path: str) -> Stat:
    """The file's state now. FileNotFoundError, IsADirectoryError, or an error of the filesystem's own
    kind."""
    if speaks(fs, "http"):
        return _run(fs, _web_stat(fs, path))
    info = fs.info(path)
    if info["type"] == "directory":
        raise IsADirectoryError(errno.EISDIR, path)
    etag = info.get("ETag")
    return Stat(
        info["size"], f"{etag} {info.get('LastModified')} {info['size']}" if etag else str(fs.ukey(path))
    )


def fetch(fs: Any, path: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end), exactly; to the end of the file where ``end`` is None. ShortError if fewer came."""
    if end is None and not speaks(fs, "file"):
        end = stat(fs, path).size
    if end is not None and end <= start:
        return b""
    try:
        data = (
            _run(fs, _web_range(fs, path, start, end))
            if speaks(fs, "http")
            else bytes(fs.cat_file(path, start=start, end=end))
        )
    except Exception as fault:
        if not _is_cut(fault) or end is None:
            raise
        raise ShortError(f"got fewer than {end - start} bytes") from fault
    if end is not None and len(data) != end - start:
        short, there = f"got {len(data)} of {end - start} bytes", stat(fs, path).size
        if there is not None and there < end:
            raise OSError(f"{short}, for the file ends at {there}")
        raise ShortError(short)
    return data


def ahead(read: Callable[[int], bytes], total: int, step: int) -> Iterator[bytes]:
    """``read(start)`` for start = 0, step, ... below ``total``; the next one runs in a thread meanwhile."""
    coming = _begin(read, 0) if total else None
    for following in range(step, total + step, step):
        assert coming, "a read is under way for every start below total"
        piece = coming.result()
        coming = _begin(read, following) if following < total else None
        yield piece


def stream(fs: Any, uri: str, path: str, size: int) -> Iterator[bytes]:
    """The whole file from one request, in pieces of at most ``size`` bytes; TransientError if the body is
    cut."""
    if not speaks(fs, "http"):
        yield attempt(uri, "read", lambda: fetch(fs, path, 0, None))
        return
    body = attempt(uri, "read", lambda: _run(fs, _get(fs, path)))
    began, done, total = time.monotonic(), 0, body.content_length
    try:
        while piece := _run(fs, body.content.read(size)):
            done += len(piece)
            yield piece
    except Exception as fault:  # a second request would start from 0 again: that is for the caller to decide
        cut = ShortError(f"got {done} of {total or 'more'} bytes") if _is_cut(fault) else fault
        raise failure(cut, uri, "read", tries=1, spent=time.monotonic() - began) from fault
    finally:
        fs.loop.call_soon_threadsafe(body.close)


def upload(fs: Any, uri: str, temporary: str, path: str) -> None:
    """The local file ``temporary`` at ``path``, its size there compared. ShortError if it is another."""
    size = os.path.getsize(temporary)
    if speaks(fs, "s3") and size >= 2 * PART:
        _upload_parts(fs, uri, temporary, path, max(PART, -(-size // 10_000)))
    else:
        fs.put_file(temporary, path)
    if (there := stat(fs, path).size) != size:
        raise ShortError(f"the store has {there} of the {size} bytes sent")


def abort_uploads(fs: Any, path: str) -> None:
    """Delete the parts that failed uploads have left at an S3 service, if it allows that: they cost money."""
    if speaks(fs, "s3"):
        with contextlib.suppress(Exception):
            bucket, key, _ = fs.split_path(path)
            for left in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", []):
                if left["Key"] == key:
                    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=left["UploadId"])


def read_tagged(fs: Any, path: str, timeout: float | None) -> tuple[bytes, str]:
    """The whole of a small file, and a tag that identifies its content: S3's ETag, elsewhere a hash."""
    if not speaks(fs, "s3"):
        data = fs.cat_file(path)
        return data, hashlib.sha256(data).hexdigest()

    async def get() -> tuple[bytes, str]:
        bucket, key, _ = fs.split_path(path)
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    return _run(fs, asyncio.wait_for(get(), timeout))


def swap(fs: Any, path: str, data: bytes | None, tag: str | None, timeout: float | None) -> str | None:
    """The new tag, after ``data`` has replaced what had ``tag`` (None: nothing); None if something else is
    there.

    ``data`` None: the file is deleted, and the answer is "". S3 services check the condition themselves (one
    that does not know conditions, 501, is asked without). Elsewhere, and when older Ceph deletes, which
    ignores the condition, another process may come between our check and the write.
    """
    bucket, key, _ = fs.split_path(path) if speaks(fs, "s3") else ("", "", "")

    def send(**condition: str) -> str:
        body, name = ({}, "delete_object") if data is None else ({"Body": data}, "put_object")
        call = fs._call_s3(name, Bucket=bucket, Key=key, **body, **condition)
        return str(_run(fs, asyncio.wait_for(call, timeout)).get("ETag", ""))

    # Ceph 16 refuses every ETag in quotes, and others may require them: so both are tried.
    ways = [{"IfNoneMatch": "*"}] if tag is None else [{"IfMatch": tag}, {"IfMatch": tag.strip('"')}]
    for condition in ways if bucket else ():
        try:
            return send(**condition)
        except FileNotFoundError:
            if tag is None:
                raise  # no such bucket
        except OSError as fault:
            status = _status(fault)
            if status == HTTPStatus.NOT_IMPLEMENTED:
                break
            if status not in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT):
                raise
    else:
        if bucket:
            return None
    there = None
    with contextlib.suppress(FileNotFoundError):
        there = read_tagged(fs, path, timeout)[1]
    if there != tag:
        return None
    if bucket:
        return send()
    if data is None:
        fs.rm_file(path)
        return ""
    fs.pipe_file(path, data)
    return hashlib.sha256(data).hexdigest()


def _status(fault: Exception) -> int:
    """The HTTP status with which an S3 service refused, which s3fs raises as an OSError; 0 if it did not."""
    answer = getattr(fault.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _begin(read: Callable[[int], bytes], start: int) -> Future[bytes]:
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            future.set_result(read(start))
        except BaseException as fault:
            future.set_exception(fault)

    # Not a pool: at exit Python waits for its threads, and a read may wait for a store that does not answer.
    threading.Thread(target=work, name="store", daemon=True).start()
    return future


def _upload_parts(fs: Any, uri: str, temporary: str, path: str, step: int) -> None:
    """One part after the other, each with its own retries. s3fs itself goes on sending parts of an aborted
    upload."""
    bucket, key, _ = fs.split_path(path)
    call = functools.partial(fs.call_s3, Bucket=bucket, Key=key)
    name = call("create_multipart_upload")["UploadId"]

    def send(number: int, part: bytes) -> dict[str, Any]:
        answer = attempt(
            uri, "write", lambda: call("upload_part", UploadId=name, PartNumber=number, Body=part)
        )
        heartbeat.advance()
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with open(temporary, "rb") as file:
            parts = [send(number, part) for number, part in enumerate(iter(lambda: file.read(step), b""), 1)]
        call("complete_multipart_upload", UploadId=name, MultipartUpload={"Parts": parts})
    except BaseException:
        with contextlib.suppress(Exception):
            call("abort_multipart_upload", UploadId=name)
        raise


def _run(fs: Any, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, fs.loop).result()


async def _get(fs: Any, url: str, **headers: str) -> Any:
    session = await fs.set_session()
    body = await session.get(fs.encode_url(url), headers=headers)
    empty = body.status == 416 and headers.get("Range") == "bytes=0-0"  # an empty file has no first byte
    if body.status >= 400 and not empty:
        body.close()
        if body.status in (404, 410):
            raise FileNotFoundError(url)
        body.raise_for_status()
    return body


async def _web_stat(fs: Any, url: str) -> Stat:
    # A GET of one byte, not a HEAD: a presigned URL allows nothing else, and it shows whether ranges work.
    async with await _get(fs, url, Range="bytes=0-0") as body:
        size = body.content_length
        if body.status != 200:
            total = body.headers.get("Content-Range", "*/0").rpartition("/")[2]
            size = int(total) if total.isdigit() else None
        known = [body.headers.get("ETag"), body.headers.get("Last-Modified"), size]
        return Stat(size, " ".join(str(each) for each in known if each is not None), body.status != 200)


async def _web_range(fs: Any, url: str, start: int, end: int | None) -> bytes:
    async with await _get(fs, url, Range=f"bytes={start}-{'' if end is None else end - 1}") as body:
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
            if not _is_cut(fault) or end is None:
                raise  # otherwise fetch reports how much came
        return bytes(data)


def _is_cut(fault: Exception) -> bool:
    return type(fault).__name__ in {"ClientPayloadError", "IncompleteReadError"}
