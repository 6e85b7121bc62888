"""The records of a FASTA, one after the other, as codes. What is not understood is refused, never passed
over."""

from collections.abc import Iterator
from typing import NamedTuple

from configs import redact
from data_prep import alphabet
from trainer.evaluation import unpack

_MARK = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLANKS = b" \t\v\f"


class Record(NamedTuple):
    """A name (the header's first word), codes uint8 [n], and how many IUPAC letters became N."""

    name: str
    codes: alphabet.Codes
    ambiguous: int


def read(uri: str) -> Iterator[Record]:
    """Each record of the FASTA at ``uri``, plain or compressed. Blank lines and blanks in lines mean nothing.

    Raises:
        StoreError: it cannot be read. ValueError: it is no FASTA, or a name is missing or stands there twice;
        it names the file and the record.
    """
    shown = redact(uri)
    name, parts, number = "", list[bytes](), 0
    seen: dict[str, int] = {}
    for at, line in enumerate(unpack.lines(uri), 1):
        if at == 1:
            if line.startswith(_UTF16):
                raise ValueError(f"{shown} is UTF-16; save it as plain text")
            line = line.removeprefix(_MARK)
        line = line.strip()
        if line.startswith(b">"):
            if number:
                yield _record(name, parts, shown)
            number += 1
            name, parts = _name(line, f"{shown}, line {at}: record {number}"), []
            if name in seen:
                raise ValueError(
                    f"{shown}, line {at}: {name!r} is the name of records {seen[name]} and {number}; the "
                    "name is the first word after '>', and each record needs its own"
                )
            seen[name] = number
        elif line and not number:
            raise ValueError(f"{shown} is no FASTA: line {at} comes before any '>' header")
        else:
            parts.append(line.translate(None, _BLANKS))
    if not number:
        raise ValueError(f"{shown} holds no FASTA record")
    yield _record(name, parts, shown)


def _name(line: bytes, where: str) -> str:
    words = line[1:].split()
    if not words:
        raise ValueError(f"{where} has no name after its '>'")
    name = words[0].decode(errors="replace")
    if not name.isprintable() or "\ufffd" in name:
        raise ValueError(f"{where}: its name, {words[0]!r}, is not readable text")
    return name


def _record(name: str, parts: list[bytes], shown: str) -> Record:
    letters = b"".join(parts)
    if not letters:
        raise ValueError(f"{shown}: record {name!r} has no letters")
    try:
        codes, _, ambiguous = alphabet.encode(letters)
    except ValueError as fault:
        raise ValueError(f"{shown}: record {name!r}: {fault}") from fault
    return Record(name, codes, ambiguous)
