"""The training step under nccl on one GPU: the same losses as on CPU, and the teacher's bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import run_steps, small_config
from tests.ranks import on_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("toy")
    contigs = [markov_sequence(30_000, seed=1), markov_sequence(40, seed=2)]
    return write_dataset(folder, {"train": contigs}, block_bp=1024)


def totals(result: dict[str, Any]) -> list[float]:
    return [losses["total"] for losses in result["losses"]]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_fp32_losses_are_those_of_the_cpu(toy: str, stage: int) -> None:
    values = small_config(toy, train__zero_stage=stage)
    (cpu,), (gpu,) = (on_ranks(1, run_steps, values, 10, device) for device in ("cpu", "cuda"))
    assert totals(gpu) == pytest.approx(totals(cpu), rel=1e-4)
    assert gpu["mismatches"] == 0
    # Letters and masks are integers and must be the same; noise goes through libm and may differ in the last bit.
    assert {k: v[:3] for k, v in gpu["samples"].items()} == {k: v[:3] for k, v in cpu["samples"].items()}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_teacher_is_the_average_of_the_fp32_masters(toy: str, stage: int) -> None:
    values = small_config(toy, train__precision="bf16", train__zero_stage=stage, ema__momentum=0.999)
    (gpu,) = on_ranks(1, run_steps, values, 10, "cuda")
    assert gpu["mismatches"] == 0
    assert gpu["moved"] > 0
