"""bigWig files, read in ranges. The only user of pyBigWig, whose wheels read local files alone: a remote one
is copied into the cache.

Shapes: L letters.
"""

import collections
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import store
from configs import redact
from data_prep.levels import Values
from data_prep.sources.kept_file import BINARY, KeptFile, keep, on_this_node

_SIGNATURE = 4  # bytes


def keep_bigwig(uri: str) -> KeptFile:
    """The bigWig at ``uri``, on this machine. ValueError: it is damaged; StoreError: it cannot be read."""
    return keep(uri, _make, how=BINARY)


class BigWig:
    """An open bigWig. It belongs to one process."""

    def __init__(self, path: str, *, uri: str) -> None:
        """ValueError, naming ``uri``, for a file that pyBigWig cannot open."""
        import pyBigWig  # only who reads a bigWig needs it

        self._uri = redact(uri)
        try:
            self._file = pyBigWig.open(path)
        except RuntimeError as fault:
            raise _damaged(self._uri) from fault

    def contigs(self) -> dict[str, int]:
        """name -> bp of every contig."""
        return {str(name): int(bp) for name, bp in self._file.chroms().items()}

    def values(self, contig: str, start: int, end: int) -> Values:
        """float64 [L], the values of [start, end) of ``contig``, which must lie inside it; NaN where there is
        none. ValueError: the file is damaged."""
        try:
            value_L: Any = self._file.values(contig, start, end, numpy=True)
        except RuntimeError as fault:
            raise _damaged(self._uri) from fault
        return np.asarray(value_L, np.float64)


@functools.lru_cache(maxsize=1)  # a shard is of one reference
def open_bigwig(file: KeptFile) -> BigWig:
    """``file``, opened once for each process. Raises as ``on_this_node``."""
    return BigWig(on_this_node(file, _make), uri=file.uri)


def _make(uri: str, stem: Path) -> tuple[str, str]:
    digest, ends = hashlib.sha256(), bytearray()

    def hashed() -> Iterator[bytes]:
        for chunk in store.chunks(uri):
            digest.update(chunk)
            ends[:] = (ends or chunk)[:_SIGNATURE] + (bytes(ends) + chunk)[-_SIGNATURE:]
            yield chunk

    if store.is_local(uri):
        path = str(store.local_path(uri))
        collections.deque(hashed(), maxlen=0)
    else:
        path = f"{stem}.bw"
        with store.publish(path) as target:
            target.writelines(hashed())
    # It begins and ends with the signature. One that is cut short may crash the library's process.
    if ends[:_SIGNATURE] != ends[_SIGNATURE:]:
        raise _damaged(redact(uri))
    BigWig(path, uri=uri).contigs()
    return path, digest.hexdigest()


def _damaged(where: str) -> ValueError:
    return ValueError(f"{where} is a damaged bigWig file, or cut short; get it again")
