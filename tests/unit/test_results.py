"""trainer.evaluation.tasks.results and results_table: means and spreads, with the floor beside."""

import numpy as np
import pytest

from trainer.evaluation.tasks.results import Result, Unit, summarise
from trainer.evaluation.tasks.results_table import as_text


def result(mode: str, seed: int, mcc: float, *, settings: str = "s") -> Result:
    test = {"mcc": mcc, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.5}
    unit = Unit("m", "1", "t", mode, seed)
    return Result(unit, {**test, "mcc": 0.2}, test, settings=settings, rows={"train": 10})


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
