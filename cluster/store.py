"""URI -> bytes, on any fsspec filesystem: open, list, and publish atomically. The only user of fsspec."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


class StoreError(OSError):
    """A read or write failed; the message is one sentence that names the URI."""


def is_local(uri: str) -> bool:
    return isinstance(_resolve(uri)[0], LocalFileSystem)


def local_path(uri: str) -> Path:
    """The filesystem path of a local ``uri``. ValueError for a remote one."""
    fs, path = _resolve(uri)
    if not isinstance(fs, LocalFileSystem):
        raise ValueError(f"{uri} is not a local path")
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
    with _named(uri, "look up"):
        return bool(fs.exists(path))


def version(uri: str) -> str:
    """A token that changes when the file at ``uri`` does (size and time, or ETag), without reading it."""
    fs, path = _resolve(uri)
    with _named(uri, "look up"):
        return str(fs.ukey(path))


def list_files(uri: str) -> list[str]:
    """Names, relative to ``uri`` and sorted, of every file below it; empty if there is none."""
    fs, path = _resolve(uri)
    with _named(uri, "list"):
        if not fs.exists(path):
            return []
        root = path.rstrip("/") + "/"
        return sorted(found.removeprefix(root) for found in fs.find(path))


def open_read(uri: str) -> Any:
    """A binary file object; StoreError, naming the URI, if it cannot be opened."""
    fs, path = _resolve(uri)
    with _named(uri, "open"):
        return fs.open(path, "rb")


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes [start, end) of ``uri``, the whole by default, in one range request."""
    fs, path = _resolve(uri)
    with _named(uri, "read"):
        return bytes(fs.cat_file(path, start=start, end=end))


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

    Local: a temporary file beside the target, fsync, rename. Elsewhere: a temporary local file, then one upload,
    which object stores make visible only when it is complete.
    """
    fs, path = _resolve(uri)
    local = isinstance(fs, LocalFileSystem)
    with _named(uri, "write"):
        if local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{basename(uri)}.", dir=Path(path).parent if local else None)
    try:
        with _named(uri, "write"), os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _named(uri, "write"):
            if local:
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes 0600, which would hide the file from a group
                os.replace(temporary, path)
            else:
                fs.put_file(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove(uri: str) -> None:
    """Delete the file, or the folder and all below it; nothing happens if it is not there."""
    fs, path = _resolve(uri)
    with _named(uri, "remove"):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, path = url_to_fs(str(uri))
    except (ValueError, ImportError) as fault:
        raise StoreError(f"cannot use {uri}: {' '.join(str(fault).split())}") from fault
    return fs, path


@contextlib.contextmanager
def _named(uri: str, what: str) -> Iterator[None]:
    """Any fault of a filesystem as one StoreError that names ``uri``; s3fs and botocore raise many kinds."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as fault:
        raise StoreError(f"cannot {what} {uri}: no such file or bucket") from fault
    except Exception as fault:
        if isinstance(fault, OSError) or type(fault).__module__.split(".")[0] in {"botocore", "aiohttp", "s3fs"}:
            reason = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else str(fault)
            raise StoreError(f"cannot {what} {uri}: {' '.join(reason.split()) or type(fault).__name__}") from fault
        raise
