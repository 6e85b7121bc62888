"""trainer.evaluation.tasks.results.results and results_table: means and spreads, with the floor beside."""

import numpy as np
import pytest

from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results.results import Result, Unit, summarise
from trainer.evaluation.tasks.results.results_table import as_text, results_tables


def result(
    mode: str, seed: int, mcc: float, *, settings: str = "s", dev: float = 0.2, rows: int = 10
) -> Result:
    test = {"mcc": mcc, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.5}
    unit = Unit("m", "1", "t", mode, seed)
    return Result(unit, {**test, "mcc": dev}, test, settings=settings, rows={"train": rows})


def of_kind(kind: str, mode: str, value: float) -> Result:
    scores = {metric.name: value for metric in KINDS[kind].metrics}
    return Result(Unit("m", "1", kind, mode, 0), scores, scores, kind=kind, settings=kind, rows={"train": 10})


def test_summary_has_the_floor_beside_and_counts_a_repeat_once() -> None:
    results = [
        result("probe", 0, 0.9),
        result("kmer", 0, 0.4),
        result("probe", 0, 0.1),
        result("probe", 1, 0.3),
        result("finetune", 0, 0.7, settings="other"),
    ]
    table = summarise(results).set_index(["settings", "mode"])
    assert table.loc[("s", "probe"), "mcc"] == pytest.approx(0.2)
    assert table.loc[("s", "probe"), "mcc_sd"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert table.loc[("s", "probe"), "floor"] == pytest.approx(0.4)
    assert np.isnan(table.loc[("other", "finetune"), "floor"])
    text = as_text(summarise(results))
    assert "20.0 ± 14.1" in text
    assert "not run" in text
    assert summarise([]).empty
    assert set(summarise([]).columns) <= set(summarise(results).columns)


def test_the_floor_is_the_one_that_is_better_on_dev() -> None:
    kmer = result("kmer", 0, 0.6, dev=0.3)
    for onehot, floor in (
        (result("onehot", 0, 0.5, dev=0.4), (0.5, "onehot")),  # test does not choose
        (result("onehot", 0, 0.9, dev=0.2), (0.6, "kmer")),
        (result("onehot", 0, 0.9, dev=0.3), (0.6, "kmer")),  # of equals the first
    ):
        for order in ([kmer, onehot], [onehot, kmer]):
            table = summarise([*order, result("probe", 0, 0.7)])
            assert {tuple(row) for row in table[["floor", "floor_mode"]].to_numpy()} == {floor}
            assert list(table["mode"]) == ["kmer", "onehot", "probe"]
    text = as_text(summarise([kmer, result("onehot", 0, 0.5, dev=0.4), result("probe", 0, 0.7)]))
    assert "50.0 (onehot)  +20.0" in text
    (line,) = [line for line in text.splitlines() if " kmer " in line]
    assert "60.0" in line and "+" not in line, "a floor is not above itself"


def test_results_of_before_there_was_onehot_have_the_kmer_floor() -> None:
    table = summarise([result("kmer", 0, 0.4), result("kmer", 1, 0.4), result("probe", 0, 0.7)])
    assert set(table["floor_mode"]) == {"kmer"}
    assert set(table["floor"]) == {0.4}


def test_rows_are_in_the_order_of_train_rows() -> None:
    sizes = {"z": 100, "b": 500, "a": 6478}
    results = [
        result(mode, 0, 0.5, settings=s, rows=n) for mode in ("probe", "kmer") for s, n in sizes.items()
    ]
    table = summarise(results)
    assert list(table["train_rows"]) == [100, 100, 500, 500, 6478, 6478]
    assert list(table["mode"]) == ["kmer", "probe"] * 3


def test_each_kind_has_a_table_of_its_own_with_its_floors() -> None:
    results = [
        of_kind(kind, mode, value)
        for kind in KINDS
        for mode, value in (("finetune", 0.8), ("kmer", 0.3), ("onehot", 0.4))
    ]
    tables = {table.kind: table for table in results_tables(summarise(results))}
    assert tables.keys() == KINDS.keys()
    for kind, table in tables.items():
        assert all(metric.heading in " ".join(table.headings) for metric in KINDS[kind].metrics)
        assert [row[1] for row in table.rows] == ["kmer", "onehot", "finetune"]
        assert table.rows[2][5:7] == ("40.0 (onehot)", "+40.0")
        assert "nan" not in str(table.rows)
