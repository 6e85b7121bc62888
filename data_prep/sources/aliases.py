"""Other names of a contig: by a file of them, and by spelling (1 and chr1; M, MT and chrM)."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_PREFIXES = ("", "chr", "Chr", "CHR")
_PREFIX = re.compile(r"^chr(?=.)", re.IGNORECASE)
_MITOCHONDRION = ("M", "MT", "Mt", "Mito")
_SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class AliasTable:
    """What a file says of names: each row has the names of one sequence, a column for each way of naming,
    with "" where it has none.

    ``roles``: of each row what the sequence is (assembled-molecule, …), where the file says so.
    ``sha256``: of the file's bytes.
    """

    uri: str
    sha256: str
    rows: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...] = ()


def _spellings(name: str) -> Iterator[str]:
    bare = _PREFIX.sub("", name)
    bodies = _MITOCHONDRION if bare in _MITOCHONDRION else (bare,)
    return (prefix + body for body in bodies for prefix in _PREFIXES)


class Renamed:
    """The contigs of a reference, asked for by the names of another file; keeps which names were others."""

    def __init__(self, contigs: Container[str], table: AliasTable | None = None) -> None:
        """ValueError: a row of ``table`` has two of ``contigs``, or no row has any."""
        self._contigs = contigs
        self._others: dict[str, str] = {}
        self._by_file: dict[str, list[str]] = {}
        self._columns: list[dict[str, str]] = []
        self._roles: dict[str, str] = {}
        if table is not None:
            self._read(table)

    def _read(self, table: AliasTable) -> None:
        for number, row in enumerate(table.rows):
            own = {name for name in row if name and name in self._contigs}
            if len(own) > 1:
                raise ValueError(
                    f"{table.uri} says that {' and '.join(sorted(own)[:_SHOWN])} are names of one sequence, "
                    "and the reference has each of them; remove that row"
                )
            for contig in own:
                if table.roles:
                    self._roles[contig] = table.roles[number]
                for column, name in enumerate(row):
                    while len(self._columns) <= column:
                        self._columns.append({})
                    if name:
                        self._columns[column][contig] = name
                        known = self._by_file.setdefault(name, [])
                        known += [contig] * (contig not in known)
        if not self._by_file:
            theirs = ", ".join(row[0] or row[-1] for row in table.rows[:_SHOWN])
            raise ValueError(
                f"{table.uri} has no name of a contig of the reference (its rows begin with {theirs}); is it "
                "of another assembly?"
            )

    @property
    def roles(self) -> dict[str, str]:
        """contig -> what it is, as the file says; empty where none does."""
        return self._roles

    @property
    def columns(self) -> Sequence[dict[str, str]]:
        """For each way of naming in the file: contig -> its name."""
        return self._columns

    def by_file(self, name: str) -> tuple[str, ...]:
        """The contig called ``name``, else those that the file calls so."""
        return (name,) if name in self._contigs else tuple(self._by_file.get(name, ()))

    def by_glob(self, pattern: str) -> tuple[str, ...]:
        """The contigs of which a name in the file matches ``pattern``."""
        hits = (contigs for name, contigs in self._by_file.items() if fnmatchcase(name, pattern))
        return tuple(dict.fromkeys(contig for contigs in hits for contig in contigs))

    def meanings(self, name: str) -> tuple[str, ...]:
        """The contigs that ``name`` may mean: ``by_file``, else by its other spellings."""
        if found := self.by_file(name):
            return found
        return tuple(dict.fromkeys(contig for other in _spellings(name) for contig in self.by_file(other)))

    def find(self, name: str) -> str | None:
        """The one of ``meanings``; None where there is none, or more than one."""
        found = self.meanings(name)
        if len(found) != 1:
            return None
        self.note(name, found[0])
        return found[0]

    def note(self, name: str, contig: str) -> None:
        """Keeps that ``name`` was read as ``contig``."""
        if name != contig:
            self._others[name] = contig

    def sentence(self, what: str) -> str:
        """Says which names of ``what`` ("the BED") were read as others; "" if none was."""
        if not self._others:
            return ""
        more = f" and {len(self._others) - _SHOWN:,} more" if len(self._others) > _SHOWN else ""
        theirs, ours = (", ".join(list(names)[:_SHOWN]) for names in (self._others, self._others.values()))
        one = len(self._others) == 1
        return (
            f"contig{'s' * (not one)} {theirs}{more} of {what} {'was' if one else 'were'} read as {ours}"
            f"{more and ' ...'} of the reference"
        )
