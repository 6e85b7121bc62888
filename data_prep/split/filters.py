"""BED files -> intervals of the contigs of the references. Lines that count for nothing are warned of."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_prep.sources.aliases import Renamed
from data_prep.sources.bed import Line, read_lines
from data_prep.split.intervals import Intervals, Place, Zones, merge, some

Contigs = Mapping[str, int]  # name -> bp
Warn = Callable[[str], object]


def read_filter(
    uri: str, contigs: Contigs, *, where: str, strict: bool, warn: Warn, names: Renamed | None = None
) -> dict[str, Intervals]:
    """contig -> merged intervals of the BED file at ``uri`` over the ``contigs`` of one reference.

    A name that is none of ``contigs`` is looked for among ``names``, else among their other spellings (chr1
    and 1); ``warn`` gets a sentence on what was read as what. Lines of other contigs are refused where that
    is ``strict``, or where such a name resembles one of the ``contigs`` (case, quotes); else ``warn`` gets a
    sentence on them.

    Raises:
        ValueError: a line that is no interval, begins past the end of its contig, names another contig, or
            has a name that may mean two.
    """
    names = names or Renamed(contigs)
    read = read_lines(uri)
    meant = {name: _meant(name, names.meanings(name), read, uri) for name in {line.contig for line in read}}
    lines = [line._replace(contig=meant[line.contig] or line.contig) for line in read]
    unknown = [line for line in lines if line.contig not in contigs]
    if len(unknown) == len(lines):
        raise ValueError(
            f"{where}: {uri} names no contig of it (the BED has {_names(lines) or 'nothing'}; "
            f"the reference {some(contigs)})"
        )
    similar = _similar(unknown, contigs)
    if unknown and (strict or similar):
        first = next(line for line in unknown if strict or line.contig in similar)
        raise ValueError(
            f"{where}: {_unknown_contig(first, unknown, similar, uri=uri)}; the reference has {some(contigs)}"
        )
    for line in read:
        names.note(line.contig, meant[line.contig] or line.contig)
    if said := names.sentence(uri):
        warn(f"{where}: {said}")
    if unknown:
        warn(
            f"{uri}: {_count(unknown)} on contigs that {where} does not have ({_names(unknown)}): nothing to "
            f"exclude"
        )
    _check_ends(lines, contigs, uri=uri, warn=warn)
    return _by_contig(line for line in lines if line.contig in contigs)


def _meant(name: str, found: Sequence[str], lines: Iterable[Line], uri: str) -> str:
    """The one contig of ``found``, "" where there is none. ValueError if there are more."""
    if len(found) > 1:
        number = next(line.number for line in lines if line.contig == name)
        raise ValueError(
            f"{uri}, line {number}: {name!r} may mean {' or '.join(found)}; use one of these names"
        )
    return found[0] if found else ""


@dataclass(frozen=True)
class Genome:
    """What a split BED is read by: all contigs of an assembly's reference, used or not; and other names.

    Of a haplotype ``contigs`` are those of its reference, ``own`` its own, and ``lift`` gives intervals of a
    contig of the reference in the haplotype.
    """

    contigs: Contigs
    names: Renamed
    own: Contigs | None = None
    lift: Callable[[str, Intervals], Intervals] = lambda contig, intervals: intervals


def read_zones(
    uris: Sequence[str], places: Mapping[Place, int], *, known: Mapping[str, Genome], where: str, warn: Warn
) -> Zones:
    """What the BED files at ``uris`` cover of ``places`` (with their bp).

    A line counts for every assembly of ``known`` that has its contig, by its own name or by that of its file
    of names; other spellings (chr1 and 1) count where no assembly has it so. But where the fourth column of
    some line of a file names an assembly, as in the files that a build writes, each line of that file that
    has a name counts for that assembly alone. For a haplotype, a line that names it is in its own
    coordinates, any other one in those of its reference.

    ``warn`` gets a sentence on what was read as what, and on lines without effect: their contig is not used,
    or their assembly is not here.

    Raises:
        ValueError: a line that is no interval, begins past the end of its contig, names a contig that no
            reference has, or has a name that may mean two; or a file that names no contig of ``places``.
    """
    zones: Zones = {}
    used = {contig for _, contig in places}
    for uri in uris:
        lines, absent = _by_assembly(read_lines(uri), known, uri=uri, where=where)
        named = {line.number for line in lines if line.name}
        lines = _spelled(lines, known, uri=uri, where=where, warn=warn)
        _refuse_unknown(lines, used, known, uri=uri, where=where)
        if absent:
            warn(
                f"{uri}: {_count(absent)} of assemblies that are not in this dataset "
                f"({some(line.name for line in absent)}): that holds out nothing"
            )
        if unused := [line for line in lines if line.contig not in used]:
            warn(f"{uri}: {_count(unused)} on contigs that are left out anyway ({_names(unused)})")
        for assembly, genome in known.items():
            ours = [line for line in lines if line.name in ("", assembly)]
            lifts = [line for line in ours if genome.own is not None and line.number not in named]
            plain = ours if genome.own is None else [line for line in ours if line.number in named]
            _check_ends(lifts, genome.contigs, uri=uri, warn=warn)
            _check_ends(plain, genome.own or genome.contigs, uri=uri, warn=warn)
            found = [(contig, genome.lift(contig, own)) for contig, own in _by_contig(lifts).items()]
            for contig, intervals in [*found, *_by_contig(plain).items()]:
                if (assembly, contig) in places:
                    zones.setdefault((assembly, contig), []).extend(intervals)
    return {place: merge(intervals) for place, intervals in zones.items()}


def _spelled(
    lines: Sequence[Line], known: Mapping[str, Genome], *, uri: str, where: str, warn: Warn
) -> list[Line]:
    """``lines`` with the contigs' own names: a line stands there once for each assembly (or once for all)
    that calls it otherwise; a line that no assembly knows stays."""
    meant: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (assembly or "", name) -> what it is read as
    for name, contig in dict.fromkeys((line.name, line.contig) for line in lines):
        among = {name: known[name]} if name else known
        by_file = {a: genome.names.by_file(contig) for a, genome in among.items()}
        found = by_file if any(by_file.values()) else {a: g.names.meanings(contig) for a, g in among.items()}
        read = []
        for assembly, contigs in found.items():
            if own := _meant(contig, contigs, lines, uri):
                among[assembly].names.note(contig, own)
                read.append((assembly, own))
        same = all(own == contig for _, own in read)
        meant[name, contig] = [(name, contig)] if same else read
    for assembly, genome in known.items():
        if said := genome.names.sentence(uri):
            warn(f"{where}: {said} {assembly}")
    return [line._replace(name=a, contig=c) for line in lines for a, c in meant[line.name, line.contig]]


def _by_assembly(
    lines: list[Line], known: Mapping[str, Genome], *, uri: str, where: str
) -> tuple[list[Line], list[Line]]:
    """The lines that count, each with the name of its assembly or "" for all of them; and those of assemblies
    that are not ``known``."""
    if not any(line.name in known for line in lines):  # the names are of something else
        return [line._replace(name="") for line in lines], []
    absent = [line for line in lines if line.name and line.name not in known]
    meant = {_bare(name): name for name in known}
    if wrong := next((line for line in absent if _bare(line.name) in meant), None):
        raise ValueError(
            f"{where}: {uri}, line {wrong.number}: no assembly is called {wrong.name!r}, is "
            f"{meant[_bare(wrong.name)]!r} meant; correct or remove it"
        )
    return [line for line in lines if not line.name or line.name in known], absent


def _refuse_unknown(
    lines: list[Line], used: set[str], known: Mapping[str, Genome], *, uri: str, where: str
) -> None:
    """ValueError if no line is of a ``used`` contig, or one is of a contig that no reference has."""
    if not any(line.contig in used for line in lines):
        raise ValueError(
            f"{where}: {uri} names no contig of the references (the BED has "
            f"{_names(lines) or 'nothing'}; they have {some(used)})"
        )
    everywhere = {contig: bp for genome in known.values() for contig, bp in genome.contigs.items()}
    unknown = [
        line
        for line in lines
        if line.contig not in (known[line.name].contigs if line.name in known else everywhere)
    ]
    if unknown:
        fault = _unknown_contig(unknown[0], unknown, _similar(unknown, everywhere), uri=uri)
        raise ValueError(f"{where}: {fault}; the references have {some(everywhere)}")


def _check_ends(lines: Iterable[Line], contigs: Contigs, *, uri: str, warn: Warn) -> None:
    """Refuses an interval that begins past the end of its contig; warns of those that end there or are
    empty."""
    empty, late = [], []
    for line in lines:
        if not (bp := contigs.get(line.contig, 0)):
            continue
        if line.start >= bp and line.end > line.start:
            place = f"{line.contig}:{line.start}-{line.end}"
            raise ValueError(
                f"{uri}, line {line.number}: {place} lies beyond the contig's {bp} bp; is the BED of "
                "another version of the genome?"
            )
        if line.end == line.start:
            empty.append(line)
        elif line.end > bp:
            late.append(line)
    if empty:
        warn(f"{uri}: {_count(empty)} of length 0 (the first is line {empty[0].number}): that covers nothing")
    if late:
        first = late[0]
        place = f"{first.contig}:{first.start}-{first.end} of {contigs[first.contig]} bp"
        warn(
            f"{uri}: {_count(late)} past the end of the contig (the first is line {first.number}, {place}): "
            "what lies there counts for nothing"
        )


def _similar(lines: Iterable[Line], contigs: Contigs) -> dict[str, str]:
    """contig of ``lines`` -> the one of ``contigs`` that it may mean: case, quotes and the prefix chr do not
    count."""
    bare = {_bare(contig): contig for contig in contigs}
    meant = {line.contig: bare.get(_bare(line.contig), line.contig) for line in lines}
    return {contig: other for contig, other in meant.items() if contig != other}


def _bare(name: str) -> str:
    letters = re.sub(r"[^\w.|-]", "", name).casefold().removeprefix("chr")
    return "mt" if letters == "m" else letters


def _unknown_contig(line: Line, unknown: Sequence[Line], similar: Mapping[str, str], *, uri: str) -> str:
    where = f" in {line.name}" if line.name else ""
    hint = f", is {similar[line.contig]!r} meant" if line.contig in similar else ""
    others = f" (and {_count(unknown[1:])} more of this kind)" if len(unknown) > 1 else ""
    return (
        f"{uri}, line {line.number}: no contig is called {line.contig!r}{where}{hint}{others}; correct "
        "or remove it"
    )


def _by_contig(lines: Iterable[Line]) -> dict[str, Intervals]:
    found: dict[str, Intervals] = {}
    for line in lines:
        found.setdefault(line.contig, []).append((line.start, line.end))
    return {contig: merge(intervals) for contig, intervals in found.items()}


def _names(lines: Iterable[Line]) -> str:
    return some(line.contig for line in lines)


def _count(lines: Sequence[Line]) -> str:
    return f"{len(lines)} line{'s' * (len(lines) != 1)}"
