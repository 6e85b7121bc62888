"""A task's files as three splits that share no sequence, on either strand.

A split without a file is taken from the other files by a hash, the same on every machine: u in [0, 1) is the
first 8 bytes of sha256("0:" + sequence in upper case). From one file: u < 0.1 is test, u < 0.2 dev, the rest
train. From two files: the missing split takes u < 0.1 (train: u ≥ 0.1) of train if there is one, else of dev;
a given test file stays whole. ``split: stratified`` takes the same shares of each class (splits.py).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from data_prep import alphabet
from data_prep.sources import reference
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.kinds.kind import Array, TaskKind
from trainer.evaluation.tasks.rows import splits, table, variant_table
from trainer.evaluation.tasks.rows.table import LabelReader, Table
from trainer.evaluation.tasks.rows.variant import VariantRow
from trainer.inference.readers.rows import Wanted
from trainer.inference.variants.genome import Genome


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one role (train, dev or test) in the order of the file: upper-case letters and the truth.

    Of a task of variants the letters are windows of the reference, and ``variants`` says what changes there.
    """

    role: str
    letters: tuple[str, ...]
    truth_N: Array  # as TaskKind.truth gives it
    variants: tuple[VariantRow, ...] = ()

    def __len__(self) -> int:
        return len(self.letters)

    def codes(self) -> list[alphabet.Codes]:
        return [alphabet.encode(letters.encode())[0] for letters in self.letters]

    def take(self, keep: Callable[[int, str], bool], *, role: str | None = None) -> "Split":
        """The rows for which ``keep(row, letters)`` holds."""
        index = [i for i, letters in enumerate(self.letters) if keep(i, letters)]
        return self.rows(index, role=role)

    def rows(self, index: list[int], *, role: str | None = None) -> "Split":
        """The rows of these numbers, from 0."""
        letters = tuple(self.letters[i] for i in index)
        variants = tuple(self.variants[i] for i in index) if self.variants else ()
        return Split(role or self.role, letters, self.truth_N[index], variants)


@dataclass(frozen=True)
class TaskData:
    """Three splits.

    Attributes:
        dropped: for train and dev, how many rows were left out because a later split has their sequence.
        remarks: sentences about things in the files that may be mistakes.
    """

    train: Split
    dev: Split
    test: Split
    dropped: Mapping[str, int]
    remarks: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.dev, self.test

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each split."""
        return {split.role: len(split) for split in self.splits}

    def sha256(self) -> str:
        """Of the sequences and the truth in use, so that results on different rows are never mixed."""
        digest = hashlib.sha256()
        for split in self.splits:
            digest.update(f"{split.role} {len(split)}\n".encode())
            little_endian = split.truth_N.astype(split.truth_N.dtype.newbyteorder("<"))
            digest.update("\n".join(split.letters).encode() + little_endian.tobytes())
            if split.variants:
                changes = [(row.placed.site[1:], row.placed.alt, row.from_centre) for row in split.variants]
                digest.update(repr(changes).encode())
        return digest.hexdigest()


def load(config: TaskConfig) -> TaskData:
    """The task's splits: read, checked, completed where a file is missing, without leaks, subsampled.

    Raises: StoreError (a file cannot be read); ValueError naming the file and line (see table.py), or the
    split that cannot be used.
    """
    kind = config.make_kind()
    tables = read_files(config, kind)
    given = {
        role: Split(role, rows.letters, kind.truth(rows.labels), rows.variants)
        for role, rows in tables.items()
    }
    found = _fill(given, config.split)
    data = _without_leaks(found, remarks=tuple(_remarks(list(tables.values()), kind)))
    rows = config.max_train_rows
    assert not isinstance(rows, tuple), "a list is for TaskConfig.variants"
    if rows:
        data = replace(data, train=subsample(data.train, rows, kind))
    _refuse_unusable(config.name, data, kind, most=config.max_train_rows)
    return data


def read_files(config: TaskConfig, kind: TaskKind) -> dict[str, Table]:
    """The rows of each file of the task, by role. Raises as ``load``."""
    columns = config.label_column
    label_reader = LabelReader(config.labels, kind.parse, () if isinstance(columns, str) else columns)
    uris = {role: uri for role in ROLES if (uri := getattr(config, role))}
    if kind.reads_variants:
        assert config.reference, "the config has checked it"
        genome = Genome.of(reference.locate(config.reference))
        found = {
            role: variant_table.read(uri, config=config, label_reader=label_reader, genome=genome)
            for role, uri in uris.items()
        }
        return found
    wanted = Wanted(
        sequence_column=config.sequence_column,
        label_columns=(columns,) if isinstance(columns, str) else columns,
        reference=config.reference,
        label_pattern=config.label_pattern or "",
    )
    return {
        role: table.read(uri, wanted=wanted, label_reader=label_reader, form=config.format)
        for role, uri in uris.items()
    }


def _without_leaks(found: Mapping[str, Split], *, remarks: tuple[str, ...]) -> TaskData:
    """The splits without the rows of train and dev whose sequence, on either strand, is in a later split."""
    test = found["test"]
    held_out = {splits.strandless(letters) for letters in test.letters}
    dev = found["dev"].take(lambda _, letters: splits.strandless(letters) not in held_out)
    held_out |= {splits.strandless(letters) for letters in dev.letters}
    train = found["train"].take(lambda _, letters: splits.strandless(letters) not in held_out)
    dropped = {"train": len(found["train"]) - len(train), "dev": len(found["dev"]) - len(dev)}
    return TaskData(train, dev, test, dropped, remarks)


def subsample(split: Split, rows: int, kind: TaskKind) -> Split:
    """The first ``rows`` rows by a hash of the sequence, the first of each of the kind's groups before; all,
    if there are no more.

    So a subset is part of every larger one, and has every class if it has as many rows as there are.
    """
    if len(split) <= rows:
        return split
    hashes = [splits.uniform(letters, splits.SUBSAMPLE_SALT) for letters in split.letters]
    rank = np.argsort(hashes, kind="stable").tolist()
    of_groups_NG = kind.groups(split.truth_N)[rank]
    firsts = {rank[place] for place in of_groups_NG[:, of_groups_NG.any(0)].argmax(0)}
    chosen = set(sorted(rank, key=lambda i: i not in firsts)[:rows])
    return split.take(lambda i, _: i in chosen)


def _refuse_unusable(task: str, data: TaskData, kind: TaskKind, *, most: object) -> None:
    """``most``: the number of train rows that were asked for, if any."""
    for split in data.splits:
        fault = kind.fault_of_split(split.truth_N)
        if fault:
            left_out = data.dropped.get(split.role, 0)
            why = (
                f" ({left_out} rows were left out, as dev or test holds the same sequence)"
                if left_out
                else ""
            )
            if split.role == "train" and most:
                why += f" (max_train_rows={most})"
            raise ValueError(f"task {task}: its {split.role} split of {len(split)} rows{why} {fault}")


def _remarks(tables: list[Table], kind: TaskKind) -> Iterator[str]:
    for rows in tables:
        if rows.remark:
            yield rows.remark
        if rows.cut:
            yield f"{rows.uri}: its last line has no end; if the file was cut short, get it again"
        if rows.ambiguous:
            yield (
                f"{rows.uri}: {rows.ambiguous:,} ambiguous letters (IUPAC codes such as R or Y) are read as N"
            )
    first: dict[str, tuple[Table, int]] = {}
    differ: dict[str, str] = {}
    for rows in tables:
        if rows.variants:  # of which several may be in one window
            continue
        for row, letters in enumerate(rows.letters):
            key = splits.strandless(letters)
            earlier, at = first.setdefault(key, (rows, row))
            label, other = rows.labels[row], earlier.labels[at]
            if key in differ or label == other or np.array_equal(kind.parse(label), kind.parse(other)):
                continue
            differ[key] = f"{earlier.at(at)} has it with label {other!r}, {rows.at(row)} with {label!r}"
    if differ:
        yield (
            f"{len(differ):,} sequence{'s' * (len(differ) != 1)} (or the reverse complement) with more than "
            f"one label; the first: {next(iter(differ.values()))}"
        )


def _fill(found: dict[str, Split], how: str) -> dict[str, Split]:
    """All three splits; a missing one is taken from another."""
    if len(found) == len(ROLES):
        return found
    if len(found) == 1:
        (whole,) = found.values()
        shares = {"test": 0.1, "dev": 0.1}
    else:
        whole = found.get("train") or found["dev"]
        shares = {"dev" if "test" in found else "test": 0.1}
    if how == "stratified":
        parts = splits.stratified(whole.letters, whole.truth_N, shares, rest="train")
    else:
        parts = splits.by_hash(whole.letters, shares, rest="train")
    return found | {role: whole.rows(rows, role=role) for role, rows in parts.items()}
