"""data_prep.synthetic: the same genome from the same seed, with what it promises in it."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.alphabet import N, encode, reverse_complement
from data_prep.synthetic import MOTIFS, WINDOW, Synthetic, synthesise

BP = 200_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Synthetic]:
    folder = tmp_path_factory.mktemp("synth")
    return folder, synthesise(str(folder), bp=BP, seed=1)


def rows(folder: Path, name: str) -> list[tuple[str, int]]:
    with open(folder / "task" / f"{name}.csv") as file:
        return [(row["sequence"], int(row["label"])) for row in csv.DictReader(file)]


def genome(folder: Path) -> dict[str, bytes]:
    text = gzip.decompress((folder / "genome.fa.gz").read_bytes())
    parts = (record.split(b"\n", 1) for record in text.split(b">")[1:])
    return {header.split()[0].decode(): letters.replace(b"\n", b"") for header, letters in parts}


def test_a_function_of_the_seed(made: tuple[Path, Synthetic], tmp_path: Path) -> None:
    folder, _ = made
    files = ["genome.fa.gz", "task/train.csv", "task/dev.csv", "task/test.csv"]
    synthesise(str(tmp_path / "same"), bp=BP, seed=1)
    synthesise(str(tmp_path / "other"), bp=BP, seed=2)
    for file in files:
        assert (tmp_path / "same" / file).read_bytes() == (folder / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (folder / file).read_bytes()


def test_what_the_genome_holds(made: tuple[Path, Synthetic]) -> None:
    folder, summary = made
    contigs = genome(folder)
    assert {name: len(letters) for name, letters in contigs.items()} == summary.chromosomes
    assert abs(sum(summary.chromosomes.values()) - BP) < 10
    codes, soft, _ = encode(b"".join(contigs.values()))
    assert 0.01 < np.mean(codes == N) < 0.05
    assert 0.1 < np.mean(soft) < 0.3
    pairs = np.bincount(codes[:-1] * 4 + codes[1:], minlength=16)[:16].reshape(4, 4).astype(float)
    chance = np.outer(pairs.sum(1), pairs.sum(0)) / pairs.sum()
    assert ((pairs - chance) ** 2 / chance).sum() > 1000, "the next letter must depend on the last"


def test_the_task_is_balanced_disjoint_and_about_the_motifs(made: tuple[Path, Synthetic]) -> None:
    folder, summary = made
    parts = {name: rows(folder, name) for name in ("train", "dev", "test")}
    assert {name: len(part) for name, part in parts.items()} == summary.task
    seen = Counter(sequence for part in parts.values() for sequence, _ in part)
    assert max(seen.values()) == 1, "a window stands in one file, once"
    strands = b"".join(genome(folder).values()).upper().decode()
    for part in parts.values():
        assert 2 * sum(label for _, label in part) == len(part)
        assert all(len(sequence) == WINDOW and sequence in strands for sequence, _ in part)
    both = [[_best(sequence, motif) >= 9 for motif in MOTIFS] for sequence, _ in parts["train"]]
    hit = [all(pair) == bool(label) for pair, (_, label) in zip(both, parts["train"], strict=True)]
    assert np.mean(hit) > 0.85


def _best(sequence: str, motif: bytes) -> int:
    """Most letters of ``motif`` that agree anywhere in ``sequence``, on either strand."""
    codes, wanted = encode(sequence.encode())[0], encode(motif)[0]
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(wanted))
    return int(max((windows == side).sum(1).max() for side in (wanted, reverse_complement(wanted))))


def test_the_full_size_has_the_promised_rows(tmp_path: Path) -> None:
    summary = synthesise(str(tmp_path))
    assert summary.task == {"train": 4000, "dev": 500, "test": 500}
    assert sum(summary.chromosomes.values()) == 6_000_000
