"""A task's CSV files as three splits that share no sequence, on either strand.

A role without a file is split off the others by a hash, the same on every machine: u in [0, 1) is the first 8 bytes of
sha256("0:" + sequence in upper case). From one file: u < 0.1 is test, u < 0.2 dev, the rest train. From two files: the
missing role takes u < 0.1 (train: u ≥ 0.1) of train if there is one, else of dev; a given test file is left whole.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cluster import store
from data_prep import alphabet
from trainer.tasks.config import ROLES, TaskConfig

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
    """Three splits, and how many rows each lost because its sequence (or reverse complement) is in a later one."""

    train: Split
    dev: Split
    test: Split
    dropped: Mapping[str, int]

    def sha256(self) -> str:
        """Of the sequences and labels that are used, so that results on different rows are never mixed."""
        digest = hashlib.sha256()
        for split in (self.train, self.dev, self.test):
            digest.update(f"{split.role} {len(split)}\n".encode())
            digest.update("\n".join(split.letters).encode() + split.truth_N.astype("<i8").tobytes())
        return digest.hexdigest()


def load(config: TaskConfig) -> TaskData:
    """The task's splits: read, checked, split where a file is missing, freed of leaks, subsampled.

    Raises: StoreError (a file cannot be read); ValueError naming the file and line (a column is missing, a label is
    unknown, a letter is no nucleotide) or the split that is left without a label.
    """
    uris = {role: uri for role in ROLES if (uri := getattr(config, role))}
    found = _fill({role: _read(uri, role, config) for role, uri in uris.items()})
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
                raise ValueError(f"task {config.name}: its {split.role} split of {len(split)} rows has none with "
                                 f"label {label!r}; every split needs every label")  # fmt: skip
    return TaskData(train, dev, found["test"], dropped)


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


def _read(uri: str, role: str, config: TaskConfig) -> Split:
    with store.open_read(uri) as file:
        try:
            lines = gzip.GzipFile(fileobj=file) if uri.endswith(".gz") else file
            table = pd.read_csv(lines, dtype=str, keep_default_na=False)
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as fault:  # pandas' own errors are ValueErrors
            raise ValueError(f"{uri} is not a CSV file: {' '.join(str(fault).split())}") from fault
    for column in (config.sequence_column, config.label_column):
        if column not in table.columns:
            raise ValueError(f"{uri} has no column {column!r}, its columns are {', '.join(map(repr, table.columns))}")
    if table.empty:
        raise ValueError(f"{uri} has a header and no rows")
    number_of = {label: i for i, label in enumerate(config.labels)}
    labels = table[config.label_column].str.strip()
    unknown = ~labels.isin(list(number_of))
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise ValueError(f"{uri}, line {row + 2}: label {labels.iloc[row]!r} is not among the task's labels "
                         f"{list(config.labels)}")  # fmt: skip
    letters = tuple(
        _normalise(text, f"{uri}, line {row + 2}") for row, text in enumerate(table[config.sequence_column])
    )
    return Split(role, letters, labels.map(number_of).to_numpy(dtype=np.int64))


def _normalise(text: str, where: str) -> str:
    """A, C, G, T, N alone, upper case."""
    try:
        codes, _, _ = alphabet.encode(text.strip().encode())
    except ValueError as fault:
        raise ValueError(f"{where}: {fault}") from fault
    if not codes.size:
        raise ValueError(f"{where}: the sequence is empty")
    return alphabet.decode(codes).decode()
