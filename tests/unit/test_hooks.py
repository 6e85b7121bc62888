"""Each hook alone: when it acts, what it adds, says, or raises. The whole loop is tested in tests/dist."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.process.exits import EXIT_PREEMPTED, EverywhereError
from trainer.core.collectives import Group
from trainer.distill.config import Health
from trainer.distill.result import Reduced, StepResult
from trainer.evaluation.config import Validation
from trainer.run import hooks
from trainer.run.checkpoint.config import Checkpoint
from trainer.run.hooks import Hook, StepOutcome
from trainer.run.train_state import SkippedBlocks, TrainState
from trainer.tracking.config import Track

ALONE, CPU = Group(0, 1), torch.device("cpu")
SECOND = Group(1, 2)


class Stub:
    """Stands for whatever a hook calls: writes down what is asked of it, in order."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[Any] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, *args, *kwargs.values()))
            return self.answers.get(name)

        return call


class Guard:
    def __init__(self, sentence: str | None) -> None:
        self.sentence, self.collapsed = sentence, sentence is not None

    def check(self, readings: dict[str, float], *, step: int) -> str | None:
        return self.sentence


class Windows:
    length = 100


class Batch:
    windows = Windows()
    skipped = frozenset({(0, 0, 5)})


def state(step: int, guard: Any = None, **changes: Any) -> TrainState:
    return TrainState(step, Stub(), {}, guard, **changes)  # type: ignore[arg-type]


def outcome(*, is_last: bool = False, stop: int = 0, **changes: Any) -> StepOutcome:
    result = StepResult(lambda: Reduced({"mlm": 1.5, "total": 2.5}, True, stop), {}, {})
    values = {"result": result, "metrics": {"loss/total": 2.5}, "collapse": None} | changes
    return StepOutcome(Batch(), bp=800, is_last=is_last, **values)  # type: ignore[arg-type]


def test_something_is_due_at_multiples_and_with_0_never() -> None:
    assert [step for step in range(1, 10) if hooks.is_due(step, 3)] == [3, 6, 9]
    assert not any(hooks.is_due(step, 0) for step in range(10))


def test_a_hook_that_overrides_nothing_does_nothing() -> None:
    step = outcome()
    Hook().after_step(state(1), step)
    Hook().at_end(state(1), 0)
    assert (step.metrics, step.collapse, step.paused) == ({"loss/total": 2.5}, None, False)


@pytest.mark.parametrize("sentence", [None, "step 4: a point"])
def test_health_readings_become_metrics_and_a_collapse_is_noted(sentence: str | None) -> None:
    check = hooks.CheckHealth(ALONE)
    step = outcome(result=StepResult(lambda: Reduced({"total": 1.0}, True), {}, {"health/kl": 0.5}))
    check.after_step(state(4, Guard(sentence)), step)
    assert step.metrics == {
        "loss/total": 2.5,
        "batch_health/kl": 0.5,
        "batch_health/collapsed": float(sentence is not None),
    }
    assert step.collapse == sentence


def test_the_health_of_a_skipped_step_is_not_judged() -> None:
    step = outcome(result=StepResult(lambda: Reduced({"total": 1.0}, False), {}, {"health/kl": 0.5}))
    hooks.CheckHealth(ALONE).after_step(state(4, Guard("a point")), step)
    assert (step.metrics, step.collapse) == ({"loss/total": 2.5}, None)


def test_skipped_blocks_are_counted_at_tracked_steps_and_after_the_last() -> None:
    count = hooks.CountSkippedBlocks(Track(every=2), group=ALONE, device=CPU)
    counted = []
    blocks = SkippedBlocks()
    for number in (1, 2, 3):
        step = outcome(is_last=number == 3)
        count.after_step(state(number, skipped_blocks=blocks), step)
        counted.append(step.metrics.get("data/skipped_blocks"))
    assert counted == [None, 1.0, 1.0]
    step = outcome(is_last=True)
    count.after_step(state(4), step)
    assert step.metrics == {"loss/total": 2.5}, "where a damaged block ends the run none is counted"


def test_metrics_are_logged_with_the_step_and_throughput_when_it_is_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifacts, meter, progress = Stub(), Stub(read={"throughput/bp_per_s": 9.0}), Stub()
    log = hooks.LogMetrics(
        Track(every=2),
        artifacts=artifacts,
        meter=meter,
        progress=progress,
        step_flops=lambda length: 7.0 * length,
    )  # type: ignore[arg-type]
    log.after_step(state(1), outcome())
    log.after_step(state(2), outcome(metrics={"train/skipped_steps": 1.0}))
    log.at_end(state(2), 0)
    assert artifacts.asked == [
        ("log", {"loss/total": 2.5}, 1),
        ("log", {"train/skipped_steps": 1.0, "throughput/bp_per_s": 9.0}, 2),
    ]
    assert meter.asked == [("step", 800, 700.0, True), ("step", 800, 700.0, False), ("read",)]
    assert progress.asked == [("advance", "loss 2.5000", 800), ("advance", "loss 2.5000", 800), ("close",)]
    assert capsys.readouterr().err == (
        "step 2 is skipped: loss or gradient is not finite, {'mlm': 1.5, 'total': 2.5}\n"
    )


def test_other_ranks_only_count(capsys: pytest.CaptureFixture[str]) -> None:
    meter, progress = Stub(), Stub()
    log = hooks.LogMetrics(Track(every=1), artifacts=None, meter=meter, progress=progress, step_flops=float)  # type: ignore[arg-type]
    log.after_step(state(1), outcome(metrics={"train/skipped_steps": 1.0}))
    assert (meter.asked, progress.asked) == ([("step", 800, 100.0, False)], [])
    assert capsys.readouterr().err == ""


def test_too_many_skipped_steps_end_the_run(tmp_path: Path) -> None:
    end = hooks.EndIfStuck(run_dir=str(tmp_path), max_skipped=2, group=ALONE)
    ids_B4 = torch.zeros(1, 4, dtype=torch.int64)
    now = state(3, skipped_ids={2: ({"total": 1.0}, ids_B4)})
    now.teacher.shards = [torch.zeros(1)]
    end.after_step(now, outcome())
    now.skipped_ids[3] = ({"total": 2.0}, ids_B4)
    with pytest.raises(RuntimeError, match=r"^step 3: no finite loss and gradient in 2 steps in a row"):
        end.after_step(now, outcome())


def test_a_collapse_ends_the_run_or_is_said_by_the_first_rank(capsys: pytest.CaptureFixture[str]) -> None:
    step = outcome(collapse="step 4: a point")
    for group in (ALONE, SECOND):
        hooks.OnCollapse(Health(on_collapse="warn"), group=group).after_step(state(4), step)
        with pytest.raises(
            RuntimeError, match=r"^step 4: a point; with health.on_collapse=warn the run would"
        ):
            hooks.OnCollapse(Health(on_collapse="stop"), group=group).after_step(state(4), step)
    assert capsys.readouterr().err == (
        "step 4: a point; the run goes on, with health.on_collapse=stop it would end here\n"
    )
    hooks.OnCollapse(Health(on_collapse="stop"), group=ALONE).after_step(state(4), outcome())


BASELINES = {"val/mlm_accuracy_majority": 0.3, "val/mlm_accuracy_markov": 0.4}


def test_validation_is_due_at_its_steps_and_after_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    validator = Stub(
        masked={"val/mlm_accuracy": 0.5}, health={"health/effective_rank": 3.0}, standard_error=0.01
    )
    validator.scored = 2500
    artifacts = Stub()
    validate = hooks.Validate(
        Validation(every=3),
        validator=validator,
        student="student",
        readings=lambda now: f"readings of step {now.step}",
        baselines=BASELINES,
        artifacts=artifacts,
    )  # type: ignore[arg-type]
    paused = []
    for number in range(1, 6):
        step = outcome(is_last=number == 5)
        now = state(number)
        now.teacher.module = "teacher"
        validate.after_step(now, step)
        paused.append(step.paused)
    assert paused == [False, False, True, False, True]
    metrics = {"val/mlm_accuracy": 0.5, "health/effective_rank": 3.0, **BASELINES}
    assert artifacts.asked == [("log", metrics, 3), ("log", metrics, 5)]
    asked = [call for call in validator.asked if call[0] != "standard_error"]
    assert asked[:3] == [
        ("masked", "teacher"),
        ("masked", "student", "val/student_"),
        ("health", "teacher", "readings of step 3"),
    ]
    assert capsys.readouterr().err.splitlines()[0] == (
        "step 3: val accuracy 0.5000 ± 0.0100 (majority 0.3000, Markov 0.4000), effective rank 3.0"
    )


def checkpoints(every: int, saver: Stub, artifacts: Stub | None = None) -> hooks.SaveCheckpoints:
    position = {1: {"at": 1}, 2: {"at": 2}, 3: {"at": 3}, 4: {"at": 4}}
    return hooks.SaveCheckpoints(
        Checkpoint(every=every), saver=saver, position=position.__getitem__, artifacts=artifacts
    )  # type: ignore[arg-type]


def test_a_checkpoint_is_due_at_its_steps_after_the_last_and_when_told_to_stop() -> None:
    for every, saved in ((2, [2, 3, 4]), (0, [3])):
        saver, artifacts, paused = Stub(save=0.25), Stub(), []
        for number in (1, 2, 3, 4):
            step = outcome(is_last=number == 4, stop=EXIT_PREEMPTED if number == 3 else 0)
            checkpoints(every, saver, artifacts).after_step(state(number), step)
            paused += [number] if step.paused else []
        assert paused == saved
        assert [(call[1].step, call[2]) for call in saver.asked] == [(n, {"at": n}) for n in saved]
        assert artifacts.asked == [("log", {"checkpoint/stall_ms": 250.0}, n) for n in saved]


def test_a_run_that_could_not_be_saved_when_told_to_stop_says_so() -> None:
    saver = Stub()
    saver.newest = 2
    checkpoints(2, saver).at_end(state(3), 0)
    checkpoints(2, saver).at_end(state(2), EXIT_PREEMPTED)
    assert saver.asked == [("wait",), ("wait",)]
    with pytest.raises(
        EverywhereError, match=r"^told to stop, but step 3 could not be saved; the same command"
    ):
        checkpoints(2, saver).at_end(state(3), EXIT_PREEMPTED)


def test_clocks_restart_after_a_pause_only() -> None:
    meter, progress = Stub(), Stub()
    restart = hooks.RestartClocks(meter, progress)  # type: ignore[arg-type]
    restart.after_step(state(1), outcome())
    assert meter.asked == progress.asked == []
    restart.after_step(state(1), outcome(paused=True))
    assert meter.asked == [("keep", 1), ("restart",)]
    assert progress.asked == [("restart",)]


def test_the_first_rank_says_that_the_run_was_told_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    for group in (ALONE, SECOND):
        tell = hooks.SayStopped(group, lambda: "; a note")
        tell.at_end(state(9), 0)
        tell.at_end(state(3), EXIT_PREEMPTED)
    assert capsys.readouterr().err == (
        "told to stop: step 3 is saved, and the same command goes on from there; a note\n"
    )


def test_exports_begin_at_their_steps_but_the_last_and_are_validated() -> None:
    exporter, artifacts = Stub(begin=0.002), Stub()
    track = Track(register_every=2)
    begin = hooks.BeginExports(track, exporter=exporter, artifacts=artifacts)  # type: ignore[arg-type]
    validate = hooks.Validate(
        Validation(every=5),
        exports_every=track.register_every,
        validator=Stub(masked={"val/mlm_accuracy": 0.5}, health={}),  # type: ignore[arg-type]
        student="student",  # type: ignore[arg-type]
        readings=lambda now: None,  # type: ignore[arg-type, return-value]
        baselines={},
        artifacts=None,
    )
    paused = {"export": list[bool](), "validation": list[bool]()}
    for number in range(1, 7):
        for name, hook in (("validation", validate), ("export", begin)):
            step = outcome(is_last=number == 6)
            hook.after_step(state(number), step)
            paused[name].append(step.paused)
    begin.at_end(state(6), 0)
    assert paused["export"] == [False, True, False, True, False, False]
    assert paused["validation"] == [False, True, False, True, True, True]
    assert [call[0] for call in exporter.asked] == ["begin", "begin", "wait"]
    assert artifacts.asked == [("log", {"export/stall_ms": 2.0}, step) for step in (2, 4)]


def test_versions_while_training_need_a_name() -> None:
    with pytest.raises(ValueError, match="register_every needs the name of a model in registered_model, or"):
        Track(register_every=2, registered_model=None)
