"""Read, list and atomically publish files by URI, on any fsspec filesystem.

An error is a StoreError: one sentence that names the URI. On a remote filesystem every operation is tried 5
times over about 25 s (DNA_STORE_RETRY_SECONDS; see retry) if the reason may pass, and then raises
TransientError.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from cluster.process.heartbeat import heartbeat
from cluster.storage import remote, retry, tree
from cluster.storage.kinds import speaks
from cluster.storage.retry import StoreError, TransientError, named
from cluster.storage.uri import (
    Buffered,
    absolute,
    basename,
    identity,
    is_local,
    join,
    local_path,
    refuse_pipe,
    resolve,
    resolve_to_write,
)
from configs import redact

__all__ = [
    "StoreError",
    "TransientError",
    "absolute",
    "basename",
    "chunks",
    "exists",
    "identity",
    "is_local",
    "join",
    "list_files",
    "local_path",
    "open_read",
    "publish",
    "put_file",
    "read_bytes",
    "read_tagged",
    "refuse_pipe",
    "remove",
    "sizes",
    "swap",
    "version",
    "write_bytes",
]

T = TypeVar("T")
_BUFFER = 4 << 20  # read at a time through open_read


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    probe = (lambda: remote.stat(fs, path)) if speaks(fs, "http") else (lambda: fs.info(path))

    def there() -> bool:  # fs.exists returns False also where it could not find out
        with contextlib.suppress(FileNotFoundError):
            probe()
            return True
        return False

    return _attempt(fs, uri, "look up", there)


def version(uri: str) -> str:
    """A token that changes when the file at ``uri`` does, without reading it.

    Local: size, times and inode. S3: ETag, time and size. A web server: what it gives of ETag, Last-Modified
    and size; if it gives none of them the version is always empty.
    """
    fs, path = resolve(uri)
    return _attempt(fs, uri, "look up", lambda: remote.stat(fs, path).version)


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below ``uri``, by its name relative to ``uri``, sorted; empty if there is none.

    StoreError for a bucket that does not exist, a folder that may not be read, and a web server, which has no
    listing.
    """
    fs, path = resolve(uri)
    if speaks(fs, "http"):
        raise StoreError(
            f"cannot list {redact(uri)}: a web server has no listing; copy the folder to a disk or bucket"
        )
    found = _attempt(fs, uri, "list", lambda: tree.sizes(fs, path))
    return {name: found[name] for name in sorted(found)}


def list_files(uri: str) -> list[str]:
    """Names, relative to ``uri`` and sorted, of every file below it; empty if there is none."""
    return list(sizes(uri))


def open_read(uri: str) -> Any:
    """A binary file object that seeks; StoreError, naming the URI, if it cannot be opened or, later, read."""
    fs, path = resolve(uri)
    if speaks(fs, "file"):
        with named(uri, "open"):
            return open(path, "rb")
    stat = _attempt(fs, uri, "open", lambda: remote.stat(fs, path))
    if stat.size is not None and stat.ranges:
        return Buffered(
            fs,
            path,
            size=stat.size,
            block_size=_BUFFER,
            fetch=lambda start, end: _attempt(fs, uri, "read", lambda: remote.fetch(fs, path, start, end)),
        )
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile())
        for piece in chunks(uri):
            copy.write(piece)
        copy.seek(0)
        stack.pop_all()  # complete: now the caller closes it
        return copy


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes [start, end) of ``uri``, the whole by default, in one request; StoreError if it has fewer."""
    fs, path = resolve(uri)
    return _attempt(fs, uri, "read", lambda: remote.fetch(fs, path, start or 0, end))


def chunks(uri: str, size: int = 8 << 20) -> Iterator[bytes]:
    """The whole file at ``uri`` in order, in pieces of at most ``size`` bytes.

    Remote: ranged reads, each with retries and a check of its length; the next one runs while this one is
    used. A server without lengths or ranges: one body, checked against its Content-Length if there is one,
    and not retried once it has begun. StoreError, before the end is reached, if the file (its version)
    changes meanwhile.
    """
    fs, path = resolve(uri)
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
            raise  # otherwise the file was replaced: see below
    else:
        now = _attempt(fs, uri, "read", lambda: remote.stat(fs, path))
    if now != stat:
        raise StoreError(
            f"cannot read {redact(uri)}: it changed while it was read; read it again from the start"
        )


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
    """A seekable binary file whose content appears at ``uri`` as a whole when the block ends, and not at all
    if the block raises.

    Local: a temporary file beside the target, fsync, rename. A link stays a link. A device, a pipe or
    standard output gets the bytes at the end. Elsewhere: a temporary local file, then one upload, which
    object stores show only when it is complete; it is retried, and the size at the store is compared.
    """
    fs, path = resolve_to_write(uri)
    if speaks(fs, "file"):
        stream = _stream(path)
        with heartbeat.advancing(), _beside(uri, path) if stream is None else _into(uri, stream) as file:
            yield file
        return
    via = f"{uri} by way of {tempfile.gettempdir()}"
    with contextlib.ExitStack() as stack:
        with named(via, "write"):
            # Without a name, so that it is gone when this process ends.
            file = stack.enter_context(tempfile.TemporaryFile())
        with named(via, "write"):
            yield file
            file.flush()
        temporary = f"/dev/fd/{file.fileno()}"
        try:
            _attempt(fs, uri, "write", lambda: remote.upload(fs, uri, temporary, path))
        finally:
            if os.path.getsize(temporary) >= 2 * remote.PART:
                remote.abort_uploads(fs, path)


def _stream(path: str) -> str | int | None:
    """Where the bytes go if ``path`` is not a file: a device or a pipe, or the number of an open descriptor
    (/dev/stdout). None for a file."""
    for folder, name in map(os.path.split, [path, os.readlink(path) if os.path.islink(path) else path]):
        if name.isdecimal() and os.path.realpath(folder) == f"/proc/{os.getpid()}/fd":
            return int(name)
    return path if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path) else None


@contextlib.contextmanager
def _into(uri: str, stream: str | int) -> Iterator[IO[bytes]]:
    """A temporary file, copied into ``stream`` when the block ends."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with named(uri, "write"), open(os.dup(stream) if isinstance(stream, int) else stream, "ab") as target:
            shutil.copyfileobj(file, target, 1 << 20)


@contextlib.contextmanager
def _beside(uri: str, path: str) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path``, which takes its place when the block ends."""
    path = os.path.realpath(path) if os.path.islink(path) else path
    with named(uri, "write"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(path).with_name(f".{basename(path)}.{secrets.token_hex(4)}")
        # Not mkstemp, whose mode 0600 hides the file from a group. The kernel applies the user's umask.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with named(uri, "write"):
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove(uri: str) -> None:
    """Delete the file, or the folder with everything in it; no error if it is not there."""
    fs, path = resolve_to_write(uri)

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            tree.remove(fs, path)
        with contextlib.suppress(FileNotFoundError):
            fs.info(path)
            raise OSError("the store kept some of it")

    _attempt(fs, uri, "remove", delete)


def read_tagged(
    uri: str, *, tries: int = retry.TRIES, timeout: float | None = None
) -> tuple[bytes, str] | None:
    """A small remote file and a tag for ``swap``; None if it is not there. ``timeout``: seconds for each try
    (S3)."""
    fs, path = resolve(uri)

    def read() -> tuple[bytes, str] | None:
        with contextlib.suppress(FileNotFoundError):
            return remote.read_tagged(fs, path, timeout)
        return None

    return retry.attempt(uri, "read", read, tries=tries)


def swap(
    uri: str, data: bytes | None, tag: str | None, *, tries: int = retry.TRIES, timeout: float | None = None
) -> str | None:
    """``remote.swap`` with retries. It may return None after a success, if the answer to an earlier try was
    lost."""
    fs, path = resolve_to_write(uri)
    return retry.attempt(uri, "write", lambda: remote.swap(fs, path, data, tag, timeout), tries=tries)


def _attempt(fs: Any, uri: str, what: str, operation: Callable[[], T]) -> T:
    with heartbeat.advancing():
        return retry.attempt(uri, what, operation, tries=1 if speaks(fs, "file") else retry.TRIES)
