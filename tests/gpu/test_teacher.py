"""The teacher under nccl on one GPU is the unsharded average, bit for bit: stage x precision x accumulation, with
skipped steps, resumed, and saved by two CPU ranks under another stage. Its forward, too."""

from typing import Any

import pytest
import torch

from tests.dist.teachers import CASES, Case, check, run_cases
from tests.ranks import on_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
    pytest.mark.timeout(900),  # processes are started afresh, and all cases run in the first test
]


@pytest.fixture(scope="module")
def matrix() -> dict[Case, dict[str, Any]]:
    """case -> what it found on the GPU, where it also loads the teacher that the next case left on CPU."""
    on_cpu = on_ranks(2, run_cases, CASES, {}, timeout_s=600)[0]
    teachers = [on_cpu[case]["saved"] for case in CASES]
    saved = dict(zip(CASES, teachers[1:] + teachers[:1], strict=True))
    return on_ranks(1, run_cases, CASES, saved, False, "cuda", timeout_s=600, gpu=True)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sharded_teacher_is_the_unsharded_average(matrix: Any, case: Case) -> None:
    check(matrix[case], case, resharded=True)


def test_every_kind_of_optimizer_was_seen(matrix: Any) -> None:
    assert {found["optimizer"] for found in matrix.values()} == {
        "_AdamW", "FP16_UnfusedOptimizer", "DeepSpeedZeroOptimizer", "BF16_Optimizer", "DeepSpeedZeroOptimizer_Stage3"
    }
