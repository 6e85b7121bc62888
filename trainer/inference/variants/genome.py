"""Letters of a reference as bytes of codes, by the names of another file."""

from collections.abc import Callable, Mapping

from cluster.process.progress import OnProgress, silent
from configs import redact
from data_prep.sources import reference
from data_prep.sources.aliases import Renamed
from trainer.inference.variants.alleles import codes_of

_SHOWN = 5  # names in a sentence


class Genome:
    """The contigs that variants are on. ``names`` keeps which were found under other names."""

    def __init__(
        self, sizes: Mapping[str, int], fetch: Callable[[str, int, int], bytes], *, uri: str
    ) -> None:
        """``sizes``: letters of each contig; ``fetch``: letters [start, end) of a contig; ``uri``: for
        messages."""
        self.sizes, self.names = sizes, Renamed(sizes)
        self._fetch, self._uri = fetch, uri

    @classmethod
    def of(cls, located: reference.Located) -> "Genome":
        handle = located.handle
        return cls(
            located.contigs,
            lambda contig, start, end: reference.fetch(handle, contig, start, end),
            uri=handle.uri,
        )

    @classmethod
    def open(cls, given: str | Mapping[str, str], *, on_progress: OnProgress = silent) -> "Genome":
        """The reference at a URI (FASTA or .2bit, indexed when it is first read), or contigs as strings.

        Raises: as ``data_prep.sources.reference.locate``.
        """
        if isinstance(given, str):
            return cls.of(reference.locate(given, on_progress=on_progress))
        sizes = {name: len(letters) for name, letters in given.items()}
        return cls(sizes, lambda name, start, end: given[name][start:end].encode(), uri="the reference")

    def some(self) -> str:
        """The names of the first contigs."""
        more = f" and {len(self.sizes) - _SHOWN:,} more" if len(self.sizes) > _SHOWN else ""
        return ", ".join(list(self.sizes)[:_SHOWN]) + more

    def codes(self, contig: str, start: int, end: int) -> bytes:
        """Letters [start, end) of ``contig`` as codes; IUPAC letters but A, C, G, T are N.

        Raises:
            ValueError: a byte of it is no letter. StoreError: the reference cannot be read.
        """
        try:
            return codes_of(self._fetch(contig, start, end))
        except ValueError as fault:
            raise ValueError(f"{redact(self._uri)}, contig {contig} from {start + 1} on: {fault}") from fault
