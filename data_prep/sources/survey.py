"""Every letter of a reference, read once before anything is built: wrong letters are refused, and the places
of N are kept."""

import contextlib
import functools
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.process.progress import OnProgress, Stage, silent
from cluster.storage import store
from cluster.storage.lock import exclusive
from configs import redact
from data_prep.alphabet import N, encode
from data_prep.sources.aliases import AliasTable, Renamed
from data_prep.sources.edits import ContigEdits, Edits
from data_prep.sources.reference import Located, cache_dir, fetch, locate, located_before

_SCAN = 1 << 20  # letters read at once

Runs = dict[str, np.ndarray[Any, np.dtype[np.int64]]]  # contig -> [r, 2], sorted 0-based half-open intervals


@dataclass(frozen=True)
class Reference(Located):
    """A located reference whose every letter was read."""

    n_runs: Runs  # N, or an ambiguity letter, which becomes N
    ambiguous_runs: Runs  # the part of n_runs that was an IUPAC ambiguity letter
    aliases: AliasTable | None = None  # other names of its contigs
    notes: tuple[str, ...] = ()  # what its user should know of how it was read, a sentence each
    base: "Reference | None" = None  # of a haplotype: the reference that it is edits of

    @property
    def names(self) -> Renamed:
        """Its contigs, to be asked for by the names of another file."""
        return Renamed(self.contigs, self.aliases)

    def edits(self, contig: str) -> ContigEdits:
        """What makes ``contig`` of a haplotype of its ``base``; nothing of another reference."""
        haplotype = self.handle.haplotype
        return _edits(haplotype.edits).of(contig) if haplotype else ContigEdits.none()

    def lift(self, contig: str, intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """``intervals`` of ``contig`` of its ``base``, in it, merged; of another reference as they are."""
        if self.base is None or not len(intervals):
            return list(intervals)
        edges = self.edits(contig).lift(np.array(intervals, np.int64).ravel()).tolist()
        merged: list[tuple[int, int]] = []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            elif start < end:
                merged.append((start, end))
        return merged


@functools.lru_cache(maxsize=8)
def _edits(path: str) -> Edits:
    return Edits(path)


def prepare(
    uri: str,
    *,
    cache: Path | None = None,
    on_progress: OnProgress = silent,
    number_repeated: bool = False,
) -> Reference:
    """The reference at ``uri`` (FASTA, plain or compressed, or .2bit; local or remote); from the cache if it
    is there. ``number_repeated``: as in ``locate``.

    Raises:
        ValueError: not a FASTA, truncated, a name twice, a byte that is no letter: one sentence that names
        ``uri``.
        StoreError: it cannot be read, or the cache cannot be written.
    """
    cache = cache_dir(cache)
    located = locate(uri, cache=cache, on_progress=on_progress, number_repeated=number_repeated)
    return survey(located, cache=cache, on_progress=on_progress)


def prepared_before(
    uri: str, *, cache: Path | None = None, number_repeated: bool = False
) -> Reference | None:
    """What ``prepare`` gives, if all of it is in the cache; None if the source would have to be read."""
    located = located_before(uri, cache=cache, number_repeated=number_repeated)
    return None if located is None else _surveyed(located, _scan_file(located, cache))


def _scan_file(located: Located, cache: Path | None) -> Path:
    return cache_dir(cache) / f"{located.handle.sha256}.runs.npz"  # .scan.npz was an older reader's


def _surveyed(located: Located, scan: Path) -> Reference | None:
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        return _with_runs(located, scan)
    return None


def survey(located: Located, *, cache: Path | None = None, on_progress: OnProgress = silent) -> Reference:
    """``located``, every letter of it read; from the cache if its letters were read before. Raises as
    ``prepare``."""
    scan = _scan_file(located, cache)
    with exclusive(cache_dir(cache) / f"{located.handle.sha256}.lock"):
        if (found := _surveyed(located, scan)) is not None:
            return found
        n_runs, ambiguous_runs = _scan(located, on_progress)
        file = io.BytesIO()
        np.savez(
            file, n=_stacked(n_runs, located.contigs), ambiguous=_stacked(ambiguous_runs, located.contigs)
        )
        store.write_bytes(str(scan), file.getvalue())
        return _with_runs(located, scan)


def _scan(located: Located, on_progress: OnProgress) -> tuple[Runs, Runs]:
    """(runs of N, the part of them that was another ambiguity letter)."""
    name = store.basename(redact(located.handle.uri))
    stage = Stage(on_progress, f"index {name}", sum(located.contigs.values()))
    n_runs, ambiguous_runs = Runs(), Runs()
    for contig, bp in located.contigs.items():
        n_parts, ambiguous_parts = [], []
        for start in range(0, bp, _SCAN):
            letters = fetch(located.handle, contig, start, min(start + _SCAN, bp))
            try:
                codes, _, ambiguous = encode(letters, origin=start)
            except ValueError as fault:
                raise ValueError(f"{located.handle.uri}: contig {contig}: {fault}") from fault
            stage.advance(len(codes))
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
        parts = list[Runs]()
        for key in ("n", "ambiguous"):
            rows = arrays[key]
            numbers, firsts = np.unique(rows[:, 0], return_index=True)
            parts.append(
                {names[i]: part[:, 1:] for i, part in zip(numbers, np.split(rows, firsts[1:]), strict=True)}
                if len(rows)
                else {}
            )
    n_runs, ambiguous_runs = parts
    of = located
    return Reference(
        of.handle, of.contigs, of.empty_records, of.version, of.local_stamp, n_runs, ambiguous_runs
    )
