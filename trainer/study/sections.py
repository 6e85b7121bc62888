"""The sections of a study's report, from its rows and comparisons."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

import configs
from trainer.core import drawing
from trainer.evaluation.tasks.config import ENCODER_MODES, FLOORS, SEEDLESS
from trainer.report.page import Picture, Section
from trainer.study import figures
from trainer.study.comparison import Comparison, sentences
from trainer.study.config import FLOOR, SCRATCH
from trainer.study.findings import Findings
from trainer.study.table import KEYS, chosen_on_dev, floors, means, numbers_of_rows

_READING = (
    "Test scores × 100 of each task's main metric, mean ± sample standard deviation over pretraining "
    "seeds and task seeds. Everything that is chosen is chosen on dev; test is scored once."
)
_PAIRED = (
    "Each difference is taken between results with the same task, pretraining seed and task seed, and "
    "averaged over the tasks. The interval is a bootstrap over groups of tasks and both kinds of "
    "seeds."
)


def all_sections(found: Findings) -> list[Section]:
    """All of the page, from top to bottom."""
    if found.table.empty:
        return [*_missing(found), _cost(found), _config(found)]
    return [
        _answer(found),
        *_missing(found),
        *_scores(found),
        _differences(found),
        *_curves(found),
        _best(found),
        *_auroc(found),
        _cost(found),
        _config(found),
    ]


def headlines(found: Findings) -> list[str]:
    """The comparisons in sentences, those by fine-tuning first."""
    ranked = sorted(found.comparisons, key=lambda one: one.mode == "probe")
    return list(sentences(ranked, interval=found.plan.config.statistics.interval))


def _answer(found: Findings) -> Section:
    seeds = found.table[~found.table["mode"].isin(SEEDLESS)]["task_seed"]
    once = ["pretraining seed"] if len(found.plan.config.pretrain.seeds) == 1 else []
    once += ["seed of fine-tuning"] if seeds.nunique() == 1 else []
    chance = [
        f"There is one {each}: the intervals do not hold what another one would change." for each in once
    ]
    return Section("What the study shows", [*headlines(found), *chance])


def _missing(found: Findings) -> list[Section]:
    """No section if all is there."""
    if not found.missing:
        return []
    text = "The same command computes what is missing; means and intervals are of what is there."
    return [Section("What is missing", [*found.missing, text])]


def _scores(found: Findings) -> list[Section]:
    """A table for each number of training rows and mode."""
    sections = []
    for rows in reversed(numbers_of_rows(found.table)):
        part = found.table[found.table["rows"] == rows]
        for mode in ENCODER_MODES:
            arms = list(dict.fromkeys(part.loc[part["mode"] == mode, "arm"]))
            if not arms:
                continue
            if mode != "probe":
                arms += dict.fromkeys(part.loc[part["mode"] == SCRATCH, "arm"])
            title = f"Test scores: {mode}, {figures.rows_in_words(rows)}"
            floors = [floor for floor in FLOORS if (found.table["mode"] == floor).any()]
            headings = ("task", "metric", *floors, FLOOR, *arms)
            sections.append(Section(title, [_READING], headings, _table(part, mode, arms, shown=floors)))
    return sections


def _table(part: pd.DataFrame, mode: str, arms: Sequence[str], *, shown: Sequence[str]) -> list[list[str]]:
    """A row for each task: its floors, then ``arms`` in ``mode``; at last the means of the columns."""
    cells = {(row["task"], row["arm"], row["mode"]): row for row in means(part).to_dict("records")}
    cells |= {(row["task"], FLOOR, ""): row for row in floors(part).to_dict("records")}
    scratch = set(part.loc[part["mode"] == SCRATCH, "arm"])
    columns = [*((FLOOR, floor) for floor in shown), (FLOOR, "")]
    columns += [(arm, SCRATCH if arm in scratch else mode) for arm in arms]
    metrics = dict(zip(part["task"], part["metric"], strict=True))
    found = {task: [cells.get((task, *column)) for column in columns] for task in metrics}
    table = pd.DataFrame([[cell["test"] if cell else None for cell in line] for line in found.values()])
    mean = ["–" if table[at].isna().any() else f"{100 * table[at].mean():.1f}" for at in table.columns]
    rows = [[str(task), metrics[task], *map(_cell, line)] for task, line in found.items()]
    return [*rows, ["mean of all tasks", "", *mean]]


def _cell(cell: Mapping[Hashable, Any] | None) -> str:
    """A score × 100 with its spread, or, of the better floor, with its mode."""
    if cell is None:
        return "–"
    if "sd" not in cell:
        return f"{100 * cell['test']:.1f} ({cell['mode']})"
    return f"{100 * cell['test']:.1f}" + ("" if pd.isna(cell["sd"]) else f" ± {100 * cell['sd']:.1f}")


def _differences(found: Findings) -> Section:
    statistics = found.plan.config.statistics
    headings = (
        "arm",
        "less",
        "mode",
        "training rows",
        "difference × 100",
        f"{statistics.interval:.0%} interval",
    )
    rows = [
        (
            one.first,
            one.second,
            one.mode,
            one.rows,
            f"{100 * one.mean:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            f"{one.ahead} of {one.tasks}" + (f", {one.tied} tied" if one.tied else ""),
            f"{one.groups}",
            f"{one.pretrain_seeds}",
        )
        for one in found.comparisons
    ]
    pictures = [
        *_picture(
            "differences", "Mean differences", figures.forest(found.comparisons, interval=statistics.interval)
        ),
        *_picture("by_task", "Differences by task", figures.by_task(_main(found.comparisons))),
    ]
    more = ("better on", "groups", "pretraining seeds")
    return Section("Paired differences", [_PAIRED], (*headings, *more), rows, pictures)


def _main(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Of each pair one comparison: by fine-tuning if it was run, with the most rows."""
    found: dict[tuple[str, str], Comparison] = {}
    for one in sorted(comparisons, key=lambda one: one.mode == "probe"):
        found.setdefault((one.first, one.second), one)
    return list(found.values())


def _curves(found: Findings) -> list[Section]:
    """Scores by the number of training rows; no section where there is one number."""
    sections = []
    for mode in ENCODER_MODES:
        drawn = figures.curves(found.table, mode)
        if drawn is not None:
            text = [f"Mode {mode}; the broken line is the better floor on dev."]
            if len(drawn.full) < len(drawn.tasks):
                share = f"{len(drawn.full)} of {len(drawn.tasks)}"
                text.append(f"The mean is over the {share} tasks that have all results.")
            if len(drawn.tasks) > figures.MOST_TASKS:
                text.append(f"The first {figures.MOST_TASKS} of {len(drawn.tasks)} tasks are drawn.")
            title = f"Test scores by training rows: {mode}"
            pictures = _picture(f"by_rows_{mode}", title, figures.by_rows(drawn))
            sections.append(Section(f"Few labels: {mode}", text, pictures=pictures))
    return sections


def _best(found: Findings) -> Section:
    """What dev chooses: of each task and arm the better mode."""
    rows = [
        (
            row["task"],
            row["rows"],
            row["arm"],
            row["mode"],
            f"{100 * row['dev']:.1f}",
            f"{100 * row['test']:.1f}",
        )
        for row in chosen_on_dev(found.table).to_dict("records")
    ]
    headings = ("task", "training rows", "arm", "mode that is best on dev", "dev × 100", "test × 100")
    return Section(
        "What dev chooses", ["What you would have used, without a look at test."], headings, rows, folded=True
    )


def _auroc(found: Findings) -> list[Section]:
    """No section where no task has an AUROC."""
    if "test_auroc" not in found.table:
        return []
    part = found.table.dropna(subset=["test_auroc"])
    averaged = part.groupby(KEYS, sort=False)["test_auroc"].mean().reset_index()
    rows = [
        (*(str(row[key]) for key in KEYS), f"{100 * row['test_auroc']:.1f}")
        for row in averaged.to_dict("records")
    ]
    return [
        Section("AUROC", (), ("task", "training rows", "arm", "mode", "test AUROC × 100"), rows, folded=True)
    ]


def _cost(found: Findings) -> Section:
    asked = found.plan.config.pretrain.flops
    rows = []
    for one in found.plan.pretrainings:
        cost, seconds = one.cost, found.seconds.get(str(one))
        speed = "–" if not seconds else f"{cost.flops / seconds / 1e9:,.1f}"
        rows.append(
            (
                str(one),
                f"{cost.parameters:,}",
                f"{cost.steps:,}",
                f"{cost.flops:.3e}",
                f"{100 * cost.flops / asked:.1f} %",
                "–" if not seconds else f"{seconds:,.0f}",
                speed,
            )
        )
    headings = ("pretraining", "parameters", "steps", "FLOPs", f"of {asked:.3g}", "seconds", "GFLOP/s")
    units = found.table["seconds"].sum() if len(found.table) else 0.0
    text = [
        "FLOPs are those of the matrix products that the method needs, the teacher's forward counted; "
        "seconds are those of its steps, without validation and start.",
        f"Units of tasks took {units:,.0f} s of computing in all. The report was made on {found.machine}.",
    ]
    return Section("Cost", text, headings, rows)


def _config(found: Findings) -> Section:
    text = yaml.safe_dump(configs.dump(found.plan.config), sort_keys=False, allow_unicode=True)
    lines = [line for line in text.splitlines() if line.strip()]
    return Section(
        "Config",
        (),
        ("the study as it was read",),
        [[line] for line in lines],
        folded=True,
    )


def _picture(name: str, text: str, figure: Figure | None) -> list[Picture]:
    return [] if figure is None else [Picture(name, text, drawing.png(figure))]
