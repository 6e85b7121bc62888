"""The labelled rows that the teacher is read on: some of train, to fit, and some of dev, to score. Test is
left alone."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import configs
from cluster.storage.store import StoreError
from configs import ConfigError, redact
from trainer.evaluation.online.messages import TaskRows
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.curve_names import plain
from trainer.evaluation.tasks.kinds.kind import TaskKind
from trainer.evaluation.tasks.rows.data import Split, load, subsample
from trainer.inference.sequences import EncodedSequences


@dataclass(frozen=True)
class OnlineTask:
    """A task with the rows in use. ``kind``: fitted to train."""

    config: TaskConfig
    kind: TaskKind
    train: Split
    dev: Split

    @property
    def name(self) -> str:
        return self.config.name

    def rows(self) -> TaskRows:
        """What the training is told."""
        sequences = EncodedSequences.from_codes([*self.train.codes(), *self.dev.codes()])
        digest = hashlib.sha256()
        for array in (sequences.codes_M, sequences.length_N.numpy(), self.train.truth_N, self.dev.truth_N):
            digest.update(array.tobytes())
        metric = self.kind.metrics[0]
        return TaskRows(
            self.name,
            metric.name,
            metric.heading,
            self.config.strand,
            self.config.probe.pooling,
            sequences,
            digest.hexdigest(),
        )


def read_tasks(paths: Sequence[str], *, most: int) -> list[OnlineTask]:
    """The tasks whose configs lie at ``paths``, with at most so many rows of train and of dev.

    Raises:
        ConfigError: one sentence: a config is wrong, its files cannot be read, or two tasks have one name.
    """
    found: dict[str, str] = {}
    tasks = []
    for path in paths:
        task = _read(path, most)
        other = found.setdefault(plain(task.name), path)
        if other != path:
            raise ConfigError(f"val.tasks: {other} and {path} give the same name of task, {task.name}")
        tasks.append(task)
    return tasks


def _read(path: str, most: int) -> OnlineTask:
    try:
        config = _limited(configs.load(TaskConfig, path), most)
        kind = config.make_kind()
        if kind.reads_variants:
            raise ValueError(
                f"{path} is of kind {config.kind}, which is not read on the way; score versions on it with "
                "python -m trainer.finetune"
            )
        data = load(config)
        dev = subsample(data.dev, most, kind)
        if fault := kind.fault_of_split(dev.truth_N):
            raise ValueError(
                f"task {config.name}: {len(dev)} rows of its dev split (val.tasks_rows={most}) {fault}"
            )
        kind = kind.fit(data.train.truth_N, balanced=config.class_weights == "balanced")
    except (ValueError, OSError, StoreError) as fault:
        raise ConfigError(f"val.tasks: {redact(str(fault))}") from fault
    return OnlineTask(config, kind, data.train, dev)


def _limited(config: TaskConfig, most: int) -> TaskConfig:
    """``config`` with its largest number of train rows, but not more than ``most``."""
    own = config.variants()[-1].max_train_rows
    assert not isinstance(own, tuple), "a variant has one number"
    return config.model_copy(update={"max_train_rows": min(most, math.inf if own is None else own)})
