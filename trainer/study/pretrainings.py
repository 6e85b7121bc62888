"""The pretrainings of a study: ordinary runs, each a program on a node that has room, resumed and never run
twice."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.process import exits, host, paths
from cluster.tasks.pool import Ended, Needs, Pool
from cluster.tasks.programs import Program, ProgramEnd, StopFlag
from configs import ConfigError
from trainer.core.console import say
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.study.config import StudyConfig
from trainer.study.plan import Pretraining
from trainer.study.program import MAIN, run_pretraining
from trainer.tracking.config import default_tracking_uri
from trainer.tracking.known_run import KnownRun
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.registry import Registry

_RESTARTS = 3  # of a pretraining that was killed, or told to stop by somebody else


@dataclass(frozen=True)
class PretrainingKey:
    """The key of a pretraining among the tasks of the pool."""

    name: str

    def __str__(self) -> str:
        return f"pretraining {self.name}"


@dataclass(frozen=True)
class Trained:
    """A pretraining that is done: its MLflow run, and the version that it registered."""

    pretraining: Pretraining
    run_id: str
    version: str


def statuses(pretrainings: Sequence[Pretraining]) -> dict[str, str]:
    """How far each one is, by its name: new, unfinished, undelivered or finished.

    Raises:
        ConfigError: the folder of one holds another run. StoreError: it cannot be read.
    """
    found: dict[str, str] = {}
    faults: list[str] = []
    for one in pretrainings:
        try:
            found[str(one)] = run_status.inspect(one.config).kind
        except ConfigError as fault:
            faults.append(f"{one}: {fault}")
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def trained(registry: Registry, one: Pretraining) -> Trained:
    """What a finished pretraining left in MLflow. TrackError: it is not there any more."""
    version, run_id = _registered(registry, one.config)
    return Trained(one, run_id, version)


def _registered(registry: Registry, config: TrainConfig) -> tuple[str, str]:
    key = run_status.read_key(config.run.dir)
    found = registry.tagged(config.track.experiment, {"run.key": key}) if key else []
    for run in found:
        if version := run.data.tags.get("model.version"):
            return str(version), str(run.info.run_id)
    raise TrackError(
        f"{config.run.dir} holds a finished run, and MLflow has no version of it in experiment "
        f"{config.track.experiment}; restore its run, or remove the folder to train it again"
    )


@dataclass
class Pretrainings:
    """Those of a study, given to ``pool``. A VersionSource: each one that is done is a version to work on.

    Attributes:
        parent: the MLflow run that each becomes a child of.
        trains: whether those that are not done are trained; else they are left out.
        offers: whether those that are done are versions to work on.
        done: those that are finished, in the order of their end.
        failures: those that failed for their own reason, with the reason.
    """

    config: StudyConfig
    pretrainings: Sequence[Pretraining]
    pool: Pool
    registry: Registry
    parent: str
    trains: bool = True
    offers: bool = True
    done: list[Trained] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    _flag: StopFlag = field(default_factory=StopFlag)
    _waiting: list[Pretraining] = field(default_factory=list)
    _running: dict[PretrainingKey, Pretraining] = field(default_factory=dict)
    _starts: dict[str, int] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Take up what is done, and start as many of the others as may run at once."""
        status = statuses(self.pretrainings)
        for one in self.pretrainings:
            if status[str(one)] == "finished":
                self._accept(one)
                say(f"{one}: pretrained before, version {self.done[-1].version}")
            elif self.trains:
                self._waiting.append(one)
            else:
                self.failures[str(one)] = "it is not pretrained yet"
        self._start()

    @property
    def watch(self) -> bool:
        """Whether more versions may come than are pending."""
        untaken = self.offers and len(self._taken) < len(self.done)
        return bool(self._waiting or self._running or untaken)

    def pending(self) -> list[str]:
        """The versions that are not in work yet. Where ranks take their nodes for themselves, none before all
        are pretrained: units of tasks would stand in their way."""
        in_the_way = self.config.pretrain.cluster and (self._waiting or self._running)
        if in_the_way or not self.offers:
            return []
        found = [f"models:/{self.config.model}/{one.version}" for one in self.done]
        return [uri for uri in found if uri not in self._taken]

    def take(self, uri: str) -> None:
        self._taken.add(uri)

    def take_in(self, ended: Ended) -> None:
        """A task of the pool has ended that is a pretraining. May be called again after a TrackError."""
        key = ended.key
        assert isinstance(key, PretrainingKey), "what is not the driver's is a pretraining"
        one, end = self._running[key], ended.result
        if ended.fault:
            self._fail(one, str(ended.fault))
        elif end.code == exits.EXIT_OK:
            self._accept(one)
            version = self.done[-1].version
            say(f"{one}: pretrained in {end.seconds:,.0f} s on {end.node}, version {version}")
        elif _may_go_on(end) and self._starts[str(one)] <= _RESTARTS:
            say(f"{one}: {_how(end)}; going on from its newest checkpoint")
            self._waiting.insert(0, one)
        else:
            self._fail(one, _how(end))
        del self._running[key]
        self._start()

    def stop(self) -> None:
        """Tell those that run to save and end, and wait for them."""
        self.pool.drop(lambda key: True)
        if self.pool.runs(_is_ours):
            say(f"{len(self._running)} pretrainings save and end")
            self._flag.put_up()
        while self.pool.runs(_is_ours):
            self.pool.wait(0.5)

    def _accept(self, one: Pretraining) -> None:
        found = trained(self.registry, one)
        tags = {"mlflow.parentRunId": self.parent, "study": self.config.name, "study.arm": one.arm}
        KnownRun(self.registry.uri, found.run_id).tag(tags | {"study.seed": str(one.seed)})
        self.done.append(found)

    def _fail(self, one: Pretraining, reason: str) -> None:
        self.failures[str(one)] = reason
        say(f"{one}: failed: {reason}")

    def _start(self) -> None:
        most = self.config.pretrain.at_once or len(self.pretrainings)
        while self._waiting and len(self._running) < most:
            one = self._waiting.pop(0)
            key = PretrainingKey(str(one))
            self._running[key] = one
            self._starts[str(one)] = self._starts.get(str(one), 0) + 1
            needs = Needs(self.config.pretrain.cpus, self.config.pretrain.gpus)
            order = (-1, self.pretrainings.index(one))  # before all units of tasks
            program = program_of(self.config, one)
            self.pool.submit(key, run_pretraining, program, self._flag.reference, needs=needs, order=order)


def program_of(config: StudyConfig, one: Pretraining) -> Program:
    """The training command of a pretraining: a process, or ``cluster train`` with the study's cluster config.

    A process gets MLflow's URI by its environment, where nobody sees a password.
    """
    settings = config.pretrain
    directory = None if paths.temporary_folder() else os.getcwd()
    given = [word for word in one.overrides if not word.startswith("track.uri=")]
    if settings.cluster:
        if config.track.uri != default_tracking_uri():
            given.append(f"track.uri={config.track.uri}")
        training = ("--config", one.preset, *given)
        command = ("-m", "cluster", "train", "--config", settings.cluster, "--", *training)
        return Program(command, {}, directory, settings.grace_s)
    threads = str(settings.cpus) if settings.cpus else None
    environment = {"MLFLOW_TRACKING_URI": config.track.uri, host.THREADS: threads, "OMP_NUM_THREADS": threads}
    if not settings.gpus:  # Ray gives a task without a GPU all of them
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    arguments = (MAIN, "--config", one.preset, *given, "track.uri=${oc.env:MLFLOW_TRACKING_URI}")
    return Program(arguments, environment, directory, settings.grace_s)


def _is_ours(key: Any) -> bool:
    return isinstance(key, PretrainingKey)


def _may_go_on(end: ProgramEnd) -> bool:
    """Whether it was killed, or told to stop by somebody else; what fails for its own reason would again."""
    return end.code < 0 or end.code in (exits.EXIT_PREEMPTED, exits.EXIT_INTERRUPTED)


def _how(end: ProgramEnd) -> str:
    if end.code < 0:
        return f"killed by signal {-end.code} on {end.node} after {end.seconds:,.0f} s"
    if _may_go_on(end):
        return f"told to stop on {end.node}, not by this study"
    return end.error or f"exit code {end.code} on {end.node}"
