"""The part of an MLflow run that tells a reviewer what it is: description, log, report, use of the machine.

It is refreshed while the run trains, off the step's path: the description and the log with each validation,
the report every ``track.report_every`` steps by a process of its own.
"""

from collections.abc import Mapping
from pathlib import Path

from cluster.storage import store
from configs import redact
from trainer.run import run_status, story
from trainer.run.config import TrainConfig
from trainer.run.report_process import ReportProcess
from trainer.run.run_log import NAME, RunLog
from trainer.run.run_spec import Start
from trainer.run.story import Validated
from trainer.tracking.provenance import NOTE
from trainer.tracking.system_metrics import SystemMetrics
from trainer.tracking.uploader import Uploader


class RunStory:
    """What the first rank tells of a run. Nothing in it may stop the run."""

    def __init__(self, config: TrainConfig, start: Start | None, folder: Path) -> None:
        """From now on what is said is noted in ``folder``. ``start``: None if there is nothing to train."""
        self._config, self._start, self._step = config, start, start.step if start else 0
        run_dir = config.run.dir
        kept = None if store.is_local(run_dir) else store.join(run_dir, f"{run_status.TRACK}/{NAME}")
        self.log = RunLog(folder, kept=kept)
        self._report = ReportProcess(config.track.uri)
        self._validated: Validated | None = None
        self._uploader: Uploader | None = None
        self._machine: SystemMetrics | None = None

    def begin(self, uploader: Uploader) -> None:
        """Tell it through ``uploader``. A resumed run keeps its description until the next validation."""
        self._uploader = uploader
        if self._start and not self._start.step:
            self._describe(None)
        if self._start and self._config.track.system_metrics:
            self._machine = SystemMetrics(self._log_machine)

    def after(self, metrics: Mapping[str, float], *, step: int) -> None:
        """``metrics`` of ``step`` were logged."""
        assert self._uploader, "begun"
        self._step = step
        if "val/mlm_accuracy" in metrics:
            self._validated = Validated(step, metrics)
            self._describe(self._validated)
            self._uploader.upload(self.log.path)
        every = self._config.track.report_every
        if every and step and step % every == 0 and step < self._config.train.steps:
            self._report.begin(self._uploader.id)

    def validated(self, step: int) -> Mapping[str, float]:
        """The metrics of the validation after ``step``; empty if that was not the last one."""
        found = self._validated
        return found.metrics if found and found.step == step else {}

    def end(self, reason: str = "") -> None:
        """The training is over; ``reason``: why, where it did not reach its last step."""
        if self._machine:
            self._machine.close()
        self._report.close()
        if reason:
            self.log.add(f"error: {reason}")
        if self._uploader:
            self._uploader.upload(self.log.path)
        self.log.keep()

    def last_report(self) -> None:
        """The report of the finished run; MLflow has all of it."""
        if self._config.track.report_every and self._uploader:
            self._report.last(self._uploader.id)

    def close(self) -> None:
        self.log.close()

    def _describe(self, latest: Validated | None) -> None:
        assert self._uploader and self._start, "a run that trains"
        text = story.description(self._config, self._start.inputs, self._start.parameters, latest)
        self._uploader.tag({NOTE: redact(text)})

    def _log_machine(self, reading: Mapping[str, float]) -> None:
        assert self._uploader, "begun"
        self._uploader.log(reading, step=self._step)
