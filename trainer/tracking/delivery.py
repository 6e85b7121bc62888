"""What waits in the outbox, call by call to MLflow; each point once, each export as one version."""

from collections.abc import Sequence
from pathlib import Path

from trainer.core.console import say
from trainer.tracking.messages import Attachment, Export, FileUpload, Metrics, Tags
from trainer.tracking.mlflow_run import MAX_POINTS, Point, ResumableRun
from trainer.tracking.outbox import Entry
from trainer.tracking.versions import Registering, Versions


class Delivery:
    """The calls of one run.

    ``last_steps``: the last step that MLflow has of each metric. ``registers``: an export is on its way.
    """

    def __init__(self, run: ResumableRun, registering: Registering | None, *, outbox: Path) -> None:
        """``outbox``: its file, which messages to the user name."""
        self._run, self._path = run, outbox
        self._versions = Versions(run, registering) if registering else None
        self.last_steps: dict[str, int] = {}
        self.registers = False

    def send(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """One call: the metrics that ``entries`` begin with, or their first message of another kind.

        Returns the entries that are done.
        """
        points: list[Point] = []
        last_steps = dict(self.last_steps)
        done = 0
        for _, message in entries:
            if not isinstance(message, Metrics):
                break
            fresh = [
                Point(key, value, message.time, message.step)
                for key, value in message.values.items()
                if message.step > last_steps.get(key, -1)
            ]
            if len(points) + len(fresh) > MAX_POINTS:
                break
            points += fresh
            last_steps |= {point.key: point.step for point in fresh}
            done += 1
        if points:
            self._run.send(points)
            self.last_steps = last_steps
        return entries[:done] or self._send_other(entries[0])

    def _send_other(self, entry: Entry) -> Sequence[Entry]:
        match entry.message:
            case Tags(values=values):
                self._run.tag(values)
            case Attachment(name=name, values=values):
                self._run.attach_dict(values, name)
            case FileUpload(path=path):
                if Path(path).is_file():  # the machine that a run left has an older one
                    self._run.attach(Path(path))
            case Export() as export:
                self._register(export)
            case Metrics():
                raise AssertionError("a step has at most as many metrics as a call takes")
            case None:
                say(f"warning: message {entry.id} in {self._path} is damaged, and left out")
        return [entry]

    def _register(self, export: Export) -> None:
        assert self._versions, "only runs with exports have such messages"
        self.registers = True
        try:
            self._versions.deliver(export)
        finally:
            self.registers = False
