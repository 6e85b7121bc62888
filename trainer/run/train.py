"""The training run: set up or taken up again, step by step, validate, save, export, register."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import cache
from typing import get_args

import torch

from cluster.process.exits import EXIT_OK, EverywhereError, StopSignals, after_launcher
from cluster.process.heartbeat import heart
from cluster.storage import store
from cluster.storage.lock import Lock, LockedError, hold
from configs import ConfigError
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.core.console import Progress, say
from trainer.data.dataset import open_datasets
from trainer.data.loader import Reader, open_reader
from trainer.data.sampling import SamplingPlan
from trainer.distill.step import Method, held_out_readings, train_step
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.evaluation.held_out import Validator
from trainer.evaluation.statistics import standard_error
from trainer.losses.config import projection_heads
from trainer.models import pretrained
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.run import run_status
from trainer.run.artifacts import Record, export_to_run_dir
from trainer.run.checkpoint.resume import resume
from trainer.run.checkpoint.save import Saver
from trainer.run.config import TrainConfig
from trainer.run.flops import step_flops
from trainer.run.run_status import Looked, Status
from trainer.run.throughput import Meter
from trainer.run.train_state import State, apply, count_skipped_blocks, end_if_stuck, first_state, judge
from trainer.tracking.mlflow_client import TrackError


def train(
    config: TrainConfig, *, device: torch.device, group: Group, stops: StopSignals | None = None
) -> int:
    """Run ``config`` to its last step, from the newest checkpoint in run.dir on; results lie there and in
    MLflow.

    Gives the exit code: EXIT_OK, or, where ``stops`` told any rank to stop, its code; the state is then
    saved.

    Raises:
        ConfigError: world size or run.dir do not fit. StoreError, ValueError, RuntimeError: the work failed.
    """
    faults = config.world_faults(group.size)
    if faults:
        raise ConfigError("\n  ".join(faults))
    if _look(config, group, device) is None:
        return EXIT_OK
    with collectives.together(group, device=device):
        datasets = list(open_datasets(config.data, "train", warn=say).values())
    validator = Validator(config.data, config.val, config.views, device=device, group=group)
    with _alone(config, group, device) as lock:
        found = _look(config, group, device, alone=True)  # a run that held the lock may have finished it
        if found is None:
            return EXIT_OK
        config, again = found
        engine, teacher = build(config, device=device, group=group)
        state = first_state(config, teacher, device=device)
        digests = {dataset.uri: dataset.digest for dataset in datasets}
        resumed = resume(config.run.dir, engine, state, datasets=digests, say=say)
        with collectives.together(group, device=device):
            reader = open_reader(
                config.data,
                datasets,
                plan=sampling_plan(config),
                group=group,
                soft=config.loss.needs_soft_mask,
                device=device,
                warn=say,
            )
        with closing(reader):
            if resumed:
                assert reader.step_of(resumed.position) == state.step, "the position is the step's"
            if group.rank == 0:
                for uri in validator.left_out:
                    say(f"{uri} has no val split: it is trained on, and left out of validation")
                if resumed:
                    say(f"going on after step {state.step}, from {resumed.uri}")
            tags = {"world_size": str(group.size), "zero_stage": str(engine.settings.zero_stage)}
            with _recorded(
                group,
                device,
                lambda: Record(
                    config,
                    again=again,
                    resumed=resumed,
                    parameters=pretrained.parameter_count(engine.network),
                    digests=list(digests.values()),
                    tags=tags,
                ),
            ) as run:
                hooks = None
                if run:
                    assert lock, "rank 0 holds it"
                    run_status.write(config)
                    hooks = run.hooks(lock.check)
                saver = Saver(config, engine, datasets=digests, hooks=hooks)
                code = _train(config, state, engine, reader, validator, saver, run, stops)
                return _finish(config, state, group, run, code)


@contextmanager
def _recorded(group: Group, device: torch.device, begin: Callable[[], Record]) -> Iterator[Record | None]:
    """The record that rank 0 begins. EverywhereError, before any rank has trained, if that is refused."""
    with ExitStack() as begun:
        run, fault = None, ""
        if group.rank == 0:
            try:
                run = begun.enter_context(begin())
            except (TrackError, ValueError, store.StoreError) as refusal:
                fault = str(refusal)
        if text := collectives.text_from_first(group, fault, device=device):
            raise EverywhereError(text)
        yield run


def sampling_plan(config: TrainConfig) -> SamplingPlan:
    """All that decides which windows each step reads."""
    return SamplingPlan.of(
        config.data,
        seed=config.run.seed,
        global_batch=config.train.global_batch,
        flank=config.views.flank,
    )


def build(config: TrainConfig, *, device: torch.device, group: Group) -> tuple[Engine, ShardedEMA[Network]]:
    """Student under DeepSpeed and its teacher; the same weights for the same seed on any number of ranks."""
    torch.manual_seed(config.run.seed)
    backbone = build_backbone(config.model, activation_checkpointing=config.train.activation_checkpointing)
    network = Network(backbone, heads=projection_heads(config.loss.terms(), backbone.hidden_size))
    settings = config.train.engine_settings(group.size)
    engine = Engine(network, settings=settings, device=device, group=group)
    return engine, engine.teacher()


def _train(
    config: TrainConfig,
    state: State,
    engine: Engine,
    reader: Reader,
    validator: Validator,
    saver: Saver,
    run: Record | None,
    stops: StopSignals | None,
) -> int:
    group, device, last = engine.group, validator.device, config.train.steps
    baselines = validator.baselines(reader.datasets) if state.step < last else {}
    if state.step == 0:
        _validate(config, state, engine, validator, run, baselines)
    meter = Meter(device=device, dtype=engine.settings.compute_dtype)
    flops = cache(lambda length: step_flops(config, engine.network, length=length, ranks=group.size))
    progress = Progress(last, done=state.step, shown=run is not None, bp_left=config.bp(state.step, last))
    batches = reader.batches(state.step, last)
    method = Method(config.views, config.loss.terms(), config.train.global_batch, group)
    if stops:
        stops.between_steps()
    while state.step < last:
        heart.step(state.step + 1)
        with meter.waiting(), heart.inside("waiting for data", phase=True):
            batch = next(batches)
        length = batch.windows.length
        meter.expect(bp_per_step=config.train.global_batch * length, flops_per_step=flops(length))
        micro_batches = [windows.to(device) for windows in batch.split(config.micro_batch(group.size))]
        result = train_step(
            engine,
            state.teacher,
            micro_batches,
            method=method,
            states=state.centres,
            measure=_due(state.step + 1, config.health.every),
            stop_code=lambda: stops.code if stops else 0,
        )
        metrics = apply(config, state, engine, result, ids_B4=batch.ids_B4)
        if state.skipped_blocks is not None:
            state.skipped_blocks.add(batch.skipped)
        meter.step()
        collapse = None
        if result.health and result.finite:
            read, collapse = judge(state, result.health, group=group)
            metrics |= read
        if run and "train/skipped_steps" in metrics:
            say(f"step {state.step} is skipped: loss or gradient is not finite, {result.losses}")
        tracked = _due(state.step, config.track.every)
        if tracked or state.step == last:
            metrics |= count_skipped_blocks(state, group, device=device)
        if run:
            run.log(metrics | (meter.read() if tracked else {}), step=state.step)
            progress.advance(f"loss {result.losses['total']:.4f}", bp=config.train.global_batch * length)
        end_if_stuck(config, state, group)
        if collapse and config.health.on_collapse == "stop":
            raise RuntimeError(f"{collapse}; with health.on_collapse=warn the run would go on")
        if run and collapse:
            say(f"{collapse}; the run goes on, with health.on_collapse=stop it would end here")
        if _due(state.step, config.val.every) or state.step == last:
            _validate(config, state, engine, validator, run, baselines)
            meter.restart()
            progress.restart()
        if (
            _due(state.step, config.checkpoint.every)
            or result.stop
            or (config.checkpoint.every and state.step == last)
        ):
            stalled = saver.save(state, reader.position(state.step))
            if run:
                run.log({"checkpoint/stall_ms": stalled * 1e3}, step=state.step)
            meter.restart()
            progress.restart()
        if result.stop and state.step < last:
            progress.close()
            saver.wait()
            if saver.newest != state.step:
                raise EverywhereError(
                    f"told to stop, but step {state.step} could not be saved; the same command goes "
                    "on from the checkpoint before"
                )
            if run:
                whose = after_launcher() if stops and stops.interrupted else ""
                say(
                    f"told to stop: step {state.step} is saved, and the same command goes on from "
                    f"there{whose}"
                )
            return result.stop
    progress.close()
    saver.wait()
    return EXIT_OK


def _finish(config: TrainConfig, state: State, group: Group, run: Record | None, code: int) -> int:
    """Export and registration of a run whose training ended with EXIT_OK; the code."""
    if code == EXIT_OK:
        export_to_run_dir(config, state, group)
        _publish(run, group, state.teacher.shards[0].device)
    elif run:
        run.end("KILLED")
    return code


def _publish(run: Record | None, group: Group, device: torch.device) -> None:
    """Rank 0 tells MLflow of the finished run, all wait. EverywhereError if MLflow does not take it."""
    fault = ""
    if run:
        try:
            run.publish()
        except (TrackError, store.StoreError) as refusal:
            fault = str(refusal)
    if text := collectives.text_from_first(group, fault, device=device):
        raise EverywhereError(
            f"the run is finished and its export is in run.dir, but it is not registered: {text}"
        )


def _due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at ``step``."""
    return every > 0 and step % every == 0


def _validate(
    config: TrainConfig,
    state: State,
    engine: Engine,
    validator: Validator,
    run: Record | None,
    baselines: dict[str, float],
) -> None:
    teacher = state.teacher.module
    with heart.inside("validation", phase=True):
        metrics = validator.masked(teacher) | validator.masked(engine.network, "val/student_") | baselines
        metrics |= validator.health(teacher, held_out_readings(config.loss.terms(), state.centres))
    if run:
        run.log(metrics, step=state.step)
        accuracy = metrics["val/mlm_accuracy"]
        error = standard_error(accuracy, validator.scored)
        say(
            f"step {state.step}: val accuracy {accuracy:.4f} ± {error:.4f} "
            f"(majority {baselines['val/mlm_accuracy_majority']:.4f}, "
            f"Markov {baselines['val/mlm_accuracy_markov']:.4f}), "
            f"effective rank {metrics['health/effective_rank']:.1f}"
        )


def _look(
    config: TrainConfig, group: Group, device: torch.device, *, alone: bool = False
) -> tuple[TrainConfig, bool] | None:
    """``config``, with the schedule that the run in run.dir began with, and whether one did; None if it is
    finished.

    ``alone``: the lock is held. A finished run that MLflow has not got all of is delivered.

    Raises:
        ConfigError: run.dir holds anything else. Rank 0 looks, all hear. EverywhereError: it cannot be looked
        at.
    """
    found, fault = Looked("new"), ""
    if group.rank == 0:
        try:
            found = run_status.look(config)
        except ConfigError as refusal:
            fault = str(refusal)
        except store.StoreError as failure:
            fault = f"!{failure}"
    answer = fault or f"{found.status} {found.schedule_steps} {int(found.again)}"
    text = collectives.text_from_first(group, answer, device=device)
    if text.startswith("!"):
        raise EverywhereError(text[1:])
    status, *more = text.split(" ")
    if status not in get_args(Status):
        raise ConfigError(text)
    steps, again = (int(each) for each in more)
    if status == "undelivered":
        with nullcontext() if alone else _alone(config, group, device):
            _publish(Record(config, again=True) if group.rank == 0 else None, group, device)
        return None
    if status == "finished":
        if group.rank == 0:
            say(f"{config.run.dir} holds this run, finished; nothing to do")
        return None
    if steps in (0, config.schedule_steps):
        return config, bool(again)
    if group.rank == 0 and config.train.schedule_steps is None:
        say(
            f"train.steps is {config.train.steps} now; the schedules stay those of {steps} steps, as the "
            f"run began"
        )
    train = config.train.model_copy(update={"schedule_steps": steps})
    return config.model_copy(update={"train": train}), bool(again)


@contextmanager
def _alone(config: TrainConfig, group: Group, device: torch.device) -> Iterator[Lock | None]:
    """The only run with this run.dir. Rank 0 holds the lock for all; EverywhereError if another run does."""
    with ExitStack() as held:
        lock, fault = None, ""
        if group.rank == 0:
            try:
                lock = held.enter_context(
                    hold(config.run.dir, name=run_status.LOCK, token=os.environ.get("DNA_RUN_TOKEN"))
                )
            except (LockedError, store.StoreError) as refusal:
                fault = str(refusal)
        if text := collectives.text_from_first(group, fault, device=device):
            raise EverywhereError(text)
        yield lock
