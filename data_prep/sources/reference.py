"""A reference genome, readable in ranges, from any FASTA or .2bit as it really comes. The only user of
pyfaidx.

A source is streamed once: its text is hashed and, unless it is a plain local file, kept in the cache
directory (``DNA_CACHE``, else ``~/.cache/dna-distill``) with its index; nothing is written beside a source.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyfaidx import Faidx, FastaIndexingError

from cluster.process.host import cache_root
from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import redact
from data_prep.sources import fasta, twobit

_GZIP = b"\x1f\x8b"
# A record's last letter and all that may follow it: the next header, or the end of the file.
_GAP, _END = re.compile(rb"[^\r\n]\r?\n>[^\n]*\n"), re.compile(rb"[^\r\n](\r?\n)?")

Progress = Callable[
    [str, int, int], None
]  # (stage, letters done, letters in all or 0 where that is not known)


@dataclass(frozen=True)
class Handle:
    """What a worker needs to read a reference: plain text or .2bit at ``path``, the text's .fai at ``index``
    or "".

    ``stamp`` tells whether the file at ``path`` is, here, the one that was read: its size and time.
    """

    uri: str
    path: str
    index: str
    sha256: str
    stamp: str


@dataclass(frozen=True)
class Located:
    """A handle, the contigs in file order (empty ones left out), and the source's version when it was read.

    ``looks``: size and time of a source on this machine, which show a change of its bytes alone; "" of a
    remote one.
    """

    handle: Handle
    contigs: dict[str, int]
    empty_records: int
    version: str
    looks: str


def cache_dir(cache: Path | None = None) -> Path:
    """The cache directory (by default that of DNA_CACHE), made if need be. StoreError if it cannot be."""
    cache = cache or cache_root()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise store.StoreError(
            f"cannot use the cache folder {cache}: {fault.strerror}; set DNA_CACHE"
        ) from fault
    return cache


def locate(uri: str, *, cache: Path | None = None, on_progress: Progress | None = None) -> Located:
    """The reference at ``uri``, readable by ``fetch`` on this machine; from the cache if it is there.

    Letters are not looked at: ``survey.prepare`` does that.

    Raises:
        ValueError: not a FASTA or .2bit, cut short, a name twice: one sentence that names ``uri``.
        StoreError: it cannot be read, or the cache cannot be written.
    """
    uri, cache = store.absolute(uri), cache_dir(cache)
    store.refuse_pipe(uri)
    version = store.version(uri)
    key = hashlib.sha256(f"{uri} {version}".encode()).hexdigest()[:32]
    record = cache / f"{key}.json"
    with exclusive(
        cache / f"{key}.lock"
    ):  # the workers of a node wait for the first one instead of streaming it again
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(record.read_bytes())
            located = Located(**known | {"handle": Handle(**known["handle"])})
            if _is_here(located.handle):
                return located
        looks = _looks(uri)
        located = _index(uri, version, cache / key, on_progress or (lambda stage, done, total: None))
        located = replace(located, looks=looks)
        store.write_bytes(str(record), json.dumps(asdict(located)).encode())
    return located


def changed(reference: Located) -> bool:
    """Whether the source is no longer what was read. Another mode, owner, name or link of the file changes
    nothing, and where its time or version differs, it is read again and its digest decides."""
    handle = reference.handle
    if store.version(handle.uri) == reference.version or (
        reference.looks and _looks(handle.uri) == reference.looks
    ):
        return False
    digest = hashlib.sha256()
    text = (
        store.chunks(handle.uri) if not handle.index else _text(handle.uri, lambda stage, done, total: None)
    )
    try:
        collections.deque(_hashed(text, digest), maxlen=0)
    except ValueError:  # it was whole
        return True
    return digest.hexdigest() != handle.sha256


def fetch(handle: Handle, contig: str, start: int, end: int) -> bytes:
    """Letters [start, end) of ``contig``, which must lie inside it, as the source has them."""
    letters: bytes | str = _open(handle).fetch(contig, start, end) if end > start else b""
    assert len(letters) == end - start, f"{handle.uri}: {contig}:{start}-{end} gave {len(letters)} letters"
    return letters if isinstance(letters, bytes) else letters.encode()


class _Fasta:
    def __init__(self, handle: Handle) -> None:
        self._faidx = Faidx(
            handle.path, indexname=handle.index, as_raw=True, build_index=False, rebuild=False
        )

    def fetch(self, contig: str, start: int, end: int) -> str:
        return str(self._faidx.fetch(contig, start + 1, end))


@functools.lru_cache(maxsize=1)  # an index of a million contigs takes 300 MiB; a shard is of one reference
def _open(handle: Handle) -> _Fasta | twobit.TwoBit:
    """One open file per process and reference: two processes must not share an offset."""
    if not _is_here(handle):  # another node planned the build, or the file has changed
        try:
            here = locate(handle.uri).handle
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
    return _Fasta(handle) if handle.index else twobit.TwoBit(handle.path, uri=handle.uri)


def _is_here(handle: Handle) -> bool:
    return _stamp(handle.path) == handle.stamp and (not handle.index or Path(handle.index).is_file())


def _looks(uri: str) -> str:
    return _stamp(str(store.local_path(uri))) if store.is_local(uri) else ""


def _stamp(path: str) -> str:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def _index(uri: str, version: str, stem: Path, progress: Progress) -> Located:
    with store.open_read(uri) as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"{uri} is empty, not a FASTA")
    if start in twobit.MAGIC:
        return _index_twobit(uri, version, stem)
    # pyfaidx takes a file for a bgzip by its name.
    if store.is_local(uri) and not start.startswith(_GZIP) and not uri.lower().endswith((".gz", ".bgz")):
        digest, regular = hashlib.sha256(), fasta.Regularity()
        for chunk in _text(uri, progress):
            digest.update(chunk)
            regular.feed(chunk)
        sha256, path = digest.hexdigest(), str(store.local_path(uri))
        if regular:
            # Uneven or blank lines: pyfaidx refuses them, with this or with that.
            with contextlib.suppress(FastaIndexingError, RuntimeError):
                return _read_index(uri, path, Path(f"{stem}.fai"), sha256, version)
    path = f"{stem}.fa"
    digest = hashlib.sha256()
    with store.publish(path) as target:
        fasta.rewrite(_hashed(_text(uri, progress), digest), target, uri=uri)
    return _read_index(uri, path, Path(f"{path}.fai"), digest.hexdigest(), version)


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
    return _located(uri, Handle(uri, path, "", digest.hexdigest(), _stamp(path)), lengths, version)


def _located(uri: str, handle: Handle, lengths: dict[str, int], version: str) -> Located:
    contigs = {name: length for name, length in lengths.items() if length}
    if not contigs:
        raise ValueError(f"{uri}: no sequence in its {len(lengths)} record{'s' * (len(lengths) != 1)}")
    return Located(handle, contigs, len(lengths) - len(contigs), version, "")


def _read_index(uri: str, path: str, index: Path, sha256: str, version: str) -> Located:
    with tempfile.TemporaryDirectory(dir=index.parent) as folder:
        fresh = (
            Path(folder) / "fai"
        )  # pyfaidx writes in place; a rename shows other processes a whole index or none
        try:
            faidx = Faidx(path, indexname=str(fresh), as_raw=True)
        except ValueError as fault:
            if isinstance(fault, UnicodeDecodeError) or not str(fault).startswith("Duplicate key"):
                raise
            name = str(fault).removeprefix("Duplicate key ")
            raise ValueError(
                f"{uri}: contig name {name} stands there twice (a name is the first word of its line); "
                "rename or remove one"
            ) from fault
        entries = faidx.index
        faidx.close()
        _check_index(path, list(entries.values()))
        if odd := next((name for name in entries if not name.isprintable()), ""):
            raise ValueError(f"{uri}: the name of a record, {odd!r}, is not readable text")
        os.replace(fresh, index)
    lengths = {name: int(entry.rlen) for name, entry in entries.items()}
    return _located(uri, Handle(uri, path, str(index), sha256, _stamp(path)), lengths, version)


def _check_index(path: str, entries: list[Any]) -> None:
    """FastaIndexingError where pyfaidx lets pass what it then reads wrongly: a last line longer than the
    others."""
    size = os.path.getsize(path)
    limits = [*(entry.offset for entry in entries[1:]), size]
    with open(path, "rb") as file:
        for entry, limit in zip(entries, limits, strict=True):
            if not entry.rlen:
                continue
            end = entry.offset + entry.rlen + (entry.rlen - 1) // entry.lenc * (entry.lenb - entry.lenc)
            file.seek(end - 1)
            gap = file.read(max(0, limit - end + 1))
            if end > size or not (_END if entry is entries[-1] else _GAP).fullmatch(gap):
                raise FastaIndexingError(f"lines are uneven before byte {end}")


def _text(uri: str, progress: Progress) -> Iterator[bytes]:
    """The decompressed text of the FASTA at ``uri`` in chunks; its first bytes must be those of one."""
    chunks = store.chunks(uri)
    first = next(chunks, b"")
    text: Iterator[bytes] = itertools.chain([first], chunks)
    text = fasta.gunzip(text, uri=uri) if first.startswith(_GZIP) else text
    start = next(text, b"")
    if not start:
        raise ValueError(f"{uri} is empty, not a FASTA")
    fasta.refuse_other(start, uri=uri)
    done = 0
    for chunk in itertools.chain([start], text):
        done += len(chunk)
        progress(f"read {store.basename(redact(uri))}", done, 0)
        yield chunk


def _hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
