"""The command ``python -m cluster study``: from a config to a report, or to what would be done."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import configs
from cluster.process import exits
from cluster.process.signals import Preempted
from cluster.storage import store
from cluster.storage.lock import hold
from configs import redact
from data_prep import shards
from trainer.core.console import say
from trainer.study import parent
from trainer.study.config import StudyConfig
from trainer.study.estimate import describe_plan
from trainer.study.plan import Dataset, StudyPlan, make_plan
from trainer.study.pretrainings import statuses
from trainer.study.report import FOLDER, PAGE, write_report
from trainer.study.sections import headlines
from trainer.study.work import Stages, do_work

_LOCK = "study.lock"
_ROOT = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "tasks", "report")


@dataclass(frozen=True)
class StudyRequest:
    """The options of the command; each field has the name of its option, ``overrides`` are the key=value."""

    config: str
    overrides: tuple[str, ...] = ()
    plan: bool = False
    only: str | None = None
    cpus: int | None = None
    wait_s: float = 60.0


def run_study(request: StudyRequest) -> int:
    """The exit code: 0 once all is there; 1, after the report, if something failed.

    Raises:
        ConfigError: the config is wrong, or the folder holds another study. LockedError: it runs already.
        StoreError, ValueError, TrackError, RuntimeError, MemoryError: a sentence for each fault.
    """
    plan = make_plan(configs.load(StudyConfig, request.config, request.overrides))
    status = statuses(plan.pretrainings)  # no folder holds another run
    if request.plan:
        print("\n".join(describe_plan(plan, status)), flush=True)
        return exits.EXIT_OK
    with hold(plan.config.output, name=_LOCK):
        return _run(plan, request)


def _run(plan: StudyPlan, request: StudyRequest) -> int:
    if request.only in (None, "pretrain") and plan.dataset and (code := build(plan.dataset)):
        return code
    run_id = parent.open_parent(plan.config)
    ended = "FAILED"
    try:
        failures = _work(plan, request, run_id)
        found = None if request.only == "pretrain" else write_report(plan, run_id)
        ended = "FINISHED" if not failures else "FAILED"
    except KeyboardInterrupt:
        ended = "KILLED"
        raise
    finally:
        parent.close_parent(plan.config.track.uri, run_id, status=ended)
    if found:
        print("\n".join([*headlines(found), *found.missing]))
        print(redact(f"Report: {store.join(plan.config.output, FOLDER, PAGE)}"), flush=True)
    if failures:
        raise RuntimeError("\n".join(failures))
    return exits.EXIT_OK


def _work(plan: StudyPlan, request: StudyRequest, run_id: str) -> list[str]:
    """What failed of what was to be done."""
    if request.only == "report":
        return []
    stages = Stages(pretrain=request.only != "tasks", tasks=request.only != "pretrain")
    return do_work(plan, stages, parent=run_id, cpus=request.cpus, wait_s=request.wait_s)


def build(dataset: Dataset) -> int:
    """0 once the dataset is there, which ``data_prep build`` makes if it is not; else its exit code."""
    if store.exists(store.join(dataset.uri, shards.MANIFEST)):
        return exits.EXIT_OK
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "build",
        "--config",
        dataset.config,
        f"output={dataset.uri}",
    ]
    say(f"building the dataset: python {' '.join(command[1:])}")
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Preempted):  # Ctrl-C has reached it, too
            process.terminate()
        process.wait()
        raise
