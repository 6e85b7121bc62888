"""URI -> filesystem and path, and one identity for each place.

Paths are literal: none of fsspec's methods is used that read *, ? and [] as patterns (glob, rm, get, put,
copy, mv, expand_path).
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from cluster.process.paths import expand
from cluster.storage import retry, web
from cluster.storage.azure import AzureStorage
from cluster.storage.gcs import GoogleStorage
from cluster.storage.hub import Hub
from cluster.storage.kinds import speaks
from cluster.storage.retry import StoreError
from configs import ConfigError, redact

_OURS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("gs", "gcs"), GoogleStorage),
    **dict.fromkeys(("az", "abfs", "abfss"), AzureStorage),
    "hf": Hub,
}
_EXTRAS = {"data": ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https"), "stores": ("hf",)}
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR_HOST", "HF_")


def is_local(uri: str) -> bool:
    return speaks(resolve(uri)[0], "file")


def local_path(uri: str) -> Path:
    """The filesystem path of a local ``uri``. ValueError for a remote one."""
    fs, path = resolve(uri)
    if not speaks(fs, "file"):
        raise ValueError(f"{redact(uri)} is not a local path")
    return Path(path)


def refuse_pipe(uri: str) -> None:
    """ConfigError where ``uri`` is a pipe or a terminal, for what is read more than once."""
    if is_local(uri) and (path := local_path(uri)).exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(
            f"{redact(uri)} is a pipe or a device, and is read more than once; save it as a file, and "
            "give that"
        )


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def basename(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def absolute(uri: str) -> str:
    """``uri`` in a form that means the same from any working directory."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def identity(uri: str) -> str:
    """The same text for all URIs of one place, with links, .., file://, a slash at the end, or s3a."""
    fs, path = resolve(uri)
    if speaks(fs, "file"):
        return os.path.realpath(path)
    if speaks(fs, "http") or "://" in path:
        return uri
    scheme = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return f"{scheme}://{path.strip('/')}"


def resolve(uri: str) -> tuple[Any, str]:
    """The filesystem and the path on it.

    Raises:
        StoreError: the filesystem cannot be used. ConfigError: as ``paths.expand``, and for a lone -, which
        other programs read as a stream.
    """
    uri = str(uri)
    if uri == "-":
        raise ConfigError(
            "- is no file; standard input and output are /dev/stdin and /dev/stdout, and ./- is a file "
            "of that name"
        )
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme in ("file", "local"):
        fs = fsspec.filesystem("file")
        return fs, LocalFileSystem._strip_protocol(expand(rest if mark else uri.removeprefix("file:")))
    try:
        # A chain, such as zip://x.fa::s3://bucket/x.zip.
        if "::" in scheme or "://" in rest.partition("::")[2]:
            fs, path = url_to_fs(uri, use_listings_cache=False)
            return fs, path
        if scheme not in _OURS and scheme not in ("s3", "s3a", "http", "https"):
            kind = fsspec.get_filesystem_class(scheme)
            return kind(
                **kind._get_kwargs_from_urls(uri) | {"use_listings_cache": False}
            ), kind._strip_protocol(uri)
        settings = tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(_SETTINGS)))
        timeout = retry.seconds("DNA_STORE_TIMEOUT_SECONDS", 30)
        fs = _filesystem(scheme, os.getpid(), timeout, "versionId=" in uri, settings)
        return fs, fs._strip_protocol(uri).rstrip("/" * (scheme in _OURS))
    except ModuleNotFoundError as fault:
        extra = extra_of(scheme)
        how = f"; install dna-distill[{extra}], which has it" * bool(extra)
        raise StoreError(f"cannot use {redact(uri)}: the library {fault.name} is missing{how}") from fault
    except (ValueError, ImportError) as fault:
        raise StoreError(f"cannot use {redact(uri)}: {' '.join(str(fault).split())}") from fault


def extra_of(scheme: str) -> str:
    """The extra of this package that has the library of ``scheme``; "" if none has."""
    return next((extra for extra, schemes in _EXTRAS.items() if scheme in schemes), "")


def resolve_to_write(uri: str) -> tuple[Any, str]:
    """As ``resolve``; StoreError also where nothing can be written."""
    fs, path = resolve(uri)
    if why := getattr(fs, "read_only", ""):
        raise StoreError(f"cannot write {redact(uri)}: {why}")
    return fs, path


@functools.lru_cache(maxsize=16)
def _filesystem(
    scheme: str, pid: int, timeout: float, versions: bool, settings: tuple[tuple[str, str], ...]
) -> Any:
    """One for each process and environment, for all threads. fsspec's own cache ignores AWS_ENDPOINT_URL and
    keys. ``settings``: the variables that it may depend on."""
    if scheme in _OURS:
        return _OURS[scheme](timeout=timeout)
    common = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        return fsspec.filesystem(scheme, **common, **web.options(timeout=timeout))
    fs = fsspec.filesystem(
        scheme,
        **common,
        version_aware=versions,
        config_kwargs={
            "connect_timeout": min(10, timeout),
            "read_timeout": timeout,
            "max_pool_connections": 32,
            "retries": {"total_max_attempts": 1},
        },
    )
    fs.retries = 1
    return fs


class Buffered(AbstractBufferedFile):
    """Buffered reads of a remote file of ``size`` bytes; ``fetch(start, end)`` gives bytes [start, end),
    exactly."""

    def __init__(
        self, fs: Any, path: str, *, size: int, fetch: Callable[[int, int], bytes], block_size: int
    ) -> None:
        self._fetch = fetch
        super().__init__(fs, path, size=size, block_size=block_size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._fetch(start, end)
