"""Which contigs are meant by names, globs and the word primary, and which are alternate copies of others."""

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from data_prep.config import Names
from data_prep.sources.aliases import Renamed
from data_prep.split.filters import Warn
from data_prep.split.intervals import Place, Span, some
from data_prep.split.primary import PRIMARY, primary

_GLOB = re.compile(r"[*?\[]")
_CHROMOSOME = re.compile(
    r"(chr)?(?P<own>\d{1,2}[LRAB]?|[XYZWM]|MT|[IVX]+)(_.+)?|(CHR_)?HSCHR(?P<patch>\w+?)_.+", re.I
)


def choose_contigs(
    contigs: Mapping[str, int],
    patterns: Names | None,
    *,
    where: str,
    names: Renamed | None = None,
    warn: Warn = lambda text: None,
) -> dict[str, int]:
    """The ``contigs`` that some pattern matches and no pattern that begins with "!", in their order: those of
    ["chr*", "!*_*"] are UCSC's primary ones. Patterns of the second kind alone take from all. The one word
    ``primary`` means the primary ones, unless a contig is called so.

    ``names``: of other files. A name that is none of ``contigs`` is looked for among them. Where a glob
    matches none of ``contigs``, all globs are matched with the file's first way of naming in which each does.
    ``warn`` gets a sentence on what was read as what, and on what ``primary`` took.

    Raises:
        ValueError: a pattern of the first kind, or a plain name of the second, matches none, or may mean two;
            or nothing is left.
    """
    names = names or Renamed(contigs)
    patterns = patterns or ()
    if patterns == (PRIMARY,):
        if PRIMARY not in contigs:
            chosen, how = primary(contigs, names, where=where)
            warn(f"{where}: primary contigs, {how}, are {len(chosen)} of {len(contigs)}: {some(chosen)}")
            return chosen
        warn(f"{where}: contigs: {PRIMARY} means the contig of this name")
    called = _naming(contigs, patterns, names)
    wanted, unwanted = set[str](), set[str]()
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        found = _called(bare, called) if _GLOB.search(bare) else _matching(bare, contigs)
        if not found and len(meant := names.meanings(bare)) == 1:
            names.note(bare, meant[0])
            found = set(meant)
        elif not found and meant:
            raise ValueError(f"{where}: {bare!r} may mean {' or '.join(meant)}; give one of these names")
        if not found and not (pattern.startswith("!") and _GLOB.search(pattern)):
            raise ValueError(f"{where}: no contig matches {pattern!r}; there are {some(contigs)}")
        (unwanted if pattern.startswith("!") else wanted).update(found)
    if all(pattern.startswith("!") for pattern in patterns):
        wanted = set(contigs)
    left = wanted - unwanted
    chosen = {contig: bp for contig, bp in contigs.items() if contig in left}
    if not chosen:
        raise ValueError(f"{where}: contigs {list(patterns)} leave nothing; there are {some(contigs)}")
    if said := names.sentence("contigs"):
        warn(f"{where}: {said}")
    return chosen


def _naming(contigs: Mapping[str, int], patterns: Names, names: Renamed) -> Mapping[str, str]:
    """What each contig is called where globs are matched: its own name, unless one of the wanted globs
    matches none; then its name in the file's first way of naming in which each does."""
    own = {contig: contig for contig in contigs}
    wanted = [p for p in patterns if _GLOB.search(p) and not p.startswith("!")]
    for called in (own, *names.columns):
        if all(_called(pattern, called) for pattern in wanted):
            for contig, name in called.items():
                if any(fnmatchcase(name, pattern) for pattern in wanted):
                    names.note(name, contig)
            return called
    return own


def _called(pattern: str, called: Mapping[str, str]) -> set[str]:
    """The contigs that ``called`` gives a name that the glob is or matches."""
    exact = {contig for contig, name in called.items() if name == pattern}
    return exact or {contig for contig, name in called.items() if fnmatchcase(name, pattern)}


def meant(
    patterns: Names, places: Collection[Place], names: Mapping[str, Renamed], *, where: str, warn: Warn
) -> Names:
    """``patterns`` (names of contigs, globs, or ``assembly:pattern``) in the words of ``places``: where one
    is a name, or a glob over names, that the file of an assembly gives a contig, "assembly:contig" is added;
    and where none of all assemblies has it, the contigs that are another spelling of it.

    ``warn`` gets a sentence on what was read as what.

    Raises:
        ValueError: a name may mean two contigs of one assembly.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        own = having(pattern, places)
        if own:
            found[pattern] = None
        settled = {assembly for assembly, _ in own}
        others: dict[str, tuple[str, ...]] = {}
        for assembly, known in names.items():
            bare = pattern.removeprefix(f"{assembly}:")
            if assembly in settled or (bare == pattern and _is_of_another(pattern, names)):
                continue
            others[assembly] = known.by_glob(bare) if _GLOB.search(bare) else known.by_file(bare)
        if not own and not any(others.values()):
            others = {a: known.meanings(pattern.removeprefix(f"{a}:")) for a, known in names.items()}
        hits = False
        for assembly, contigs in others.items():
            bare = pattern.removeprefix(f"{assembly}:")
            if len(contigs) > 1 and not _GLOB.search(bare):
                raise ValueError(f"{where}: {bare!r} may mean {' or '.join(contigs)} of {assembly}; give one")
            for contig in contigs:
                if (assembly, contig) in places:
                    hits = True
                    found[f"{assembly}:{contig}"] = None
                    warn(f"{where}: contig {bare} was read as {contig} of {assembly}")
        if not own and not hits:
            found[pattern] = None  # the split says that it matches nothing
    return tuple(found)


def having(pattern: str, places: Collection[Place]) -> list[Place]:
    """Those of ``places`` that ``pattern`` (a name, a glob, or ``assembly:pattern``) means."""
    return [(a, c) for a, c in places if pattern in (c, f"{a}:{c}")] or [
        (a, c) for a, c in places if fnmatchcase(c, pattern) or fnmatchcase(f"{a}:{c}", pattern)
    ]


def _is_of_another(pattern: str, assemblies: Collection[str]) -> bool:
    """Whether ``pattern`` names one of ``assemblies``."""
    return any(pattern.startswith(f"{assembly}:") for assembly in assemblies)


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
