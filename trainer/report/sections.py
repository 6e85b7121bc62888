"""The sections of a report, each a function from what a run logged to text, a table and pictures."""

from typing import Any

from matplotlib.figure import Figure

from trainer.core import drawing
from trainer.evaluation.embedding_plane import embedding_plane
from trainer.evaluation.tasks.results import results_picture
from trainer.evaluation.tasks.results.results_table import results_tables
from trainer.report import facts, figures
from trainer.report.figures import Histories
from trainer.report.page import Picture, Section
from trainer.tracking.registry import Registry

_SCHEDULE = [
    ("learning rate", ["lr"]),
    ("teacher momentum", ["ema/momentum"]),
    ("gradient norm", ["grad_norm"]),
]
_THROUGHPUT = [
    ("letters per second: all ranks, each", ["throughput/bp_per_s", "throughput/bp_per_s_per_rank"]),
    (
        "milliseconds per step: mean, median, 95th percentile",
        ["throughput/step_ms", "throughput/step_ms_p50", "throughput/step_ms_p95"],
    ),
    (
        "share of time: waiting for data, for the device; host",
        [
            "throughput/data_wait_fraction",
            "throughput/device_wait_fraction",
            "throughput/host_fraction",
        ],
    ),
    ("FLOPs against the measured and the nominal peak", ["throughput/mfu", "throughput/mfu_nominal"]),
    ("goodput: share of all time since the run began in applied steps", ["throughput/goodput"]),
]


def all_sections(registry: Registry, run: Any) -> list[Section]:
    """All of the page, from top to bottom."""
    found = facts.histories(registry, run)
    params = run.data.params
    tags = {tag: value for tag, value in run.data.tags.items() if not tag.startswith("mlflow.")}
    return [
        *_trouble(found, run.info.status),
        _accuracy(found),
        *_versions(registry, run),
        *_online(found),
        *_downstream(found),
        *_transfer(registry, run),
        _losses(found),
        _health(found),
        _embeddings(registry, run),
        Section("Schedule", pictures=_picture("schedule", "Schedule", figures.curves(found, _SCHEDULE))),
        _throughput(found),
        _dataset(run),
        _last_values(found),
        Section("Tags", (), ("tag", "value"), sorted(tags.items())),
        Section("Parameters", (), ("parameter", "value"), sorted(params.items()), folded=True),
    ]


def _picture(name: str, text: str, figure: Figure | None) -> list[Picture]:
    return [] if figure is None else [Picture(name, text, drawing.png(figure))]


def _trouble(found: Histories, status: str) -> list[Section]:
    """No section if nothing went wrong."""
    sentences = facts.trouble(found, status)
    return [Section("What went wrong", sentences)] if sentences else []


def _accuracy(found: Histories) -> Section:
    figure = figures.accuracy(found, facts.last_value(found, "val/scored_positions"))
    pictures = _picture("accuracy", "Held-out masked accuracy", figure)
    return Section("Was anything learned?", facts.verdict(found), pictures=pictures)


def _versions(registry: Registry, run: Any) -> list[Section]:
    """No section if the run registered nothing."""
    rows = facts.version_rows(registry.versions_of(run.info.run_id))
    headings = ("model", "version", "step", "held-out accuracy", "aliases", "candidate")
    return [Section("Versions", (), headings, rows)] if rows else []


def _online(found: Histories) -> list[Section]:
    """The teacher on labelled tasks, by step; no section if it was not read."""
    text = (
        "The teacher's frozen embeddings while it trained, on up to val.tasks_rows rows of each task: a "
        "linear probe and the nearest neighbours, fitted to train and scored on dev. The floor is the better "
        "of k-mers and letters by position on the same rows. Step 0 is the network before it has learned "
        "anything. Compare within a picture alone: tables of test scores are made of other rows."
    )
    pictures = _picture("online", "Scores of the teacher on dev by step", figures.online(found))
    return [Section("The teacher on labelled tasks, on dev", [text], pictures=pictures)] if pictures else []


def _downstream(found: Histories) -> list[Section]:
    """The scores of the run's versions on labelled tasks, by step; no section if there are none."""
    figure = figures.curves(found, figures.downstream_panels(found))
    text = "Each point is a version, scored on test; the floors, which need no network, are kmer and onehot."
    pictures = _picture("downstream", "Scores of the versions by step", figure)
    return [Section("The versions on labelled tasks, on test", [text], pictures=pictures)] if pictures else []


def _transfer(registry: Registry, run: Any) -> list[Section]:
    """One section for each kind of task."""
    title, summary = "On labelled tasks", facts.transfer_summary(registry, run)
    if summary.empty:
        text = "No fine-tuning results yet; run python -m trainer.finetune and make the report again."
        return [Section(title, [text])]
    text = (
        "Test scores × 100, mean ± standard deviation over seeds; chosen on dev alone. "
        "The floor is the better of k-mers and letters by position on dev."
    )
    tables = results_tables(summary)
    sections = []
    for table in tables:
        name, kind = ("transfer", "") if len(tables) == 1 else (f"transfer_{table.kind}", f": {table.kind}")
        rows = summary[summary["kind"] == table.kind]
        curve = results_picture.by_training_rows(rows)
        pictures = [
            *_picture(name, f"Test scores by mode{kind}", results_picture.scores(rows)),
            *_picture(f"{name}_by_rows", f"Test scores by training rows{kind}", curve),
        ]
        sections.append(Section(f"{title}{kind}", [text], table.headings, table.rows, pictures))
    return sections


def _losses(found: Histories) -> Section:
    figure = figures.curves(found, figures.loss_panels(found), smooth=20)
    pictures = _picture("losses", "Training losses", figure)
    return Section("Losses", ["Faint: every step. Bold: running mean."], pictures=pictures)


def _health(found: Histories) -> Section:
    panels = figures.health_panels(found)
    text = (
        "Blue: held-out windows, at every validation. Orange: the training batch."
        if panels
        else "The run logged no readings."
    )
    pictures = _picture("health", "Health", figures.curves(found, panels))
    return Section("Health of the embeddings", [text], pictures=pictures)


def _throughput(found: Histories) -> Section:
    pictures = _picture("throughput", "Throughput", figures.curves(found, _THROUGHPUT))
    return Section("Throughput", facts.throughput(found), pictures=pictures)


def _embeddings(registry: Registry, run: Any) -> Section:
    title, model = "Embeddings of held-out windows", facts.model_uri(run)
    if model is None:
        return Section(title, ["The run registered no model, so there is nothing to embed with."])
    try:
        dataset = facts.first_with_val(facts.datasets_of(run))
        length = int(run.data.params["data.length"])
        plane = embedding_plane(
            registry, model, dataset_uri=dataset.uri, digest=dataset.digest, length=length
        )
    except (OSError, ValueError, RuntimeError) as fault:
        return Section(title, [f"No picture, because the windows could not be embedded: {fault}"])
    text = (
        "Mean over the letters, both strands, by the exported teacher; the two main directions of variance."
    )
    figure = figures.embedding(plane.points_N2, plane.gc_N, plane.explained)
    return Section(title, [text], pictures=_picture("embedding", "Embeddings coloured by GC content", figure))


def _dataset(run: Any) -> Section:
    try:
        rows = [row for dataset in facts.datasets_of(run) for row in facts.dataset_rows(dataset)]
        return Section("Dataset", (), ("what", "value"), rows)
    except (OSError, ValueError) as fault:
        return Section("Dataset", [f"The dataset cannot be reached from here: {fault}"])


def _last_values(found: Histories) -> Section:
    rows = [
        (name, str(int(points["step"].iloc[-1])), f"{points['value'].iloc[-1]:.6g}")
        for name, points in found.items()
    ]
    return Section("Last value of every metric", (), ("metric", "step", "value"), rows)
