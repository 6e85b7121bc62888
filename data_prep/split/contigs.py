"""Which contigs are meant by names and globs, and which are alternate copies of others."""

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from data_prep.config import Names
from data_prep.split.intervals import Place, Span, some

_GLOB = re.compile(r"[*?\[]")
_CHROMOSOME = re.compile(
    r"(chr)?(?P<own>\d{1,2}[LRAB]?|[XYZWM]|MT|[IVX]+)(_.+)?|(CHR_)?HSCHR(?P<patch>\w+?)_.+", re.I
)


def choose_contigs(contigs: Mapping[str, int], patterns: Names | None, *, where: str) -> dict[str, int]:
    """The ``contigs`` that some pattern matches and no pattern that begins with "!", in their order: those of
    ["chr*", "!*_*"] are UCSC's primary ones. Patterns of the second kind alone take from all.

    Raises:
        ValueError: a pattern of the first kind, or a plain name of the second, matches none; or nothing is
            left.
    """
    patterns = patterns or ()
    wanted, unwanted = set[str](), set[str]()
    for pattern in patterns:
        found = _matching(pattern.removeprefix("!"), contigs)
        if not found and not (pattern.startswith("!") and _GLOB.search(pattern)):
            raise ValueError(f"{where}: no contig matches {pattern!r}; there are {some(contigs)}")
        (unwanted if pattern.startswith("!") else wanted).update(found)
    if all(pattern.startswith("!") for pattern in patterns):
        wanted = set(contigs)
    left = wanted - unwanted
    chosen = {contig: bp for contig, bp in contigs.items() if contig in left}
    if not chosen:
        raise ValueError(f"{where}: contigs {list(patterns)} leave nothing; there are {some(contigs)}")
    return chosen


def copies(parts: Mapping[str, Sequence[Span]]) -> tuple[list[str], list[str]]:
    """Contigs of train that by their names (UCSC's, Ensembl's) are other copies or loose pieces of a contig
    that val or test hold out, as chr8_KI270821v1_alt is of chr8; and those contigs that are held out.
    Sorted."""
    held_out: dict[Place, set[str]] = {}
    for span in [*parts["val"], *parts["test"]]:
        if chromosome := _chromosome(span.contig):
            held_out.setdefault((span.assembly, chromosome), set()).add(span.contig)
    train, of = set(), set()
    for assembly, contig in {span.place for span in parts["train"]}:
        if others := held_out.get((assembly, _chromosome(contig)), set()) - {contig}:
            train.add(contig)
            of |= others
    return sorted(train), sorted(of)


def _chromosome(contig: str) -> str:
    """8 of chr8, chr8_KI270821v1_alt and CHR_HSCHR8_1_CTG1; "" of a name that is none of a chromosome."""
    found = _CHROMOSOME.fullmatch(contig)
    return (found["own"] or found["patch"]).casefold() if found else ""


def _matching(pattern: str, contigs: Collection[str]) -> set[str]:
    """The contig of exactly this name; else those that the glob matches."""
    return {pattern} if pattern in contigs else {contig for contig in contigs if fnmatchcase(contig, pattern)}
