"""A fine-tuned model as an MLflow model: ``sequence`` in; ``label`` and ``p_<label>``, or ``value``, out.

MLflow imports this module to load the model; nothing here needs MLflow then.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from trainer.evaluation.encoder_pyfunc import EXAMPLE, INPUT
from trainer.evaluation.tasks.kept import task_model
from trainer.evaluation.tasks.kept.task_model import TaskModel
from trainer.inference.precision import best_device
from trainer.tracking.mlmodel import Pyfunc, write_mlmodel


class TaskPyfunc:
    """What ``mlflow.pyfunc.load_model`` of a fine-tuned model gives."""

    def __init__(self, model: TaskModel) -> None:
        self._model = model

    def predict(self, table: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The predictions in fp32, a row for each of ``table``. ValueError: a sequence is none."""
        return self._model.predict(list(table[INPUT])).set_index(table.index)


def _load_pyfunc(folder: str) -> TaskPyfunc:
    """Called by MLflow with the folder of the model."""
    return TaskPyfunc(task_model.load(folder).to(best_device()))


def write_task_mlmodel(folder: Path, *, model_id: str | None = None) -> None:
    """Make ``folder``, which holds the files of a fine-tuned model, an MLflow model; the files stay.

    ``model_id``: of its LoggedModel. TrackError if MLflow refuses.
    """
    write_mlmodel(
        folder,
        Pyfunc(
            loader=__name__,
            inputs={INPUT: "string"},
            outputs=task_model.load(str(folder)).columns,
            example=pd.DataFrame({INPUT: list(EXAMPLE)}),
        ),
        model_id=model_id,
    )
