"""The references of a build: prepared, read by workers, and checked for changes at the end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.process.progress import Stage
from cluster.storage import store
from configs import redact
from data_prep.alphabet import Codes, Mask, encode
from data_prep.config import ReferenceConfig
from data_prep.dataset.runner import Runner
from data_prep.sources import accessions, packages
from data_prep.sources.alias_files import read_aliases
from data_prep.sources.reference import Handle, changed, fetch, haplotypes, notes
from data_prep.sources.survey import Reference, prepare, prepared_before, survey
from data_prep.split.intervals import Span


@dataclass(frozen=True)
class ReferenceSpans:
    """Stretches of one reference, as a worker reads them."""

    handle: Handle
    spans: tuple[Span, ...]

    def read(self) -> Iterator[tuple[Span, Codes, Mask]]:
        """Every span with its codes uint8 [bp] and soft mask bool [bp].

        Raises:
            ValueError: a byte that is no nucleotide letter.
        """
        for span in self.spans:
            letters = fetch(self.handle, span.contig, span.start, span.end)
            try:
                codes, soft_mask, _ = encode(letters, origin=span.start)
            except ValueError as fault:
                raise ValueError(f"{self.handle.uri}: contig {span.contig}: {fault}") from fault
            yield span, codes, soft_mask


def reference_codes(source: ReferenceSpans) -> Iterator[tuple[Span, Codes]]:
    """Every span of ``source`` with its codes uint8 [bp]."""
    return ((span, codes) for span, codes, _ in source.read())


@dataclass(frozen=True)
class _Found:
    """Where a reference lies. ``aliases``: where the other names of its contigs do, "" if there are none."""

    uri: str
    aliases: str
    notes: tuple[str, ...] = ()


def prepare_all(
    wanted: Sequence[ReferenceConfig], runner: Runner, *, start: Callable[[], object] = lambda: None
) -> dict[str, Reference]:
    """name -> prepared reference, with the other names of its contigs; what is in the cache comes from there,
    one that is not is prepared in this process, and several by workers, before whom ``start`` is called.

    Raises:
        ValueError, StoreError: one of them cannot be used or read.
    """
    found = [_find(reference) for reference in wanted]
    numbered = [reference.repeated_names == "number" for reference in wanted]
    tasks = [(place.uri, number) for place, number in zip(found, numbered, strict=True)]
    prepared = _prepared(list(dict.fromkeys(tasks)), runner, start)
    references: dict[str, Reference] = {}
    for reference, place, one in zip(wanted, found, map(prepared.__getitem__, tasks), strict=True):
        aliases = read_aliases(place.aliases) if place.aliases else None
        base = replace(one, aliases=aliases, notes=place.notes)
        own = _haplotypes(reference, base, place.aliases, runner)
        references |= {assembly.name: own.get(assembly.name, base) for assembly in reference.assemblies()}
    return references


def _prepared(
    tasks: Sequence[tuple[str, bool]], runner: Runner, start: Callable[[], object]
) -> dict[tuple[str, bool], Reference]:
    """The reference of each (URI, whether repeated names are numbered)."""
    known = {task: prepared_before(task[0], number_repeated=task[1]) for task in tasks}
    done = {task: reference for task, reference in known.items() if reference is not None}
    missing = [task for task in tasks if task not in done]
    if not missing:
        return done
    if len(missing) == 1:  # which saves the start of Ray
        ((uri, numbered),) = missing
        return done | {missing[0]: prepare(uri, on_progress=runner.on_progress, number_repeated=numbered)}
    start()
    stage = Stage(runner.on_progress, "index")
    found = runner.run(
        _prepare,
        missing,
        names=[redact(uri) for uri, _ in missing],
        uri=lambda task: task[0],
        on_result=lambda _, reference: stage.advance(sum(reference.contigs.values())),
    )
    return done | dict(zip(missing, found, strict=True))


def _haplotypes(
    wanted: ReferenceConfig, base: Reference, aliases: str, runner: Runner
) -> dict[str, Reference]:
    """name -> each haplotype of ``base`` that is wanted."""
    named = {own.name: own.haplotype for own in wanted.assemblies() if own.haplotype}
    if not named or wanted.variants is None:
        return {}
    pairs = [(haplotype.sample, haplotype.number) for haplotype in named.values()]
    found = haplotypes(base, wanted.variants.vcf, pairs, aliases=aliases)
    return {
        name: replace(
            survey(located, on_progress=runner.on_progress),
            aliases=base.aliases,
            base=base,
            notes=tuple(f"reference {name}: {note}" for note in notes(located)),
        )
        for name, located in zip(named, found, strict=True)
    }


def _prepare(task: tuple[str, bool]) -> Reference:
    """On a worker: the reference of a URI, with repeated names numbered or refused."""
    uri, numbered = task
    return prepare(uri, number_repeated=numbered)


def _find(reference: ReferenceConfig) -> _Found:
    """The first of its URIs that exists, absolute, since workers have another working directory."""
    faults = []
    for uri in reference.uri:
        try:
            if accessions.is_accession(uri):
                resolved = accessions.resolve(uri)
                notes = (f"reference {reference.name}: {resolved.note}",) if resolved.note else ()
                return _Found(resolved.uri, _aliases(reference, resolved.uri) or resolved.report, notes)
            uri = store.absolute(uri)
            if len(reference.uri) == 1 or store.exists(packages.file_of(uri)):
                return _Found(uri, _aliases(reference, uri))
            faults.append(f"{uri} does not exist")
        except (store.StoreError, ValueError) as fault:  # the next one may be in reach
            if len(reference.uri) == 1:
                raise
            faults.append(str(fault))
    raise ValueError(f"reference {reference.name}: none of its files can be read: {'; '.join(faults)}")


def _aliases(reference: ReferenceConfig, uri: str) -> str:
    """The file of other names that the config gives, else the package ``uri`` if it has a report; or ""."""
    if reference.aliases:
        return store.absolute(reference.aliases)
    archive = packages.file_of(uri).lower().endswith(".zip")
    return uri if archive and packages.is_package(uri) and packages.has_report(uri) else ""


def first_changed(references: dict[str, Reference]) -> str:
    """The URI of a reference that is not what was read any more; "" if there is none."""
    return next((r.handle.uri for r in references.values() if changed(r)), "")
