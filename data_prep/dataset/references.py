"""The references of a build: prepared, read by workers, and checked for changes at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.process.progress import Stage
from cluster.storage import store
from configs import redact
from data_prep.alphabet import Codes, Mask, encode
from data_prep.config import ReferenceConfig
from data_prep.dataset.runner import Runner
from data_prep.sources.reference import Handle, changed, fetch
from data_prep.sources.survey import Reference, prepare
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


def prepare_all(wanted: Sequence[ReferenceConfig], runner: Runner) -> dict[str, Reference]:
    """name -> prepared reference; several are prepared by workers, one in this process.

    Raises:
        ValueError, StoreError: one of them cannot be used or read.
    """
    uris = [_first_that_exists(reference) for reference in wanted]
    numbered = [reference.repeated_names == "number" for reference in wanted]
    if len(uris) == 1:
        only = prepare(uris[0], on_progress=runner.on_progress, number_repeated=numbered[0])
        return {wanted[0].name: only}
    stage = Stage(runner.on_progress, "index")
    found = runner.run(
        _prepare,
        list(zip(uris, numbered, strict=True)),
        names=[redact(uri) for uri in uris],
        uri=lambda task: task[0],
        on_result=lambda _, reference: stage.advance(sum(reference.contigs.values())),
    )
    return {reference.name: prepared for reference, prepared in zip(wanted, found, strict=True)}


def _prepare(task: tuple[str, bool]) -> Reference:
    """On a worker: the reference of a URI, with repeated names numbered or refused."""
    uri, numbered = task
    return prepare(uri, number_repeated=numbered)


def _first_that_exists(reference: ReferenceConfig) -> str:
    """Its URI, absolute, since workers have another working directory."""
    uris = [store.absolute(uri) for uri in reference.uri]
    if len(uris) == 1:
        return uris[0]
    faults = []
    for uri in uris:
        try:
            if store.exists(uri):
                return uri
            faults.append(f"{uri} does not exist")
        except store.StoreError as fault:  # the next one may be in reach
            faults.append(str(fault))
    raise ValueError(f"reference {reference.name}: none of its files can be read: {'; '.join(faults)}")


def first_changed(references: dict[str, Reference]) -> str:
    """The URI of a reference that is not what was read any more; "" if there is none."""
    return next((r.handle.uri for r in references.values() if changed(r)), "")
