"""The config section ``val``."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from configs import Section
from configs.numbers import Positive


def _as_list(value: Any) -> Any:
    """A single path as a list of one, so that ``val.tasks=configs/tasks/H4.yaml`` works on a command line."""
    return [value] if isinstance(value, str) else value


class Validation(Section):
    """Held-out windows, and labelled tasks.

    Attributes:
        tasks: configs of labelled tasks on which the teacher is read while it is trained.
        tasks_every: steps between two readings; None: so that they cost about 4 % of the steps' FLOPs.
        tasks_rows: rows of train, and of dev, that are used at most.
    """

    every: Positive = 500
    windows: Positive = 512
    batch: Positive = 32
    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_list)] = ()
    tasks_every: Positive | None = None
    tasks_rows: Positive = 1000

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("the same task is given twice")
        return tasks
