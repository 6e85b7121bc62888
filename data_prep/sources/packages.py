"""Zip archives with a genome: NCBI datasets packages, and archives of one FASTA. Read in place, in ranges.

``pkg.zip#GCF_000146045.2`` means one assembly of several.
"""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from cluster.storage import store
from configs import magic, redact
from data_prep.sources import compression

_PIECE = 1 << 22  # bytes read at once
_FRAGMENT = re.compile(r"(?P<uri>.+\.zip)#(?P<key>[^#/]+)", re.IGNORECASE)
_GENOME = re.compile(r"(?:.*/)?ncbi_dataset/data/(?P<key>GC[AF]_\d+\.\d+)/[^/]*_genomic\.fna(\.gz)?")
_PARTS = re.compile(r"(cds|rna)_from_genomic\.fna(\.gz)?$")  # not the genome
_FASTA = re.compile(r".*\.(fa|fna|fasta|fas|seq)(\.(gz|bz2|xz|zst))?", re.IGNORECASE)
_REPORT = "sequence_report.jsonl"
_SHOWN = 5


@dataclass(frozen=True)
class Member:
    """The genome in a package: its file, and the report of its contigs' names ("" without one)."""

    name: str
    report: str


def split(uri: str) -> tuple[str, str]:
    """(the archive's URI, which of its assemblies) of ``uri``; "" where it names none."""
    found = _FRAGMENT.fullmatch(uri)
    return (found["uri"], found["key"]) if found else (uri, "")


def file_of(uri: str) -> str:
    """The file that holds ``uri``, which may name one assembly of a package."""
    return split(uri)[0]


def is_package(uri: str) -> bool:
    """Whether the file at ``uri`` is a zip archive, by its first bytes. StoreError: it cannot be read."""
    with store.open_read(file_of(uri)) as file:
        return magic.format_of(file.read(16)) == magic.ZIP


def has_report(uri: str) -> bool:
    """Whether the package at ``uri`` has a report of its contigs' names. Raises as ``text``."""
    with _opened(uri) as archive:
        return bool(_member(archive, uri).report)


def text(uri: str) -> Iterator[bytes]:
    """The decompressed bytes of the genome in the package at ``uri``, in pieces.

    Raises:
        StoreError: it cannot be read.
        ValueError: damaged; no genome in it, or several and ``uri`` does not say which.
    """
    with _opened(uri) as archive:
        chunks = _chunks(archive, _member(archive, uri).name, uri)
        first = next(chunks, b"")

        def whole() -> Iterator[bytes]:
            yield first
            yield from chunks

        yield from compression.decompress(whole(), kind=magic.format_of(first), uri=uri)


def report_chunks(uri: str) -> Iterator[bytes]:
    """The bytes of the report of names of the package at ``uri``. Raises as ``text``; ValueError without a
    report."""
    with _opened(uri) as archive:
        member = _member(archive, uri)
        if not member.report:
            raise ValueError(f"{redact(uri)} has no {_REPORT}, so it says nothing of contigs' names")
        yield from _chunks(archive, member.report, uri)


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[zipfile.ZipFile]:
    with store.open_read(file_of(uri)) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as fault:
            raise _damaged(uri, fault) from fault
        with archive:
            yield archive


def _chunks(archive: zipfile.ZipFile, name: str, uri: str) -> Iterator[bytes]:
    """The bytes of a member; its checksum is compared at the end."""
    try:
        with archive.open(name) as member:
            yield from _pieces(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as fault:
        raise _damaged(uri, fault) from fault
    except RuntimeError as fault:  # zipfile's word for a password
        raise ValueError(f"{redact(uri)}: {name} is encrypted; unpack it, and give the FASTA") from fault


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _damaged(uri: str, fault: Exception) -> ValueError:
    return ValueError(
        f"{redact(uri)} is a damaged zip archive ({' '.join(str(fault).split()) or 'it ends early'}); get it "
        "again"
    )


def _member(archive: zipfile.ZipFile, uri: str) -> Member:
    """The genome that ``uri`` means."""
    where, key = redact(uri), split(uri)[1]
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    genomes: dict[str, list[str]] = {}
    for name in names:
        if (found := _GENOME.fullmatch(name)) and not _PARTS.search(name):
            genomes.setdefault(found["key"], []).append(name)
    if not genomes:
        return _only_fasta(names, where, key)
    if key and key not in genomes:
        raise ValueError(f"{where} has no assembly {key}; it has {', '.join(sorted(genomes))}")
    if not key and len(genomes) > 1:
        raise ValueError(
            f"{where} has {len(genomes)} assemblies ({', '.join(sorted(genomes))}); say which, as in "
            f"{store.basename(where)}#{min(genomes)}"
        )
    own = genomes[key or next(iter(genomes))]
    if len(own) > 1:
        raise ValueError(f"{where} has two files of one genome: {', '.join(own)}; unpack it, and give one")
    report = f"{own[0].rpartition('/')[0]}/{_REPORT}"
    return Member(own[0], report if report in names else "")


def _only_fasta(names: list[str], where: str, key: str) -> Member:
    found = [name for name in names if _FASTA.fullmatch(name) and (not key or store.basename(name) == key)]
    if len(found) == 1:
        return Member(found[0], "")
    files = [name for name in names if not name.endswith("/")]
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    there = f"{', '.join(files[:_SHOWN])}{more}" if files else "nothing"
    what = f"{len(found)} FASTA files" if found else "no FASTA"
    advice = "say which by its name behind '#', or give one" if found else "a package is to have one genome"
    raise ValueError(f"{where} has {what}{f' called {key}' if key else ''} (it has {there}); {advice}")
