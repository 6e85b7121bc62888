"""The task config: every key of ``configs/tasks/*.yaml``, its type, its default, and what is accepted."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from configs import Section, redact
from configs.numbers import Positive
from trainer.evaluation.tasks.fitting.probe_features import ProbePooling
from trainer.evaluation.tasks.fitting.recipe import Finetune, Grid, as_list
from trainer.evaluation.tasks.kinds.kind import TaskKind
from trainer.evaluation.tasks.kinds.registry import DEFAULT_KIND, KINDS
from trainer.inference.embedding import Strand
from trainer.inference.precision import Precision
from trainer.inference.readers.formats import FORMATS, format_of
from trainer.tracking import names

Mode = Literal["kmer", "onehot", "centre", "zeroshot", "probe", "finetune", "scratch"]
MODES: tuple[Mode, ...] = ("kmer", "onehot", "centre", "zeroshot", "probe", "finetune", "scratch")
FLOORS: tuple[Mode, ...] = ("kmer", "onehot", "centre")  # need no network; a task's is the better one on dev
SEEDLESS: tuple[Mode, ...] = (*FLOORS, "zeroshot", "probe")  # their solution is unique: one run, as seed 0
ENCODER_MODES: tuple[Mode, ...] = ("probe", "finetune", "zeroshot")  # those that use the pretrained weights
ROLES = ("train", "dev", "test")


def _rows(value: Any) -> Any:
    """ValueError, one for all that may be wrong, if it is not what Rows takes."""
    numbers = value if isinstance(value, list | tuple) else [value]
    texts = [None if number is None else str(number) for number in numbers]
    usable = [text is None or (text.isdecimal() and int(text) > 0) for text in texts]
    if not texts or not all(usable) or len(set(texts)) < len(texts):
        raise ValueError("must be a number of rows, at least 1, or null, or a list of those, none twice")
    return value


Rows = Annotated[int | tuple[int | None, ...] | None, BeforeValidator(_rows)]


class Probe(Section):
    """A linear model on what a frozen encoder gives. ``pooling``: what is read of it, and ``C``: inverse L2
    penalties, are chosen on dev; ``precision``: the encoder's."""

    pooling: Annotated[tuple[ProbePooling, ...], Field(min_length=1), BeforeValidator(as_list)] = (
        "layers",
        "bins",
    )
    C: Grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    precision: Precision = "auto"

    @field_validator("pooling")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("none may be given twice")
        return names


class Kmer(Section):
    """A linear model on counts of k-mers. ``C``: inverse L2 penalties, chosen on dev."""

    k: Annotated[int, Field(ge=1, le=8)] = 5
    C: Grid = (1e-3, 1e-2, 1e-1, 1.0)


class Onehot(Section):
    """A linear model on the letters by position. ``C``: inverse L2 penalties, chosen on dev."""

    C: Grid = (1e-3, 1e-2, 1e-1, 1.0)


class VariantWindow(Section):
    """Of kind ``variants``. ``length``: letters of the window of the reference that a variant is read in.
    ``window_columns``: the columns with the start and end (as in a BED) of the window whose effect was
    measured, such as an enhancer, for the mode ``centre``."""

    length: Annotated[int, Field(ge=3)] = 1000
    window_columns: tuple[str, str] | None = None


class Workers(Section):
    """What one unit of work, a mode and seed, asks of a Ray node in ``python -m cluster finetune``.

    ``cpus``: also the threads that it computes with. ``gpus``: a share of one, so that 0.25 puts four units
    on a GPU.
    """

    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0


class Track(Section):
    """``experiment``: the MLflow experiment of the results; by default that of the model's own run."""

    experiment: Annotated[str, AfterValidator(names.experiment)] | None = None


class TaskConfig(Section):
    """A labelled task. A split without a file is taken from the other files, see data.py.

    ``labels``: the words in the label column; which are needed, the kind decides. ``label_column``: a list of
    columns that say yes or no to the label of their name. ``format``: of all three files, where their names
    do not say it. ``label_pattern``: a regular expression that finds the label in a FASTA's header.
    ``strand``: what is read of a sequence: ``both`` strands (in training one of them at random), whose
    answers are averaged, or the ``given`` one alone.
    ``max_train_rows``: of a list, results are made for each number, null being all rows (see ``variants``).
    """

    name: Annotated[str, Field(min_length=1)]
    kind: str = DEFAULT_KIND
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    format: str | None = None
    reference: str | None = None
    split: Literal["hash", "stratified"] = "hash"
    sequence_column: str = "sequence"
    label_column: str | tuple[str, ...] = "label"
    label_pattern: str | None = None
    labels: tuple[str, ...] = ()
    strand: Strand = "both"
    class_weights: Literal["none", "balanced"] = "none"
    max_train_rows: Rows = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], BeforeValidator(as_list)] = (
        0,
        1,
        2,
    )
    modes: Annotated[tuple[Mode, ...], BeforeValidator(as_list)] = (
        "kmer",
        "onehot",
        "probe",
        "finetune",
        "scratch",
    )
    finetune: Finetune = Finetune()
    probe: Probe = Probe()
    kmer: Kmer = Kmer()
    onehot: Onehot = Onehot()
    variant: VariantWindow = VariantWindow()
    workers: Workers = Workers()
    track: Track = Track()

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"must be one of {', '.join(sorted(KINDS))}")
        return kind

    @field_validator("format")
    @classmethod
    def _known_format(cls, form: str | None) -> str | None:
        if form is not None and form not in FORMATS:
            raise ValueError(f"must be null (by the name) or one of {', '.join(FORMATS)}")
        return form

    @field_validator("label_pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as fault:
            raise ValueError(f"is no regular expression: {fault}") from fault
        return pattern

    @field_validator("label_column")
    @classmethod
    def _distinct_columns(cls, columns: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (columns,) if isinstance(columns, str) else columns
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError("a name is needed, or a list of names, none empty or given twice")
        return columns

    @model_validator(mode="before")
    @classmethod
    def _columns_are_labels(cls, values: Any) -> Any:
        """Several label columns name the labels, where ``labels`` does not."""
        if isinstance(values, dict) and isinstance(values.get("label_column"), list | tuple):
            return {"labels": values["label_column"]} | values
        return values

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: Any) -> Any:
        """Numbers as text, as they are written. How files write true, false and null cannot be known."""
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

    @model_validator(mode="before")
    @classmethod
    def _modes_of_kind(cls, values: Any) -> Any:
        """Without ``modes``, those of the kind."""
        kind = KINDS.get(values.get("kind", DEFAULT_KIND)) if isinstance(values, dict) else None
        return {"modes": kind.modes} | values if kind else values

    @model_validator(mode="after")
    def _usable(self) -> "TaskConfig":
        kind = self.make_kind()
        if unfit := [mode for mode in self.modes if mode not in kind.modes]:
            raise ValueError(
                f"modes: kind {self.kind} has no {', '.join(unfit)}; it has {', '.join(kind.modes)}"
            )
        if kind.reads_variants and not self.reference:
            raise ValueError("reference: kind variants needs the genome that the variants are on")
        if not kind.reads_variants and self.variant != VariantWindow():
            raise ValueError(f"variant: kind {self.kind} reads no variants; remove the section")
        if self.class_weights != "none" and not kind.balances:
            raise ValueError(f"class_weights: kind {self.kind} has no classes to weigh; remove the key")
        if not isinstance(self.label_column, str) and not kind.reads_columns:
            raise ValueError(
                f"label_column: kind {self.kind} reads one column, not {list(self.label_column)}"
            )
        if not (self.train or self.dev or self.test):
            raise ValueError("train, dev, test: at least one of them must name a file")
        return self

    @model_validator(mode="after")
    def _files_can_be_read(self) -> "TaskConfig":
        columns = (self.label_column,) if isinstance(self.label_column, str) else self.label_column
        if columns is self.label_column and set(columns) != set(self.labels):
            raise ValueError(
                f"label_column: several columns are the labels themselves; {list(columns)} and "
                f"{list(self.labels)} differ, so leave labels out"
            )
        groups = re.compile(self.label_pattern or "").groups
        if self.label_pattern and groups != len(columns):
            raise ValueError(
                f"label_pattern: needs one group in brackets for each label column, {len(columns)}, "
                f"not {groups}"
            )
        uris = [uri for role in ROLES if (uri := getattr(self, role))]
        beds = [uri for uri in uris if format_of(uri, self.format) == "bed"]
        if beds and not self.reference:
            raise ValueError(
                f"reference: {redact(beds[0])} is a BED and needs the genome that its intervals are cut from "
                "(FASTA or .2bit)"
            )
        return self

    def variants(self) -> "tuple[TaskConfig, ...]":
        """This task for each number of ``max_train_rows``, smallest first: each has one number, or None."""
        rows = self.max_train_rows
        numbers = sorted(
            rows if isinstance(rows, tuple) else [rows],
            key=lambda number: math.inf if number is None else number,
        )
        return tuple(self.model_copy(update={"max_train_rows": number}) for number in numbers)

    def make_kind(self) -> TaskKind:
        """The kind, for these labels. ValueError if it does not take them."""
        return KINDS[self.kind](self.labels)
