"""The command ``python -m cluster finetune``: a registered model on labelled tasks, on Ray."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.process import paths
from cluster.storage import store
from cluster.tasks.pool import Needs, Pool
from cluster.tasks.ray_session import session
from configs import ConfigError
from trainer.core.console import say
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.downstream import describe_rows
from trainer.evaluation.tasks.finetune_command import refuse_json
from trainer.evaluation.tasks.fitting.prepared import Precisions
from trainer.evaluation.tasks.kept.kept_models import refuse_name
from trainer.evaluation.tasks.results.results import summarise
from trainer.evaluation.tasks.results.results_table import as_text
from trainer.evaluation.tasks.rows.data import TaskData
from trainer.tracking.config import default_tracking_uri
from trainer.tracking.mlmodel import packed_code
from trainer.tracking.registry import Registry
from trainer.workers.claims import LEASE_S, Owner
from trainer.workers.compute import resolve_precisions
from trainer.workers.doorbell import doorbell
from trainer.workers.driver import Driver
from trainer.workers.plan import WorkTask, distinct, read_configs, read_data
from trainer.workers.progress import UnitProgress
from trainer.workers.version_work import VersionWork
from trainer.workers.versions import Versions


@dataclass(frozen=True)
class WorkersRequest:
    """The options of the command; each field has the name of its option, ``overrides`` are the key=value."""

    model: str
    tasks: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    watch: bool = False
    poll_s: float = 10.0
    wait_s: float = 60.0
    lease_s: float = LEASE_S
    cpus: int | None = None
    webhook: str | None = None
    track_uri: str | None = None
    json: str | None = None


def finetune_on_workers(request: WorkersRequest) -> None:
    """Every missing result into MLflow; the table is printed, and the file of ``--json`` written, at the end
    of each version.

    Raises:
        ConfigError, StoreError, ValueError, TrackError, RuntimeError, MemoryError: each one sentence, or one
            for each fault. A unit that fails stops no other, and is reported at the end.
    """
    tasks = read_configs(request.tasks, request.overrides)
    _check(request, tasks)
    packed_code()  # while the working folder of a Ray job is surely there
    registry = Registry(request.track_uri)
    versions = Versions(registry, request.model, request.watch)
    if not request.watch:
        registry.version(request.model)  # it is there
    for task in tasks:
        refuse_name(registry, versions.name, task.name)
        if task.track.experiment:
            registry.usable(task.track.experiment)
    found = read_data(tasks)
    for task, data in found:
        for sentence in describe_rows(task, data):
            say(sentence)
    with (
        doorbell(registry, request.webhook) as bell,
        session(request.cpus),
        Pool() as pool,
        UnitProgress() as progress,
    ):
        driver = Driver(
            registry,
            versions,
            distinct(work_tasks(found, pool)),
            pool,
            wait_s=None if request.watch else request.wait_s,
            poll_s=request.poll_s,
            owner=Owner(request.lease_s),
            rung=bell.rung,
            on_version=lambda work: _tell(request, driver, work),
        )
        if request.watch:
            say(f"watching {request.model}; to end, send SIGTERM or press Ctrl-C")
        driver.run(progress)
    if failures := driver.failures():
        raise RuntimeError("\n".join(failures))


def _check(request: WorkersRequest, tasks: Sequence[TaskConfig]) -> None:
    """ConfigError, before any work, if a file cannot be read or written where the options say."""
    tracking = request.track_uri or default_tracking_uri()
    paths.refuse_lost(
        outputs={"--json": request.json, "--track-uri": tracking},
        inputs=[
            (f"{task.name}: {role}", uri) for task in tasks for role in ROLES if (uri := getattr(task, role))
        ],
    )
    refuse_json(request.json)
    if request.webhook and not request.watch:
        raise ConfigError("--webhook is for --watch, which waits for new versions")


def work_tasks(found: Sequence[tuple[TaskConfig, TaskData]], pool: Pool) -> Iterator[WorkTask]:
    """The tasks as they will be computed: a unit with the same needs says what its node computes in.

    Raises:
        RuntimeError: no node has what the units of a task need.
    """
    needs = {id(task): Needs(task.workers.cpus, task.workers.gpus) for task, _ in found}
    for number, (task, _) in enumerate(found):
        pool.submit(number, resolve_precisions, task, needs=needs[id(task)], order=0)
    resolved: dict[object, Precisions] = {}
    faults: list[str] = []
    while len(resolved) + len(faults) < len(found):
        for ended in pool.wait(1.0):
            if ended.fault:
                faults.append(f"task {found[int(str(ended.key))][0].name}: {ended.fault}")
            else:
                resolved[ended.key] = ended.result
    if faults:
        raise RuntimeError("\n".join(dict.fromkeys(faults)))
    for number, (task, data) in enumerate(found):
        yield WorkTask.of(task, data, resolved[number])


def _tell(request: WorkersRequest, driver: Driver, work: VersionWork) -> None:
    """A version is complete: its table, and the rows of all so far as JSON."""
    say(f"{work.name}: all done")
    print(as_text(summarise(list(work.results.values()))), flush=True)
    if request.json:
        rows = [result.flat() for result in driver.results()]
        store.write_bytes(request.json, json.dumps(rows, indent=1).encode() + b"\n")
