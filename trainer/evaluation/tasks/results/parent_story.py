"""What the parent run of a version's fine-tuning shows: a description with the table, best figures, files.

All of it is made anew from the results that there are, so that it may be called after each of them.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from trainer.core import drawing
from trainer.evaluation.tasks.config import ENCODER_MODES
from trainer.evaluation.tasks.kinds.registry import KINDS
from trainer.evaluation.tasks.results.results import Result, summarise
from trainer.evaluation.tasks.results.results_picture import by_training_rows, scores
from trainer.evaluation.tasks.results.results_table import ResultsTable, results_tables
from trainer.tracking import markdown
from trainer.tracking.known_run import KnownRun
from trainer.tracking.provenance import NOTE
from trainer.tracking.registry import Registry

FOLDER = "summary"  # of the run's artifacts
_NO_METRIC_NAME = re.compile(r"[^\w\-. ]", re.ASCII)  # what MLflow takes in no part of a name
_LONGEST = 8000  # that MLflow takes; it would cut the rest off
READING = (
    "Means ± sample standard deviation over the seeds. Everything that is chosen is chosen on dev; test is "
    "scored once. The floor is a model of the letters alone, without a network."
)


def update_parent(
    registry: Registry, parent_run_id: str, results: Sequence[Result], lines: Sequence[str]
) -> None:
    """Describe the parent run by all ``results`` of its version up to now.

    ``lines``: sentences that stand under the table, such as who is champion. TrackError: MLflow refuses.
    """
    if not results:
        return
    summary = summarise(results)
    run = KnownRun(registry.uri, parent_run_id)
    run.record_changed(best_figures(summary), step=0)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files(summary, results).items():
            (Path(folder) / name).write_bytes(content)
        run.attach(Path(folder), FOLDER)
    run.tag({NOTE: description(results, lines)})
    run.end("FINISHED")  # so that its duration is that of the work, not of its making


def description(results: Sequence[Result], lines: Sequence[str]) -> str:
    """The run's description in markdown: what was done, the table, ``lines``, how to go on."""
    unit, tables = results[0].unit, results_tables(summarise(results))
    model, tasks = f"models:/{unit.model}/{unit.version}", dict.fromkeys(r.unit.task for r in results)
    before = [
        f"**{unit.model} version {unit.version} on labelled tasks:** {', '.join(tasks)}; "
        f"{len(results)} results, each a child run.",
        *_best_modes(summarise(results)),
    ]
    after = [
        READING,
        *(["\n".join(f"- {line}" for line in lines)] if lines else []),
        "**Files:** the same table as CSV, JSON and HTML, and a picture, in the artifacts, folder "
        f"`{FOLDER}`.",
        f"**Go on:**\n```\npython -m trainer.finetune --model {model} --task configs/tasks/NAME.yaml\n"
        f"python -m cluster finetune --model {model} --tasks configs/tasks/*.yaml\n```",
    ]
    shown = [markdown.table(one.headings, one.rows) for one in tables]
    text = "\n\n".join([*before, *shown, *after])
    if len(text) <= _LONGEST:
        return text
    instead = f"The table is too long for a description; it is `{FOLDER}/summary.html` of the artifacts."
    return "\n\n".join([*before, instead, *after])


def _best_modes(summary: pd.DataFrame) -> list[str]:
    """A paragraph, where a folded description shows it."""
    lines = [f"- **{task}**: {text}" for task, text in headlines(summary).items()]
    return ["Best on dev of the modes that use the encoder:\n\n" + "\n".join(lines)] if lines else []


def headlines(summary: pd.DataFrame) -> dict[str, str]:
    """Task -> its best mode in a sentence, beside the same network from scratch and the floor."""
    lines = {}
    for task, best in _best_by_dev(summary).items():
        metric = KINDS[best["kind"]].metrics[0]
        text = [f"{best['mode']}, test {metric.heading} {best['score']:.3f}"]
        same = (summary["task"] == task) & (summary["settings"] == best["settings"])
        scratch = summary[same & (summary["mode"] == "scratch")]["score"]
        if not scratch.empty:
            ahead = best["score"] - scratch.iloc[0]
            text.append(f"the same network from scratch {scratch.iloc[0]:.3f} ({ahead:+.3f})")
        if pd.notna(best["floor"]):
            text.append(f"the floor {best['floor']:.3f} ({best['score'] - best['floor']:+.3f})")
        else:
            text.append("no floor was run")
        lines[task] = "; ".join(text)
    return lines


def _best_by_dev(summary: pd.DataFrame) -> dict[str, "pd.Series[Any]"]:
    """Task -> the row of its best mode on dev among those that use the encoder, of the most training rows."""
    found = {}
    for task, rows in summary.groupby("task", sort=False):
        ours = rows[rows["mode"].isin(ENCODER_MODES)]
        if not ours.empty:
            most = ours[ours["train_rows"] == ours["train_rows"].max()]
            found[str(task)] = most.loc[most["dev_score"].idxmax()]
    return found


def best_figures(summary: pd.DataFrame) -> dict[str, float]:
    """Metric -> value: of each task the scores of the mode that is best on dev among those that use the
    encoder, and the floor. Of a task with several numbers of training rows, those with most."""
    figures: dict[str, float] = {}
    for task, best in _best_by_dev(summary).items():
        metric, prefix = KINDS[best["kind"]].metrics[0].name, f"best/{_NO_METRIC_NAME.sub('_', task)}"
        figures |= {
            f"{prefix}/dev_{metric}": float(best["dev_score"]),
            f"{prefix}/test_{metric}": float(best["score"]),
        }
        if pd.notna(best["floor"]):
            figures |= {
                f"{prefix}/floor_{metric}": float(best["floor"]),
                f"{prefix}/above_floor": float(best["score"] - best["floor"]),
            }
    return figures


def files(summary: pd.DataFrame, results: Sequence[Result]) -> Mapping[str, bytes]:
    """Name -> bytes of the files that hold the results."""
    found = {
        "summary.csv": summary.to_csv(index=False).encode(),
        "summary.html": _page(results_tables(summary)).encode(),
        "results.json": json.dumps([result.flat() for result in results], indent=1).encode() + b"\n",
    }
    pictures = {"scores.png": scores(summary), "by_training_rows.png": by_training_rows(summary)}
    return found | {name: drawing.png(figure) for name, figure in pictures.items() if figure is not None}


def _page(tables: Sequence[ResultsTable]) -> str:
    """The tables as a page that loads nothing."""
    style = (
        "body{font:14px sans-serif;margin:1.5em}table{border-collapse:collapse;margin-bottom:1.5em}"
        "td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}"
        "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}"
    )
    parts = []
    for table in tables:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headings)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
        )
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
    return (
        f'<!doctype html><meta charset="utf-8"><title>Results</title><style>{style}</style>'
        + "".join(parts)
        + f"<p>{escape(READING)}</p>\n"
    )
