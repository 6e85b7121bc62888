"""The ways to predict a task: k-mer counts, the letters by position, the frozen backbone, the whole network,
the same from scratch."""

import time
from collections.abc import Callable
from typing import Any

import torch

from trainer.evaluation.tasks.config import ENCODER_MODES
from trainer.evaluation.tasks.fitting import variant_modes
from trainer.evaluation.tasks.fitting.finetuning import Examples, Training, train_network
from trainer.evaluation.tasks.fitting.linear import FittedModel, fit_linear, fit_probe
from trainer.evaluation.tasks.fitting.prepared import PreparedTask
from trainer.evaluation.tasks.kept import task_card, task_model
from trainer.evaluation.tasks.results.results import Result, Unit, UnitOutcome
from trainer.evaluation.tasks.rows.data import Split
from trainer.inference.precision import device_of
from trainer.models.network import Network
from trainer.models.pretrained import fresh


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
    keeps = unit.mode in ENCODER_MODES and fitted.reader is not None
    return UnitOutcome(result, _kept(prepared, result, fitted) if keeps else {})


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
    modes = variant_modes.MODES if prepared.kind.reads_variants else _MODES
    return modes[mode](prepared, seed)


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
