"""What runs on Ray's workers: numbers in, numbers out. They know neither MLflow nor the files of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.evaluation.embedding import embed
from trainer.evaluation.precision import best_device
from trainer.evaluation.sequences import EncodedSequences
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.fitting.modes import Precisions, compute_unit, prepare
from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.results.results import Unit, UnitOutcome
from trainer.evaluation.tasks.rows.data import Split, TaskData
from trainer.models.network import Network


@dataclass(frozen=True)
class SharedNetwork:
    """A version's network, and its config.json."""

    network: Network
    config: dict[str, Any]


@dataclass(frozen=True)
class EmbeddedSequences:
    """A version's embeddings of all sequences of a task: row i of ``vectors_ND`` is of ``letters[i]``."""

    letters: tuple[str, ...]
    vectors_ND: Array

    def of(self, split: Split) -> Array:
        place = {letters: i for i, letters in enumerate(self.letters)}
        found: Array = self.vectors_ND[[place[letters] for letters in split.letters]]
        return found


def all_letters(data: Sequence[TaskData]) -> tuple[str, ...]:
    """Each sequence of some data once."""
    return tuple(dict.fromkeys(letters for one in data for split in one.splits for letters in split.letters))


def resolve_precisions(task: TaskConfig) -> Precisions:
    """What ``task`` computes in, where this runs."""
    return Precisions.of(task, _device(task))


def embed_sequences(
    task: TaskConfig, precisions: Precisions, letters: tuple[str, ...], shared: SharedNetwork
) -> EmbeddedSequences:
    """The embeddings of ``letters``, as the mode probe of ``task`` reads them."""
    device = _begin(task)
    sequences = EncodedSequences.from_strings(letters)
    network = shared.network.to(device)
    vectors = embed(network, sequences, precision=precisions.probe, strand=task.strand)
    return EmbeddedSequences(letters, np.asarray(torch.cat(vectors, 1).double().numpy()))


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
        prepared.features.give_embeddings({split: embedded.of(split) for split in data.splits})
    return compute_unit(prepared, asked.unit)


def _begin(task: TaskConfig) -> torch.device:
    torch.set_num_threads(task.workers.cpus)
    return _device(task)


def _device(task: TaskConfig) -> torch.device:
    """A GPU only where the task asks for one: Ray gives the process all of them otherwise."""
    return best_device() if task.workers.gpus else torch.device("cpu")
