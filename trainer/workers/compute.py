"""What runs on Ray's workers: numbers in, numbers out. They know neither MLflow nor the files of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.modes import compute_unit
from trainer.evaluation.tasks.fitting.prepared import Precisions, prepare
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures, features_of, probe_features
from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.results.results import Unit, UnitOutcome
from trainer.evaluation.tasks.rows.data import Split, TaskData
from trainer.inference.precision import best_device
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network


@dataclass(frozen=True)
class SharedNetwork:
    """A version's network, and its config.json."""

    network: Network
    config: dict[str, Any]


@dataclass(frozen=True)
class EmbeddedSequences:
    """What the probe may read of a version, of all sequences of a task: row i of each array is of
    ``letters[i]``."""

    letters: tuple[str, ...]
    vectors: Mapping[ProbeFeatures, Array]

    def of(self, split: Split) -> Mapping[ProbeFeatures, Array]:
        place = {letters: i for i, letters in enumerate(self.letters)}
        rows = [place[letters] for letters in split.letters]
        return {each: vectors_NF[rows] for each, vectors_NF in self.vectors.items()}


def all_letters(data: Sequence[TaskData]) -> tuple[str, ...]:
    """Each sequence of some data once."""
    return tuple(dict.fromkeys(letters for one in data for split in one.splits for letters in split.letters))


def resolve_precisions(task: TaskConfig) -> Precisions:
    """What ``task`` computes in, where this runs."""
    return Precisions.of(task, _device(task))


def embed_sequences(
    task: TaskConfig, precisions: Precisions, letters: tuple[str, ...], shared: SharedNetwork
) -> EmbeddedSequences:
    """What the mode probe of ``task`` reads of ``letters``."""
    device = _begin(task)
    sequences = EncodedSequences.from_strings(letters)
    network = shared.network.to(device)
    wanted = features_of(task.probe.pooling, network.backbone, strand=task.strand)
    found = probe_features(network, sequences, wanted, precision=precisions.probe, strand=task.strand)
    vectors = {each: vectors_NF.numpy() for each, vectors_NF in zip(wanted, found, strict=True)}
    return EmbeddedSequences(letters, vectors)


@dataclass(frozen=True)
class UnitTask:
    """One unit of a task, and what all units of the task compute in."""

    unit: Unit
    task: TaskConfig
    precisions: Precisions


def unit_outcome(
    asked: UnitTask, data: TaskData, shared: SharedNetwork, embedded: EmbeddedSequences | None = None
) -> UnitOutcome:
    """The scores of one unit, and its model."""
    task = asked.task
    device = _begin(task)
    prepared = prepare(
        shared.network, shared.config, task=task, data=data, device=device, precisions=asked.precisions
    )
    if embedded:
        prepared.features.give_probe({split: embedded.of(split) for split in data.splits})
    return compute_unit(prepared, asked.unit)


def _begin(task: TaskConfig) -> torch.device:
    torch.set_num_threads(task.workers.cpus)
    return _device(task)


def _device(task: TaskConfig) -> torch.device:
    """A GPU only where the task asks for one: Ray gives the process all of them otherwise."""
    return best_device() if task.workers.gpus else torch.device("cpu")
