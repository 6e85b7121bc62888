"""The teacher under nccl on one GPU is the unsharded average, bit for bit: stage x precision x accumulation,
with skipped steps, resumed, and saved by two CPU ranks under another stage. Its forward, too."""

from typing import Any

import pytest
import torch

from tests.dist.teachers import CASES, Case, check, make_engine, run_cases
from tests.gpu import where
from tests.gpu.where import DEVICE, few
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed

pytestmark = where.marks
SOME = few(CASES, 2)


def on_cpu() -> list[Any]:
    """The teachers that two CPU ranks saved, a case each."""
    found = on_ranks(2, run_cases, SOME, {}, timeout_s=600)[0]
    return [found[case]["saved"] for case in SOME]


@pytest.fixture(scope="module")
def matrix() -> dict[Case, dict[str, Any]]:
    """case -> what it found on the GPU, where it also loads the teacher that the next case left on CPU."""
    teachers = where.reference("teachers", on_cpu)[: len(SOME)]
    saved = dict(zip(SOME, teachers[1:] + teachers[:1], strict=True))
    return on_ranks(1, run_cases, SOME, saved, False, DEVICE, timeout_s=600, gpu=not where.REHEARSE)[0]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_sharded_teacher_is_the_unsharded_average(matrix: Any, case: Case) -> None:
    check(matrix[case], case, resharded=True)


@pytest.mark.skipif(where.REHEARSE, reason="a rehearsal has two cases")
def test_every_kind_of_optimizer_was_seen(matrix: Any) -> None:
    assert {found["optimizer"] for found in matrix.values()} == {
        "AdamW",
        "FP16_UnfusedOptimizer",
        "DeepSpeedZeroOptimizer",
        "BF16_Optimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    }


def refreshed(device_name: str) -> tuple[bool, bool]:
    """Under ZeRO-3: whether the device was still at work after an update, and whether it is once the teacher
    is read.

    DeepSpeed gathers the teacher's partitions on a stream of its own, which waits for nothing.
    """
    device = torch.device(device_name)
    init_distributed(device)
    # Parameters that are kept whole are gathered at once, which waits; these are not.
    teacher = make_engine(Group.of(), 3, "bf16", 1, device=device_name, kept_whole=0).teacher()
    assert teacher.module is not None
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    teacher.update(0.5)
    before = not torch.cuda.current_stream().query()
    assert teacher.module is not None
    return before, not torch.cuda.current_stream().query()


@pytest.mark.skipif(
    where.REHEARSE, reason="a CPU has no streams; tests/unit/test_ema.py has the order of calls"
)
def test_who_reads_the_teacher_waits_until_its_partitions_are_written() -> None:
    assert on_ranks(1, refreshed, DEVICE, gpu=True) == [(True, False)]
