"""BED files, held against the contigs that are there. No line is passed over without a word."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cluster.storage import store
from configs.values import decode
from data_prep.sources.fasta import gunzip
from data_prep.split.intervals import Intervals, Place, Zones, merge, some

_LINE_END = re.compile(r"\r\n|\n|\r")
_GZIP = b"\x1f\x8b"

Contigs = Mapping[str, int]  # name -> bp
Warn = Callable[[str], object]


class Line(NamedTuple):  # a BED may have millions
    """One interval, [start, end) of ``contig``, the ``name`` in its fourth column or "", and the line's
    number."""

    number: int
    contig: str
    start: int
    end: int
    name: str


def read_bed(uri: str) -> dict[str, Intervals]:
    """contig -> merged intervals of the BED file at ``uri``. Raises as ``read_lines``."""
    return _by_contig(read_lines(uri))


def read_lines(uri: str) -> list[Line]:
    """The intervals of the BED file (plain or gzip, by its first bytes) at ``uri``; blank lines, comments (#)
    and lines of ``track`` and ``browser`` are none.

    Raises:
        ValueError: a line that is no interval, with its number; a gzip that is damaged or cut short; no text.
    """
    data = store.read_bytes(uri)
    data = b"".join(gunzip([data], uri=uri)) if data.startswith(_GZIP) else data
    try:
        text = decode(data)
    except ValueError as fault:
        raise ValueError(f"{uri} is not a BED file: {fault}") from fault
    return list(_lines(text, uri))


def read_filter(uri: str, contigs: Contigs, *, where: str, strict: bool, warn: Warn) -> dict[str, Intervals]:
    """contig -> merged intervals of the BED file at ``uri`` over the ``contigs`` of one reference.

    Lines of other contigs are refused where that is ``strict``, or where such a contig looks like one that is
    there (chr1 and 1, quotes); else ``warn`` hears of them.

    Raises:
        ValueError: a line that is no interval, begins past the end of its contig, or names another contig.
    """
    lines = read_lines(uri)
    strange = [line for line in lines if line.contig not in contigs]
    if len(strange) == len(lines):
        raise ValueError(
            f"{where}: {uri} names no contig of it (the BED has {_names(lines) or 'nothing'}; "
            f"the reference {some(contigs)})"
        )
    near = _near(strange, contigs)
    if strange and (strict or near):
        wrong = next(line for line in strange if strict or line.contig in near)
        raise ValueError(
            f"{where}: {_unknown(wrong, strange, near, uri=uri)}; the reference has {some(contigs)}"
        )
    if strange:
        warn(
            f"{uri}: {_count(strange)} on contigs that {where} has not ({_names(strange)}): nothing to "
            f"exclude"
        )
    _look(lines, contigs, uri=uri, warn=warn)
    return _by_contig(line for line in lines if line.contig in contigs)


def read_zones(
    uris: Sequence[str], places: Mapping[Place, int], *, known: Mapping[str, Contigs], where: str, warn: Warn
) -> Zones:
    """What the BED files at ``uris`` cover of ``places`` (with their bp): a line counts for every assembly
    that has its contig. In a file of which some line names an assembly of ``known`` (assembly -> all contigs
    of its reference, used or not) in its fourth column, as those that a build writes do, a line with a name
    counts for that assembly alone.

    ``warn`` hears of lines that count for nothing since their contig is not used, or their assembly is not
    here.

    Raises:
        ValueError: a line that is no interval, begins past the end of its contig, or names a contig that no
            reference has; or a file that names no contig of ``places``.
    """
    zones: Zones = {}
    everywhere = {contig: bp for there in known.values() for contig, bp in there.items()}
    used = {contig for _, contig in places}
    for uri in uris:
        lines, absent = read_lines(uri), list[Line]()
        if any(line.name in known for line in lines):  # labelled
            absent = [line for line in lines if line.name and line.name not in known]
            meant = {_bare(name): name for name in known}
            if wrong := next((line for line in absent if _bare(line.name) in meant), None):
                raise ValueError(
                    f"{where}: {uri}, line {wrong.number}: no assembly is called {wrong.name!r}, is "
                    f"{meant[_bare(wrong.name)]!r} meant; correct or remove it"
                )
            lines = [line for line in lines if not line.name or line.name in known]
        else:
            lines = [line._replace(name="") for line in lines]
        if not any(line.contig in used for line in lines):
            raise ValueError(
                f"{where}: {uri} names no contig of the references (the BED has "
                f"{_names(lines) or 'nothing'}; they have {some(used)})"
            )
        strange = [line for line in lines if line.contig not in known.get(line.name, everywhere)]
        if strange:
            said = _unknown(strange[0], strange, _near(strange, everywhere), uri=uri)
            raise ValueError(f"{where}: {said}; the references have {some(everywhere)}")
        if absent:
            warn(
                f"{uri}: {_count(absent)} of assemblies that are not in this dataset "
                f"({some(line.name for line in absent)}): that holds out nothing"
            )
        if unused := [line for line in lines if line.contig not in used]:
            warn(f"{uri}: {_count(unused)} on contigs that are left out anyway ({_names(unused)})")
        for assembly, contigs in known.items():
            ours = [line for line in lines if line.name in ("", assembly)]
            _look(ours, contigs, uri=uri, warn=warn)
            for line in ours:
                if (assembly, line.contig) in places:
                    zones.setdefault((assembly, line.contig), []).append((line.start, line.end))
    return {place: merge(intervals) for place, intervals in zones.items()}


def _lines(text: str, uri: str) -> Iterator[Line]:
    contigs: dict[str, str] = {}  # seen, so that nearly all lines need no further look
    for number, line in enumerate(_LINE_END.split(text), 1):
        words = line.split("\t", 4)
        plain = len(words) > 2 and words[0] in contigs and _is_number(words[1]) and _is_number(words[2])
        if not plain:
            words = [word.strip() for word in words] if len(words) > 1 else line.split(maxsplit=4)
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            is_interval = len(words) > 2 and all(map(_is_number, words[1:3]))
            if line.split()[0] in ("track", "browser") and not is_interval:
                continue
            if not is_interval or not words[0] or len(words[0].split()) > 1:
                raise ValueError(
                    f"{uri}, line {number}: needs contig, start and end, not {line[:60]!r}; the numbers "
                    "are whole, of digits alone"
                )
        contig, start, end = contigs.setdefault(words[0], words[0]), int(words[1]), int(words[2])
        if start > end:
            raise ValueError(
                f"{uri}, line {number}: [{start}, {end}) is no interval; BED counts from 0, half-open"
            )
        yield Line(number, contig, start, end, words[3].strip() if len(words) > 3 else "")


def _is_number(word: str) -> bool:
    return word.isdecimal() and word.isascii() and len(word) < 19


def _look(lines: Iterable[Line], contigs: Contigs, *, uri: str, warn: Warn) -> None:
    """Refuses what begins past the end of its contig, and tells of what ends there or is empty."""
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
            f"what lies "
            "there counts for nothing"
        )


def _near(lines: Iterable[Line], contigs: Contigs) -> dict[str, str]:
    """The one of ``contigs`` that a contig of ``lines`` may mean: case, quotes and the prefix chr do not
    count."""
    bare = {_bare(contig): contig for contig in contigs}
    meant = {line.contig: bare.get(_bare(line.contig), line.contig) for line in lines}
    return {contig: other for contig, other in meant.items() if contig != other}


def _bare(name: str) -> str:
    letters = re.sub(r"[^\w.|-]", "", name).casefold().removeprefix("chr")
    return "mt" if letters == "m" else letters


def _unknown(line: Line, strange: Sequence[Line], near: Mapping[str, str], *, uri: str) -> str:
    where = f" in {line.name}" if line.name else ""
    hint = f", is {near[line.contig]!r} meant" if line.contig in near else ""
    others = f" (and {_count(strange[1:])} more of this kind)" if len(strange) > 1 else ""
    return (
        f"{uri}, line {line.number}: no contig is called {line.contig!r}{where}{hint}{others}; correct "
        f"or remove it"
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
