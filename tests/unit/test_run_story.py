"""The story of a run while it trains: what is sent when, the machine's use, and the report's process."""

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_story import config, inputs, validated
from trainer.run import report_process
from trainer.run.report_process import ReportProcess
from trainer.run.run_spec import Start
from trainer.run.run_story import RunStory
from trainer.tracking import system_metrics
from trainer.tracking.system_metrics import SystemMetrics


class Sent:
    """Stands for the uploader."""

    id = "run1"

    def __init__(self) -> None:
        self.tags: list[Mapping[str, str]] = []
        self.files: list[Path] = []
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def tag(self, tags: Mapping[str, str]) -> None:
        self.tags.append(tags)

    def upload(self, path: Path) -> None:
        self.files.append(path)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self.points.append((step, metrics))


def begun(folder: Path, *, step: int = 0, **changes: Any) -> tuple[RunStory, Sent]:
    values = {"track__system_metrics": False} | changes
    told, sent = RunStory(config(**values), Start(7, {}, step=step, inputs=inputs()), folder), Sent()
    told.begin(sent)  # type: ignore[arg-type]
    return told, sent


def test_description_and_log_are_sent_at_the_start_each_validation_and_the_end(tmp_path: Path) -> None:
    told, sent = begun(tmp_path)
    told.after({"loss/total": 1.0}, step=1)
    told.after(validated(0.4).metrics, step=4)
    assert told.validated(4) == validated(0.4).metrics and told.validated(1) == {}
    told.end("the disk is full at s3://u:p@b")
    told.close()
    notes = [tags["mlflow.note.content"] for tags in sent.tags]
    assert ["not validated" in note for note in notes] == [True, False]
    assert "Result after step 4:" in notes[1]
    assert sent.files == [tmp_path / "log.txt"] * 2
    assert "error: the disk is full at s3://***@b" in (tmp_path / "log.txt").read_text()


def test_a_resumed_run_keeps_its_description_until_it_is_validated(tmp_path: Path) -> None:
    told, sent = begun(tmp_path, step=3)
    told.close()
    assert sent.tags == []


def test_the_machine_is_watched_with_the_run_and_not_longer(tmp_path: Path) -> None:
    told, sent = begun(tmp_path, step=2, track__system_metrics=True)
    told.after({"loss/total": 1.0}, step=9)
    told.end()
    told.close()
    (step, reading), *_ = sent.points
    assert step in (2, 9)
    assert 0 <= reading["system/cpu_utilization_percentage"] <= 100
    assert not [t for t in threading.enumerate() if "_run" in str(getattr(t, "_target", "")) and t.is_alive()]


def test_a_sensor_that_fails_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def collect_metrics(self) -> None:
            raise RuntimeError("driver gone at http://u:p@h")

    monkeypatch.setattr(system_metrics, "system_monitors", lambda: [Broken()])
    SystemMetrics(lambda reading: None).close()
    assert capsys.readouterr().err == (
        "warning: no system metrics from here on: RuntimeError: driver gone at http://***@h\n"
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Instead of reports: a program that fails. What each was started with."""
    calls: list[Any] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        calls.append((command, options["env"]))
        program = "import sys; sys.exit('error: no run at sqlite://u:p@h')"
        return popen([sys.executable, "-c", program], **{**options, "env": None})

    monkeypatch.setattr(report_process.subprocess, "Popen", start)
    return calls


def test_reports_are_rare_one_at_a_time_and_a_failed_one_is_a_warning(
    started: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    report = ReportProcess("http://u:word@host")
    report.begin("")  # MLflow has not answered yet
    assert started == []
    report.begin("run1")
    report.begin("run1")  # one is being made, or ended only just now
    assert len(started) == 1
    command, environment = started[0]
    assert command[-2:] == ["trainer.report", "run1"]
    assert not any("word" in word for word in command)  # all users of the machine see a command line
    assert environment["MLFLOW_TRACKING_URI"] == "http://u:word@host"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "RANK" not in environment
    report.last("run1")
    assert len(started) == 2
    assert "warning: no report: no run at sqlite://***@h" in capsys.readouterr().err
    report.close()


def test_reports_follow_the_config(tmp_path: Path, started: list[Any]) -> None:
    told, _ = begun(tmp_path, track__report_every=10)
    for step in (0, 9, 10, 100):  # the last step's is made at the end
        told.after({"loss/total": 1.0}, step=step)
    assert len(started) == 1
    told.end()
    told.last_report()
    assert len(started) == 2
    silent, _ = begun(tmp_path, track__report_every=0)
    silent.after({"loss/total": 1.0}, step=10)
    silent.last_report()
    assert len(started) == 2
    for each in (told, silent):
        each.close()
