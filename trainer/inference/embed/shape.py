"""What an output is to hold, and what writes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trainer.inference.embed.rows import PLACES, Each, Rows

GROUP_BYTES = 8 << 20  # of the numbers that are written at once: a row group of Parquet, a chunk of zarr


class RowsWriter(Protocol):
    """Takes the rows of an output, ``Shape.group`` at a time and at the end what is left."""

    def write(self, rows: Rows) -> None:
        """ValueError: the format cannot hold a column of the input."""


@dataclass(frozen=True)
class Shape:
    """The table that is to be written.

    Attributes:
        each: what a row is of.
        rows: how many there are, of how many ``records``.
        numbers: of a row, those of all ``strands`` that are kept.
        attributes: what decided the numbers, for those who read them.
    """

    each: Each
    rows: int
    records: int
    numbers: int
    strands: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """Rows that are written at once."""
        return max(1, GROUP_BYTES // (4 * self.numbers))

    def names(self) -> list[str]:
        """Of the numbers: e0, e1, …; those of the reverse strand, where it is kept, are r0, r1, …"""
        one = self.numbers // self.strands
        return [f"{letter}{i}" for letter in "er"[: self.strands] for i in range(one)]

    def own(self) -> set[str]:
        """The names of all columns that are not the input's."""
        return {*PLACES[self.each], *self.names()}
