"""What the parent run of a fine-tuning shows: text, figures, files."""

import json

from tests.unit.test_results import result
from trainer.evaluation.tasks.results.parent_story import best_figures, description, files
from trainer.evaluation.tasks.results.results import Result, Unit, summarise
from trainer.evaluation.tasks.results.results_picture import by_training_rows

RESULTS = [
    result("kmer", 0, 0.4),
    result("probe", 0, 0.3),
    result("probe", 1, 0.5),
    result("scratch", 0, 0.9),
]


def odd(task: str) -> Result:
    scores = dict.fromkeys(("mcc", "accuracy", "f1_macro", "auroc"), 0.5)
    return Result(Unit("m", "1", task, "probe", 0), scores, scores, settings="s", rows={"train": 10})


def test_the_best_mode_on_dev_stands_first_then_the_table_and_the_sentences() -> None:
    text = description(RESULTS, ["champion of m: version 1"])
    assert text.index(
        "- **t**: probe, test MCC 0.400; the same network from scratch 0.900 (-0.500); "
        "the floor 0.400 (+0.000)"
    ) < text.index("| t&emsp; | kmer&emsp; |")
    assert "\n- champion of m: version 1" in text
    assert "4 results" in text
    assert "--model models:/m/1 " in text


def test_best_figures_have_names_that_mlflow_takes() -> None:
    assert best_figures(summarise(RESULTS)) == {
        "best/t/dev_mcc": 0.2,
        "best/t/test_mcc": 0.4,
        "best/t/floor_mcc": 0.4,
        "best/t/above_floor": 0.0,
    }
    assert set(best_figures(summarise([odd("a/b<é>")]))) == {"best/a_b___/dev_mcc", "best/a_b___/test_mcc"}
    assert best_figures(summarise([result("scratch", 0, 0.9)])) == {}


def test_several_numbers_of_training_rows_are_a_curve_of_each_mode() -> None:
    few = [
        result("kmer", 0, 0.1, settings="few", rows=100),
        result("probe", 0, 0.3, settings="few", rows=100),
    ]
    many = [
        result("kmer", 0, 0.6, rows=1000),
        result("probe", 0, 0.4, rows=1000),
        result("probe", 1, 0.6, rows=1000),
    ]
    figure = by_training_rows(summarise([*few, *many]))
    assert figure is not None
    (axis,) = figure.axes
    drawn = {line.get_label(): line[0] for line in axis.containers}
    assert {name: line.get_xydata().tolist() for name, line in drawn.items()} == {
        "kmer (floor)": [[100, 0.1], [1000, 0.6]],
        "probe": [[100, 0.3], [1000, 0.5]],
    }
    assert [text.get_text() for text in axis.get_xticklabels()] == ["100", "1,000"]
    assert set(files(summarise([*few, *many]), few)) >= {"by_training_rows.png", "scores.png"}
    assert by_training_rows(summarise(many)) is None


def test_files_hold_the_table_in_each_form_and_escape_names() -> None:
    found = files(summarise([odd("<script>")]), [odd("<script>")])
    assert set(found) == {"summary.csv", "summary.html", "results.json", "scores.png"}
    assert b"<script>" not in found["summary.html"]
    assert json.loads(found["results.json"])[0]["task"] == "<script>"
    assert found["scores.png"].startswith(b"\x89PNG")
    assert "&lt;script>" in description([odd("<script>")], [])


def test_a_table_that_mlflow_would_cut_off_is_left_to_the_artifacts() -> None:
    scores = {"mcc": 0.5, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.5}
    many = [
        Result(Unit("m", "1", f"task {n}", mode, 0), scores, scores, settings="s", rows={"train": 9})
        for n in range(50)
        for mode in ("kmer", "probe", "finetune", "scratch")
    ]
    text = description(many, ["the champion stays"])
    assert len(text) <= 8000 and "summary/summary.html" in text
    assert "- the champion stays" in text and "**Go on:**" in text
