"""A long table that is computed in parts, each a file on disk, so that a killed command goes on.

The parts lie below OUTPUT.parts/ until the output is complete. A part is written as a whole, and holds what
its number and the key of the work decide: so what a killed command left is what this one would compute.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import pyarrow as pa

from cluster.process.progress import say
from cluster.storage import store
from configs import ConfigError, redact

_KEY = "key"
_NAME = re.compile(r"part-(\d{8})\.arrow")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class ChangedError(ValueError):
    """The input changed while it was read, so that what was computed of it means nothing."""


class Parts:
    """The parts of the work that is to become the file at ``output``."""

    def __init__(self, output: str, *, key: str) -> None:
        """What an earlier command left is kept if its ``key`` is the same; if it is not, it is removed, and a
        sentence says so.

        Args:
            key: a digest of all that decides the numbers: the model, the input, the options.

        Raises:
            StoreError: the folder cannot be read or written. ConfigError: it holds other files.
        """
        self.uri = f"{output.rstrip('/')}.parts"
        self._done: set[int] = set()
        names = store.list_files(self.uri)
        if _KEY in names and store.read_bytes(store.join(self.uri, _KEY)) == key.encode():
            self._done = {int(found[1]) for name in names if (found := _NAME.fullmatch(name))}
            return
        if others := [name for name in names if name != _KEY and not _NAME.fullmatch(name)]:
            raise ConfigError(
                f"{redact(self.uri)} is where the parts of a long output are kept, and it holds "
                f"{others[0]!r}; move that, or give another --output"
            )
        if names:
            say(
                f"{redact(self.uri)}: {len(set(names) - {_KEY}):,} parts are removed: they are of other "
                "options, of another model or input"
            )
            store.remove(self.uri)
        store.write_bytes(store.join(self.uri, _KEY), key.encode())

    @property
    def found(self) -> int:
        """How many parts are there."""
        return len(self._done)

    def __contains__(self, number: int) -> bool:
        return number in self._done

    def write(self, number: int, table: pa.Table) -> None:
        """Keeps part ``number``, from 0."""
        with store.publish(self._place(number)) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self._done.add(number)

    def read(self, number: int) -> pa.Table:
        """Part ``number``."""
        with store.open_read(self._place(number)) as file:
            return pa.ipc.open_file(file).read_all()

    def remove(self) -> None:
        """Removes all of them; to be called when the output is complete."""
        store.remove(self.uri)

    def _place(self, number: int) -> str:
        return store.join(self.uri, f"part-{number:08d}.arrow")


class Compute(Protocol[T_contra]):
    """What computes chunks. It may keep several under way, and gives them in any order."""

    def __call__(self, chunks: Iterator[tuple[int, T_contra]]) -> Iterator[tuple[int, pa.Table]]:
        """The number and table of each of ``chunks``, which are taken from it as they are needed."""


def one_by_one(function: Callable[[T], pa.Table]) -> Compute[T]:
    """Computes the chunks in this process, one after the other."""

    def compute(chunks: Iterator[tuple[int, T]]) -> Iterator[tuple[int, pa.Table]]:
        for number, chunk in chunks:
            yield number, function(chunk)

    return compute


def in_parts(chunks: Iterable[T], compute: Compute[T], *, parts: Parts) -> Iterator[pa.Table]:
    """The table of each of ``chunks``, in their order; those that ``parts`` has are not computed again.

    A chunk is what is read of the input: all are read again, as the same command reads the same ones. The
    first table comes when all are computed.

    Whatever is raised here, what is computed stays, but for a ChangedError.
    """
    count = 0

    def missing() -> Iterator[tuple[int, T]]:
        nonlocal count
        for number, chunk in enumerate(chunks):
            count = number + 1
            if number not in parts:
                yield number, chunk

    try:
        for number, table in compute(missing()):
            parts.write(number, table)
    except ChangedError:
        parts.remove()
        raise
    for number in range(count):
        yield parts.read(number)
