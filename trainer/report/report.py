"""A pretraining run as a page: index.html and its pictures as PNG files."""

import torch

from cluster.process import host, paths
from cluster.storage import store
from trainer.report import facts
from trainer.report.page import render
from trainer.report.sections import all_sections
from trainer.tracking.registry import Registry

PAGE = "index.html"


def write_report(run_id: str, *, track_uri: str | None = None, output: str | None = None) -> str:
    """The URI of the page written: index.html and one PNG a picture in ``output``, by default
    ``<run.dir>/report``.

    Raises:
        ConfigError, TrackError, ValueError: no such MLflow, no such run, or no pretraining run.
        StoreError: the output cannot be written.
    """
    torch.set_num_threads(host.threads_per_process(1))
    registry = Registry(track_uri)
    run = registry.run(run_id)
    if "run.dir" not in run.data.params:
        raise ValueError(f"run {run_id} at {registry.uri} is no pretraining run: it has no parameter run.dir")
    folder = output or store.join(run.data.params["run.dir"], "report")
    paths.refuse_lost(outputs={"--output" if output else "run.dir": folder})
    sections = all_sections(registry, run)
    for picture in (picture for section in sections for picture in section.pictures):
        store.write_bytes(store.join(folder, f"{picture.name}.png"), picture.png)
    model = facts.model_uri(run) or "no registered model"
    subtitle = f"MLflow run {run_id}, {run.info.status.lower()}; {model}"
    page = store.join(folder, PAGE)
    store.write_bytes(page, render(f"Pretraining run {run.info.run_name}", subtitle, sections))
    return page
