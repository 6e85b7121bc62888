"""How a message that holds no metrics reaches its MLflow run: one call for each kind."""

from pathlib import Path

from trainer.tracking.messages import Attachment, FileUpload, Message, Metrics, Tags
from trainer.tracking.mlflow_run import ResumableRun


def deliver(run: ResumableRun, message: Message) -> None:
    """Returns when MLflow has taken ``message``. May be called again with the same one."""
    match message:
        case Tags(values=values):
            run.tag(values)
        case Attachment(name=name, values=values):
            run.attach_dict(values, name)
        case FileUpload(path=path):
            if Path(path).is_file():  # not where the run went on on another machine, which has a newer one
                run.attach(Path(path))
        case Metrics():
            raise AssertionError("a step has at most as many metrics as a call takes")
