"""The lines of a BED file of regions as columns, and what is said of those that give no window.

Shapes: M lines.
"""

import hashlib
import math
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs import ConfigError, redact
from data_prep.sources import bed, compression
from trainer.data.config import RegionBed
from trainer.data.mixture import Ints
from trainer.data.sampling import Floats

ALL, ABSENT = -1, -2  # in place of an assembly: the line counts for each reference; its assembly is not there
KEY = "data.regions.beds"
TO_HAPLOTYPES = "a line in a haplotype's own coordinates may name it in the fourth column"
_SHOWN = 5  # names in a sentence
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Lines:
    """The intervals of the file at ``uri``: [start, end) of one of ``contigs``, the number of the line, the
    number of the one assembly that it counts for (or ALL, ABSENT), and its score (1 where none is asked for).

    ``sha256``: of the file's plain bytes. ``absent``: some assemblies that lines name and the data lack.
    """

    uri: str
    sha256: str
    contigs: Sequence[str]
    absent: Sequence[str]
    number_M: Ints
    contig_M: Ints
    start_M: Ints
    end_M: Ints
    assembly_M: Ints
    score_M: Floats

    def __len__(self) -> int:
        return len(self.number_M)


def read(of: RegionBed, assemblies: Sequence[str]) -> Lines:
    """The lines of a BED file. A line counts for every reference that has its contig; but where the fourth
    column of some line names one of ``assemblies``, each line that has a name counts for that one alone.

    Raises:
        StoreError: it cannot be read. ConfigError: it is no BED file, has no line, or ``by: score`` meets a
            line without a score.
    """
    uri = redact(of.uri)
    try:
        data = b"".join(compression.plain(of.uri))
        found = _columns(bed.parse(data, uri), assemblies, scored=of.by == "score", uri=uri)
    except ValueError as fault:
        raise ConfigError(f"{KEY}: {fault}") from fault
    return Lines(uri, hashlib.sha256(data).hexdigest(), **found)


def _columns(
    lines: Iterable[bed.Line], assemblies: Sequence[str], *, scored: bool, uri: str
) -> dict[str, Any]:
    """The fields of Lines behind its sha256; in arrays, since a file may have millions of lines."""
    contigs: dict[str, int] = {}
    known, absent = {name: number for number, name in enumerate(assemblies)} | {"": ALL}, dict[str, None]()
    columns = {name: array("q") for name in ("number_M", "contig_M", "start_M", "end_M", "assembly_M")}
    number_M, contig_M, start_M, end_M, assembly_M = columns.values()
    scores = array("d")
    for line in lines:
        number_M.append(line.number)
        contig_M.append(contigs.setdefault(line.contig, len(contigs)))
        start_M.append(line.start)
        end_M.append(line.end)
        assembly = known.get(line.name, ABSENT)
        assembly_M.append(assembly)
        if assembly == ABSENT and len(absent) <= _SHOWN:
            absent[line.name] = None
        if scored:
            scores.append(_score(line, uri))
    if not number_M:
        raise ValueError(f"{uri} has no line; give a BED file with intervals, or leave it out")
    found: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
    if not (found["assembly_M"] >= 0).any():  # the names are of something else
        found["assembly_M"][:], absent = ALL, {}
    score_M = np.array(scores) if scored else np.ones(len(number_M))
    return found | {"contigs": [*contigs], "absent": [*absent], "score_M": score_M}


def _score(line: bed.Line, uri: str) -> float:
    try:
        score = float(line.score)
    except ValueError:
        score = -1.0
    if not 0 <= score < math.inf:
        raise ValueError(
            f"{uri}, line {line.number}: by: score needs a number of 0 or more in column 5, not "
            f"{line.score.strip()[:20]!r}; give by: bp or by: interval"
        )
    return score


def not_in_train(lines: Lines, hit_M: Bools, alone_M: Bools, *, known: Collection[str]) -> str:
    """How many lines lie outside the train split (``hit_M`` is False), and why; "" if none does.

    ``alone_M``: which name no assembly, and only haplotypes have their contig. ``known``: the contigs that
    some assembly of the data has, in the spelling of the BED.
    """
    missed_M = ~hit_M
    if not missed_M.any():
        return ""
    is_known = np.array([contig in known for contig in lines.contigs])[lines.contig_M]
    empty_M, absent_M, zero_M = lines.start_M == lines.end_M, lines.assembly_M == ABSENT, lines.score_M == 0
    other_M = missed_M & ~empty_M & ~absent_M & ~zero_M & ~alone_M
    held_M, unknown_M = other_M & is_known, other_M & ~is_known
    parts = [
        (held_M, f"held out or left out ({_contigs(lines, held_M)})"),
        (unknown_M, f"on contigs that no assembly of the data has ({_contigs(lines, unknown_M)})"),
        (alone_M, f"without an assembly, on contigs of haplotypes alone ({_contigs(lines, alone_M)})"),
        (absent_M & ~empty_M & ~zero_M, f"of assemblies that are not in the data ({_some(lines.absent)})"),
        (empty_M & ~zero_M, "of length 0"),
        (zero_M, "with score 0"),
    ]
    told = ", ".join(f"{int(which.sum()):,} {what}" for which, what in parts if which.any())
    return f"{int(missed_M.sum()):,} of {len(lines):,} lines of {lines.uri} give no window: {told}"


def unlifted(lines: Lines, unlifted_M: Bools, haplotypes: Sequence[str]) -> str:
    """How many lines count for no haplotype, since they name none, and which ones have their contigs; "" if
    none does."""
    if not unlifted_M.any():
        return ""
    return (
        f"{int(unlifted_M.sum()):,} of {len(lines):,} lines of {lines.uri} name no assembly, so they count "
        f"for references alone, and not for haplotypes ({_some(haplotypes)}): {TO_HAPLOTYPES}"
    )


def past_the_end(lines: Lines, late_M: Bools) -> str:
    """How many lines end past the end of their contig; "" if none does."""
    if not late_M.any():
        return ""
    return (
        f"{int(late_M.sum()):,} of {len(lines):,} lines of {lines.uri} end past the end of their contigs "
        f"(the first is line {lines.number_M[late_M][0]}): what lies there counts for nothing"
    )


def _contigs(lines: Lines, which_M: Bools) -> str:
    return _some([lines.contigs[number] for number in dict.fromkeys(lines.contig_M[which_M].tolist())])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + " ..." * (len(names) > _SHOWN)
