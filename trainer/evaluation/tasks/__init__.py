"""Kinds of downstream task by the name that a task's ``kind`` uses."""

from trainer.evaluation.tasks.classification import Classification

KINDS = {"classification": Classification}
