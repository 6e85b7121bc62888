"""trainer.evaluation.tasks.rows.splits: which rows become which split where a task has no file for it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import ConfigError, validate
from tests.unit.test_tasks import random_letters, write_csv
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows import splits
from trainer.evaluation.tasks.rows.data import TaskData, load

SHARES = {"test": 0.1, "dev": 0.1}


def other_strand(letters: str) -> str:
    return letters.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def take(letters: list[str], truth: list[int]) -> dict[str, list[int]]:
    return splits.stratified(letters, np.array(truth), SHARES, rest="train")


@given(
    st.lists(st.tuples(st.text("ACGT", min_size=2, max_size=5), st.integers(0, 2)), min_size=1, max_size=200)
)
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_one_split_and_both_strands_in_the_same(found: list[tuple[str, int]]) -> None:
    letters = [text for text, _ in found]
    parts = take(letters, [label for _, label in found])
    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(found)))
    of: dict[str, str] = {}
    for role, rows in parts.items():
        for row in rows:
            assert of.setdefault(splits.strandless(letters[row]), role) == role
    order = np.random.default_rng(0).permutation(len(found))
    again = take([letters[i] for i in order], [found[i][1] for i in order])
    assert {role: sorted(letters[row] for row in rows) for role, rows in parts.items()} == {
        role: sorted(letters[order[row]] for row in rows) for role, rows in again.items()
    }, "it does not depend on the order of the rows"


def test_each_class_has_the_same_share_and_a_small_one_is_everywhere() -> None:
    letters = random_letters(1_000, length=30)
    truth = [0] * 900 + [1] * 90 + [2] * 10
    parts = take(letters, truth)
    counts = {role: Counter(truth[row] for row in rows) for role, rows in parts.items()}
    assert counts == {
        "test": {0: 90, 1: 9, 2: 1},
        "dev": {0: 90, 1: 9, 2: 1},
        "train": {0: 720, 1: 72, 2: 8},
    }
    few = {role: len(rows) for role, rows in take(letters[:3], [0, 0, 0]).items()}
    assert few == {"test": 1, "dev": 1, "train": 1}


def test_real_numbers_are_cut_by_tenths_and_sets_of_labels_by_set() -> None:
    letters = random_letters(2_000, length=30)
    truth_N = np.random.default_rng(0).lognormal(size=2_000)
    parts = splits.stratified(letters, truth_N, {"dev": 0.1}, rest="train")
    highest = np.sort(truth_N)[-200]
    assert (truth_N[parts["dev"]] >= highest).sum() == 20
    sets_NK = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[[0] * 1000 + [1] * 500 + [2] * 495 + [3] * 5]
    parts = splits.stratified(letters, sets_NK, {"dev": 0.1}, rest="train")
    assert sets_NK[parts["dev"]].sum(0) == pytest.approx([50, 50], abs=1)


def test_a_task_says_how_it_is_split(tmp_path: Path) -> None:
    letters = random_letters(300, length=30)
    letters += [other_strand(text) for text in letters[:100]]
    uri = write_csv(tmp_path / "t.csv", letters, ["ab"[i % 300 < 30] for i in range(400)])

    def data(**keys: object) -> TaskData:
        return load(validate(TaskConfig, {"name": "t", "labels": ["a", "b"]} | keys, source="test"))

    by_hash, stratified = data(test=uri), data(test=uri, split="stratified")
    assert by_hash.sha256() == data(test=uri, split="hash").sha256()
    assert sum(by_hash.dropped.values()) > 0, "the other strand fell into another split"
    assert stratified.dropped == {"train": 0, "dev": 0}
    assert [int((split.truth_N == 1).sum()) for split in stratified.splits] == [48, 6, 6]
    given_test = data(
        dev=uri, test=write_csv(tmp_path / "u.csv", random_letters(50, seed=9)), split="stratified"
    )
    assert given_test.rows["test"] == 50
    assert given_test.rows["dev"] == pytest.approx(40, abs=1)
    with pytest.raises(ConfigError, match=r"split"):
        data(test=uri, split="random")
