"""What happens after each step of the training: hooks, each called in turn with the state and the step's
outcome.

A hook is a class with ``after_step``. ``train(config, ..., hooks=[MyHook()])`` adds one; what it puts into
``step.metrics`` is logged with the step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.process.exits import EverywhereError
from cluster.process.heartbeat import heartbeat
from trainer.core.collectives import Group
from trainer.core.console import Progress, say
from trainer.data.batch import Batch
from trainer.distill.config import Health
from trainer.distill.result import StepResult
from trainer.evaluation.config import Validation
from trainer.evaluation.held_out import Validator
from trainer.evaluation.statistics import standard_error
from trainer.models.network import Network, Outputs
from trainer.run.artifacts import Artifacts
from trainer.run.checkpoint.config import Checkpoint
from trainer.run.checkpoint.save import Saver
from trainer.run.export import Exporter
from trainer.run.throughput import Meter
from trainer.run.train_state import TrainState, check_collapse, count_skipped_blocks, end_if_stuck
from trainer.tracking.config import Track

RowReadings = Callable[[Outputs], Mapping[str, Tensor]]  # of the teacher's outputs: name -> [B], one a row


@dataclass
class StepOutcome:
    """What one step gave. ``metrics``: what LogMetrics will log. ``bp``: that all ranks read.

    ``is_last``: of the run. ``collapse``: what the health readings of this step say has collapsed, if
    anything. ``paused``: a hook has spent time that is not to count as training.
    """

    batch: Batch
    result: StepResult
    metrics: dict[str, float]
    bp: int
    is_last: bool
    collapse: str | None = None
    paused: bool = False


class Hook:
    """Something that happens after each step, on every rank alike; the base does nothing."""

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        """``step`` is done, and ``state`` is the state after it."""

    def at_end(self, state: TrainState, stop_code: int) -> None:
        """The loop is over: with ``stop_code`` 0 after the last step, else because the run was told to
        stop."""


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at ``step``."""
    return every > 0 and step % every == 0


class CheckHealth(Hook):
    """Health readings become metrics, and what they say has collapsed is noted in the outcome."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if step.result.health and step.result.finite:
            metrics, step.collapse = check_collapse(state, step.result.health, group=self._group)
            step.metrics.update(metrics)


class CountSkippedBlocks(Hook):
    """The damaged blocks that were skipped, counted over all ranks when a step is tracked."""

    def __init__(self, track: Track, *, group: Group, device: torch.device) -> None:
        self._every, self._group, self._device = track.every, group, device

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if state.skipped_blocks is not None:
            state.skipped_blocks.add(step.batch.skipped)
        if is_due(state.step, self._every) or step.is_last:
            step.metrics.update(count_skipped_blocks(state, self._group, device=self._device))


class LogMetrics(Hook):
    """The step's metrics go to MLflow, how far the run is to the terminal; on ranks without ``artifacts``
    they are only counted.

    ``step_flops``: a rank's FLOPs of a step by the length of its windows.
    """

    def __init__(
        self,
        track: Track,
        *,
        artifacts: Artifacts | None,
        meter: Meter,
        progress: Progress,
        step_flops: Callable[[int], float],
    ) -> None:
        self._every, self._artifacts = track.every, artifacts
        self._meter, self._progress, self._step_flops = meter, progress, step_flops

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        flops = self._step_flops(step.batch.windows.length)
        self._meter.step(bp=step.bp, flops=flops, applied="train/skipped_steps" not in step.metrics)
        if not self._artifacts:
            return
        losses = step.result.losses
        if "train/skipped_steps" in step.metrics:
            say(f"step {state.step} is skipped: loss or gradient is not finite, {losses}")
        throughput = self._meter.read() if is_due(state.step, self._every) else {}
        self._artifacts.log(step.metrics | throughput, step=state.step)
        self._progress.advance(f"loss {losses['total']:.4f}", bp=step.bp)

    def at_end(self, state: TrainState, stop_code: int) -> None:
        self._progress.close()


class EndIfStuck(Hook):
    """Too many skipped steps in a row end the run."""

    def __init__(self, *, run_dir: str, max_skipped: int, group: Group) -> None:
        self._run_dir, self._max_skipped, self._group = run_dir, max_skipped, group

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        end_if_stuck(state, self._group, run_dir=self._run_dir, max_skipped=self._max_skipped)


class OnCollapse(Hook):
    """A collapse ends the run, or the first rank warns of it, by ``health.on_collapse``."""

    def __init__(self, health: Health, *, group: Group) -> None:
        self._ends, self._warns = health.on_collapse == "stop", group.rank == 0

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if step.collapse and self._ends:
            raise RuntimeError(f"{step.collapse}; with health.on_collapse=warn the run would go on")
        if step.collapse and self._warns:
            say(f"{step.collapse}; the run goes on, with health.on_collapse=stop it would end here")


class Validate(Hook):
    """Teacher and student on the held-out windows, every ``val.every`` steps, with each export, and after the
    last step.

    ``exports_every``: steps between two exports. ``readings``: what the losses read of the teacher's outputs.
    ``baselines``: metrics of the same windows that need no network.
    """

    def __init__(
        self,
        val: Validation,
        *,
        exports_every: int = 0,
        validator: Validator,
        student: Network,
        readings: Callable[[TrainState], RowReadings],
        baselines: dict[str, float],
        artifacts: Artifacts | None,
    ) -> None:
        self._every, self._validator, self._student = (val.every, exports_every), validator, student
        self._readings, self._baselines, self._artifacts = readings, baselines, artifacts

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if any(is_due(state.step, every) for every in self._every) or step.is_last:
            self.run(state)
            step.paused = True

    def run(self, state: TrainState) -> None:
        """Log and say how teacher and student do; a collective."""
        teacher, baselines = state.teacher.module, self._baselines
        with heartbeat.inside("validation", phase=True):
            metrics = self._validator.masked(teacher)
            metrics |= self._validator.masked(self._student, "val/student_") | baselines
            metrics |= self._validator.health(teacher, self._readings(state))
        if self._artifacts:
            self._artifacts.log(metrics, step=state.step)
            accuracy = metrics["val/mlm_accuracy"]
            error = standard_error(accuracy, self._validator.scored)
            say(
                f"step {state.step}: val accuracy {accuracy:.4f} ± {error:.4f} "
                f"(majority {baselines['val/mlm_accuracy_majority']:.4f}, "
                f"Markov {baselines['val/mlm_accuracy_markov']:.4f}), "
                f"effective rank {metrics['health/effective_rank']:.1f}"
            )


class BeginExports(Hook):
    """The teacher is exported every ``track.register_every`` steps, off the step's path, to become a version
    of the registered model; after the last step the run's own end does it."""

    def __init__(self, track: Track, *, exporter: Exporter, artifacts: Artifacts | None) -> None:
        self._every, self._exporter, self._artifacts = track.register_every, exporter, artifacts

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if is_due(state.step, self._every) and not step.is_last:
            stalled_s = self._exporter.begin(state)
            if self._artifacts:
                self._artifacts.log({"export/stall_ms": stalled_s * 1e3}, step=state.step)
            step.paused = True

    def at_end(self, state: TrainState, stop_code: int) -> None:
        self._exporter.wait()


class SaveCheckpoints(Hook):
    """The state is saved every ``checkpoint.every`` steps, after the last, and when the run is told to stop.

    ``position``: the reader's at a step.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        saver: Saver,
        position: Callable[[int], dict[str, Any]],
        artifacts: Artifacts | None,
    ) -> None:
        self._every, self._saver = checkpoint.every, saver
        self._position, self._artifacts = position, artifacts

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if is_due(state.step, self._every) or step.result.stop or (self._every and step.is_last):
            stalled_s = self._saver.save(state, self._position(state.step))
            if self._artifacts:
                self._artifacts.log({"checkpoint/stall_ms": stalled_s * 1e3}, step=state.step)
            step.paused = True

    def at_end(self, state: TrainState, stop_code: int) -> None:
        self._saver.wait()
        if stop_code and self._saver.newest != state.step:
            raise EverywhereError(
                f"told to stop, but step {state.step} could not be saved; the same command goes "
                "on from the checkpoint before"
            )


class RestartClocks(Hook):
    """Speed and time left count again from here after a pause; what goodput needs to go on is kept."""

    def __init__(self, meter: Meter, progress: Progress) -> None:
        self._meter, self._progress = meter, progress

    def after_step(self, state: TrainState, step: StepOutcome) -> None:
        if step.paused:
            self._meter.keep(state.step)
            self._meter.restart()
            self._progress.restart()


class SayStopped(Hook):
    """The first rank says what becomes of a run that was told to stop.

    ``launcher_note``: words about what the launcher prints; called once the state is saved.
    """

    def __init__(self, group: Group, launcher_note: Callable[[], str]) -> None:
        self._speaks, self._launcher_note = group.rank == 0, launcher_note

    def at_end(self, state: TrainState, stop_code: int) -> None:
        if stop_code and self._speaks:
            say(
                f"told to stop: step {state.step} is saved, and the same command goes on from "
                f"there{self._launcher_note()}"
            )
