"""A reference genome, opened from any FASTA as it really comes. The only user of pyfaidx.

A source is streamed once: its decompressed bytes are hashed and, unless it is a plain local file, kept as plain text in
the cache directory (``DNA_CACHE``, else ``~/.cache/dna-distill``), with the index. Nothing is written beside a source.
"""

import contextlib
import fcntl
import functools
import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pyfaidx import Faidx, FastaIndexingError

from cluster import store

_CHUNK = 1 << 22
_WIDTH = 1 << 16  # line width of a rewritten copy
# A record's last letter and all that may follow it: the next header, or the end of the file.
_GAP, _END = re.compile(rb"[^\r\n]\r?\n>[^\n]*\n"), re.compile(rb"[^\r\n](\r?\n)?")
_TWOBIT = (b"\x1a\x41\x27\x43", b"\x43\x27\x41\x1a")


@dataclass(frozen=True)
class Reference:
    """An indexed FASTA: plain text at ``path``, its .fai at ``index``, contigs in file order, empty ones left out."""

    uri: str
    path: str
    index: str
    sha256: str
    contigs: dict[str, int]
    empty_records: int


def cache_dir() -> Path:
    return Path(os.environ.get("DNA_CACHE") or Path.home() / ".cache" / "dna-distill")


def prepare(uri: str, *, cache: Path | None = None) -> Reference:
    """The reference at ``uri`` (plain, gzip or bgzip FASTA, local or remote), indexed; from the cache if it is there.

    Raises:
        ValueError: not a FASTA, truncated, a name twice, a record without a name: one sentence that names ``uri``.
        StoreError: it cannot be read.
    """
    uri, cache = store.absolute(uri), cache or cache_dir()
    key = hashlib.sha256(f"{uri} {store.version(uri)}".encode()).hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    record = cache / f"{key}.json"
    with _lock(cache / f"{key}.lock"):  # the workers of a node wait for the first one instead of streaming it again
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = Reference(**json.loads(record.read_bytes()))
            if Path(known.path).is_file() and Path(known.index).is_file():
                return known
        reference = _index(uri, cache)
        store.write_bytes(str(record), json.dumps(asdict(reference)).encode())
    return reference


def fetch(reference: Reference, contig: str, start: int, end: int) -> bytes:
    """Letters [start, end) of ``contig``, as the source has them."""
    length = reference.contigs[contig]
    assert 0 <= start < end <= length, f"{contig}:{start}-{end} is not inside its {length} bp"
    handle = _handle(reference.uri, reference.path, reference.index, reference.sha256)
    letters: str = handle.fetch(contig, start + 1, end)
    assert len(letters) == end - start, f"{reference.uri}: {contig}:{start}-{end} gave {len(letters)} letters"
    return letters.encode()


@functools.lru_cache(maxsize=8)
def _handle(uri: str, path: str, index: str, sha256: str) -> Faidx:
    """One open file per process and reference: handles do not survive a fork, nor do two processes share an offset."""
    if not (Path(path).is_file() and Path(index).is_file()):  # another node than the one that planned the build
        here = prepare(uri)
        if here.sha256 != sha256:
            raise ValueError(f"{uri} differs between machines: sha256 {sha256[:12]} here, {here.sha256[:12]} there")
        path, index = here.path, here.index
    return Faidx(path, indexname=index, as_raw=True, build_index=False, rebuild=False)


def _index(uri: str, cache: Path) -> Reference:
    in_place = store.is_local(uri) and not _is_gzip(uri)
    handle, temporary = tempfile.mkstemp(prefix=".stream.", dir=cache)
    try:
        with os.fdopen(handle, "wb") as target:
            sha256, regular = _stream(uri, None if in_place else target)
        if in_place:
            path = str(store.local_path(uri))
        else:
            path = str(cache / f"{sha256}.fa")
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    try:
        if not regular:
            raise FastaIndexingError("line ends differ or bytes are not ASCII")
        return _read_index(uri, path, cache / f"{sha256}.fai", sha256)
    except FastaIndexingError:  # uneven or blank lines: pyfaidx refuses them, a rewritten copy has none
        rewritten = str(cache / f"{sha256}.even.fa")
        with open(path, "rb") as source, store.publish(rewritten) as copy:
            _rewrite(uri, source, copy)
        return _read_index(uri, rewritten, cache / f"{sha256}.even.fai", sha256)


def _read_index(uri: str, path: str, index: Path, sha256: str) -> Reference:
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
    contigs = {name: length for name, length in lengths.items() if length}
    if not contigs:
        raise ValueError(f"{uri}: no sequence in its {len(lengths)} record{'s' * (len(lengths) != 1)}")
    return Reference(uri, path, str(index), sha256, contigs, len(lengths) - len(contigs))


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


def _is_gzip(uri: str) -> bool:
    with store.open_read(uri) as file:
        return bool(file.read(2) == b"\x1f\x8b")


def _stream(uri: str, target: IO[bytes] | None) -> tuple[str, bool]:
    """sha256 of the decompressed bytes, copied to ``target``, and whether line ends are alike and all bytes ASCII."""
    digest, feeds, returns, ascii_only, size = hashlib.sha256(), 0, 0, True, 0
    compressed = _is_gzip(uri)
    with store.open_read(uri) as raw:
        source: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            while chunk := source.read(_CHUNK):
                if not size:
                    _check_start(uri, chunk)
                size += len(chunk)
                digest.update(chunk)
                feeds, returns = feeds + chunk.count(b"\n"), returns + chunk.count(b"\r")
                ascii_only = ascii_only and chunk.isascii()
                if target:
                    target.write(chunk)
        except EOFError as fault:
            raise ValueError(f"{uri}: the gzip stream ends early, after {size} bytes of text; get it again") from fault
        except (gzip.BadGzipFile, zlib.error) as fault:
            raise ValueError(f"{uri}: damaged gzip after {size} bytes of text ({fault}); get it again") from fault
    if not size:
        raise ValueError(f"{uri} is empty, not a FASTA")
    return digest.hexdigest(), ascii_only and returns in (0, feeds)


def _check_start(uri: str, chunk: bytes) -> None:
    if chunk.startswith(_TWOBIT):
        raise ValueError(f"{uri} is a .2bit file, which is not read yet; convert it to FASTA (twoBitToFa)")
    if not chunk.lstrip().startswith((b">", b";")):
        raise ValueError(f"{uri} is not a FASTA: it starts with {chunk[:12]!r}, not with '>'")


def _rewrite(uri: str, source: IO[bytes], target: IO[bytes]) -> None:
    """The records of ``source`` with lines of one length: blank lines, uneven lines and odd line ends are gone."""
    number = 0
    for number, (header, letters) in enumerate(_records(source), 1):
        words = header.split()
        if not words:
            raise ValueError(f"{uri}: record {number} has no name after its '>'")
        name = words[0].decode(errors="replace")
        if not name.isprintable() or "\ufffd" in name:
            raise ValueError(f"{uri}: the name of record {number}, {words[0]!r}, is not readable text")
        if not letters.isascii():
            at = next(i for i, byte in enumerate(letters) if byte > 127)
            byte = letters[at : at + 1]
            raise ValueError(f"{uri}: contig {name}: byte {byte!r} at position {at} is no nucleotide letter")
        target.write(b">" + words[0] + b"\n")
        for i in range(0, len(letters), _WIDTH):
            target.write(letters[i : i + _WIDTH] + b"\n")
    if not number:
        raise ValueError(f"{uri} is not a FASTA: no line starts with '>'")


def _records(source: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    header: bytes | None = None
    lines: list[bytes] = []
    for raw in source:
        for line in raw.splitlines():  # a lone carriage return ends a line too
            if line.startswith(b">"):
                if header is not None:
                    yield header, b"".join(lines)
                header, lines = line[1:], []
            elif header is not None:  # before the first record stand comments only
                lines.append(line.strip())
    if header is not None:
        yield header, b"".join(lines)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
