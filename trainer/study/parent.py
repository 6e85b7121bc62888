"""The MLflow run of a study: the parent of its pretrainings, with its table, its report and its pictures."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import configs
from cluster.storage import store
from trainer.study.comparison import Comparison
from trainer.study.config import StudyConfig
from trainer.tracking import markdown
from trainer.tracking.known_run import KnownRun
from trainer.tracking.mlflow_run import Run, RunSpec
from trainer.tracking.provenance import NOTE, source_tags
from trainer.tracking.registry import Registry
from trainer.tracking.shared_run import SharedRuns

_KEY = "study.key"
_FOLDER = "study"  # of the run's artifacts
_LONGEST = 8000  # that MLflow takes as a description
_ABOUT = "Studies: each run is the parent of its pretrainings, and has the report that compares them."


def open_parent(config: StudyConfig) -> str:
    """The id of the study's run, RUNNING; it is made if there is none. TrackError: MLflow refuses."""
    shared = SharedRuns(config.track.uri)  # which makes the tables of a new database
    registry = Registry(config.track.uri)
    registry.usable(config.experiment)
    key = hashlib.sha256(f"{config.name}\n{store.absolute(config.output)}".encode()).hexdigest()[:16]
    found = registry.tagged(config.experiment, {_KEY: key})
    if found:
        run_id = str(found[0].info.run_id)
        shared.finish(run_id, "RUNNING")
        return run_id
    tags = {_KEY: key, "study": config.name} | source_tags("trainer/study")
    params = {name: value for name, value in configs.flatten(configs.dump(config)).items() if len(name) < 200}
    spec = RunSpec(
        config.track.uri, config.experiment, f"study {config.name}", tags=tags, params=params, about=_ABOUT
    )
    return Run(spec).id


def close_parent(uri: str, run_id: str, *, status: str) -> None:
    SharedRuns(uri).finish(run_id, status)


def show(
    uri: str,
    run_id: str,
    *,
    files: Mapping[str, bytes],
    comparisons: Sequence[Comparison],
    text: Sequence[str],
) -> None:
    """The report's files become artifacts, the differences metrics, ``text`` with their table the
    description."""
    run = KnownRun(uri, run_id)
    run.record_changed(_metrics(comparisons), step=0)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        run.attach(Path(folder), _FOLDER)
    note = "\n\n".join(
        [*text, _table(comparisons), f"The report is `{_FOLDER}/index.html` of the artifacts."]
    )
    run.tag({NOTE: note if len(note) <= _LONGEST else note[: _LONGEST - 200].rpartition("\n")[0]})


def _metrics(comparisons: Sequence[Comparison]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in comparisons:
        name = f"difference/{one.first}_less_{one.second}/{one.mode}_{one.rows}"
        found |= {f"{name}/mean": one.mean, f"{name}/low": one.low, f"{name}/high": one.high}
        found |= {f"{name}/ahead": float(one.ahead), f"{name}/tasks": float(one.tasks)}
    return found


def _table(comparisons: Sequence[Comparison]) -> str:
    rows = [
        (
            one.first,
            one.second,
            one.mode,
            one.rows,
            f"{100 * one.mean:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            f"{one.ahead} of {one.tasks}",
        )
        for one in comparisons
    ]
    headings = ("arm", "less", "mode", "training rows", "difference × 100", "interval", "better on")
    return markdown.table(headings, rows)
