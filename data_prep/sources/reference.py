"""A reference genome, readable in ranges, from any FASTA, .2bit, GenBank file or package as they are found.

A source is streamed once: its text is hashed and, unless it is a plain local file, kept in the cache
directory (``DNA_CACHE``, else ``~/.cache/dna-distill``) with its index; nothing is written beside a source.
"""

import collections
import contextlib
import functools
import hashlib
import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cluster.process.host import cache_root
from cluster.process.progress import OnProgress, silent
from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import redact
from data_prep.sources import packages, texts, twobit
from data_prep.sources.alias_files import read_aliases
from data_prep.sources.aliases import Renamed
from data_prep.sources.edits import ContigEdits, EditedGenome, Edits
from data_prep.sources.fasta_index import IndexedFasta
from data_prep.sources.handles import Handle, Haplotype, Located, stamp
from data_prep.sources.indexing import hashed, index_numbered, index_plain
from data_prep.sources.phased import Base, write_edits

__all__ = ["Handle", "Located", "cache_dir", "changed", "edits", "fetch", "haplotypes", "locate", "notes"]


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
    uri = store.absolute(uri)
    version, stem = _place(uri, cache, number_repeated=number_repeated)
    # The workers of a node wait for the first one instead of streaming the source again.
    with exclusive(stem.with_suffix(".lock")):
        if (located := _kept(stem)) is not None:
            return located
        local_stamp = _local_stamp(uri)  # before it is read
        index = index_numbered if number_repeated else index_plain
        located = replace(index(uri, version, stem, on_progress), local_stamp=local_stamp)
        store.write_bytes(str(stem.with_suffix(".json")), json.dumps(asdict(located)).encode())
    return located


def located_before(uri: str, *, cache: Path | None = None, number_repeated: bool = False) -> Located | None:
    """What ``locate`` gives, if it is in the cache; None if the source would have to be read."""
    return _kept(_place(store.absolute(uri), cache, number_repeated=number_repeated)[1])


def _place(uri: str, cache: Path | None, *, number_repeated: bool) -> tuple[str, Path]:
    """(version of a source now, the path of its files in the cache without their suffix)."""
    store.refuse_pipe(packages.file_of(uri))
    version = store.version(packages.file_of(uri))
    how = " numbered" if number_repeated else ""
    return version, cache_dir(cache) / hashlib.sha256(f"{uri} {version}{how}".encode()).hexdigest()[:32]


def _kept(stem: Path) -> Located | None:
    """What the cache knows of a source, if its files are there."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(stem.with_suffix(".json").read_bytes())
        located = Located(**known | {"handle": Handle(**known["handle"])})
        if _is_here(located.handle):
            return located
    return None


def changed(reference: Located) -> bool:
    """Whether the source no longer has the bytes that were read. Where its version and its time differ, it is
    read again, and its digest decides."""
    handle = reference.handle
    if handle.haplotype and _versions(handle.haplotype.vcfs) != handle.haplotype.versions:
        return True
    if store.version(packages.file_of(handle.uri)) == reference.version or (
        reference.local_stamp and _local_stamp(handle.uri) == reference.local_stamp
    ):
        return False
    digest = hashlib.sha256()
    text = texts.text(handle.uri) if handle.index else store.chunks(handle.uri)
    try:
        collections.deque(hashed(text, digest), maxlen=0)
    except ValueError:  # it is damaged, and was not
        return True
    return digest.hexdigest() != _text_sha256(handle)


def _text_sha256(handle: Handle) -> str:
    return handle.haplotype.reference_sha256 if handle.haplotype else handle.sha256


def haplotypes(
    reference: Located,
    vcfs: Sequence[str],
    wanted: Sequence[tuple[str, int]],
    *,
    aliases: str = "",
    cache: Path | None = None,
) -> list[Located]:
    """The wanted (sample, 1 or 2) of the VCF files at ``vcfs``, which are of ``reference``, readable as it
    is; from the cache if they are there. ``aliases``: the file of other names of its contigs.

    Raises:
        ValueError, StoreError: as ``phased.write_edits``.
    """
    vcfs, cache = tuple(map(store.absolute, vcfs)), cache_dir(cache)
    versions = _versions(vcfs)
    base = reference.handle
    found = []
    for sample, number in wanted:
        key = repr(
            (
                vcfs,
                versions,
                sample,
                number,
                base.sha256,
                aliases and store.version(packages.file_of(aliases)),
            )
        )
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.edits"
        found.append(Haplotype(vcfs, versions, sample, number, base.sha256, aliases, str(path)))
    with exclusive(cache / f"{hashlib.sha256(repr((vcfs, base.sha256)).encode()).hexdigest()[:32]}.vcf.lock"):
        missing = [haplotype for haplotype in found if not Path(haplotype.edits).is_file()]
        if missing:
            names = Renamed(reference.contigs, read_aliases(aliases) if aliases else None)
            read = Base(base.uri, base.sha256, reference.contigs, names, functools.partial(fetch, base))
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(store.publish(haplotype.edits)) for haplotype in missing]
                write_edits(vcfs, [(own.sample, own.number) for own in missing], read, files)
    located = []
    for haplotype in found:
        made = Edits(haplotype.edits)
        handle = replace(base, sha256=made.sha256, haplotype=haplotype)
        contigs = {name: bp for name, bp in made.contigs(reference.contigs).items() if bp}
        located.append(replace(reference, handle=handle, contigs=contigs, empty_records=0))
    return located


def edits(handle: Handle, contig: str) -> ContigEdits:
    """What makes ``contig`` of the haplotype that ``handle`` reads."""
    opened = _open(handle)
    assert isinstance(opened, EditedGenome), f"{handle.uri} is no haplotype"
    return opened.of(contig)


def notes(haplotype: Located) -> list[str]:
    """What its user should know of how a haplotype was made, a sentence each."""
    own = haplotype.handle.haplotype
    return Edits(own.edits).notes if own else []


def _versions(uris: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(store.version, uris))


def fetch(handle: Handle, contig: str, start: int, end: int) -> bytes:
    """Letters [start, end) of ``contig``, which must lie inside it, as the source has them."""
    letters = _open(handle).fetch(contig, start, end) if end > start else b""
    assert len(letters) == end - start, f"{handle.uri}: {contig}:{start}-{end} gave {len(letters)} letters"
    return letters


@functools.lru_cache(maxsize=1)  # an index of a million contigs takes 300 MiB; a shard is of one reference
def _open(handle: Handle) -> IndexedFasta | twobit.TwoBit | EditedGenome:
    """One open file per process and reference: two processes must not share an offset."""
    if handle.haplotype:
        return _open_edited(handle, handle.haplotype)
    if not _is_here(handle):  # another node planned the build, or the file has changed
        try:
            here = locate(handle.uri, number_repeated=handle.number_repeated).handle
        except store.StoreError as fault:
            raise store.StoreError(
                f"{fault} on host {socket.gethostname()}; every node must reach it"
            ) from fault
        if here.sha256 != handle.sha256:
            raise _another(handle, here)
        handle = here
    if handle.index:
        return IndexedFasta(handle.path, handle.index)
    return twobit.TwoBit(handle.path, uri=handle.uri)


def _another(planned: Handle, here: Handle) -> ValueError:
    return ValueError(
        f"{planned.uri} is another file than the build was planned with: sha256 "
        f"{planned.sha256[:12]} there, {here.sha256[:12]} now on host {socket.gethostname()}"
    )


def _open_edited(handle: Handle, haplotype: Haplotype) -> EditedGenome:
    base = replace(handle, sha256=haplotype.reference_sha256, haplotype=None)
    if not Path(haplotype.edits).is_file():  # another node planned the build
        located = locate(base.uri, number_repeated=base.number_repeated)
        if located.handle.sha256 != base.sha256:
            raise _another(base, located.handle)
        wanted = [(haplotype.sample, haplotype.number)]
        (here,) = haplotypes(located, haplotype.vcfs, wanted, aliases=haplotype.aliases)
        if here.handle.sha256 != handle.sha256 or here.handle.haplotype is None:
            raise ValueError(
                f"haplotype {haplotype.number} of {haplotype.sample} is another one than the build was "
                f"planned with: {', '.join(map(redact, haplotype.vcfs))} or the reference differs on host "
                f"{socket.gethostname()}"
            )
        base, haplotype = located.handle, here.handle.haplotype
    opened = _open.__wrapped__(base)
    return EditedGenome(Edits(haplotype.edits), opened.fetch)


def _is_here(handle: Handle) -> bool:
    return stamp(handle.path) == handle.stamp and (not handle.index or Path(handle.index).is_file())


def _local_stamp(uri: str) -> str:
    return stamp(str(store.local_path(packages.file_of(uri)))) if store.is_local(uri) else ""
