"""The training step under nccl on one GPU: the same losses as on CPU, and the teacher's bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import run_steps, small_config
from tests.ranks import on_ranks
from trainer import counter
from trainer.views import Windows, make_view, mask

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


@pytest.mark.parametrize("seed", range(20))
def test_views_and_masks_are_the_same_bits_as_on_the_cpu(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, length, flank = 33, 211 + seed, 60
    codes_BS = torch.randint(0, 5, (rows, length + 2 * flank), generator=generator, dtype=torch.uint8)
    low_B = torch.randint(0, flank + 20, (rows,), generator=generator)
    high_B = length + 2 * flank - torch.randint(0, flank + 20, (rows,), generator=generator)
    windows = Windows(codes_BS, low_B, high_B, counter.fold(seed, torch.arange(rows)), flank)
    results = []
    for device in ("cpu", "cuda"):
        here = windows.to(torch.device(device))
        view = make_view(here, name="v", operations={"insertion": 20, "shift": 20, "deletion": 20}, substitution=0.1,
                         reverse_complement=0.5)  # fmt: skip
        masked = mask(view, here, name="v", rate=0.3, mask_share=0.8, random_share=0.1)
        results.append([part.cpu() for part in (view.codes_BL, view.source_BL, view.altered_BL, view.length_B,
                                                masked.codes_BL, masked.target_BL)])  # fmt: skip
    assert all(torch.equal(cpu, gpu) for cpu, gpu in zip(*results, strict=True))
