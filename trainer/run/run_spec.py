"""Which MLflow run is a training run's, and what that holds from its first moment."""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from cluster.process.host import cache_root
from cluster.storage import store
from trainer.run import run_status, story
from trainer.run.config import TrainConfig
from trainer.tracking.inputs import DatasetInput
from trainer.tracking.mlflow_run import RunSpec
from trainer.tracking.provenance import source_tags

_COMMAND = "trainer/main.py"


@dataclass(frozen=True)
class Start:
    """Where this process takes the training up, and what MLflow shows of it.

    ``step``: that it goes on after. ``waiting``: the points of the steps before that MLflow had not got yet.
    ``parameters``: of the network. ``inputs``: the datasets.
    """

    parameters: int
    tags: Mapping[str, str]
    step: int = 0
    waiting: bytes = b""
    inputs: Sequence[DatasetInput] = ()


def build(config: TrainConfig, key: str, start: Start | None) -> RunSpec:
    """The MLflow run of ``config``, found again by ``key``. ``start``: None if there is nothing to train."""
    return RunSpec(
        config.track.uri,
        config.track.experiment,
        story.run_name(config),
        artifact_uri=config.track.artifact_uri,
        key=key,
        params=params(config) | {"parameters": start.parameters} if start else {},
        tags={**start.tags, **source_tags(_COMMAND)} if start else {},
        registered_model=config.track.registered_model,
        inputs=start.inputs if start else (),
        about=story.ABOUT,
    )


def key_of(run_dir: str, *, same_run: bool) -> str:
    """The key by which the MLflow run of this run is found again; a new one unless it is the ``same_run``."""
    key = run_status.read_key(run_dir) if same_run else None
    if key is None:
        store.remove(store.join(run_dir, run_status.EXPORTS))
        if store.is_local(run_dir):  # the outbox of another run, which left nothing else here
            shutil.rmtree(store.local_path(run_dir) / run_status.TRACK, ignore_errors=True)
        key = uuid.uuid4().hex
        run_status.write_key(run_dir, key)
    return key


def outbox_folder(run_dir: str, key: str) -> Path:
    """The local folder in which points wait for MLflow."""
    if store.is_local(run_dir):
        return store.local_path(run_dir) / run_status.TRACK
    return cache_root() / "track" / key


def params(config: TrainConfig) -> dict[str, Any]:
    """The config by dotted keys. ``data.length`` is the last length, which users of the model need; lengths
    by step are a key of their own, and so are the shares of regions."""
    flat = configs.flatten(configs.dump(config))
    if len(config.data.length) > 1:
        flat |= {"data.length": config.data.last_length, "data.length_by_step": flat["data.length"]}
    if config.data.regions.beds:
        flat["data.regions.shares"] = config.data.regions.in_words
    return flat
