"""Paired differences of a study: what stands against what, intervals, and the words for them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from trainer.study.comparison import Differences, bootstrap, compare, compare_all, differences, sentences
from trainer.study.config import Statistics
from trainer.study.table import chosen_on_dev, floors, means, numbers_of_rows

QUICK = Statistics(samples=2000)
Row = tuple[Any, ...]


def table(*rows: Row) -> pd.DataFrame:
    """Rows of task, group, rows, arm, pretrain_seed, mode, task_seed, dev, test."""
    names = ("task", "group", "rows", "arm", "pretrain_seed", "mode", "task_seed", "dev", "test")
    found = pd.DataFrame(rows, columns=list(names))
    return found.assign(pretrain_seed=found["pretrain_seed"].astype("Int64"))


def two_arms(*, gain: float, tasks: int = 4, pretrain: int = 2, seeds: int = 2) -> pd.DataFrame:
    rows: list[Row] = []
    for t in range(tasks):
        for s in range(seeds):
            rows.append((f"t{t}", f"t{t}", "all", "scratch", None, "scratch", s, 0.3, 0.3 + s / 100))
            for p in range(pretrain):
                for arm, more in (("masked", 0.0), ("both", gain * (t + 1))):
                    score = 0.4 + t / 10 + p / 50 + s / 100 + more
                    rows.append((f"t{t}", f"t{t}", "all", arm, p, "finetune", s, score, score))
        rows.append((f"t{t}", f"t{t}", "all", "floor", None, "kmer", 0, 0.5, 0.2))
        rows.append((f"t{t}", f"t{t}", "all", "floor", None, "onehot", 0, 0.4, 0.6))
    return table(*rows)


def test_seeds_are_paired_so_that_what_they_share_drops_out() -> None:
    found = differences(two_arms(gain=0.02), "both", "masked", "finetune")
    assert found
    assert found.tasks == ("t0", "t1", "t2", "t3")
    assert found.value_TPS.shape == (4, 2, 2)
    for t in range(4):
        assert found.value_TPS[t] == pytest.approx(0.02 * (t + 1))
    one = compare(found, ("both", "masked", "finetune", "all"), QUICK)
    assert one.mean == pytest.approx(0.05)
    assert (one.ahead, one.tied, one.tasks, one.pretrain_seeds) == (4, 0, 4, 2)
    assert 0.02 <= one.low < one.mean < one.high <= 0.08


def test_what_has_no_pretraining_seed_stands_against_all() -> None:
    found = differences(two_arms(gain=0), "both", "scratch", "finetune")
    assert found
    expected = [0.1 + t / 10 + p / 50 for t in range(4) for p in range(2) for _ in range(2)]
    assert found.value_TPS.ravel() == pytest.approx(expected)


def test_the_floor_is_the_better_one_on_dev_whatever_test_says() -> None:
    found = differences(two_arms(gain=0), "both", "floor", "finetune")
    assert found
    assert found.value_TPS[0, 0, 0] == pytest.approx(0.4 - 0.2)
    assert list(floors(two_arms(gain=0))["mode"]) == ["kmer"] * 4


@pytest.mark.parametrize(
    ("first", "second", "mode"),
    [("both", "masked", "probe"), ("both", "scratch", "probe"), ("both", "nobody", "finetune")],
)
def test_no_comparison_of_what_was_not_run(first: str, second: str, mode: str) -> None:
    assert differences(two_arms(gain=0.1), first, second, mode) is None


def test_a_task_that_one_arm_lacks_is_left_out_and_missing_seeds_leave_the_others() -> None:
    whole = two_arms(gain=0.02)
    lacks = (whole["arm"] == "both") & ((whole["task"] == "t3") | (whole["task_seed"] == 1))
    found = differences(whole[~lacks], "both", "masked", "finetune")
    assert found
    assert found.tasks == ("t0", "t1", "t2")
    assert np.isnan(found.value_TPS[:, :, 1]).all()
    one = compare(found, ("both", "masked", "finetune", "all"), QUICK)
    assert one.mean == pytest.approx(0.04)
    assert np.isfinite([one.low, one.high]).all()


def of(values: Any, groups: tuple[str, ...] | None = None) -> Differences:
    value_TPS = np.asarray(values, float)
    names = tuple(f"t{t}" for t in range(len(value_TPS)))
    return Differences(names, groups or names, value_TPS)


@pytest.mark.parametrize(
    ("values", "groups", "expected_sd"),
    [
        # Variance of a mean over drawn tasks: that of the tasks over their number.
        ([[[-1.0]], [[1.0]], [[-1.0]], [[1.0]]], None, 0.5),
        # Tasks of one group are drawn together: two groups of two.
        ([[[-1.0]], [[-1.0]], [[1.0]], [[1.0]]], ("a", "a", "b", "b"), 1 / 2**0.5),
        # One draw of pretraining seeds for all tasks: their difference does not average out over tasks.
        ([[[-1.0], [1.0]]] * 50, None, 1 / 2**0.5),
        # Each task draws its own seeds, which do.
        ([[[-1.0, 1.0]]] * 50, None, 1 / (2 * 50) ** 0.5),
        ([[[0.3]]] * 5, None, 0.0),
    ],
)
def test_the_spread_of_the_bootstrap(values: Any, groups: tuple[str, ...] | None, expected_sd: float) -> None:
    means = bootstrap(of(values, groups), samples=20_000, seed=1)
    assert means.std() == pytest.approx(expected_sd, rel=0.03, abs=1e-12)


def test_a_draw_of_missing_seeds_alone_counts_the_mean_of_the_task() -> None:
    means = bootstrap(of([[[0.2, np.nan, np.nan]]]), samples=200, seed=0)
    assert means == pytest.approx(0.2)


def test_the_same_seed_gives_the_same_interval() -> None:
    found = of([[[0.1, 0.2]], [[0.4, 0.8]], [[-0.3, 0.1]]])
    first, again, other = (bootstrap(found, samples=1100, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 1100
    assert (first == again).all() and not (first == other).all()


def test_all_pairs_in_every_mode_and_number_of_rows_that_both_have() -> None:
    whole = two_arms(gain=0.02)
    few = whole.assign(rows="100")
    probe = whole[whole["mode"] == "finetune"].assign(mode="probe", task_seed=0)
    found = compare_all(
        pd.concat([whole, few, probe.drop_duplicates(["task", "arm", "pretrain_seed"])]),
        [("both", "masked"), ("scratch", "floor"), ("both", "floor")],
        QUICK,
    )
    assert [(one.first, one.second, one.mode, one.rows) for one in found] == [
        ("both", "masked", "probe", "all"),
        ("both", "masked", "finetune", "all"),
        ("both", "masked", "finetune", "100"),
        ("scratch", "floor", "scratch", "all"),
        ("scratch", "floor", "scratch", "100"),
        ("both", "floor", "probe", "all"),
        ("both", "floor", "finetune", "all"),
        ("both", "floor", "finetune", "100"),
    ]


def test_a_comparison_in_words() -> None:
    ahead, behind = (
        compare(of([[[value]]] * 3), ("a", "b", "probe", rows), QUICK)
        for value, rows in ((0.1, "all"), (-0.1, "1000"))
    )
    unclear = compare(of([[[0.5]], [[-0.5]]]), ("a", "b", "finetune", "all"), QUICK)
    said = list(sentences([ahead, behind, unclear], interval=0.9))
    assert said[0] == (
        "a is ahead of b (probe, all training rows): +10.0 [+10.0, +10.0] (90% interval), better on 3 of 3 "
        "tasks"
    )
    assert "a is behind b (probe, 1,000 training rows): -10.0" in said[1]
    assert "a is not told from b" in said[2] and "better on 1 of 2 tasks" in said[2]


def test_means_and_what_dev_chooses() -> None:
    rows = two_arms(gain=0.02, tasks=1)
    averaged = means(rows).set_index(["arm", "mode"])
    assert averaged.loc[("both", "finetune"), "n"] == 4
    assert averaged.loc[("both", "finetune"), "test"] == pytest.approx(0.4 + 0.01 + 0.005 + 0.02)
    chosen = chosen_on_dev(rows).set_index("arm")
    assert chosen.loc["floor", "mode"] == "kmer"
    assert list(numbers_of_rows(pd.DataFrame({"rows": ["all", "2000", "100"]}))) == ["100", "2000", "all"]
