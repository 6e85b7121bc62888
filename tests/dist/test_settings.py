"""Every DeepSpeed setting that a user may add runs, keeps the teacher exact, and trains the same student as
without.

At values that make a difference to a network this small: buckets of a few entries, thresholds on either side
of its parameters, switches the other way round; each setting of ZeRO by itself and together with others, and
what only watches (comms_logger, flops_profiler, breakdowns) together.
"""

import gc
from typing import Any

import pytest
import torch

from tests.dist.teachers import Odd, engine_settings, forward_differs, masters, same, student_differs, train
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.engine import deepspeed_config
from trainer.engine.engine import Engine
from trainer.engine.process_group import init_distributed

Case = tuple[int, deepspeed_config.Precision, int]  # ZeRO stage, precision, accumulation
FLAT: list[Case] = [(1, "fp32", 2), (2, "fp32", 1), (2, "bf16", 2)]
PARTITIONED: list[Case] = [(3, "fp32", 2)]
STEPS, SKIPPED = 3, 1

ZERO: list[tuple[list[Case], dict[str, Any]]] = [
    ([*FLAT, (1, "bf16", 2)], {"allgather_bucket_size": 2}),
    (FLAT, {"use_multi_rank_bucket_allreduce": False}),
    (FLAT, {"ignore_unused_parameters": False}),
    (FLAT, {"overlap_comm": True}),
    (PARTITIONED, {"overlap_comm": False}),
    (FLAT + PARTITIONED, {"contiguous_gradients": False}),
    (FLAT + PARTITIONED, {"reduce_scatter": False}),
    (FLAT + PARTITIONED, {"reduce_bucket_size": 1}),
    (FLAT + PARTITIONED, {"reduce_bucket_size": 4e1}),  # a float, as 5e8 is
    (PARTITIONED, {"stage3_max_live_parameters": 0}),
    (PARTITIONED, {"stage3_max_reuse_distance": 0}),
    (PARTITIONED, {"stage3_model_persistence_threshold": 20}),
    (PARTITIONED, {"stage3_param_persistence_threshold": 0}),
    (PARTITIONED, {"stage3_param_persistence_threshold": 10}),
    (PARTITIONED, {"stage3_prefetch_bucket_size": 0}),
    (PARTITIONED, {"sub_group_size": 0}),
    (PARTITIONED, {"sub_group_size": 40}),
    (
        [*FLAT, (1, "bf16", 2)],
        {
            "allgather_bucket_size": 40,
            "contiguous_gradients": False,
            "overlap_comm": True,
            "reduce_bucket_size": 40,
            "reduce_scatter": False,
            "use_multi_rank_bucket_allreduce": False,
        },
    ),
    (
        [*PARTITIONED, (3, "bf16", 2)],
        {
            "contiguous_gradients": False,
            "reduce_bucket_size": 40,
            "stage3_max_live_parameters": 20,
            "stage3_max_reuse_distance": 20,
            "stage3_model_persistence_threshold": 20,
            "stage3_param_persistence_threshold": 10,
            "stage3_prefetch_bucket_size": 20,
            "sub_group_size": 40,
        },
    ),
]
WATCHING: dict[str, Any] = {
    "comms_logger": {
        "enabled": True,
        "prof_all": False,
        "prof_ops": ["all_reduce", "all_gather_into_tensor"],
        "verbose": True,
        "debug": True,
    },
    "flops_profiler": {
        "enabled": True,
        "profile_step": 2,
        "module_depth": 1,
        "top_modules": 3,
        "detailed": False,
    },
    "wall_clock_breakdown": True,
}
EVERYTHING: dict[str, Any] = {
    "comms_logger": {"enabled": True},
    "flops_profiler": {"enabled": True, "module_depth": -1},
}
RUNS: list[tuple[Case, dict[str, Any]]] = [
    *((case, {"zero_optimization": section}) for cases, section in ZERO for case in cases),
    *((case, WATCHING) for case in [(0, "fp32", 1), (0, "bf16", 1), (1, "bf16", 2), *FLAT, *PARTITIONED]),
    *((case, EVERYTHING) for case in [(2, "fp32", 1), *PARTITIONED]),
    ((2, "fp32", 1), {"memory_breakdown": True}),
]


def one_run(case: Case, extra: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(11)
    group, (stage, precision, accumulation) = Group.of(), case
    settings = engine_settings(stage, precision, group.size, accumulation, grad_clip=0.5, deepspeed=extra)
    engine = Engine(Odd(), settings=settings, device=torch.device("cpu"), group=group)
    teacher = engine.teacher()
    reference, mismatches, applied = masters(engine), 0, []
    for step in range(STEPS):
        applied.append(train(engine, step, poison=step == SKIPPED))
        if applied[-1]:
            teacher.update(0.9)
            reference = {
                name: torch.lerp(reference[name], now, 1 - 0.9) for name, now in masters(engine).items()
            }
        mismatches += same(dict(teacher.full_tensors()), reference) + student_differs(engine)
    found = {
        "mismatches": mismatches,
        "forward": forward_differs(teacher, engine, reference),
        "applied": applied,
        "masters": masters(engine),
    }
    engine._deepspeed.destroy()
    return found


def run_all() -> list[dict[str, Any]]:
    """What each of RUNS found; ``other``: entries in which its student is not that of a run without
    settings."""
    init_distributed(torch.device("cpu"))
    # memory_breakdown collects garbage at every turn, which takes long among all that is imported
    gc.freeze()
    plain = {case: one_run(case, {})["masters"] for case in dict(RUNS)}
    found = []
    for case, extra in RUNS:
        result = one_run(case, extra)
        found.append(result | {"other": same(result.pop("masters"), plain[case])})
    return found


@pytest.fixture(scope="module")
def ranks() -> list[list[dict[str, Any]]]:
    return on_ranks(2, run_all)


@pytest.mark.parametrize("run", range(len(RUNS)), ids=[f"{case} {extra}" for case, extra in RUNS])
def test_the_teacher_is_exact_and_the_student_the_same(ranks: Any, run: int) -> None:
    for found in (of_rank[run] for of_rank in ranks):
        assert found["applied"] == [step != SKIPPED for step in range(STEPS)]
        assert found["mismatches"] == 0
        assert found["forward"] == 0
        assert found["other"] == 0


def test_every_setting_that_is_let_through_is_run() -> None:
    run = {name: section for _, extra in RUNS for name, section in extra.items()}
    for name, known in deepspeed_config._SECTIONS.items():
        tried = {key for _, extra in RUNS for key in extra.get(name, {})}
        assert tried == known.keys(), name
    assert run.keys() == deepspeed_config._SECTIONS.keys() | deepspeed_config._SWITCHES.keys()
    assert [deepspeed_config.faults(extra) for _, extra in RUNS] == [[]] * len(RUNS)
