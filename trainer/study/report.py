"""The report of a study: one page, its pictures, its rows and comparisons as CSV; the same in MLflow."""

from dataclasses import asdict

import pandas as pd

from cluster.storage import store
from configs import redact
from trainer.report.page import render
from trainer.study import parent
from trainer.study.findings import Findings, find
from trainer.study.plan import StudyPlan
from trainer.study.sections import all_sections, headlines
from trainer.study.work import read_settings
from trainer.tracking.registry import Registry

PAGE, ROWS, COMPARISONS = "index.html", "results.csv", "comparisons.csv"
FOLDER = "report"


def write_report(plan: StudyPlan, parent_run: str) -> Findings:
    """What was found, once it is written to the study's folder and its MLflow run.

    Raises:
        StoreError, TrackError: it cannot be written, or MLflow does not answer.
    """
    config = plan.config
    found = find(plan, Registry(config.track.uri), read_settings(plan))
    sections = all_sections(found)
    subtitle = redact(f"{config.output}; MLflow run {parent_run} in experiment {config.experiment}")
    files = {f"{picture.name}.png": picture.png for section in sections for picture in section.pictures}
    files |= {
        PAGE: render(f"Study {config.name}", subtitle, sections),
        ROWS: found.table.to_csv(index=False).encode(),
        COMPARISONS: pd.DataFrame([asdict(one) for one in found.comparisons]).to_csv(index=False).encode(),
    }
    for name, content in files.items():
        store.write_bytes(store.join(config.output, FOLDER, name), content)
    text = [
        f"**Study {config.name}**",
        "\n".join(f"- {line}" for line in [*headlines(found), *found.missing]),
    ]
    parent.show(config.track.uri, parent_run, files=files, comparisons=found.comparisons, text=text)
    return found
