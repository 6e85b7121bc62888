"""The ways to predict a task: k-mer counts, the letters by position, the frozen backbone, the whole network,
the same from scratch."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import configs
from trainer.evaluation.tasks.config import ENCODER_MODES, TaskConfig
from trainer.evaluation.tasks.fitting.features import Features
from trainer.evaluation.tasks.fitting.finetuning import Examples, Training, train_network
from trainer.evaluation.tasks.fitting.linear import FittedModel, fit_linear, fit_probe
from trainer.evaluation.tasks.kept import task_card, task_model
from trainer.evaluation.tasks.kinds.kind import TaskKind
from trainer.evaluation.tasks.results.results import Result, Unit, UnitOutcome
from trainer.evaluation.tasks.rows.data import Split, TaskData
from trainer.inference.precision import Resolved, device_of, resolve_precision
from trainer.models.network import Network
from trainer.models.pretrained import fresh

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


def compute_unit(prepared: PreparedTask, unit: Unit) -> UnitOutcome:
    """The scores of one unit, and its model; needs no MLflow.

    Raises:
        RuntimeError: training diverged. MemoryError: a sequence is too long.
    """
    started = time.monotonic()
    data, kind = prepared.data, prepared.kind
    fitted = fit_mode(prepared, unit.mode, seed=unit.seed)
    val = kind.score(data.dev.truth_N, fitted.dev_prediction)
    test = kind.score(data.test.truth_N, fitted.predict(data.test))  # the only use of test
    result = Result(
        unit,
        val,
        test,
        kind=prepared.task.kind,
        settings=prepared.settings,
        rows=data.rows,
        chosen=", ".join(f"{name} {_short(value)}" for name, value in fitted.chosen.items()),
        seconds=time.monotonic() - started,
    )
    return UnitOutcome(result, _kept(prepared, result, fitted) if unit.mode in ENCODER_MODES else {})


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _kept(prepared: PreparedTask, result: Result, fitted: FittedModel) -> dict[str, bytes]:
    """The files of the fitted model, of a mode that uses the encoder."""
    mode = result.unit.mode
    precision = prepared.precisions.probe if mode == "probe" else prepared.precisions.finetune
    record = task_model.record_of(
        result,
        reader=fitted.reader,
        task=prepared.task,
        kind=prepared.kind,
        precision=precision,
        dev=prepared.data.dev,
    )
    model = task_model.of(fitted.reader, prepared.network, prepared.kind, record)
    return task_model.pack(model, card=task_card.card(record, {}))


def fit_mode(prepared: PreparedTask, mode: str, *, seed: int) -> FittedModel:
    """``mode`` fitted to train; everything that is chosen is chosen on dev."""
    return _MODES[mode](prepared, seed)


def _kmer(prepared: PreparedTask, seed: int) -> FittedModel:
    return _linear(prepared, prepared.features.kmers, prepared.task.kmer.C, seed)


def _onehot(prepared: PreparedTask, seed: int) -> FittedModel:
    return _linear(prepared, prepared.features.onehot, prepared.task.onehot.C, seed)


def _probe(prepared: PreparedTask, seed: int) -> FittedModel:
    data, read, grid = prepared.data, prepared.features.probe, prepared.task.probe.C
    return fit_probe(data.train, data.dev, features=read, kind=prepared.kind, grid=grid, seed=seed)


def _linear(
    prepared: PreparedTask, features: Callable[[Split], Any], grid: tuple[float, ...], seed: int
) -> FittedModel:
    data = prepared.data
    return fit_linear(data.train, data.dev, features=features, kind=prepared.kind, grid=grid, seed=seed)


def _finetune(prepared: PreparedTask, seed: int) -> FittedModel:
    def start() -> Network:
        network = _new_network(prepared, seed)
        network.load_state_dict(prepared.network.state_dict(), strict=True)
        return network

    return _train(prepared, start, seed, pretrained=True)


def _scratch(prepared: PreparedTask, seed: int) -> FittedModel:
    return _train(prepared, lambda: _new_network(prepared, seed), seed, pretrained=False)


def _new_network(prepared: PreparedTask, seed: int) -> Network:
    """A network with new weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fresh(prepared.export_config)


def _train(
    prepared: PreparedTask, start: Callable[[], Network], seed: int, *, pretrained: bool
) -> FittedModel:
    task = prepared.task

    def examples(split: Split) -> Examples:
        return Examples(prepared.features.sequences(split), split.truth_N)

    trained = train_network(
        examples(prepared.data.train),
        examples(prepared.data.dev),
        start=start,
        training=Training(
            prepared.kind, task.finetune, prepared.precisions.finetune, seed, task.strand, pretrained
        ),
        device=device_of(prepared.network),
    )
    return FittedModel(
        lambda split: trained.predict(prepared.features.sequences(split)),
        trained.dev_prediction,
        trained.chosen,
        trained.network,
    )


_MODES: dict[str, Callable[[PreparedTask, int], FittedModel]] = {
    "kmer": _kmer,
    "onehot": _onehot,
    "probe": _probe,
    "finetune": _finetune,
    "scratch": _scratch,
}
