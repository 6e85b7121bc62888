"""Rows of a FASTA file, a record each, with the label in the header.

Where the label stands, the first record decides for all; with ``label_column: label``:

    >name label=1          a word KEY=VALUE whose key is the label column; several columns need this form
    >name|1                what stands between the first and the second bar of the first word
    >name 1                what follows the first word, all of it

``label_pattern``, a regular expression that is searched in the header (without its >), says it otherwise: its
group is the label, or there is a group for each label column.
"""

import re
from collections.abc import Callable, Iterator

from configs import redact
from data_prep.sources import fasta
from trainer.inference.readers.rows import Batch, Gather, Wanted, short

Labels = Callable[[str], tuple[str, ...] | None]  # of a header; None: they are not there


def read(uri: str, wanted: Wanted) -> Iterator[Batch]:
    """The records of the FASTA at ``uri``, plain or compressed. The one other column is ``name``; where it is
    wanted, no two records may share one.

    Raises:
        StoreError: it cannot be read.
        ValueError: it is no FASTA, or a record lacks a name, letters or a label; one sentence with file and
            record.
    """
    file = redact(uri)
    gather = Gather(["name"] if wanted.others else None)
    numbers: dict[str, int] = {}
    find: Labels | None = None if wanted.label_columns else lambda _: ()
    for number, header, letters in fasta.headed_records(uri):
        where = f"{file}, record {number}"
        name = (header.split() or [""])[0]
        if wanted.others:
            _check_name(name, number, numbers, file)
        find = find or _rule(header, wanted, where)
        labels = find(header)
        if labels is None:
            raise ValueError(f"{where}: its header {short(header)} has no label where {_others_have(number)}")
        if gather.add(number, letters, labels, (name,)):
            yield gather.take()
    yield gather.take()


def _check_name(name: str, number: int, numbers: dict[str, int], file: str) -> None:
    """ValueError if there is no name, or it is among ``numbers``, where it is put."""
    if not name:
        raise ValueError(f"{file}, record {number} has no name after its '>'")
    if (first := numbers.setdefault(name, number)) != number:
        raise ValueError(
            f"{file}: {short(name)} is the name of records {first} and {number}; a name is the first word "
            "after '>', and each record needs its own: rename or remove one"
        )


def _others_have(number: int) -> str:
    return "label_pattern says" if number == 1 else "the records before it have theirs, or label_pattern says"


def _rule(header: str, wanted: Wanted, where: str) -> Labels:
    """Where the labels stand, from the first header."""
    if wanted.label_pattern:
        return _by_pattern(wanted.label_pattern)
    keyed = _by_key(wanted.label_columns)
    if keyed(header):
        return keyed
    column = wanted.label_columns[0]
    if len(wanted.label_columns) > 1:
        words = " ".join(f"{column}=..." for column in wanted.label_columns)
        raise ValueError(f"{where}: its header {short(header)} has no labels; needed is '>name {words}'")
    for rule in (_after_bar, _after_name):
        if rule(header):
            return rule
    raise ValueError(
        f"{where}: its header {short(header)} has no label; write '>name {column}=LABEL', '>name|LABEL' or "
        "'>name LABEL', or give label_pattern"
    )


def _by_pattern(pattern: str) -> Labels:
    compiled = re.compile(pattern)

    def find(header: str) -> tuple[str, ...] | None:
        found = compiled.search(header)
        return tuple((group or "").strip() for group in found.groups()) if found else None

    return find


def _by_key(columns: tuple[str, ...]) -> Labels:
    # A word, or a part of one between bars or semicolons: '>name label=1', '>name|label=1;x=2'.
    compiled = [re.compile(rf"(?:^|[\s|;]){re.escape(column)}=([^\s|;]*)") for column in columns]

    def find(header: str) -> tuple[str, ...] | None:
        found = [pattern.search(header) for pattern in compiled]
        return tuple(each[1] for each in found if each) if all(found) else None

    return find


def _after_bar(header: str) -> tuple[str] | None:
    _, bar, rest = (header.split() or [""])[0].partition("|")
    return (rest.split("|")[0],) if bar and rest else None


def _after_name(header: str) -> tuple[str] | None:
    words = header.split(maxsplit=1)
    return (words[1].strip(),) if len(words) > 1 else None
