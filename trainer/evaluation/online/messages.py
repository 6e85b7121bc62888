"""What a training run and the process that reads tasks and fits beside it tell each other.

The training imports this file and no reader of tables or genomes: those are the process's.
"""

from dataclasses import dataclass
from typing import NamedTuple

from trainer.evaluation.tasks.fitting.probe_features import ProbePooling
from trainer.inference.embedding import Strand
from trainer.inference.sequences import EncodedSequences

READ, FIT = "read", "fit"  # what the process is asked for


class ToRead(NamedTuple):
    """Configs of tasks, and how many rows of train and of dev are read of each at most."""

    paths: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class TaskRows:
    """What a training knows of a task.

    Attributes:
        metric, heading: of the main score, as Metric has them.
        strand, pooling: what a probe reads.
        sequences: those of train, then those of dev.
        sha256: of the sequences and what is true of them.
    """

    name: str
    metric: str
    heading: str
    strand: Strand
    pooling: tuple[ProbePooling, ...]
    sequences: EncodedSequences
    sha256: str


class Scores(NamedTuple):
    """The main score of the task's kind on dev."""

    probe: float
    knn: float
    floor: float


class Refused(NamedTuple):
    """A task that cannot be read is wrong in the config: the sentence."""

    sentence: str
