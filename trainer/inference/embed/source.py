"""The input of an embedding, read twice: first all of it is checked and counted, then it is embedded.

So nothing is computed of a file that has a wrong letter at its end, and the number of rows is known before
the first is written.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from cluster.process.progress import OnProgress, Stage
from cluster.storage import store
from configs import redact
from trainer.inference.embed.chunks import Chunk, chunks_of
from trainer.inference.embed.rows import Each
from trainer.inference.embed.windows import Tiling
from trainer.inference.parts import ChangedError
from trainer.inference.passed_on import InputCount
from trainer.inference.readers.codes import CodedRows, read_codes


@dataclass(frozen=True)
class Source:
    """A file of sequences, and how it is cut: windows by ``tiling``, chunks of about ``chunk_letters``, and
    of so many bytes of ``repeated`` columns, as ``chunks_of`` says."""

    uri: str
    sequence_column: str
    reference: str | None
    tiling: Tiling
    chunk_letters: int
    repeated: int | None = None

    def cut(self, rows: Iterable[CodedRows]) -> Iterator[Chunk]:
        return chunks_of(rows, self.tiling, letters=self.chunk_letters, repeated=self.repeated)


@dataclass
class Survey:
    """What is in a file.

    Attributes:
        count: of its rows.
        windows: of all of them.
        chunks: the letters of each chunk.
        sha256: of the letters and the other columns.
    """

    count: InputCount = field(default_factory=InputCount)
    windows: int = 0
    chunks: list[int] = field(default_factory=list)
    sha256: str = ""

    @property
    def letters(self) -> int:
        return sum(self.chunks)

    def rows(self, each: Each) -> int:
        """How many rows the result has."""
        return {"record": self.count.rows, "window": self.windows, "letter": self.letters}[each]


def survey(source: Source, *, check: Callable[[pa.Table], None], on_progress: OnProgress) -> Survey:
    """What is in ``source``. ``check`` is given its other columns, to refuse them.

    Raises:
        StoreError: it cannot be read. ValueError: one sentence with what is wrong, and where.
    """
    found, digest = Survey(), hashlib.sha256()
    stage = Stage(on_progress, f"check {store.basename(redact(source.uri))}")

    def counted() -> Iterator[CodedRows]:
        for rows in _hashed(source, digest, quiet=False):
            check(rows.others)
            found.count.add(
                rows=len(rows.codes),
                ambiguous=rows.ambiguous,
                cut=rows.cut,
                columns=rows.others.column_names,
            )
            yield rows
            del rows

    for chunk in source.cut(counted()):
        found.windows += len(chunk.piece_N)
        found.chunks.append(chunk.letters)
        stage.advance(chunk.letters)
    found.sha256 = digest.hexdigest()
    return found


def chunks(source: Source, found: Survey) -> Iterator[Chunk]:
    """The chunks of ``source``, of which ``survey`` has found out what is in it.

    Raises:
        ChangedError: at its end, if it is no longer the same.
    """
    digest = hashlib.sha256()
    yield from source.cut(_hashed(source, digest, quiet=True))
    if digest.hexdigest() != found.sha256:
        raise ChangedError(f"{redact(source.uri)} changed while it was read; give the command again")


def _hashed(source: Source, digest: "hashlib._Hash", *, quiet: bool) -> Iterator[CodedRows]:
    for rows in read_codes(
        source.uri, sequence_column=source.sequence_column, reference=source.reference, quiet=quiet
    ):
        for codes in rows.codes:
            digest.update(len(codes).to_bytes(8, "little"))
            digest.update(codes.data)
        digest.update(repr(rows.others.to_pydict()).encode("utf-8", "surrogatepass"))
        yield rows
        del rows
