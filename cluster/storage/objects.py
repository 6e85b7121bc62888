"""Object stores through obstore (the Rust library object_store): what gs:// and az:// have in common.

obstore does not retry here, except the parts of a large upload: ``retry.attempt`` does. Its errors become
those that ``retry`` knows: what the service answered, no connection, no answer in time, a body cut short.

Names of objects are exact. obstore knows neither names with empty parts, ``.`` or ``..``, nor the empty
objects ``x/`` that some tools write for a folder: it takes them for ``x``.
"""

import contextlib
import errno
import importlib
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.client import responses
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from cluster.storage.retry import TRIES, ShortError, StoreError, failure, seconds

_STATUS = re.compile(r"status code: (\d{3})")
_CODE, _MESSAGE = (
    re.compile(rf"<{tag}>(.*?)</{tag}>|\"{tag.lower()}\":\s*\"(.*?)\"", re.DOTALL)
    for tag in ("Code", "Message")
)
_used_by: list[int] = []  # the process that has used the library


class RefusedError(OSError):
    """The service's answer to a request that it refused; ``response`` has the form of botocore's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.response: dict[str, Any] = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }


class UntrustedError(OSError):
    """The server's certificate is not one that this machine trusts."""


def works_here() -> bool:
    """Whether this process may use the library: its threads do not survive a fork."""
    return not _used_by or _used_by[0] == os.getpid()


@contextlib.contextmanager
def asking(server: str, wanted: int = 0) -> Iterator[Any]:
    """The library. What it raises in the block becomes an error that ``retry`` knows, which names ``server``;
    ``wanted``: the bytes that are asked for."""
    import obstore

    if not works_here():
        raise StoreError(
            "this process was forked from one that had used the store; start it as a program of its own"
        )
    _used_by[:] = [os.getpid()]
    try:
        yield obstore
    except obstore.exceptions.BaseError as fault:
        raise _translated(fault, server, wanted) from fault
    except ValueError as fault:  # a name that it does not take
        raise OSError(str(fault).partition("\n")[0]) from fault


def client_options(timeout: float) -> Any:
    """Options for a store: ``timeout`` seconds for the next bytes, and no limit to a request that goes on."""
    return {
        "allow_http": True,  # where an endpoint begins with it
        "connect_timeout": timedelta(seconds=min(10.0, timeout)),
        "read_timeout": timedelta(seconds=timeout),
        "timeout": timedelta(days=7),
    }


def _translated(fault: Exception, server: str, wanted: int) -> Exception:
    # The rest of the text is the library's own, with whole URLs, which may hold a signature.
    text, _, inner = str(fault).partition("\n\nDebug source:")
    inside = "token request" in text  # of credentials, and not of the object
    if "InvalidCertificate" in inner:
        return UntrustedError(f"the certificate of {server} is not one that this machine trusts")
    if found := _STATUS.search(text):
        status = int(found[1])
        code, message = (
            next((part for part in match.groups() if part), "") if (match := pattern.search(text)) else ""
            for pattern in (_CODE, _MESSAGE)
        )
        message = message.strip().partition("\n")[0] or responses.get(status, "no reason given")
        if inside:
            return OSError(f"no credentials for {server}: its tokens were refused with {message} ({status})")
        if status == 404:
            return FileNotFoundError(errno.ENOENT, message)
        return RefusedError(status, code or str(status), message)
    if inside:
        return ConnectionError(f"Could not reach the server of tokens for {server}")
    if "kind: Timeout" in inner:
        return TimeoutError(f'Read timeout on endpoint URL: "{server}"')
    if "kind: Connect" in inner:
        return ConnectionError(f'Could not connect to the endpoint URL: "{server}"')
    if "kind: Body" in inner:
        return ShortError(f"got fewer than {wanted} bytes" if wanted else "the answer was cut short")
    if "HttpError" in inner:
        return ConnectionError(f'Connection was closed before we received a valid response from "{server}"')
    return OSError(text.partition("\n")[0].removeprefix("Generic ")[:240])


class ObjectFileSystem(AbstractFileSystem):
    """Buckets of one service. A path is ``bucket/name``; ``open_bucket`` gives obstore's store of one."""

    cachable = False
    server = ""  # in messages

    def __init__(self, *, timeout: float = 30.0) -> None:
        super().__init__()
        importlib.import_module("obstore")  # ModuleNotFoundError at once, and not inside an operation
        self._timeout = timeout
        self._stores: dict[tuple[str, float, bool], Any] = {}
        self._lock = threading.Lock()

    def open_bucket(self, bucket: str, client: Any, retries: Any) -> Any:
        raise NotImplementedError

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size, type and ETag of the object; type "directory" where names begin with ``path/``."""
        store, name = self._at(path)
        if name:
            with contextlib.suppress(FileNotFoundError), asking(self.server) as library:
                return self._entry(path, library.head(store, name))
        with asking(self.server) as library:
            first: Any = next(iter(library.list(store, f"{name}/" if name else None, chunk_size=1)), [])
        if name and not first:
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def ukey(self, path: str) -> str:
        return str(self.info(path).get("ETag"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        store, name = self._at(path)
        with asking(self.server, (end or 0) - (start or 0)) as library:
            if start is None and end is None:
                return bytes(library.get(store, name).bytes())
            assert end is not None, "remote.fetch asks for the end"
            return bytes(library.get_range(store, name, start=start or 0, end=end))

    def put_file(self, local: str, path: str, **_: Any) -> None:
        store, name = self._at(path)
        with asking(self.server) as library:
            library.put(store, name, Path(local), use_multipart=False)

    def upload_parts(self, uri: str, local: str, path: str, step: int) -> None:
        """Send the local file in parts of ``step`` bytes; obstore tries each part again, and deletes the
        parts of an upload that failed.

        Raises:
            StoreError: the upload failed, after all tries.
        """
        store, name = self._at(path, retries=True)
        began = time.monotonic()
        try:
            with asking(self.server) as library:
                library.put(store, name, Path(local), use_multipart=True, chunk_size=step, max_concurrency=2)
        except Exception as fault:
            spent = time.monotonic() - began
            raise failure(fault, uri, "write", tries=TRIES, spent=spent) from fault

    def read_tagged(self, path: str, timeout: float | None) -> tuple[bytes, str]:
        """The whole object, and what identifies its state: a generation or an ETag."""
        store, name = self._at(path, timeout=timeout)
        with asking(self.server) as library:
            answer = library.get(store, name)
            return bytes(answer.bytes()), _tag(answer.meta)

    def swap(self, path: str, data: bytes, tag: str | None, timeout: float | None) -> str | None:
        """As ``remote.swap``; the service itself checks the condition."""
        store, name = self._at(path, timeout=timeout)
        mode = "create" if tag is None else {"e_tag": tag, "version": tag}
        with asking(self.server) as library:
            try:
                return _tag(library.put(store, name, data, mode=mode, use_multipart=False))
            except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError):
                return None
            except FileNotFoundError:
                if tag is None:
                    raise  # no such bucket
                return None

    def rm_file(self, path: str) -> None:
        store, name = self._at(path)
        with asking(self.server) as library:
            library.delete(store, name)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """Every object below ``path`` by its path; ``withdirs``: also the object ``path`` itself."""
        store, name = self._at(path)
        bucket = path.partition("/")[0]
        found = {}
        with asking(self.server) as library:
            for page in library.list(store, f"{name}/" if name else None):
                for each in page:
                    found[f"{bucket}/{each['path']}"] = self._entry(f"{bucket}/{each['path']}", each)
        folders = {parent for each in found for parent in _parents(each)}
        found = {each: entry for each, entry in found.items() if entry["size"] or each not in folders}
        if withdirs and name:
            with contextlib.suppress(FileNotFoundError), asking(self.server) as library:
                found[path] = self._entry(path, library.head(store, name))
        return found if detail else sorted(found)

    def _at(self, path: str, *, timeout: float | None = None, retries: bool = False) -> tuple[Any, str]:
        """obstore's store of the bucket, and the name in it."""
        bucket, _, name = path.partition("/")
        key = (bucket, self._timeout if timeout is None else timeout, retries)
        with self._lock:
            if key not in self._stores:
                with asking(self.server):
                    options, again = client_options(key[1]), _retries() if retries else {"max_retries": 0}
                    self._stores[key] = self.open_bucket(bucket, options, again)
            return self._stores[key], name

    @staticmethod
    def _entry(path: str, meta: Any) -> dict[str, Any]:
        return {
            "name": path,
            "size": meta["size"],
            "type": "file",
            "ETag": meta["e_tag"],
            "LastModified": meta["last_modified"],
        }


def _retries() -> dict[str, Any]:
    """As many tries of a part, over as many seconds, as of anything else."""
    budget = seconds("DNA_STORE_RETRY_SECONDS", 30)
    pause = timedelta(seconds=budget / (2 ** (TRIES - 1) - 1))
    return {
        "max_retries": TRIES - 1,
        "retry_timeout": timedelta(seconds=max(1.0, budget)),
        "backoff": {"init_backoff": pause, "max_backoff": pause * 2 ** (TRIES - 2), "base": 2},
    }


def _tag(meta: Any) -> str:
    return str(meta["version"] or meta["e_tag"])


def _parents(path: str) -> Iterator[str]:
    """All folders that ``path`` lies in."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
