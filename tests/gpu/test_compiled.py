"""Compiled steps on a GPU, as CUDA graphs and without, against the plain steps on a CPU.

A graph writes its outputs to the same memory at each replay: with several micro-batches, directions and
losses that tie all rows together, an output that is written over too early changes a loss.
"""

from typing import Any

import pytest

from tests.dist.steps import method, run_steps, set_up
from tests.gpu import where
from tests.gpu.test_gpu import CONFIGS, on_cpu, same_losses, write_toy
from tests.ranks import on_ranks
from trainer.distill.step import train_step

pytestmark = [
    *where.marks,
    pytest.mark.skipif(where.REHEARSE, reason="tests/dist/test_compiled.py has them without Inductor"),
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "coupled, 3 micro-batches, CUDA graphs": (
        "coupled",
        {"train__micro_batch": 8, "train__compile": "reduce-overhead"},
    ),
    "convolutions, ZeRO-2, activation checkpointing, CUDA graphs": (
        "convolutions",
        {
            "train__zero_stage": 2,
            "train__compile": "reduce-overhead",
            "train__activation_checkpointing": True,
        },
    ),
    "plain, ZeRO-1, compiled": ("plain", {"train__compile": "default"}),
}


def compiled_runs(cases: dict[str, dict[str, Any]], device: str) -> dict[str, dict[str, Any]]:
    """The losses of each, and whether its forwards are still compiled after one step more."""
    found = {}
    for name, values in cases.items():
        losses = run_steps(values, 10, device)["losses"]
        config, engine, now, reader = set_up(values, device, ahead=True)
        inputs = reader.batch(0).prepared.to(engine.device)
        train_step(engine, now.teacher, inputs, method=method(config), states=now.centres)
        found[name] = {"losses": losses, "works": [forward.works for forward in engine.forwards]}
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cpu(toy: str) -> dict[str, dict[str, Any]]:
    return where.reference("steps", lambda: on_cpu(toy))


@pytest.fixture(scope="module")
def runs(toy: str) -> dict[str, dict[str, Any]]:
    cases = {name: CONFIGS[kind](toy, **changes) for name, (kind, changes) in CASES.items()}
    return on_ranks(1, compiled_runs, cases, where.DEVICE, timeout_s=600, gpu=True)[0]


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_plain_steps_on_the_cpu(cpu: Any, runs: Any, name: str) -> None:
    assert runs[name]["works"] == [True, True]
    same_losses(runs[name]["losses"], cpu[CASES[name][0]]["losses"])
