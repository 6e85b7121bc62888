"""Kinds of labelled task, by the name that a task's ``kind`` uses."""

from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.kinds.kind import TaskKind
from trainer.evaluation.tasks.kinds.multilabel import MultiLabel
from trainer.evaluation.tasks.kinds.regression import Regression
from trainer.evaluation.tasks.kinds.variants import Variants

DEFAULT_KIND = "classification"
KINDS: dict[str, type[TaskKind]] = {
    DEFAULT_KIND: Classification,
    "regression": Regression,
    "multilabel": MultiLabel,
    "variants": Variants,
}
