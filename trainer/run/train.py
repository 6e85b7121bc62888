"""The training run: set up or taken up again, trained step by step, exported and registered."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache

import torch

from cluster.process.exits import EXIT_OK
from cluster.process.heartbeat import heartbeat
from cluster.process.signals import StopSignals, after_launcher
from configs import ConfigError
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import Progress, say
from trainer.data.batch import Batch
from trainer.data.dataset import open_datasets
from trainer.data.loader import Reader
from trainer.data.regions import open_regions
from trainer.distill.health import held_out_readings
from trainer.distill.method import Method
from trainer.distill.step import train_step
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.engine.recipe import Recipe
from trainer.evaluation.held_out import Validator
from trainer.losses.config import projection_heads
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.run import reading, run_dir, run_status, world_size
from trainer.run.artifacts import Artifacts, begin_artifacts, publish
from trainer.run.beginning import check_kernels, say_beginning, start_of
from trainer.run.checkpoint.resume import resume
from trainer.run.checkpoint.save import Saver
from trainer.run.config import TrainConfig
from trainer.run.export import Exporter
from trainer.run.flops import step_flops
from trainer.run.goodput import Goodput
from trainer.run.hooks import (
    BeginExports,
    CheckHealth,
    CountSkippedBlocks,
    EndIfStuck,
    Hook,
    LogMetrics,
    OnCollapse,
    RestartClocks,
    SaveCheckpoints,
    SayStopped,
    StepOutcome,
    Validate,
    is_due,
)
from trainer.run.online_readings import Fits, OpenTasks, open_fits, open_tasks, task_hook
from trainer.run.region_shares import LogRegionShares
from trainer.run.run_card import run_card
from trainer.run.throughput import Meter
from trainer.run.train_state import TrainState, apply, first_state


@dataclass(frozen=True)
class TrainingRun:
    """A run that is set up: what its steps and its hooks work with. What changes is in the TrainState."""

    config: TrainConfig
    method: Method
    engine: Engine
    reader: Reader
    validator: Validator
    tasks: OpenTasks
    saver: Saver
    exporter: Exporter
    artifacts: Artifacts | None  # on rank 0
    fits: Fits | None  # of tasks, on rank 0
    stops: StopSignals | None

    def stop_code(self) -> int:
        """The exit code that this rank was told to stop with, 0 if it was not."""
        return self.stops.code if self.stops else 0

    def launcher_note(self) -> str:
        """Words about what DeepSpeed's launcher prints when the run ends by Ctrl-C."""
        return after_launcher() if self.stops and self.stops.had_ctrl_c else ""


def train(
    config: TrainConfig,
    *,
    device: torch.device,
    group: Group,
    stops: StopSignals | None = None,
    hooks: Sequence[Hook] = (),
) -> int:
    """The exit code of the run ``config``, trained to its last step from the newest checkpoint in run.dir on.

    EXIT_OK, or, where ``stops`` told any rank to stop, its code; the state is then saved. Results are in
    run.dir and in MLflow. ``hooks``: called after each step on all ranks, before the step is logged.

    Raises:
        ConfigError: world size, run.dir or model.kernel do not fit. StoreError, ValueError, RuntimeError: the
            work failed.
    """
    if faults := world_size.faults(config.train, lanes=config.data.lanes, world=group.size):
        raise ConfigError("\n  ".join(faults))
    if (plan := run_dir.plan(config, group)) is None:
        return EXIT_OK
    begun_with = plan.datasets
    with collectives.together(group):
        datasets = list(open_datasets(config.data, "train", digests=begun_with, warn=say).values())
        regions = open_regions(config.data.regions, datasets, warn=say if group.rank == 0 else lambda _: None)
    validator = Validator(
        config.data, config.val, config.views, digests=begun_with, device=device, group=group
    )
    with (
        open_tasks(config.val, group, device=device) as tasks,
        run_dir.hold_lock(config.run.dir, group) as lock,
    ):
        plan = run_dir.plan(config, group, locked=True)  # a run that held the lock may have finished this one
        if plan is None:
            return EXIT_OK
        config = plan.config
        engine, teacher = build(config, device=device, group=group)
        kernels = check_kernels(engine)
        state = first_state(config, teacher, device=device)
        digests = {dataset.uri: dataset.digest for dataset in datasets}
        digests |= {bed.uri: bed.sha256 for bed in regions}
        resumed = resume(config.run.dir, engine, state, datasets=digests, say=say)
        method = Method(config.views, config.loss.terms(), config.train.global_batch, group)
        data = reading.Opened(datasets, regions)
        with closing(reading.open_run_reader(config, method, data, engine, resumed)) as reader:
            if group.rank == 0:
                say_beginning(validator, data, resumed, kernels=kernels)
            start = start_of(engine, data, validator, tasks.shared, resumed)
            with (
                begin_artifacts(config, group, same_run=plan.same_run, start=start) as artifacts,
                open_fits(tasks, artifacts, stopping=lambda: bool(stops and stops.code)) as fits,
            ):
                exported, card = artifacts.exported if artifacts else None, None
                if artifacts:
                    card = run_card(
                        config,
                        engine,
                        method=method,
                        datasets=datasets,
                        resumed_at=state.step,
                        held_out=artifacts.validated,
                    )
                exporter, callbacks = Exporter(config, engine, exported=exported, card=card), None

                def settled() -> None:
                    exporter.written()
                    if fits:
                        fits.wait()

                if artifacts:
                    assert lock, "rank 0 holds it"
                    run_status.write_config(config)
                    callbacks = artifacts.save_callbacks(lock.check, settled=settled)
                saver = Saver(config, engine, datasets=digests, callbacks=callbacks)
                run = TrainingRun(
                    config, method, engine, reader, validator, tasks, saver, exporter, artifacts, fits, stops
                )
                return _train(run, state, hooks)


def build(config: TrainConfig, *, device: torch.device, group: Group) -> tuple[Engine, ShardedEMA[Network]]:
    """Student under DeepSpeed and its teacher; the same weights for the same seed on any number of ranks."""

    def make() -> Network:
        backbone = build_backbone(
            config.model, activation_checkpointing=config.train.activation_checkpointing
        )
        return Network(backbone, heads=projection_heads(config.loss.terms(), backbone.hidden_size))

    settings = config.train.engine_settings(group.size)
    engine = Engine(Recipe(make, seed=config.run.seed), settings=settings, device=device, group=group)
    return engine, engine.teacher()


def _train(run: TrainingRun, state: TrainState, user_hooks: Sequence[Hook]) -> int:
    """The exit code, once the run is trained and published, or its state is saved as it was told to stop."""
    config, group = run.config, run.engine.group
    terms = run.method.terms
    baselines = run.validator.baselines(run.reader.datasets) if state.step < config.train.steps else {}
    validation = Validate(
        config.val,
        exports_every=config.track.register_every,
        validator=run.validator,
        student=run.engine.network,
        readings=lambda now: held_out_readings(terms, now.centres),
        baselines=baselines,
        artifacts=run.artifacts,
    )
    task_readings = task_hook(
        config, tasks=run.tasks.shared, method=run.method, network=run.engine.network, fits=run.fits
    )
    if state.step == 0:
        validation.run(state)
        task_readings.run(state)
    goodput = Goodput(config.run.dir, step=state.step, say=say) if run.artifacts else None
    dtype = run.engine.settings.compute_dtype
    meter = Meter(device=run.engine.device, dtype=dtype, ranks=group.size, goodput=goodput)
    hooks = _all_hooks(run, state, [validation, task_readings], meter, user_hooks)
    if run.stops:
        run.stops.defer()
    code = _loop(run, state, hooks, meter)
    if code != EXIT_OK:
        if run.artifacts:
            run.artifacts.end("KILLED")
        return code
    if run.artifacts:
        run.artifacts.sync()
    run.exporter.finish(state)
    publish(run.artifacts, group)
    return EXIT_OK


def _all_hooks(
    run: TrainingRun,
    state: TrainState,
    validation: Sequence[Hook],
    meter: Meter,
    user_hooks: Sequence[Hook],
) -> list[Hook]:
    """What happens after each step, in this order; LogMetrics logs the metrics of the hooks before it."""
    config, engine, group, last = run.config, run.engine, run.engine.group, run.config.train.steps
    progress = Progress(
        last, done=state.step, visible=run.artifacts is not None, bp_left=config.bp(state.step, last)
    )
    flops = cache(lambda length: step_flops(run.method, engine.network, length=length))
    return [
        CheckHealth(group),
        CountSkippedBlocks(config.track, group=group, device=engine.device),
        LogRegionShares(config.track, config.data.regions, shares=run.reader.shares),
        *user_hooks,
        LogMetrics(config.track, artifacts=run.artifacts, meter=meter, progress=progress, step_flops=flops),
        EndIfStuck(run_dir=config.run.dir, max_skipped=config.train.max_skipped, group=group),
        OnCollapse(config.health, group=group),
        *validation,
        BeginExports(config.track, exporter=run.exporter, artifacts=run.artifacts),
        SaveCheckpoints(
            config.checkpoint, saver=run.saver, position=run.reader.position, artifacts=run.artifacts
        ),
        RestartClocks(meter, progress),
        SayStopped(group, run.launcher_note),
    ]


def _loop(run: TrainingRun, state: TrainState, hooks: Sequence[Hook], meter: Meter) -> int:
    """EXIT_OK after the last step, or the code that some rank was told to stop with before."""
    code = EXIT_OK
    for batch in _batches(run, state, meter):
        step = take_step(run, state, batch)
        for hook in hooks:
            hook.after_step(state, step)
        if step.result.stop and not step.is_last:
            code = step.result.stop
            break
    for hook in hooks:
        hook.at_end(state, code)
    return code


def _batches(run: TrainingRun, state: TrainState, meter: Meter) -> Iterator[Batch]:
    """The batches of the steps after that of ``state``, up to the last; the wait for each is measured."""
    first, last = state.step, run.config.train.steps
    batches = run.reader.batches(first, last)
    for step in range(first + 1, last + 1):
        heartbeat.step(step)
        with meter.waiting(), heartbeat.inside("waiting for data", phase=True):
            batch = next(batches)
        yield batch


def take_step(run: TrainingRun, state: TrainState, batch: Batch) -> StepOutcome:
    """What the step of ``batch`` gave; ``state`` is the state after it. A collective."""
    config, engine = run.config, run.engine
    result = train_step(
        engine,
        state.teacher,
        reading.step_inputs(config, engine, batch),
        method=run.method,
        states=state.centres,
        moment=config.moment(state.step),
        measure=is_due(state.step + 1, config.health.every),
        stop_code=run.stop_code,
    )
    metrics = apply(state, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4)
    bp = config.train.global_batch * batch.windows.length
    return StepOutcome(batch, result, metrics, bp, is_last=state.step == config.train.steps)
