"""A pretraining run as a page: ``python -m trainer.report RUN_ID``. Writes index.html and the pictures as PNG
files."""

import argparse
import sys
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from cluster.process import host, paths
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_OK
from cluster.storage import store
from trainer.evaluation.tasks.results_table import results_tables
from trainer.report import facts, figures
from trainer.report.page import Section, render
from trainer.tracking.registry import Registry

PAGE = "index.html"


def report(registry: Registry, run_id: str, *, output: str | None = None) -> str:
    """The URI of the page written: index.html and one PNG a picture in ``output``, by default
    ``<run.dir>/report``.

    Raises: TrackError or ValueError: no such run, or no pretraining run; StoreError: the output cannot be
    written.
    """
    run = registry.run(run_id)
    if "run.dir" not in run.data.params:
        raise ValueError(f"run {run_id} at {registry.uri} is no pretraining run: it has no parameter run.dir")
    folder = output or store.join(run.data.params["run.dir"], "report")
    paths.refuse_lost(outputs={"--output" if output else "run.dir": folder})
    sections = _sections(registry, run)
    for section in sections:
        for name, _, data in section.pictures:
            store.write_bytes(store.join(folder, f"{name}.png"), data)
    page = store.join(folder, PAGE)
    model = facts.model_uri(run) or "no registered model"
    title = f"Pretraining run {run.info.run_name}"
    store.write_bytes(
        page, render(title, f"MLflow run {run_id}, {run.info.status.lower()}; {model}", sections)
    )
    return page


def _sections(registry: Registry, run: Any) -> list[Section]:
    found = facts.histories(registry, run)
    params, tags = run.data.params, {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
    scored = facts.last_value(found, "val/scored_positions")
    summary = facts.transfer_summary(registry, run)
    wrong = facts.trouble(found, run.info.status)
    losses, health = figures.loss_panels(found), figures.health_panels(found)
    pace = [
        ("letters per second", ["throughput/bp_per_s"]),
        ("milliseconds per step", ["throughput/step_ms"]),
        ("share of time waiting for data", ["throughput/data_wait_fraction"]),
    ]
    schedule = [
        ("learning rate", ["lr"]),
        ("teacher momentum", ["ema/momentum"]),
        ("gradient norm", ["grad_norm"]),
    ]
    return [
        *([Section("What went wrong", wrong)] if wrong else []),
        Section(
            "Was anything learned?",
            facts.verdict(found),
            pictures=_picture("accuracy", "Held-out masked accuracy", figures.accuracy(found, scored)),
        ),
        *_transfer_sections(summary),
        Section(
            "Losses",
            ["Faint: every step. Bold: running mean."],
            pictures=_picture("losses", "Training losses", figures.curves(found, losses, smooth=20)),
        ),
        Section(
            "Health of the embeddings",
            ["Blue: held-out windows, at every validation. Orange: the training batch."]
            if health
            else ["The run logged no readings."],
            pictures=_picture("health", "Health", figures.curves(found, health)),
        ),
        _embedding_section(registry, run),
        Section("Schedule", pictures=_picture("schedule", "Schedule", figures.curves(found, schedule))),
        Section("Throughput", pictures=_picture("throughput", "Throughput", figures.curves(found, pace))),
        _dataset_section(params),
        Section(
            "Last value of every metric",
            (),
            ("metric", "step", "value"),
            [(name, str(int(h["step"].iloc[-1])), f"{h['value'].iloc[-1]:.6g}") for name, h in found.items()],
        ),
        Section("Tags", (), ("tag", "value"), sorted(tags.items())),
        Section("Parameters", (), ("parameter", "value"), sorted(params.items()), folded=True),
    ]


def _transfer_sections(summary: pd.DataFrame) -> list[Section]:
    """One section for each kind of task."""
    title = "On labelled tasks"
    if summary.empty:
        text = "No fine-tuning results yet; run python -m trainer.finetune and make the report again."
        return [Section(title, [text])]
    text = (
        "Test scores × 100, mean ± standard deviation over seeds; chosen on dev alone. "
        "Probe and k-mer models have one solution, so their seeds agree."
    )
    tables = results_tables(summary)
    sections = []
    for table in tables:
        kind = table.kind if len(tables) > 1 else ""
        name, of_kind = ("transfer", "") if not kind else (f"transfer_{kind}", f": {kind}")
        figure = figures.transfer(summary[summary["kind"] == table.kind])
        pictures = _picture(name, f"Test scores by mode{of_kind}", figure)
        sections.append(Section(f"{title}{of_kind}", [text], table.headings, table.rows, pictures))
    return sections


def _picture(name: str, text: str, figure: Figure | None) -> list[tuple[str, str, bytes]]:
    return [] if figure is None else [(name, text, figures.png(figure))]


def _embedding_section(registry: Registry, run: Any) -> Section:
    title, model = "Embeddings of held-out windows", facts.model_uri(run)
    if model is None:
        return Section(title, ["The run registered no model, so there is nothing to embed with."])
    try:
        uri = facts.first_with_val(facts.dataset_uris(run.data.params))
        length = int(run.data.params["data.length"])
        picture = facts.embedding_picture(registry, model, dataset_uri=uri, length=length)
    except (OSError, ValueError, RuntimeError) as fault:
        return Section(title, [f"No picture, because the windows could not be embedded: {fault}"])
    drawn = figures.embedding(picture.points_N2, picture.gc_N, picture.explained)
    text = (
        "Mean over the letters, both strands, by the exported teacher; the two main directions of variance."
    )
    return Section(title, [text], pictures=_picture("embedding", "Embeddings coloured by GC content", drawn))


def _dataset_section(params: dict[str, str]) -> Section:
    try:
        rows = [row for uri in facts.dataset_uris(params) for row in facts.dataset_rows(uri)]
        return Section("Dataset", (), ("what", "value"), rows)
    except (OSError, ValueError) as fault:
        return Section("Dataset", [f"The dataset cannot be reached from here: {fault}"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.report", description=__doc__)
    parser.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a pretraining")
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--output", help="folder to write to, any URI; default <run.dir>/report")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        print(report(Registry(args.track_uri), args.run_id, output=args.output))
        return EXIT_OK

    return exit_code(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
