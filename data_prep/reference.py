"""A reference genome, opened from any FASTA or .2bit as it really comes. The only user of pyfaidx.

A source is streamed once: its text is hashed and, unless it is a plain local file, kept in the cache directory
(``DNA_CACHE``, else ``~/.cache/dna-distill``) with its index; nothing is written beside a source. Then every letter is
looked at once, which finds bad ones before anything is built and tells where N stands.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyfaidx import Faidx, FastaIndexingError

from cluster import store
from data_prep import fasta, twobit
from data_prep.alphabet import N, encode

_SCAN = 1 << 20  # letters looked at at once
_GZIP = b"\x1f\x8b"
# A record's last letter and all that may follow it: the next header, or the end of the file.
_GAP, _END = re.compile(rb"[^\r\n]\r?\n>[^\n]*\n"), re.compile(rb"[^\r\n](\r?\n)?")

Progress = Callable[[str, int, int], None]  # (stage, letters done, letters in all or 0 where that is not known)
Runs = dict[str, np.ndarray[Any, np.dtype[np.int64]]]  # contig -> [r, 2], sorted 0-based half-open intervals


@dataclass(frozen=True)
class Handle:
    """What a worker needs to read a reference: plain text or .2bit at ``path``, the text's .fai at ``index`` or ""."""

    uri: str
    path: str
    index: str
    sha256: str


@dataclass(frozen=True)
class Located:
    """A handle, the contigs in file order (empty ones left out), and the source's version when it was read."""

    handle: Handle
    contigs: dict[str, int]
    empty_records: int
    version: str


@dataclass(frozen=True)
class Reference(Located):
    """A located reference whose every letter was looked at: where N (or an ambiguity letter) stands."""

    n_runs: Runs
    ambiguous_runs: Runs  # the part of n_runs that was an IUPAC ambiguity letter


def cache_dir() -> Path:
    return Path(os.environ.get("DNA_CACHE") or Path.home() / ".cache" / "dna-distill")


def prepare(uri: str, *, cache: Path | None = None, on_progress: Progress | None = None) -> Reference:
    """The reference at ``uri`` (FASTA: plain, gzip, bgzip; or .2bit; local or remote); from the cache if it is there.

    Raises:
        ValueError: not a FASTA, truncated, a name twice, a byte that is no letter: one sentence that names ``uri``.
        StoreError: it cannot be read, or the cache cannot be written.
    """
    cache = cache or cache_dir()
    progress = on_progress or (lambda stage, done, total: None)
    located = locate(uri, cache=cache, on_progress=progress)
    scan = cache / f"{located.handle.sha256}.scan.npz"
    with _lock(cache / f"{located.handle.sha256}.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _with_runs(located, scan)
        n_runs, ambiguous_runs = _scan(located, progress)
        file = io.BytesIO()
        np.savez(file, n=_stacked(n_runs, located.contigs), ambiguous=_stacked(ambiguous_runs, located.contigs))
        store.write_bytes(str(scan), file.getvalue())
        return _with_runs(located, scan)


def locate(uri: str, *, cache: Path | None = None, on_progress: Progress | None = None) -> Located:
    """The reference at ``uri``, readable by ``fetch`` on this machine; from the cache if it is there.

    Raises:
        ValueError, StoreError: as ``prepare``, but letters are not looked at.
    """
    uri, cache = store.absolute(uri), cache or cache_dir()
    version = store.version(uri)
    key = hashlib.sha256(f"{uri} {version}".encode()).hexdigest()[:32]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise store.StoreError(f"cannot use the cache folder {cache}: {fault.strerror}; set DNA_CACHE") from fault
    record = cache / f"{key}.json"
    with _lock(cache / f"{key}.lock"):  # the workers of a node wait for the first one instead of streaming it again
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(record.read_bytes())
            located = Located(**known | {"handle": Handle(**known["handle"])})
            if all(Path(path).is_file() for path in (located.handle.path, located.handle.index) if path):
                return located
        located = _index(uri, version, cache / key, on_progress or (lambda stage, done, total: None))
        store.write_bytes(str(record), json.dumps(asdict(located)).encode())
    return located


def fetch(handle: Handle, contig: str, start: int, end: int) -> bytes:
    """Letters [start, end) of ``contig``, which must lie inside it, as the source has them."""
    letters: bytes | str = _open(handle).fetch(contig, start, end) if end > start else b""
    assert len(letters) == end - start, f"{handle.uri}: {contig}:{start}-{end} gave {len(letters)} letters"
    return letters if isinstance(letters, bytes) else letters.encode()


class _Fasta:
    def __init__(self, handle: Handle) -> None:
        self._faidx = Faidx(handle.path, indexname=handle.index, as_raw=True, build_index=False, rebuild=False)

    def fetch(self, contig: str, start: int, end: int) -> str:
        return str(self._faidx.fetch(contig, start + 1, end))


@functools.lru_cache(maxsize=8)
def _open(handle: Handle) -> _Fasta | twobit.TwoBit:
    """One open file per process and reference: two processes must not share an offset."""
    if not all(Path(path).is_file() for path in (handle.path, handle.index) if path):  # another node planned the build
        try:
            here = locate(handle.uri).handle
        except store.StoreError as fault:
            raise store.StoreError(f"{fault} on host {socket.gethostname()}; every node must reach it") from fault
        if here.sha256 != handle.sha256:
            raise ValueError(f"{handle.uri} differs between machines: sha256 {handle.sha256[:12]} where the build was "
                             f"planned, {here.sha256[:12]} on host {socket.gethostname()}")
        handle = here
    return _Fasta(handle) if handle.index else twobit.TwoBit(handle.path, uri=handle.uri)


def _index(uri: str, version: str, stem: Path, progress: Progress) -> Located:
    with store.open_read(uri) as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"{uri} is empty, not a FASTA")
    if start in twobit.MAGIC:
        return _index_twobit(uri, version, stem)
    if store.is_local(uri) and not start.startswith(_GZIP):
        digest, regular = hashlib.sha256(), fasta.Regularity()
        for chunk in _text(uri, progress):
            digest.update(chunk)
            regular.feed(chunk)
        sha256, path = digest.hexdigest(), str(store.local_path(uri))
        if regular:
            with contextlib.suppress(FastaIndexingError):  # uneven or blank lines: pyfaidx refuses them
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
    lengths = twobit.TwoBit(path, uri=uri).contigs()
    return _located(uri, Handle(uri, path, "", digest.hexdigest()), lengths, version)


def _located(uri: str, handle: Handle, lengths: dict[str, int], version: str) -> Located:
    contigs = {name: length for name, length in lengths.items() if length}
    if not contigs:
        raise ValueError(f"{uri}: no sequence in its {len(lengths)} record{'s' * (len(lengths) != 1)}")
    return Located(handle, contigs, len(lengths) - len(contigs), version)


def _read_index(uri: str, path: str, index: Path, sha256: str, version: str) -> Located:
    with tempfile.TemporaryDirectory(dir=index.parent) as folder:
        fresh = Path(folder) / "fai"  # pyfaidx writes in place; a rename shows other processes a whole index or none
        try:
            faidx = Faidx(path, indexname=str(fresh), as_raw=True)
        except ValueError as fault:
            if isinstance(fault, UnicodeDecodeError) or not str(fault).startswith("Duplicate key"):
                raise
            name = str(fault).removeprefix("Duplicate key ")
            raise ValueError(f"{uri}: contig name {name} stands there twice; rename or remove one") from fault
        entries = faidx.index
        faidx.close()
        _check_index(path, list(entries.values()))
        os.replace(fresh, index)
    lengths = {name: int(entry.rlen) for name, entry in entries.items()}
    return _located(uri, Handle(uri, path, str(index), sha256), lengths, version)


def _check_index(path: str, entries: list[Any]) -> None:
    """FastaIndexingError where pyfaidx lets pass what it then reads wrongly: a last line longer than the others."""
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
    if not start.lstrip().startswith((b">", b";")):
        raise ValueError(f"{uri} is not a FASTA: it starts with {start[:12]!r}, not with '>'")
    done = 0
    for chunk in itertools.chain([start], text):
        done += len(chunk)
        progress(f"read {store.basename(uri)}", done, 0)
        yield chunk


def _hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _scan(located: Located, progress: Progress) -> tuple[Runs, Runs]:
    stage, done, total = f"index {store.basename(located.handle.uri)}", 0, sum(located.contigs.values())
    n_runs, ambiguous_runs = Runs(), Runs()
    for contig, bp in located.contigs.items():
        n_parts, ambiguous_parts = [], []
        for start in range(0, bp, _SCAN):
            letters = fetch(located.handle, contig, start, min(start + _SCAN, bp))
            try:
                codes, _, ambiguous = encode(letters, origin=start)
            except ValueError as fault:
                raise ValueError(f"{located.handle.uri}: contig {contig}: {fault}") from fault
            done += len(codes)
            progress(stage, done, total)
            if codes.max() == N:
                n_parts.append(_runs(codes == N) + start)
            if ambiguous:
                plain_n = np.isin(np.frombuffer(letters, np.uint8), np.frombuffer(b"Nn", np.uint8))
                ambiguous_parts.append(_runs((codes == N) & ~plain_n) + start)
        for parts, runs in ((n_parts, n_runs), (ambiguous_parts, ambiguous_runs)):
            if parts:
                runs[contig] = np.concatenate(parts)
    return n_runs, ambiguous_runs


def _runs(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def _stacked(runs: Runs, contigs: dict[str, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[r, 3]: number of the contig, start, end."""
    rows = [np.insert(runs[contig], 0, i, axis=1) for i, contig in enumerate(contigs) if contig in runs]
    return np.concatenate([np.zeros((0, 3), np.int64), *rows])


def _with_runs(located: Located, scan: Path) -> Reference:
    names = list(located.contigs)
    with np.load(scan, allow_pickle=False) as arrays:
        parts = []
        for key in ("n", "ambiguous"):
            rows = arrays[key]
            numbers, firsts = np.unique(rows[:, 0], return_index=True)
            parts.append({names[i]: part[:, 1:] for i, part in zip(numbers, np.split(rows, firsts[1:]), strict=True)}
                         if len(rows) else {})
    return Reference(located.handle, located.contigs, located.empty_records, located.version, *parts)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
