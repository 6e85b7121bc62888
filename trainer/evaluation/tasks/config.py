"""The task config: every key of ``configs/tasks/*.yaml``, its type, its default, and what is accepted."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from configs import Section
from trainer.evaluation.embedding import Precision
from trainer.evaluation.tasks import KINDS
from trainer.tracking import names

Mode = Literal["kmer", "probe", "finetune", "scratch"]
MODES: tuple[Mode, ...] = ("kmer", "probe", "finetune", "scratch")
ROLES = ("train", "dev", "test")

Positive = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0)]


def _as_list(value: Any) -> Any:
    """A lone value stands for a list of one, so that ``finetune.lr=1e-3`` works on a command line."""
    return value if isinstance(value, list | tuple) else [value]


Grid = Annotated[tuple[Above0, ...], Field(min_length=1), BeforeValidator(_as_list)]


class Finetune(Section):
    """Training of the whole network, from the teacher's weights or from new ones: both get the same."""

    epochs: Positive = 5
    batch: Annotated[int, Field(ge=4)] = 32
    lr: Grid = (1e-4, 3e-4)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    grad_clip: Above0 = 1.0
    precision: Precision = "auto"


class Probe(Section):
    """Inverse L2 penalties to choose from on the dev split; ``precision`` is that of the embeddings."""

    C: Grid = (1e-3, 1e-2, 1e-1, 1.0)
    precision: Precision = "auto"


class Kmer(Section):
    k: Annotated[int, Field(ge=1, le=8)] = 5
    C: Grid = (1e-3, 1e-2, 1e-1, 1.0)


class Track(Section):
    """``experiment``: that MLflow keeps the results in; by default the one of the model's own run."""

    experiment: Annotated[str, AfterValidator(names.experiment)] | None = None


class TaskConfig(Section):
    """A labelled task. A role without a file is split off by sha256 of the sequence, as tasks/data.py
    says."""

    name: Annotated[str, Field(min_length=1)]
    kind: str = "classification"
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    sequence_column: str = "sequence"
    label_column: str = "label"
    labels: tuple[str, ...]
    max_train_rows: Positive | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], BeforeValidator(_as_list)] = (
        0,
        1,
        2,
    )
    modes: Annotated[tuple[Mode, ...], BeforeValidator(_as_list)] = MODES
    finetune: Finetune = Finetune()
    probe: Probe = Probe()
    kmer: Kmer = Kmer()
    track: Track = Track()

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"must be one of {', '.join(sorted(KINDS))}")
        return kind

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: Any) -> Any:
        """Numbers as they are written. Of true, false and null nobody can tell how the files write them."""
        if not isinstance(labels, list | tuple):
            return labels
        odd = [
            label for label in labels if not isinstance(label, int | float | str) or isinstance(label, bool)
        ]
        if odd:
            raise ValueError(f'each must be text in quotes, as the files have it, such as "true", not {odd}')
        if any(isinstance(label, str) and not label.strip() for label in labels):
            raise ValueError("one of them is empty")
        return [str(label).strip() for label in labels]

    @field_validator("labels", "seeds", "modes")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError("at least one is needed, and none twice")
        return values

    @model_validator(mode="after")
    def _usable(self) -> "TaskConfig":
        if len(self.labels) < 2:
            raise ValueError(f"labels: at least 2 are needed, not {list(self.labels)}")
        if not (self.train or self.dev or self.test):
            raise ValueError("train, dev, test: at least one of them must name a CSV file")
        return self
