"""Accessions of assemblies -> URIs of genome files: ``accession:GCF_000146045.2``.

They are looked for in ``DNA_ASSEMBLIES``, a folder or URI: a mirror in NCBI's own layout
(``GCF/000/146/045/GCF_000146045.2_R64/GCF_000146045.2_R64_genomic.fna.gz``), or files and packages whose
names begin with the accession. Without it, NCBI's web server is asked.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from cluster.storage import store
from configs import redact

SCHEME = "accession:"
ROOT = "DNA_ASSEMBLIES"
_NCBI = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
_ACCESSION = re.compile(r"(?P<kind>GC[AF])_(?P<digits>\d{9})(\.\d+)?")
_NAME = re.compile(r"(?P<accession>GC[AF]_\d{9}\.\d+)(?=[_.])")  # how a file or folder begins
_LINK = re.compile(r"""href\s*=\s*["']([^"'?#]+)["']""", re.IGNORECASE)
_PARTS = re.compile(r"_(cds|rna)_from_genomic\.")  # not the genome
_FORMATS = (  # a file of the first that is there is taken
    re.compile(r".*\.(fna|fa|fasta)(\.(gz|bz2|xz|zst))?"),
    re.compile(r".*\.2bit"),
    re.compile(r".*\.zip"),
    re.compile(r".*\.(gbff|gbk|gb)(\.(gz|bz2|xz|zst))?"),
)


@dataclass(frozen=True)
class Resolved:
    """Where an assembly lies, and the report of its contigs' names beside it ("" without one). ``note``: a
    sentence where the accession had no version and the only one was taken, else ""."""

    uri: str
    report: str
    note: str


def is_accession(uri: str) -> bool:
    return uri.startswith(SCHEME)


def resolve(uri: str) -> Resolved:
    """The genome file of ``uri``, which is ``accession:`` and an accession of NCBI.

    Raises:
        ValueError: no accession; no file, or more than one; an accession without a version that has several.
        StoreError: the place where it is looked for cannot be read.
    """
    wanted = uri.removeprefix(SCHEME).strip()
    accession = _ACCESSION.fullmatch(wanted)
    if not accession:
        raise ValueError(
            f"{uri}: {wanted!r} is no accession of an assembly; one is GCF_ or GCA_, 9 digits, and a "
            "version, such as GCF_000146045.2"
        )
    root = os.environ.get(ROOT, "").strip() or _NCBI
    digits = accession["digits"]
    folder = store.join(root, accession["kind"], digits[:3], digits[3:6], digits[6:])
    place, names = folder, _of_accession(_below(folder), wanted)
    if not names:
        place, names = root, [] if root == _NCBI else _of_accession(_below(root), wanted)
    if not names:
        raise ValueError(
            f"{uri}: {redact(root)} has no assembly {wanted} (neither in {redact(folder)} nor by a name that "
            f"begins with it); {ROOT} says where to look"
        )
    versions = sorted({found["accession"] for name in names if (found := _NAME.match(store.basename(name)))})
    if len(versions) > 1:
        raise ValueError(f"{uri}: there are {', '.join(versions)}; give one of them, with its version")
    files = [name for name in names if not _PARTS.search(name)]
    genomes = next((own for form in _FORMATS if (own := list(filter(form.fullmatch, files)))), [])
    if len(genomes) != 1:
        there = f"several genome files ({', '.join(genomes)})" if genomes else f"only {', '.join(names[:5])}"
        raise ValueError(f"{uri}: {redact(place)} has {there} of {versions[0]}; give the URI of one")
    reports = [name for name in names if name.endswith("_assembly_report.txt")]
    note = "" if wanted == versions[0] else f"{uri} has no version; {versions[0]}, the only one, was taken"
    return Resolved(
        store.join(place, genomes[0]), store.join(place, reports[0]) if len(reports) == 1 else "", note
    )


def _of_accession(names: Iterable[str], wanted: str) -> list[str]:
    """Those of ``names`` whose file begins with the accession, with or without a version."""
    found = ((name, _NAME.match(store.basename(name))) for name in names)
    return [name for name, of in found if of and wanted in (of["accession"], of["accession"].split(".")[0])]


def _below(uri: str) -> list[str]:
    """The files below ``uri``, relative to it; of a web server those that the page of its folder links, and
    those of folders there that are named after an accession."""
    if not uri.startswith(("http://", "https://")):
        return store.list_files(uri)
    names = []
    for name in _links(uri):
        if name.endswith("/") and _NAME.match(name):
            names += [name + file for file in _links(store.join(uri, name.rstrip("/")))]
        elif not name.endswith("/"):
            names.append(name)
    return names


def _links(uri: str) -> list[str]:
    """What the page of a web server's folder links in it; nothing where there is no such folder."""
    page = f"{uri.rstrip('/')}/"
    if not store.exists(page):
        return []
    links = (unquote(link) for link in _LINK.findall(store.read_bytes(page).decode("utf-8", "replace")))
    inside = (link.removeprefix("./") for link in links)
    return sorted({link for link in inside if "/" not in link.rstrip("/") and link.strip("./")})
