"""The report of a study: the rows that count, tables, sentences and pictures, from results alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import configs
from trainer.evaluation.tasks.results.results import Result, Unit
from trainer.report.page import Section, render
from trainer.study import figures, parent
from trainer.study.comparison import compare_all
from trainer.study.config import StudyConfig
from trainer.study.findings import Findings, wanted
from trainer.study.plan import make_plan
from trainer.study.sections import all_sections, headlines
from trainer.study.table import ALL, Asked, Version, study_table

MODES = ("kmer", "onehot", "probe", "finetune", "scratch")
TASKS = ("a", "b", "c")
VERSIONS = {
    "1": Version("masked", 0, "scratch", 1e9, 10.0),
    "2": Version("both", 0, "scratch", 1e9, 12.0),
}
ASKED = [Asked(task, rows, task, f"{task}{rows}", MODES, (0, 1)) for task in TASKS for rows in ("100", ALL)]


def result(version: str, task: str, rows: str, mode: str, seed: int, *, seconds: float = 1.0) -> Result:
    score = 0.1 + 0.1 * MODES.index(mode) + 0.01 * int(version) + 0.05 * "abcd".index(task) + 0.002 * seed
    scores = {"mcc": score, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.75}
    unit = Unit("m", version, task, mode, seed)
    return Result(unit, scores, scores, settings=f"{task}{rows}", rows={"train": 100}, seconds=seconds)


def results() -> list[Result]:
    return [
        result(version, task, rows, mode, seed, seconds=0.0 if version == "2" and mode in MODES[:2] else 1.0)
        for version in VERSIONS
        for task in TASKS
        for rows in ("100", ALL)
        for mode in MODES
        for seed in ((0,) if mode in MODES[:3] else (0, 1))
    ]


def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[Result], **changes: Any) -> Findings:
    monkeypatch.chdir(tmp_path)
    preset = {
        "run": {"dir": "x"},
        "data": {"uri": "none", "length": 64},
        "model": {"name": "dilated-conv", "hidden_size": 8, "dilations": [1]},
        "loss": {"distill": {"weight": 0}},
        "train": {"steps": 5},
    }
    Path("preset.yaml").write_text(yaml.safe_dump(preset))
    for task in TASKS:
        Path(f"{task}.yaml").write_text(
            f"name: {task}\ntrain: x.csv\nlabels: [x, y]\nmax_train_rows: [100, null]\n"
        )
    study = {
        "name": "tiny",
        "output": "out",
        "pretrain": {"config": "preset.yaml", "flops": 1e9},
        "arms": {"scratch": {"scratch": True}, "masked": {}, "both": {"train.lr": 0.01}},
        "tasks": [{"configs": ["[abc].yaml"]}],
        "statistics": {"samples": 200},
    }
    plan = make_plan(configs.validate(StudyConfig, study, source="study"))
    table = study_table(given, asked=ASKED, versions=VERSIONS)
    comparisons = compare_all(table, plan.config.pairs(), plan.config.statistics) if len(table) else []
    return replace(Findings(plan, table, comparisons, {"both-s0": 12.0}, [], "a machine"), **changes)


def section(sections: list[Section], title: str) -> Section:
    (one,) = [each for each in sections if each.title == title]
    return one


def test_floors_and_scratch_are_there_once_and_all_others_by_arm_and_seed() -> None:
    table = study_table(results(), asked=ASKED, versions=VERSIONS)
    counts = table.groupby(["arm", "mode"]).size().to_dict()
    assert counts == {
        ("floor", "kmer"): 6,
        ("floor", "onehot"): 6,
        ("scratch", "scratch"): 12,
        **{
            (arm, mode): count
            for arm in ("masked", "both")
            for mode, count in (("probe", 6), ("finetune", 12))
        },
    }
    first = table.iloc[0]
    assert (first["task"], first["rows"], first["arm"], first["mode"]) == ("a", "100", "floor", "kmer")
    assert table.loc[table["arm"] == "floor", "version"].eq("1").all(), "and not the copies"
    assert table["pretrain_seed"].isna().sum() == 24
    assert table["test_auroc"].eq(0.75).all()


@pytest.mark.parametrize(
    "other",
    [
        replace(result("1", "a", "100", "finetune", 0), settings="other"),
        result("3", "a", "100", "finetune", 0),
        result("1", "d", "100", "finetune", 0),
        result("1", "a", "100", "finetune", 5),
    ],
)
def test_what_the_study_did_not_ask_for_is_not_its(other: Result) -> None:
    assert study_table([other], asked=ASKED, versions=VERSIONS).empty


def test_a_task_that_is_asked_for_twice_with_the_same_rows_counts_for_both() -> None:
    """100 training rows of a task that has 80 are all of them."""
    both = [
        Asked("a", "100", "a", "aall", ("probe",), (0,)),
        Asked("a", ALL, "a", "aall", ("finetune",), (0,)),
    ]
    given = [result("1", "a", ALL, mode, 0) for mode in ("probe", "finetune")]
    table = study_table(given, asked=both, versions=VERSIONS)
    assert set(zip(table["rows"], table["mode"], strict=True)) == {("100", "probe"), (ALL, "finetune")}


def test_the_page_has_tables_sentences_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(tmp_path, monkeypatch, results())
    sections = all_sections(findings)
    titles = [one.title for one in sections]
    assert titles[0] == "What the study shows" and "What is missing" not in titles
    assert "one pretraining seed" in sections[0].sentences[-1]
    table = section(sections, "Test scores: finetune, all rows")
    assert table.headings == ("task", "metric", "kmer", "onehot", "floor", "masked", "both", "scratch")
    assert table.rows[0] == [
        "a",
        "mcc",
        "11.0",
        "21.0",
        "21.0 (onehot)",
        "41.1 ± 0.1",
        "42.1 ± 0.1",
        "52.1 ± 0.1",
    ]
    assert table.rows[-1][:3] == ["mean of all tasks", "", "16.0"]
    pairs = section(sections, "Paired differences")
    rows = {(row[0], row[1], row[2], row[3]): row for row in pairs.rows}
    assert rows["both", "masked", "finetune", "100"][4:7] == ("+1.0", "+1.0 to +1.0", "3 of 3")
    assert [picture.name for picture in pairs.pictures] == ["differences", "by_task"]
    assert section(sections, "Few labels: finetune").pictures[0].png.startswith(b"\x89PNG")
    cost = section(sections, "Cost")
    assert [row[0] for row in cost.rows] == ["masked-s0", "both-s0"]
    assert cost.rows[0][5] == "–" and cost.rows[1][5] == "12"
    page = render("t", "s", sections).decode()
    assert "a machine" in page and "http" not in page.partition("<body>")[2]


def test_headlines_and_the_parent_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(tmp_path, monkeypatch, results())
    assert headlines(findings)[0].startswith("masked is behind scratch (finetune, all training rows): -11.0")
    metrics = parent._metrics(findings.comparisons)
    assert metrics["difference/both_less_masked/probe_100/mean"] == pytest.approx(0.01)
    assert metrics["difference/both_less_masked/probe_100/ahead"] == 3
    assert "| both&emsp; | masked&emsp;" in parent._table(findings.comparisons)


def test_a_study_without_results_has_a_page_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = found(tmp_path, monkeypatch, [], missing=["Not pretrained yet: both-s0."])
    sections = all_sections(findings)
    assert [one.title for one in sections] == ["What is missing", "Cost", "Config"]
    assert headlines(findings) == []
    assert render("t", "s", sections)


def test_half_a_study_is_drawn_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [one for one in results() if one.unit.task == "a" or one.unit.mode == "probe"]
    few = [one for one in few if one.unit.version == "1" or one.unit.mode != "probe"]
    findings = found(tmp_path, monkeypatch, few)
    sections = all_sections(findings)
    table = section(sections, "Test scores: probe, all rows")
    assert table.rows[1] == ["b", "mcc", "–", "–", "–", "36.0"]
    assert table.rows[-1][2] == "–"
    assert render("t", "s", sections)


def test_curves_are_of_the_numbers_of_rows_that_arms_have_and_not_of_those_of_floors() -> None:
    """As in a study that probes with many rows and fine-tunes with few, and so has floors at both."""
    kept = {"probe": ALL, "finetune": "100", "scratch": "100"}
    apart = [one for one in results() if one.settings[1:] == kept.get(one.unit.mode, one.settings[1:])]
    table = study_table(apart, asked=ASKED, versions=VERSIONS)
    assert set(table[table["arm"] == "floor"]["rows"]) == {"100", ALL}
    assert figures.curves(table, "probe") is None and figures.curves(table, "finetune") is None


def test_the_mean_of_curves_is_over_tasks_that_have_all_results() -> None:
    """One arm lacks task c, of which the floors are there."""
    given = [
        one for one in results() if (one.unit.version, one.unit.task, one.unit.mode) != ("2", "c", "probe")
    ]
    drawn = figures.curves(study_table(given, asked=ASKED, versions=VERSIONS), "probe")
    assert drawn is not None
    assert (drawn.numbers, drawn.tasks, drawn.full) == (["100", ALL], ["a", "b", "c"], ["a", "b"])
    average = drawn.means().set_index(["arm", "rows"])["test"].to_dict()
    whole = 0.1 + 0.1 * MODES.index("probe") + 0.05 * 0.5
    assert average == pytest.approx(
        {
            **{("masked", rows): whole + 0.01 for rows in ("100", ALL)},
            **{("both", rows): whole + 0.02 for rows in ("100", ALL)},
            **{("floor", rows): 0.1 + 0.1 + 0.01 + 0.025 for rows in ("100", ALL)},
        }
    )
    assert figures.by_rows(drawn).axes[0].get_title() == "mean of 2 tasks"


def test_more_tasks_than_there_are_panels_are_all_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_TASKS", 2)
    drawn = figures.curves(study_table(results(), asked=ASKED, versions=VERSIONS), "finetune")
    assert drawn is not None and drawn.full == ["a", "b", "c"]
    titles = [axis.get_title() for axis in figures.by_rows(drawn).axes if axis.axison]
    assert titles == ["mean of 3 tasks", "a", "b"]


def test_one_seed_of_either_kind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [one for one in results() if one.unit.seed == 0]
    said = section(all_sections(found(tmp_path, monkeypatch, first)), "What the study shows").sentences[-2:]
    assert [sentence.partition(":")[0] for sentence in said] == [
        "There is one pretraining seed",
        "There is one seed of fine-tuning",
    ]


def test_what_a_whole_study_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(tmp_path, monkeypatch, results())
    assert len(wanted(findings.plan, ASKED)) == len(findings.table) == 60


def test_no_picture_of_nothing() -> None:
    assert figures.forest([], interval=0.9) is None
    assert figures.by_task([]) is None
    none = pd.DataFrame(columns=["task", "rows", "arm", "mode", "dev", "test"])
    assert figures.curves(none, "probe") is None
