"""A network and a task, ready for every mode and seed; and the digest of all that shapes a result."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import configs
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.features import Features
from trainer.evaluation.tasks.kinds.kind import TaskKind
from trainer.evaluation.tasks.rows.data import TaskData
from trainer.inference.precision import Resolved, resolve_precision
from trainer.models.network import Network

# The keys of a task that shape its results.
_SHAPING = ("kind", "labels", "strand", "class_weights", "finetune", "probe", "kmer", "onehot")
# Keys that came later, with the values that mean what was done before: then they are left out of the digest,
# so that earlier results still compare.
_AS_BEFORE = {"strand": "both", "class_weights": "none", "onehot": {"C": [0.001, 0.01, 0.1, 1.0]}}
_PROBE_AS_BEFORE = {"pooling": ["mean_max"]}
_FINETUNE_AS_BEFORE = {
    "patience": 0,
    "min_steps": 0,
    "pooling": ["mean"],
    "norm": "batch",
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "backbone_lr_factor": 1.0,
    "layer_decay": 1.0,
    "frozen_steps": 0,
}


@dataclass(frozen=True)
class Precisions:
    """What each mode computes in: ``probe`` its encoder, ``finetune`` (and scratch) its training."""

    probe: Resolved
    finetune: Resolved

    @classmethod
    def of(cls, task: TaskConfig, device: torch.device) -> "Precisions":
        return cls(
            probe=resolve_precision(task.probe.precision, device),
            finetune=resolve_precision(task.finetune.precision, device),
        )


@dataclass(frozen=True)
class PreparedTask:
    """A network and a task, ready for every mode and seed.

    ``export_config``: the network's config.json, from which new networks are made. ``kind``: fitted to train.
    """

    network: Network
    export_config: dict[str, Any]
    task: TaskConfig
    data: TaskData
    kind: TaskKind
    precisions: Precisions
    features: Features

    @cached_property
    def settings(self) -> str:
        return settings_digest(self.task, precisions=self.precisions, data_sha256=self.data.sha256())


def settings_digest(task: TaskConfig, *, precisions: Precisions, data_sha256: str) -> str:
    """12 hex digits of the rows and all that shapes a result but model, mode and seed: results that share
    them compare."""
    resolved = configs.dump(task)
    shaping = _without({key: resolved[key] for key in _SHAPING}, _AS_BEFORE)
    shaping["probe"] = _without(shaping["probe"], _PROBE_AS_BEFORE)
    shaping["finetune"] = _without(shaping["finetune"], _FINETUNE_AS_BEFORE)
    text = json.dumps([shaping, vars(precisions), data_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those that are as ``given``."""
    return {key: value for key, value in values.items() if key not in given or value != given[key]}


def prepare(
    network: Network,
    export_config: dict[str, Any],
    *,
    task: TaskConfig,
    data: TaskData,
    device: torch.device,
    precisions: Precisions | None = None,
) -> PreparedTask:
    """``network``, moved to ``device``, and ``task`` with its ``data``.

    ``precisions``: what all processes that compute units of it agree on; None: what ``device`` is best at.
    """
    precisions = precisions or Precisions.of(task, device)
    positions = max(len(letters) for letters in data.train.letters)
    features = Features(network.to(device), task, positions=positions, precision=precisions.probe)
    kind = task.make_kind().fit(data.train.truth_N, balanced=task.class_weights == "balanced")
    return PreparedTask(network, export_config, task, data, kind, precisions, features)
