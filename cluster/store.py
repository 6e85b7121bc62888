"""URI -> bytes, on any fsspec filesystem: read, list, and publish atomically. The only user of fsspec.

A fault is a StoreError: one sentence that names the URI. On a remote filesystem every operation is tried 5 times over
about 25 s (DNA_STORE_RETRY_SECONDS; see retry) if the reason may pass, and then raises TransientError.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from cluster import remote, retry
from cluster.heartbeat import heart
from cluster.remote import speaks
from cluster.retry import StoreError, TransientError, named
from configs import redact

__all__ = ["StoreError", "TransientError", "absolute", "basename", "chunks", "exists", "is_local", "join", "list_files",
           "local_path", "open_read", "publish", "put_file", "read_bytes", "read_tagged", "remove", "sizes", "swap",
           "version", "write_bytes"]

T = TypeVar("T")
_BUFFER = 4 << 20  # read at a time through open_read


def is_local(uri: str) -> bool:
    return speaks(_resolve(uri)[0], "file")


def local_path(uri: str) -> Path:
    """The filesystem path of a local ``uri``. ValueError for a remote one."""
    fs, path = _resolve(uri)
    if not speaks(fs, "file"):
        raise ValueError(f"{redact(uri)} is not a local path")
    return Path(path)


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def basename(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def absolute(uri: str) -> str:
    """``uri`` in a form that means the same from any working directory."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def exists(uri: str) -> bool:
    fs, path = _resolve(uri)
    probe = (lambda: remote.stat(fs, path)) if speaks(fs, "http") else (lambda: fs.info(path))

    def there() -> bool:  # fs.exists says False where it could not find out
        with contextlib.suppress(FileNotFoundError):
            probe()
            return True
        return False

    return _attempt(fs, uri, "look up", there)


def version(uri: str) -> str:
    """A token that changes when the file at ``uri`` does, without reading it.

    Local: size, times and inode. S3: ETag, time and size. A web server: what it gives of ETag, Last-Modified and size;
    one that gives none of them has the empty version for ever.
    """
    fs, path = _resolve(uri)
    return _attempt(fs, uri, "look up", lambda: remote.stat(fs, path).version)


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below ``uri``, by its name relative to ``uri``, sorted; empty if there is none.

    StoreError for a bucket that does not exist, a folder that may not be read, and a web server, which has no listing.
    """
    fs, path = _resolve(uri)
    root = path.rstrip("/") + "/"
    if speaks(fs, "http"):
        raise StoreError(f"cannot list {redact(uri)}: a web server has no listing; copy the folder to a disk or bucket")
    found = _attempt(fs, uri, "list", lambda: _walk(root) if speaks(fs, "file") else
                     {name: info["size"] or 0 for name, info in fs.find(path, detail=True).items()})
    return {name.removeprefix(root): found[name] for name in sorted(found) if name.startswith(root)}


def list_files(uri: str) -> list[str]:
    """Names, relative to ``uri`` and sorted, of every file below it; empty if there is none."""
    return list(sizes(uri))


def open_read(uri: str) -> Any:
    """A binary file object that seeks; StoreError, naming the URI, if it cannot be opened or, later, read."""
    fs, path = _resolve(uri)
    if speaks(fs, "file"):
        with named(uri, "open"):
            return open(path, "rb")
    stat = _attempt(fs, uri, "open", lambda: remote.stat(fs, path))
    if stat.size is not None and stat.ranges:
        return _File(fs, path, block_size=_BUFFER, size=stat.size, uri=uri)
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile())
        for piece in chunks(uri):
            spool.write(piece)
        spool.seek(0)
        stack.pop_all()  # whole: from here on it is the caller's to close
        return spool


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes [start, end) of ``uri``, the whole by default, in one request; StoreError if it has fewer."""
    fs, path = _resolve(uri)
    return _attempt(fs, uri, "read", lambda: remote.fetch(fs, path, start or 0, end))


def chunks(uri: str, size: int = 8 << 20) -> Iterator[bytes]:
    """The whole file at ``uri`` in order, in pieces of at most ``size`` bytes.

    Remote: ranged reads, each retried and its length checked, the next one under way while this one is used. A server
    without lengths or ranges: one body, checked against its Content-Length where it gives one, and not retried once it
    has begun. StoreError if the file changes meanwhile (version), before the end is reached.
    """
    fs, path = _resolve(uri)
    if speaks(fs, "file"):
        with named(uri, "read"), open(path, "rb") as file:
            while piece := file.read(size):
                yield piece
        return
    stat = _attempt(fs, uri, "read", lambda: remote.stat(fs, path))
    total, now = stat.size or 0, stat

    def read(start: int) -> bytes:
        return _attempt(fs, uri, "read", lambda: remote.fetch(fs, path, start, min(start + size, total)))

    try:
        whole = stat.size is None or not stat.ranges
        yield from remote.stream(fs, uri, path, size) if whole else remote.ahead(read, total, size)
    except StoreError:
        with contextlib.suppress(Exception):
            now = remote.stat(fs, path)
        if now == stat:
            raise  # otherwise the file is not damaged, it is another
    else:
        now = _attempt(fs, uri, "read", lambda: remote.stat(fs, path))
    if now != stat:
        raise StoreError(f"cannot read {redact(uri)}: it changed while it was read; read it again from the start")


def write_bytes(uri: str, data: bytes) -> None:
    """``data`` at ``uri``, atomically: readers see the old file, or none, until all of it is there."""
    with publish(uri) as file:
        file.write(data)


def put_file(local: Path, uri: str) -> None:
    """A copy of the local file at ``uri``, atomically."""
    with open(local, "rb") as source, publish(uri) as target:
        shutil.copyfileobj(source, target, 1 << 20)


@contextlib.contextmanager
def publish(uri: str) -> Iterator[IO[bytes]]:
    """A seekable binary file whose content appears at ``uri`` whole when the block ends, and not at all if it raises.

    Local: a temporary file beside the target, fsync, rename. Elsewhere: a temporary local file, then one upload, which
    object stores make visible only when it is complete; it is retried, and the size at the store compared.
    """
    fs, path = _resolve(uri)
    if speaks(fs, "file"):
        with heart.advancing(), _beside(uri, path) as file:
            yield file
        return
    via = f"{uri} by way of {tempfile.gettempdir()}"
    with contextlib.ExitStack() as stack:
        with named(via, "write"):
            file = stack.enter_context(tempfile.TemporaryFile())  # without a name: it is gone with this process
        with named(via, "write"):
            yield file
            file.flush()
        temporary = f"/dev/fd/{file.fileno()}"
        try:
            _attempt(fs, uri, "write", lambda: remote.upload(fs, uri, temporary, path))
        finally:
            if os.path.getsize(temporary) >= 2 * remote.PART:
                remote.abort_uploads(fs, path)


@contextlib.contextmanager
def _beside(uri: str, path: str) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path``, which takes its place when the block ends."""
    with named(uri, "write"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{basename(uri)}.", dir=Path(path).parent)
    try:
        with named(uri, "write"):
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes 0600, which would hide the file from a group
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove(uri: str) -> None:
    """Delete the file, or the folder and all below it; nothing happens if it is not there."""
    fs, path = _resolve(uri)

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
            fs.info(path)  # a bulk delete on S3 keeps its refusals to itself
            raise OSError("the store kept some of it")

    _attempt(fs, uri, "remove", delete)


def read_tagged(uri: str, *, tries: int = retry.TRIES, timeout: float | None = None) -> tuple[bytes, str] | None:
    """A small remote file and a tag for ``swap``; None if it is not there. ``timeout``: seconds for each try (S3)."""
    fs, path = _resolve(uri)

    def read() -> tuple[bytes, str] | None:
        with contextlib.suppress(FileNotFoundError):
            return remote.read_tagged(fs, path, timeout)
        return None

    return retry.attempt(uri, "read", read, tries=tries)


def swap(uri: str, data: bytes | None, tag: str | None, *, tries: int = retry.TRIES, timeout: float | None = None
         ) -> str | None:  # fmt: skip
    """``remote.swap``. None may also be said of what is ours, where an earlier try was done but not answered."""
    fs, path = _resolve(uri)
    return retry.attempt(uri, "write", lambda: remote.swap(fs, path, data, tag, timeout), tries=tries)


class _File(AbstractBufferedFile):
    """Buffered reads of a remote file, each of them retried and its length checked."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return _attempt(self.fs, self.kwargs["uri"], "read", lambda: remote.fetch(self.fs, self.path, start, end))


def _walk(root: str) -> dict[str, int]:
    def stop(fault: OSError) -> None:  # left to themselves, os.walk and fsspec leave out what they may not read
        if not isinstance(fault, FileNotFoundError | NotADirectoryError):
            raise fault

    found = {}
    for folder, _, names in os.walk(root, onerror=stop, followlinks=True):
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                found[path] = os.stat(path).st_size
    return found


def _attempt(fs: Any, uri: str, what: str, operation: Callable[[], T]) -> T:
    with heart.advancing():
        return retry.attempt(uri, what, operation, tries=1 if speaks(fs, "file") else retry.TRIES)


def _resolve(uri: str) -> tuple[Any, str]:
    uri = str(uri)
    scheme = "" if "::" in uri else uri.partition("://")[0]
    try:
        if scheme not in ("s3", "s3a", "http", "https"):
            fs, path = url_to_fs(uri, use_listings_cache=False)
            return fs, path
        aws = tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith("AWS_")))
        timeout = retry.seconds("DNA_STORE_TIMEOUT_SECONDS", 30)
        fs = _filesystem(scheme, os.getpid(), timeout, "versionId=" in uri, aws)
        return fs, fs._strip_protocol(uri)
    except (ValueError, ImportError) as fault:
        raise StoreError(f"cannot use {redact(uri)}: {' '.join(str(fault).split())}") from fault


@functools.lru_cache(maxsize=16)
def _filesystem(scheme: str, pid: int, timeout: float, versions: bool, aws: tuple[tuple[str, str], ...]) -> Any:
    """One per process and environment, for all threads: fsspec's own cache knows neither AWS_ENDPOINT_URL nor keys."""
    common = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        return fsspec.filesystem(scheme, **common, **remote.web_options(timeout=timeout))
    fs = fsspec.filesystem(scheme, **common, version_aware=versions, config_kwargs={
        "connect_timeout": min(10, timeout), "read_timeout": timeout, "max_pool_connections": 32,
        "retries": {"total_max_attempts": 1}})
    fs.retries = 1
    return fs
