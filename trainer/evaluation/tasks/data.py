"""A task's CSV files as three splits that share no sequence, on either strand.

A role without a file is split off the others by a hash, the same on every machine: u in [0, 1) is the first 8
bytes of sha256("0:" + sequence in upper case). From one file: u < 0.1 is test, u < 0.2 dev, the rest train.
From two files: the missing role takes u < 0.1 (train: u ≥ 0.1) of train if there is one, else of dev; a given
test file is left whole.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep import alphabet
from trainer.evaluation.tasks import table
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.table import Table

_SPLIT_SALT, _SUBSAMPLE_SALT = 0, 1


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one role: upper-case letters and class numbers, in the order of the file."""

    role: str
    letters: tuple[str, ...]
    truth_N: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.letters)

    def codes(self) -> list[alphabet.Codes]:
        return [alphabet.encode(letters.encode())[0] for letters in self.letters]

    def take(self, keep: Callable[[int, str], bool], *, role: str | None = None) -> "Split":
        """The rows for which ``keep(row, letters)`` holds."""
        index = [i for i, letters in enumerate(self.letters) if keep(i, letters)]
        return Split(role or self.role, tuple(self.letters[i] for i in index), self.truth_N[index])


@dataclass(frozen=True)
class TaskData:
    """Three splits, and how many rows each lost because its sequence (or reverse complement) is in a later
    one.

    ``remarks``: sentences on what stands in the files and may not be meant.
    """

    train: Split
    dev: Split
    test: Split
    dropped: Mapping[str, int]
    remarks: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Of the sequences and labels that are used, so that results on different rows are never mixed."""
        digest = hashlib.sha256()
        for split in (self.train, self.dev, self.test):
            digest.update(f"{split.role} {len(split)}\n".encode())
            digest.update("\n".join(split.letters).encode() + split.truth_N.astype("<i8").tobytes())
        return digest.hexdigest()


def load(config: TaskConfig) -> TaskData:
    """The task's splits: read, checked, split where a file is missing, freed of leaks, subsampled.

    Raises: StoreError (a file cannot be read); ValueError naming the file and line (see table.py), or the
    split that is left without a label.
    """
    uris = {role: uri for role in ROLES if (uri := getattr(config, role))}
    tables = {
        role: table.read(
            uri,
            sequence_column=config.sequence_column,
            label_column=config.label_column,
            labels=config.labels,
        )
        for role, uri in uris.items()
    }
    number_of = {label: i for i, label in enumerate(config.labels)}
    found = _fill(
        {
            role: Split(
                role, rows.letters, np.array([number_of[label] for label in rows.labels], dtype=np.int64)
            )
            for role, rows in tables.items()
        }
    )
    test_keys = {_strandless(letters) for letters in found["test"].letters}
    dev = found["dev"].take(lambda _, letters: _strandless(letters) not in test_keys)
    held_keys = test_keys | {_strandless(letters) for letters in dev.letters}
    train = found["train"].take(lambda _, letters: _strandless(letters) not in held_keys)
    dropped = {"train": len(found["train"]) - len(train), "dev": len(found["dev"]) - len(dev)}
    if config.max_train_rows and len(train) > config.max_train_rows:
        rank = sorted(range(len(train)), key=lambda i: (_uniform(train.letters[i], _SUBSAMPLE_SALT), i))
        chosen = set(rank[: config.max_train_rows])
        train = train.take(lambda i, _: i in chosen)
    for split in (train, dev, found["test"]):
        for number, label in enumerate(config.labels):
            if not (split.truth_N == number).any():
                left = dropped.get(split.role, 0)
                why = f" ({left} rows were left out, as dev or test holds the same sequence)" if left else ""
                raise ValueError(
                    f"task {config.name}: its {split.role} split of {len(split)} rows{why} has none with "
                    f"label {label!r}; every split needs every label"
                )
    return TaskData(train, dev, found["test"], dropped, tuple(_remarks(list(tables.values()))))


def _remarks(tables: list[Table]) -> Iterator[str]:
    for rows in tables:
        if rows.cut:
            yield f"{rows.uri}: its last line has no end; if the file was cut short, get it again"
        if rows.ambiguous:
            yield (
                f"{rows.uri}: {rows.ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) are read as N"
            )
    first: dict[str, tuple[Table, int]] = {}
    differ: dict[str, str] = {}
    for rows in tables:
        for row, letters in enumerate(rows.letters):
            key = _strandless(letters)
            earlier, at = first.setdefault(key, (rows, row))
            if rows.labels[row] != earlier.labels[at] and key not in differ:
                differ[key] = (
                    f"{earlier.at(at)} has it with label {earlier.labels[at]!r}, {rows.at(row)} with "
                    f"{rows.labels[row]!r}"
                )
    if differ:
        yield (
            f"{len(differ):,} sequence{'s' * (len(differ) != 1)} (or the reverse complement) with more than "
            f"one "
            f"label; the first: {next(iter(differ.values()))}"
        )


def _fill(found: dict[str, Split]) -> dict[str, Split]:
    """All three roles, split off where they are missing."""
    if len(found) == 1:
        (whole,) = found.values()
        bounds = {"test": (0.0, 0.1), "dev": (0.1, 0.2), "train": (0.2, 1.0)}
    elif len(found) == 2:
        whole = found.get("train") or found["dev"]
        missing = next(role for role in ROLES if role not in found)
        bounds = {"dev": (0.0, 0.1), "train": (0.1, 1.0)}
        if missing == "test":
            bounds = {"test": (0.0, 0.1), "train": (0.1, 1.0)}
    else:
        return found
    return found | {role: _between(whole, role, low, high) for role, (low, high) in bounds.items()}


def _between(split: Split, role: str, low: float, high: float) -> Split:
    return split.take(lambda _, letters: low <= _uniform(letters, _SPLIT_SALT) < high, role=role)


def _uniform(letters: str, salt: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{salt}:{letters}".encode()).digest()[:8], "big") / 2**64


def _strandless(letters: str) -> str:
    """The same text for a sequence and its reverse complement."""
    other = alphabet.decode(alphabet.reverse_complement(alphabet.encode(letters.encode())[0])).decode()
    return min(letters, other)
