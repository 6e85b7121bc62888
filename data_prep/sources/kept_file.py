"""Files beside a genome (repeats, tracks), as workers read them: in place, or in a form that is kept in the
cache of each node.

A file is read once for each node; its digest is of its text, or of a binary file's bytes.
"""

import contextlib
import hashlib
import json
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import redact
from data_prep.sources import compression
from data_prep.sources.handles import stamp
from data_prep.sources.reference import cache_dir

BINARY = "bytes"  # what ``how`` is of a file that is read as it is
# (URI, path without suffix in the cache) -> (path of what is read, sha256): raises ValueError or StoreError.
Make = Callable[[str, Path], tuple[str, str]]


@dataclass(frozen=True)
class KeptFile:
    """What is at ``uri``, readable at ``path``, made in the way called ``how``; ``stamp``: size and time of
    the file at ``path``, ``origin`` those of a local ``uri``. ``sha256``: of its text, if BINARY of it
    all."""

    uri: str
    how: str
    path: str
    sha256: str
    stamp: str
    origin: str


def keep(uri: str, make: Make, *, how: str) -> KeptFile:
    """The file at ``uri`` as ``make`` leaves it on this machine; from the cache if it was made before.

    Raises:
        StoreError: it cannot be read, or the cache cannot be written. ValueError: what ``make`` refuses.
    """
    uri, cache = store.absolute(uri), cache_dir()
    store.refuse_pipe(uri)
    key = hashlib.sha256(f"{uri} {store.version(uri)} {how}".encode()).hexdigest()[:32]
    record = cache / f"{key}.json"
    with exclusive(cache / f"{key}.lock"):  # the workers of a node wait for the first one
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = KeptFile(**json.loads(record.read_bytes()))
            if stamp(known.path) == known.stamp:
                return known
        origin = stamp(str(store.local_path(uri))) if store.is_local(uri) else ""  # before it is read
        path, digest = make(uri, cache / key)
        kept = KeptFile(uri, how, path, digest, stamp(path), origin)
        store.write_bytes(str(record), json.dumps(asdict(kept)).encode())
    return kept


def on_this_node(file: KeptFile, make: Make) -> str:
    """The path of ``file`` here, made again on a node where it is not.

    Raises:
        StoreError: this node cannot reach it. ValueError: it is another file here.
    """
    if stamp(file.path) == file.stamp:
        return file.path
    host = socket.gethostname()
    try:
        here = keep(file.uri, make, how=file.how)
    except store.StoreError as fault:
        raise store.StoreError(f"{fault} on host {host}; every node must reach it") from fault
    if here.sha256 != file.sha256:
        raise ValueError(
            f"{redact(file.uri)} is another file than the build was planned with: sha256 {file.sha256[:12]} "
            f"there, {here.sha256[:12]} now on host {host}"
        )
    return here.path


def is_changed(file: KeptFile) -> bool:
    """Whether a local file is another than was read. Where its size or time differ, its digest decides."""
    if not file.origin or stamp(str(store.local_path(file.uri))) == file.origin:
        return False
    digest = hashlib.sha256()
    try:
        for piece in store.chunks(file.uri) if file.how == BINARY else compression.plain(file.uri):
            digest.update(piece)
    except (store.StoreError, ValueError):  # it is gone or damaged, and was not
        return True
    return digest.hexdigest() != file.sha256
