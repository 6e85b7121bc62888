"""Other spellings of a contig's name: 1 and chr1, M, MT and chrM."""

import re
from collections.abc import Container

_PREFIXES = ("", "chr", "Chr", "CHR")
_PREFIX = re.compile(r"^chr(?=.)", re.IGNORECASE)
_MITOCHONDRION = ("M", "MT", "Mt", "Mito")
_SHOWN = 5  # names in a sentence


def resolve(name: str, contigs: Container[str]) -> str | None:
    """The one of ``contigs`` that ``name`` means: itself, else the only other spelling of it that is there.
    None where there is none, or more than one."""
    if name in contigs:
        return name
    bare = _PREFIX.sub("", name)
    bodies = _MITOCHONDRION if bare in _MITOCHONDRION else (bare,)
    found = [prefix + body for body in bodies for prefix in _PREFIXES if prefix + body in contigs]
    return found[0] if len(found) == 1 else None


class Renamed:
    """The contigs of a reference, asked for by the names of another file; keeps which names were others."""

    def __init__(self, contigs: Container[str]) -> None:
        self._contigs = contigs
        self._others: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """``resolve`` of ``name``."""
        found = resolve(name, self._contigs)
        if found is not None and found != name:
            self._others[name] = found
        return found

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
