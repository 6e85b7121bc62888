"""Fine-tuned models of the registry, opened."""

import tempfile
from pathlib import Path

from trainer.evaluation.tasks.kept import task_model
from trainer.evaluation.tasks.kept.task_model import TaskModel
from trainer.tracking.registry import Registry


def open_task_model(uri: str, *, track_uri: str | None = None) -> TaskModel:
    """The fine-tuned model that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means, or that lies in a
    folder.

    Raises:
        ConfigError: ``uri`` has another form. TrackError: there is no such version. StoreError, ValueError:
            its files are none of a fine-tuned model, or do not fit this code.
    """
    if not uri.startswith("models:"):
        return task_model.load(uri)
    registry = Registry(track_uri)
    version = registry.version(uri)
    with tempfile.TemporaryDirectory() as folder:
        local = registry.download(version, Path(folder))
        try:
            return task_model.load(str(local))
        except ValueError as fault:
            raise ValueError(str(fault).replace(str(local), uri)) from fault
