"""A step applied, or skipped as a whole, and what its health readings lead to; with an engine that does as it
is told.

What ranks must agree on is tested in tests/dist.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.storage import store
from trainer.core import schedules
from trainer.core.collectives import Group
from trainer.distill.result import Reduced, StepResult
from trainer.run import train_state
from trainer.run.config import TrainConfig
from trainer.run.run_status import NOT_FINITE
from trainer.run.train_state import TrainState, first_state

IDS = torch.tensor([[0, 1, 2, 3], [0, 1, 5, 7]])


class Told:
    """Stands for the engine and for the teacher: writes down what is asked of it, in order."""

    def __init__(self, *, applied: bool = True, norm: float = 2.0) -> None:
        self.asked: list[Any] = []
        self.answer = applied, norm
        self.group = Group(0, 1)
        self.shards = [torch.zeros(3)]
        self.module = SimpleNamespace(backbone=SimpleNamespace(summaries=2))

    def step(self, lr: float, decision: None) -> tuple[bool, float]:
        self.asked.append(("step", lr))
        return self.answer

    def skip(self) -> None:
        self.asked.append("skip")

    def update(self, momentum: float) -> None:
        self.asked.append(("update", momentum))


def config(folder: str = "unused", **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"dir": folder},
            "data": {"uri": "d"},
            "ema": {"momentum": 0.9, "momentum_end": 0.99},
            "model": {"num_summary": 2},
            "loss": {"distill": {"prototypes": 5, "centre_momentum": 0.75}},
            "train": {"steps": 10, "global_batch": 8, "lr": 0.1, "warmup_fraction": 0.2, "max_skipped": 3},
        }
        | sections
    )


def start(settings: TrainConfig, told: Told) -> TrainState:
    return first_state(settings, told, device=torch.device("cpu"))  # type: ignore[arg-type]


def result(*, finite: bool = True, loss: float = 1.5, **centres: torch.Tensor) -> StepResult:
    return StepResult(lambda: Reduced({"mlm": loss, "total": loss}, finite), centres, {})


def apply(settings: TrainConfig, now: TrainState, told: Told, of: StepResult) -> dict[str, float]:
    metrics = train_state.apply(now, told, of, train=settings.train, ema=settings.ema, ids_B4=IDS)  # type: ignore[arg-type]
    train_state.end_if_stuck(
        now, told.group, run_dir=settings.run.dir, max_skipped=settings.train.max_skipped
    )
    return metrics


def check_collapse(now: TrainState, readings: dict[str, float]) -> tuple[dict[str, float], str | None]:
    return train_state.check_collapse(now, dict(readings), group=Group(0, 1))


def test_before_the_first_step_centres_are_zero_and_only_where_they_are_used() -> None:
    now = start(config(), Told())
    assert (now.step, now.skipped, now.skipped_ids, now.read_centre_PK) == (0, 0, {}, None)
    assert {name: centre.tolist() for name, centre in now.centres.items()} == {"distill": [[0.0] * 5] * 2}
    both = {"distill": {"prototypes": 5}, "patch": {"weight": 1, "prototypes": 6}}
    assert {name: centre.shape for name, centre in start(config(loss=both), Told()).centres.items()} == {
        "distill": (2, 5),
        "patch": (1, 6),
    }
    for balance in ("sinkhorn", "none"):
        assert (
            start(
                config(loss={"distill": {"balance": balance}, "patch": {"balance": balance, "weight": 1}}),
                Told(),
            ).centres
            == {}
        )
    assert start(config(loss={"distill": {"weight": 0}}), Told()).centres == {}


def test_an_applied_step_moves_optimiser_and_teacher_and_takes_the_losses_states() -> None:
    settings, told = config(), Told()
    now = start(settings, told)
    for step in (1, 2, 3):
        centre_PK = torch.arange(10.0).view(2, 5) + step
        metrics = apply(settings, now, told, result(distill=centre_PK))
        rate = schedules.learning_rate(
            step, peak=0.1, total_steps=10, warmup_fraction=0.2, final_fraction=0.0
        )
        momentum = schedules.momentum(8 * step, start=0.9, end=0.99, total_samples=80)
        assert told.asked[-2:] == [("step", rate), ("update", momentum)]
        assert metrics == {
            "loss/mlm": 1.5,
            "loss/total": 1.5,
            "lr": rate,
            "ema/momentum": momentum,
            "grad_norm": 2.0,
            "optim/lr": rate,
            "optim/grad_norm": 2.0,
        }
        assert now.step == step
        assert torch.equal(now.centres["distill"], centre_PK)
    assert len(told.asked) == 6


def test_the_schedule_may_be_longer_than_the_run() -> None:
    settings, told = config(train={"steps": 2, "schedule_steps": 50, "global_batch": 8, "lr": 0.1}), Told()
    metrics = apply(settings, start(settings, told), told, result())
    assert metrics["lr"] == pytest.approx(0.1 / 15)
    assert metrics["ema/momentum"] == schedules.momentum(8, start=0.9, end=0.99, total_samples=400)


@pytest.mark.parametrize("found", ["not finite", "norm overflows"])
def test_a_skipped_step_leaves_teacher_and_centres_as_they_were(found: str) -> None:
    settings = config()
    told = Told(applied=found == "not finite", norm=float("inf"))
    now = start(settings, told)
    before = now.centres["distill"]
    of = result(finite=found != "not finite", loss=float("nan"), distill=torch.ones(2, 5))
    assert apply(settings, now, told, of) == {"train/skipped_steps": 1.0}
    assert [asked if isinstance(asked, str) else asked[0] for asked in told.asked] == [
        "skip" if found == "not finite" else "step"
    ]
    assert now.centres["distill"] is before
    assert (now.step, now.skipped) == (1, 1)


def test_steps_skipped_are_counted_in_all_and_end_the_run_only_in_a_row(tmp_path: Path) -> None:
    settings, told = config(str(tmp_path)), Told()
    now = start(settings, told)
    for number, finite in enumerate([False, False, True, False, False, True], 1):
        metrics = apply(settings, now, told, result(finite=finite))
        assert ("train/skipped_steps" in metrics) != finite
        assert now.step == number
    assert now.skipped == 4
    assert not now.skipped_ids
    assert not list(tmp_path.iterdir())


def test_too_many_skipped_steps_in_a_row_end_the_run_with_their_samples(tmp_path: Path) -> None:
    settings, told = config(str(tmp_path)), Told()
    now = start(settings, told)
    apply(settings, now, told, result(finite=False, loss=9.0))
    apply(settings, now, told, result())
    for loss in (1.25, float("inf")):
        apply(settings, now, told, result(finite=False, loss=loss))
    with pytest.raises(RuntimeError) as ended:
        apply(settings, now, told, result(finite=False, loss=float("nan")))
    path = tmp_path / NOT_FINITE
    assert str(ended.value) == (
        "step 5: no finite loss and gradient in 3 steps in a row, {'mlm': nan, 'total': nan}; weights and "
        "teacher are as "
        f"before them, and the samples are listed in {path}"
    )
    saved = json.loads(path.read_text())
    assert saved["ids"] == "dataset, epoch, block, window"
    assert [(step["step"], step["losses"]["mlm"]) for step in saved["steps"]] == [
        (3, "1.25"),
        (4, "inf"),
        (5, "nan"),
    ]
    assert all(step["samples"] == IDS.tolist() for step in saved["steps"])
    assert [asked for asked in told.asked if asked != "skip"] == told.asked[1:3], (
        "only the good step was applied"
    )


def test_that_the_samples_cannot_be_saved_does_not_hide_why_the_run_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(uri: str, content: bytes) -> None:
        raise store.StoreError(f"{uri}: no space left")

    monkeypatch.setattr(store, "write_bytes", full)
    settings, told = config("s3://b/run"), Told()
    now = start(settings, told)
    for _ in range(2):
        apply(settings, now, told, result(finite=False))
    with pytest.raises(RuntimeError) as ended:
        apply(settings, now, told, result(finite=False))
    assert str(ended.value) == (
        "step 3: no finite loss and gradient in 3 steps in a row, {'mlm': 1.5, 'total': 1.5}; weights and "
        "teacher are as "
        "before them, but the samples could not be listed: s3://b/run/not_finite.json: no space left"
    )


HEALTHY = {"health/embedding_std": 0.5, "health/kl": 1.0}
POINT = {"health/embedding_std": 0.0, "health/kl": 1.0}
SENTENCE = (
    "step 7: the embeddings of all samples are the same point (embedding_std 0 is below 0.001, "
    "2 readings in a row)"
)


def test_readings_become_metrics_of_the_batch_and_a_collapse_is_told() -> None:
    settings = config(health={"patience": 2})
    now = start(settings, Told())
    now.step = 7
    metrics, fault = check_collapse(now, HEALTHY)
    assert metrics == {
        "batch_health/embedding_std": 0.5,
        "batch_health/kl": 1.0,
        "batch_health/collapsed": 0.0,
    }
    assert fault is None
    assert check_collapse(now, POINT)[1] is None
    metrics, fault = check_collapse(now, POINT)
    assert fault == SENTENCE
    assert metrics["batch_health/collapsed"] == 1
    assert check_collapse(now, HEALTHY)[1] is None


def test_the_drift_of_the_centre_is_measured_from_reading_to_reading() -> None:
    settings = config()
    now = start(settings, Told())
    assert "batch_health/centre_drift" not in check_collapse(now, HEALTHY)[0]
    now.centres["distill"] = torch.arange(10.0).view(2, 5)
    assert check_collapse(now, HEALTHY)[0]["batch_health/centre_drift"] == 0, "zero had no spread"
    now.centres["distill"] = 3 * now.centres["distill"]
    assert check_collapse(now, HEALTHY)[0]["batch_health/centre_drift"] == pytest.approx(2)
    balanced = config(loss={"distill": {"balance": "sinkhorn"}})
    assert "batch_health/centre_drift" not in check_collapse(start(balanced, Told()), HEALTHY)[0]


def test_a_skipped_block_counts_once_an_epoch_also_after_the_run_was_taken_up_again() -> None:
    now, alone, cpu = (
        start(config(data={"uri": "d", "on_corrupt": "skip"}), Told()),
        Group(0, 1),
        torch.device("cpu"),
    )
    assert now.skipped_blocks is not None
    now.skipped_blocks.add({(0, 0, 7), (0, 0, 8)})
    assert train_state.count_skipped_blocks(now, alone, device=cpu) == {"data/skipped_blocks": 2.0}
    saved = now.skipped_blocks.everywhere(alone, device=cpu)
    now.skipped_blocks.add({(0, 1, 7)})  # of a step after the checkpoint, which is made again
    now.skipped_blocks.restore(saved)
    now.skipped_blocks.add({(0, 0, 8), (0, 1, 7)})
    assert train_state.count_skipped_blocks(now, alone, device=cpu) == {"data/skipped_blocks": 3.0}
    assert train_state.count_skipped_blocks(start(config(), Told()), alone, device=cpu) == {}
