"""Whole steps as on a GPU, run on the CPU: the losses are those of the ways of a CPU, and a poisoned step
leaves no trace.

Views come ahead in one parcel, masked letters are weighed and not picked, the optimiser is fused, and whether
a step is applied is decided on the device.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.counting import queued
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import (
    coupled_config,
    method,
    poisoned_cases,
    run_cases,
    set_up,
    small_config,
    taught_config,
)
from tests.ranks import on_ranks
from trainer.distill.step import train_step
from trainer.run import reading, train_state

pytestmark = pytest.mark.timeout(300)
STEPS = 4
CONFIGS = {
    "plain": small_config,
    "coupled": coupled_config,
    "taught": taught_config,
}
POISONED = [
    (stage, precision, what)
    for stage, precision in ((1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16"))
    for what in ("loss", "gradient")
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = [markov_sequence(30_000, seed=1), markov_sequence(40, seed=2)]  # one shorter than a window
    return write_dataset(tmp_path_factory.mktemp("toy"), {"train": contigs}, block_bp=1024, soft=True)


def both_ways(cases: dict[str, tuple[dict[str, Any], int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    as_on_a_cpu = run_cases(cases)
    with queued():
        return as_on_a_cpu, run_cases(cases)


@pytest.mark.parametrize("world", [1, 2])
def test_losses_norms_and_teacher_are_those_of_the_cpu(toy: str, world: int) -> None:
    cases = {name: (make(toy), STEPS) for name, make in CONFIGS.items()}
    cases["ZeRO-2, 3 micro-batches"] = (
        small_config(toy, train__zero_stage=2, train__micro_batch=24 // world // 3),
        STEPS,
    )
    for cpu, gpu in on_ranks(world, both_ways, cases):
        for name in cases:
            assert gpu[name]["mismatches"] == 0
            assert gpu[name]["norms"] == pytest.approx(cpu[name]["norms"], rel=1e-4)
            for ours, theirs in zip(gpu[name]["losses"], cpu[name]["losses"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5)


def poisoned_as_on_a_gpu(cases: list[Any]) -> list[dict[str, Any]]:
    with queued():
        return poisoned_cases(cases)


def test_a_poisoned_step_is_as_if_it_had_never_been(toy: str) -> None:
    cases, kinds = [], {"loss": ("loss", 1), "gradient": ("gradient", 0), "": ("leave out", 0)}
    for stage, precision, what in POISONED:
        values = small_config(toy, train__zero_stage=stage, train__precision=precision, train__micro_batch=6)
        cases += [(values, {2: kinds[what]}, 3), (values, {2: kinds[""]}, 3)]
    for found in on_ranks(2, poisoned_as_on_a_gpu, cases):
        for case, poisoned, left_out in zip(POISONED, found[::2], found[1::2], strict=True):
            assert poisoned["sentence"] == ""
            assert poisoned["metrics"][1] == {"train/skipped_steps": 1.0}, case
            assert poisoned["metrics"][::2] == left_out["metrics"], case
            for part in ("masters", "teacher", "centres"):
                for name, tensor in left_out[part].items():
                    assert torch.equal(poisoned[part][name], tensor), f"{case} {part} {name}"


def prepared_and_not(values: dict[str, Any]) -> list[list[dict[str, float]]]:
    """The losses of 3 steps, with views that the step makes, and with those that the reader's thread made."""
    return [three_steps(values, ahead=ahead) for ahead in (False, True)]


def three_steps(values: dict[str, Any], *, ahead: bool) -> list[dict[str, float]]:
    config, engine, now, reader = set_up(values, ahead=ahead)
    of, losses = method(config), []
    for batch in reader.batches(0, 3):
        assert (batch.prepared is not None) == ahead
        inputs = reading.step_inputs(config, engine, batch)
        result = train_step(
            engine, now.teacher, inputs, method=of, states=now.centres, moment=config.moment(now.step)
        )
        losses.append(
            train_state.apply(now, engine, result, train=config.train, ema=config.ema, ids_B4=batch.ids_B4)
        )
    return losses


@pytest.mark.parametrize("world", [1, 2, 4])
def test_views_made_ahead_are_the_steps_own(tmp_path: Path, world: int) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(30_000, seed=1)]}, block_bp=1024, soft=True)
    for in_step, ahead in on_ranks(world, prepared_and_not, coupled_config(uri, train__micro_batch=6)):
        assert ahead == in_step
