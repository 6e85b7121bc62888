"""Single operations on a file of an fsspec filesystem, without retries: size and version, a range, an upload.

What a kind of filesystem does in its own way is in a file of its own: web.py, s3.py, s3_ranges.py, objects.py
(gs, az) and hub.py.
"""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from cluster.storage import s3, s3_ranges, web
from cluster.storage.kinds import Stat, is_cut, speaks
from cluster.storage.objects import ObjectFileSystem
from cluster.storage.retry import ShortError, attempt

PART = 50 << 20  # an upload of twice as many bytes or more goes in parts


def stat(fs: Any, path: str) -> Stat:
    """The file's state now. FileNotFoundError, IsADirectoryError, or an error of the filesystem's own
    kind."""
    if speaks(fs, "http"):
        return web.stat(fs, path)
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
        data = None
        if speaks(fs, "http"):
            data = web.fetch(fs, path, start, end)
        elif speaks(fs, "s3"):
            data = s3_ranges.fetch(fs, path, start, end)
        if data is None:
            data = bytes(fs.cat_file(path, start=start, end=end))
    except Exception as fault:
        if not is_cut(fault) or end is None:
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
    if speaks(fs, "http"):
        yield from web.stream(fs, uri, path, size)
    else:
        yield attempt(uri, "read", lambda: fetch(fs, path, 0, None))


def upload(fs: Any, uri: str, temporary: str, path: str) -> None:
    """The local file ``temporary`` at ``path``, its size there compared. ShortError if it is another."""
    size = os.path.getsize(temporary)
    in_parts, step = size >= 2 * PART, max(PART, -(-size // 10_000))
    if in_parts and speaks(fs, "s3"):
        s3.upload_parts(fs, uri, temporary, path, step)
    elif in_parts and isinstance(fs, ObjectFileSystem):
        fs.upload_parts(uri, temporary, path, step)
    else:
        fs.put_file(temporary, path)
    if (there := stat(fs, path).size) != size:
        raise ShortError(f"the store has {there} of the {size} bytes sent")


def abort_uploads(fs: Any, path: str) -> None:
    """Delete the parts that failed uploads have left at an S3 service, if it allows that: they cost money."""
    if speaks(fs, "s3"):
        s3.abort_uploads(fs, path)


def read_tagged(fs: Any, path: str, timeout: float | None) -> tuple[bytes, str]:
    """The whole of a small file, and a tag that identifies its content: what the store gives, else a hash."""
    if speaks(fs, "s3"):
        return s3.read_tagged(fs, path, timeout)
    if isinstance(fs, ObjectFileSystem):
        return fs.read_tagged(path, timeout)
    data = fs.cat_file(path)
    return data, hashlib.sha256(data).hexdigest()


def swap(fs: Any, path: str, data: bytes | None, tag: str | None, timeout: float | None) -> str | None:
    """The new tag, after ``data`` has replaced what had ``tag`` (None: nothing); None if something else is
    there.

    ``data`` None: the file is deleted, and the answer is "". S3, Google and Azure check the condition
    themselves. Elsewhere, and where Google and Azure delete, another process may come between our check and
    the write.
    """
    if speaks(fs, "s3"):
        return s3.swap(fs, path, data, tag, timeout)
    if isinstance(fs, ObjectFileSystem) and data is not None:
        return fs.swap(path, data, tag, timeout)
    there = None
    with contextlib.suppress(FileNotFoundError):
        there = read_tagged(fs, path, timeout)[1]
    if there != tag:
        return None
    if data is None:
        fs.rm_file(path)
        return ""
    fs.pipe_file(path, data)
    return hashlib.sha256(data).hexdigest()


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
