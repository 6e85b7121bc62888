"""A pretraining run as a page: index.html and its pictures as PNG files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from cluster.process import host, paths
from cluster.storage import store
from trainer.core.console import say
from trainer.report import facts
from trainer.report.page import render
from trainer.report.sections import all_sections
from trainer.tracking.known_run import KnownRun
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry

PAGE = "index.html"
_ARTIFACTS = "report"  # the folder of the run's artifacts


def write_report(run_id: str, *, track_uri: str | None = None, output: str | None = None) -> str:
    """The URI of the page written: index.html and one PNG a picture in ``output``, by default
    ``<run.dir>/report``; the same files are artifacts of the run.

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
    files = {f"{picture.name}.png": picture.png for section in sections for picture in section.pictures}
    model = facts.model_uri(run) or "no registered model"
    subtitle = f"MLflow run {run_id}, {run.info.status.lower()}; {model}"
    files[PAGE] = render(f"Pretraining run {run.info.run_name}", subtitle, sections)
    for name, content in files.items():
        store.write_bytes(store.join(folder, name), content)
    _attach(registry, run_id, files)
    return store.join(folder, PAGE)


def _attach(registry: Registry, run_id: str, files: Mapping[str, bytes]) -> None:
    """The files become artifacts of the run; where MLflow may only be read, a warning."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            KnownRun(registry.uri, run_id).attach(Path(folder), _ARTIFACTS)
        except TrackError as fault:
            say(f"warning: the report is not among the artifacts of the run: {fault}")
