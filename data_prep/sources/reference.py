"""A reference genome, readable in ranges, from any FASTA, .2bit, GenBank file or package as they are found.

A source is streamed once: its text is hashed and, unless it is a plain local file, kept in the cache
directory (``DNA_CACHE``, else ``~/.cache/dna-distill``) with its index; nothing is written beside a source.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.process.host import cache_root
from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import magic, redact
from data_prep.sources import packages, texts, twobit
from data_prep.sources.fasta_index import IndexedFasta, Regularity, rewrite, write_index


@dataclass(frozen=True)
class Handle:
    """What a worker needs to read a reference: plain text or .2bit at ``path``, and the text's .fai at
    ``index`` ("" of a .2bit).

    ``stamp``: size and time of the file at ``path``. On another node, that file may be another or missing.
    """

    uri: str
    path: str
    index: str
    sha256: str
    stamp: str
    number_repeated: bool = False  # names that stand twice are numbered, and not refused


@dataclass(frozen=True)
class Located:
    """A handle, the contigs in file order (empty ones left out), and the source's version when it was read.

    ``local_stamp``: size and time of a source on this machine; they change with its bytes and not with its
    mode, owner or links, as the version may. "" of a remote source.
    """

    handle: Handle
    contigs: dict[str, int]
    empty_records: int
    version: str
    local_stamp: str


def cache_dir(cache: Path | None = None) -> Path:
    """The cache directory (default: that of DNA_CACHE), made if missing. StoreError if it cannot be made."""
    cache = cache or cache_root()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise store.StoreError(
            f"cannot use the cache folder {cache}: {fault.strerror}; set DNA_CACHE"
        ) from fault
    return cache


def locate(
    uri: str,
    *,
    cache: Path | None = None,
    on_progress: OnProgress = silent,
    number_repeated: bool = False,
) -> Located:
    """The reference at ``uri``, readable by ``fetch`` on this machine; from the cache if it is there.
    Besides FASTA and .2bit that may be whatever ``texts.text`` reads.

    Letters are not checked: ``survey.prepare`` does that. With ``number_repeated`` the second record of one
    name in a FASTA gets another name (fasta.pieces).

    Raises:
        ValueError: not a FASTA or .2bit, cut short, a name twice: one sentence that names ``uri``.
        StoreError: it cannot be read, or the cache cannot be written.
    """
    uri, cache = store.absolute(uri), cache_dir(cache)
    store.refuse_pipe(_file_of(uri))
    version = store.version(_file_of(uri))
    how = " numbered" if number_repeated else ""
    key = hashlib.sha256(f"{uri} {version}{how}".encode()).hexdigest()[:32]
    record = cache / f"{key}.json"
    # The workers of a node wait for the first one instead of streaming the source again.
    with exclusive(cache / f"{key}.lock"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(record.read_bytes())
            located = Located(**known | {"handle": Handle(**known["handle"])})
            if _is_here(located.handle):
                return located
        local_stamp = _local_stamp(uri)  # before it is read
        index = _index_numbered if number_repeated else _index
        located = replace(index(uri, version, cache / key, on_progress), local_stamp=local_stamp)
        store.write_bytes(str(record), json.dumps(asdict(located)).encode())
    return located


def changed(reference: Located) -> bool:
    """Whether the source no longer has the bytes that were read. Where its version and its time differ, it is
    read again, and its digest decides."""
    handle = reference.handle
    if store.version(_file_of(handle.uri)) == reference.version or (
        reference.local_stamp and _local_stamp(handle.uri) == reference.local_stamp
    ):
        return False
    digest = hashlib.sha256()
    text = texts.text(handle.uri) if handle.index else store.chunks(handle.uri)
    try:
        collections.deque(_hashed(text, digest), maxlen=0)
    except ValueError:  # it is damaged, and was not
        return True
    return digest.hexdigest() != handle.sha256


def fetch(handle: Handle, contig: str, start: int, end: int) -> bytes:
    """Letters [start, end) of ``contig``, which must lie inside it, as the source has them."""
    letters = _open(handle).fetch(contig, start, end) if end > start else b""
    assert len(letters) == end - start, f"{handle.uri}: {contig}:{start}-{end} gave {len(letters)} letters"
    return letters


@functools.lru_cache(maxsize=1)  # an index of a million contigs takes 300 MiB; a shard is of one reference
def _open(handle: Handle) -> IndexedFasta | twobit.TwoBit:
    """One open file per process and reference: two processes must not share an offset."""
    if not _is_here(handle):  # another node planned the build, or the file has changed
        try:
            here = locate(handle.uri, number_repeated=handle.number_repeated).handle
        except store.StoreError as fault:
            raise store.StoreError(
                f"{fault} on host {socket.gethostname()}; every node must reach it"
            ) from fault
        if here.sha256 != handle.sha256:
            raise ValueError(
                f"{handle.uri} is another file than the build was planned with: sha256 "
                f"{handle.sha256[:12]} there, {here.sha256[:12]} now on host {socket.gethostname()}"
            )
        handle = here
    if handle.index:
        return IndexedFasta(handle.path, handle.index)
    return twobit.TwoBit(handle.path, uri=handle.uri)


def _is_here(handle: Handle) -> bool:
    return _stamp(handle.path) == handle.stamp and (not handle.index or Path(handle.index).is_file())


def _file_of(uri: str) -> str:
    """The file that holds ``uri``, which may name one assembly of a package."""
    return packages.split(uri)[0]


def _local_stamp(uri: str) -> str:
    return _stamp(str(store.local_path(_file_of(uri)))) if store.is_local(uri) else ""


def _stamp(path: str) -> str:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def _index(uri: str, version: str, stem: Path, on_progress: OnProgress) -> Located:
    with store.open_read(_file_of(uri)) as file:
        start = file.read(16)
    if magic.format_of(start) == magic.TWOBIT:
        return _index_twobit(uri, version, stem)
    # pyfaidx takes any file with such a name for a bgzip.
    if store.is_local(uri) and start.startswith(b">") and not uri.lower().endswith((".gz", ".bgz")):
        path, index = str(store.local_path(uri)), Path(f"{stem}.fai")
        digest, regular = hashlib.sha256(), Regularity()
        for chunk in _hashed(_text(uri, on_progress), digest):
            regular.feed(chunk)
        if regular and (lengths := write_index(path, index)) is not None:
            handle = Handle(uri, path, str(index), digest.hexdigest(), _stamp(path))
            return _located(handle, lengths, version)
    return _index_copy(uri, version, stem, on_progress, number_repeated=False)


def _index_numbered(uri: str, version: str, stem: Path, on_progress: OnProgress) -> Located:
    with store.open_read(_file_of(uri)) as file:
        kind = magic.format_of(file.read(16))
    if kind == magic.TWOBIT:  # which has no name twice
        return _index_twobit(uri, version, stem)
    return _index_copy(uri, version, stem, on_progress, number_repeated=True)


def _index_copy(
    uri: str, version: str, stem: Path, on_progress: OnProgress, *, number_repeated: bool
) -> Located:
    """From a copy with even lines. A wrong file is refused here: fasta.pieces checks all of it."""
    path, index = f"{stem}.fa", Path(f"{stem}.fa.fai")
    digest = hashlib.sha256()
    with store.publish(path) as target:
        text = _hashed(_text(uri, on_progress), digest)
        rewrite(text, target, uri=uri, number_repeated=number_repeated)
    lengths = write_index(path, index)
    assert lengths is not None, f"{uri}: its rewritten copy {path} cannot be indexed"
    handle = Handle(uri, path, str(index), digest.hexdigest(), _stamp(path), number_repeated)
    return _located(handle, lengths, version)


def _index_twobit(uri: str, version: str, stem: Path) -> Located:
    digest = hashlib.sha256()
    chunks = _hashed(store.chunks(uri), digest)
    if store.is_local(uri):
        path = str(store.local_path(uri))
        collections.deque(chunks, maxlen=0)
    else:
        path = f"{stem}.2bit"
        with store.publish(path) as target:
            target.writelines(chunks)
    path = twobit.readable(path, f"{stem}.le.2bit", uri=uri)
    lengths = twobit.TwoBit(path, uri=uri).contigs()
    return _located(Handle(uri, path, "", digest.hexdigest(), _stamp(path)), lengths, version)


def _located(handle: Handle, lengths: dict[str, int], version: str) -> Located:
    contigs = {name: length for name, length in lengths.items() if length}
    if not contigs:
        raise ValueError(f"{handle.uri}: no sequence in its {len(lengths)} record{'s' * (len(lengths) != 1)}")
    return Located(handle, contigs, len(lengths) - len(contigs), version, "")


def _text(uri: str, on_progress: OnProgress) -> Iterator[bytes]:
    stage = Stage(on_progress, f"read {store.basename(redact(uri))}")
    for chunk in texts.text(uri):
        stage.advance(len(chunk))
        yield chunk


def _hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
