"""What rank 0 leaves of a run in MLflow: points, tags and files, and the registered model."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import configs
from cluster.process.heartbeat import heartbeat
from cluster.storage import store
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.models import pretrained
from trainer.run import export, run_spec, run_status
from trainer.run.checkpoint.save import SaveCallbacks
from trainer.run.config import TrainConfig
from trainer.run.run_spec import Start
from trainer.run.run_story import RunStory
from trainer.tracking.mlflow_client import TrackError
from trainer.tracking.uploader import Uploader
from trainer.tracking.versions import Registering

_STOPPED_S = 5.0  # that a run which is told to stop waits for MLflow


class Artifacts:
    """What rank 0 leaves of a run: points, tags and files in its MLflow run, the registered model."""

    def __init__(self, config: TrainConfig, *, same_run: bool, start: Start | None = None) -> None:
        """``same_run``: run.dir holds this very run, so that its MLflow run goes on. ``start``: None if there
        is nothing to train, only to deliver.

        Raises:
            TrackError, ValueError: MLflow refuses. StoreError: run.dir does not take the key.
        """
        self._config, self._run_dir, self._track = config, config.run.dir, config.track
        self._steps = config.train.steps
        key = run_spec.key_of(config.run.dir, same_run=same_run)
        spec, folder = run_spec.build(config, key, start), run_spec.outbox_folder(config.run.dir, key)
        self._story = RunStory(config, start, folder)
        try:
            self._uploader = Uploader(
                spec,
                folder,
                after=start.step if start else None,
                tail=start.waiting if start else b"",
                registering=_registering_of(config),
            )
        except BaseException:
            self._story.close()
            raise
        self._uploader.attach_dict(configs.dump(config), "config.yaml")
        self._take_up_exports(start)
        self._ended = False
        if self._uploader.id:
            say(" ".join(filter(None, ["MLflow run", self._uploader.id, self._uploader.page])))
        self._story.begin(self._uploader)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of ``step`` go to MLflow; what it does not take yet waits."""
        self._uploader.log(metrics, step=step)
        self._story.after(metrics, step=step)

    def log_late(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of an earlier step, from any thread; of each metric the steps come in order."""
        self._uploader.log(metrics, step=step)

    def validated(self, step: int) -> Mapping[str, float]:
        """The metrics of the validation after ``step``; empty if that was not the last one."""
        return self._story.validated(step)

    def exported(self, step: int) -> None:
        """The export of ``step`` is whole, and becomes a version as soon as MLflow takes it."""
        self._uploader.export(step, bp=self._config.bp(0, step))

    def _take_up_exports(self, start: Start | None) -> None:
        """Exports of steps that are behind the run wait in run.dir also if the outbox was lost. One of a
        finished run is made again of its files, in case it is not delivered."""
        if start is None and self._steps not in export.waiting(self._run_dir):
            pretrained.copy(self._run_dir, export.place(self._run_dir, self._steps))
        for step in export.waiting(self._run_dir):
            if start is None or step <= start.step:
                self.exported(step)

    def save_callbacks(self, check_lock: Callable[[], None], *, settled: Callable[[], None]) -> SaveCallbacks:
        """What is done around a checkpoint; ``check_lock`` raises if run.dir is no longer this run's.

        ``settled`` returns when nothing is under way that a run which goes on from the checkpoint would not
        do again: no export is being written, and no reading of labelled tasks waits for its fit.
        """

        def before() -> None:
            check_lock()
            settled()
            self._uploader.sync()
            self._story.log.keep()

        def after(uri: str, sha256: str) -> None:
            self._uploader.tag({"checkpoint.uri": store.absolute(uri), "checkpoint.sha256": sha256})

        # Beside a local run.dir the outbox itself outlives this process.
        metrics = bytes if store.is_local(self._run_dir) else self._uploader.tail
        return SaveCallbacks(metrics=metrics, before=before, after=after, say=say)

    def sync(self) -> None:
        """What MLflow has not got yet outlives a kill. To be called before the run is marked as finished.

        A finished run logs nothing again. If the disk is full, ``publish`` reports it.
        """
        with suppress(store.StoreError):
            self._uploader.sync()

    def publish(self) -> None:
        """Return when MLflow has everything, the version of the last step too.

        Raises:
            TrackError: MLflow does not take it; the run is finished all the same, and the same command tries
            again.
        """
        self._ended = True
        self._story.end()
        weights = store.join(self._run_dir, pretrained.WEIGHTS)
        digest = hashlib.sha256()
        for piece in store.chunks(weights):
            digest.update(piece)
        self._uploader.tag(
            {"checkpoint.uri": store.absolute(weights), "checkpoint.sha256": digest.hexdigest()}
        )
        with heartbeat.inside("telling MLflow", phase=True, slow=True):
            self._uploader.drain(self._track.wait_s, status="FINISHED")
            self._story.last_report()
        export.remove_empty(self._run_dir)
        run_status.write_finished(self._run_dir, steps=self._steps, delivered=True)

    def end(self, status: str, *, reason: str = "") -> None:
        """The run ends early, because of ``reason``; what MLflow has not got within a few seconds waits for
        the next start."""
        self._ended = True
        self._story.end(reason)
        self._uploader.end(status, wait_s=_STOPPED_S)

    def __enter__(self) -> "Artifacts":
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: Any) -> None:
        if fault and not self._ended:
            failed = isinstance(fault, Exception)
            self.end("FAILED" if failed else "KILLED", reason=str(fault) if failed else "")
        self._story.close()


def _registering_of(config: TrainConfig) -> Registering:
    run_dir, track = config.run.dir, config.track
    return Registering(
        fetch=lambda step, folder: export.fetch(run_dir, step, folder),
        remove=lambda step: store.remove(export.place(run_dir, step)),
        candidate=track.candidate,
        keep=track.register_keep,
    )


@contextmanager
def begin_artifacts(
    config: TrainConfig, group: Group, *, same_run: bool, start: Start
) -> Iterator[Artifacts | None]:
    """The artifacts of a run that is trained: rank 0 begins them, the others have None.

    Raises:
        EverywhereError: they are refused; before any rank has trained.
    """
    with ExitStack() as stack:
        artifacts = None
        with collectives.first_rank_decides(group, TrackError, ValueError, store.StoreError):
            if group.rank == 0:
                artifacts = stack.enter_context(Artifacts(config, same_run=same_run, start=start))
        yield artifacts


def publish(artifacts: Artifacts | None, group: Group) -> None:
    """Rank 0 brings the finished run to MLflow, all wait. EverywhereError if MLflow does not take it."""
    with _registering(group):
        if artifacts:
            artifacts.publish()


def deliver(config: TrainConfig, group: Group) -> None:
    """``publish`` of a run that was finished before, of which MLflow does not have all."""
    with _registering(group):
        if group.rank == 0:
            with Artifacts(config, same_run=True) as artifacts:
                artifacts.publish()


@contextmanager
def _registering(group: Group) -> Iterator[None]:
    with collectives.first_rank_decides(group, TrackError):
        try:
            yield
        except (TrackError, ValueError, store.StoreError) as fault:
            raise TrackError(
                f"the run is finished and its export is in run.dir, but it is not registered: {fault}"
            ) from fault
