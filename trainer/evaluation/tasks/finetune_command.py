"""The command ``python -m trainer.finetune``: a registered model on a labelled task, ending in a table."""

import json
from dataclasses import dataclass

import configs
from cluster.process import paths
from cluster.storage import store
from configs import ConfigError
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.evaluation.tasks.results.results import summarise
from trainer.evaluation.tasks.results.results_table import as_text
from trainer.inference import output_format
from trainer.tracking.config import default_tracking_uri
from trainer.tracking.registry import Registry


@dataclass(frozen=True)
class FinetuneRequest:
    """The options of the command; each field has the name of its option, ``overrides`` are the key=value."""

    model: str
    task: str
    overrides: tuple[str, ...] = ()
    track_uri: str | None = None
    json: str | None = None


def finetune_task(request: FinetuneRequest) -> None:
    """Put every result into MLflow, print the table, and write the file of ``--json``.

    Raises: ConfigError, StoreError, ValueError, TrackError, RuntimeError, MemoryError, each one sentence.
    """
    task = configs.load(TaskConfig, request.task, request.overrides)
    _check(request, task)
    results = finetune(Registry(request.track_uri), request.model, task)
    print(as_text(summarise(results)), flush=True)
    if request.json:
        rows = [result.flat() for result in results]
        store.write_bytes(request.json, json.dumps(rows, indent=1).encode() + b"\n")


def _check(request: FinetuneRequest, task: TaskConfig) -> None:
    """ConfigError, before any work, if a file cannot be read or written where the options say."""
    tracking = request.track_uri or default_tracking_uri()
    paths.refuse_lost(
        outputs={"--json": request.json, "--track-uri": tracking},
        inputs=[(role, uri) for role in ROLES if (uri := getattr(task, role))],
    )
    refuse_json(request.json)


def refuse_json(uri: str | None) -> None:
    """ConfigError if the option --json names no file that JSON can be written to."""
    if uri is None:
        return
    output_format.refuse_folder(uri, "rows.json")
    if uri.lower().endswith(tuple(output_format.FORMATS)):
        raise ConfigError(
            f"--json {configs.redact(uri)} says another format; JSON is written, to a name that ends in .json"
        )
