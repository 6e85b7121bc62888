"""The step that ZeRO-1 and 2 take here in place of DeepSpeed's: the same bits, and no read of the host.

Each on ranks of gloo. What a GPU would do is done on the CPU (``queued``), with the fused AdamW.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.counting import Count, queued
from tests.dist.teachers import Odd, engine_settings, gradients, masters, same
from tests.ranks import on_ranks
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.engine import Engine
from trainer.engine.process_group import init_distributed

Case = tuple[int, str, int, float]  # ZeRO stage, precision, accumulation, the norm that gradients are cut to
CASES: list[Case] = [
    (stage, precision, accumulation, clip)
    for stage in (1, 2)
    for precision in ("fp32", "bf16")
    for accumulation, clip in ((1, 0.0), (2, 0.05), (1, 1e6))
]
ON = {  # ranks -> cases
    1: CASES,
    2: [case for case in CASES if case[2] == 2],
    4: [(1, "bf16", 2, 0.05), (2, "fp32", 2, 0.05)],
}
STEPS, POISONED = 3, 1


def engine_of(case: Case) -> Engine:
    torch.manual_seed(11)
    stage, precision, accumulation, clip = case
    group = Group.of()
    settings = engine_settings(stage, precision, group.size, accumulation, grad_clip=clip)
    return Engine(Odd(), settings=settings, device=torch.device("cpu"), group=group)


def decided(engine: Engine) -> Any:
    squares_n = collectives.sum_over_ranks(engine.group, engine.gradient_squares())
    return engine.decide(squares_n, torch.tensor(False))


def ours(case: Case) -> dict[str, Any]:
    """Masters and norms after each step, which the host decides."""
    engine, found = engine_of(case), dict[str, Any](masters=[], norms=[], applied=[], moments=[])
    for step in range(STEPS):
        gradients(engine, step, poison=step == POISONED)
        applied, norm = engine.step(1e-2, decided(engine))
        told(found, engine, applied, norm)
    return found


def told(found: dict[str, Any], engine: Engine, applied: bool, norm: float) -> None:
    found["masters"].append(masters(engine))
    found["norms"].append(norm)
    found["applied"].append(applied)
    found["moments"].append(moments(engine))
    counters = engine._deepspeed
    found["counters"] = (counters.global_steps, counters.micro_steps, counters.global_samples)


def moments(engine: Engine) -> dict[str, Tensor]:
    """Both moments and the number of steps of AdamW, on this rank."""
    states = [engine._optimizer.state[master] for master in engine._adapter.optimizer_parameters()]
    return {f"{i} {key}": part.clone() for i, state in enumerate(states) for key, part in state.items()}


def deepspeeds(case: Case) -> dict[str, Any]:
    """The same by DeepSpeed's own step."""
    engine, found = engine_of(case), dict[str, Any](masters=[], norms=[], applied=[], moments=[])
    optimizer: Any = engine._deepspeed.optimizer
    for name in ("step", "update_hp_grads", "clear_hp_grads", "clear_lp_grads"):
        vars(optimizer).pop(name, None)
    for step in range(STEPS):
        gradients(engine, step, poison=step == POISONED)
        if step == POISONED:
            engine.skip()
            told(found, engine, False, float("nan"))
        else:
            applied, norm = engine._deepspeeds_step(1e-2)
            told(found, engine, applied, norm)
    return found


def unread(case: Case) -> dict[str, Any]:
    """The same decided on the device, and what was read of it."""
    found = dict[str, Any](masters=[], norms=[], applied=[], moments=[], reads={}, ops=[])
    with queued():
        engine = engine_of(case)
        assert engine.steps_unread
        assert not engine._deepspeed.tput_timer.config.enabled, "it would wait for the GPU twice a step"
        for step in range(STEPS):
            gradients(engine, step, poison=step == POISONED)
            decision = decided(engine)
            with Count() if step else contextlib.nullcontext() as count:
                engine.step_where(decision, 1e-2)
            if count:
                found["reads"] |= count.reads
                found["ops"].append(count.total)
            told(found, engine, bool(decision.applies), float(decision.norm))
    return found


def run_all(cases: list[Case]) -> dict[Case, dict[str, dict[str, Any]]]:
    init_distributed(torch.device("cpu"))
    found = {}
    for case in cases:
        of_case = {"ours": ours(case), "DeepSpeed's": deepspeeds(case), "unread": unread(case)}
        with queued():  # the fused AdamW, decided by the host
            of_case["fused"] = ours(case)
        found[case] = of_case
    return found


@pytest.fixture(scope="module")
def ranks() -> dict[int, list[dict[Case, dict[str, dict[str, Any]]]]]:
    return {world: on_ranks(world, run_all, cases) for world, cases in ON.items()}


EACH = pytest.mark.parametrize(
    ("world", "case"), [(world, case) for world, cases in ON.items() for case in cases], ids=str
)


@EACH
def test_the_step_is_deepspeeds_bit_for_bit(ranks: Any, world: int, case: Case) -> None:
    """But for the last digits of a norm: it is summed up in fp64, which in bf16 DeepSpeed does not."""
    for of_rank in ranks[world]:
        mine, theirs = of_rank[case]["ours"], of_rank[case]["DeepSpeed's"]
        assert mine["applied"] == theirs["applied"] == [step != POISONED for step in range(STEPS)]
        assert mine["counters"] == theirs["counters"]
        exact = case[3] != 0.05 or (case[1] == "fp32" and world < 4)
        for step in range(STEPS):
            if step != POISONED:
                assert mine["norms"][step] == pytest.approx(theirs["norms"][step], rel=1e-6)
            for part in ("masters", "moments"):
                if exact:
                    assert same(mine[part][step], theirs[part][step]) == 0, (step, part)
                else:
                    for name, tensor in mine[part][step].items():
                        torch.testing.assert_close(tensor, theirs[part][step][name], rtol=1e-5, atol=1e-6)


@EACH
def test_decided_on_the_device_it_is_the_hosts_bit_for_bit_and_reads_nothing(
    ranks: Any, world: int, case: Case
) -> None:
    for of_rank in ranks[world]:
        device, host = of_rank[case]["unread"], of_rank[case]["fused"]
        assert device["reads"] == {}
        assert device["applied"] == host["applied"]
        assert device["counters"] == host["counters"]
        for step in range(STEPS):
            assert same(device["masters"][step], host["masters"][step]) == 0
            assert same(device["moments"][step], host["moments"][step]) == 0
        kept, before = device["masters"][POISONED], device["masters"][POISONED - 1]
        assert same(kept, before) == 0
        assert same(device["moments"][POISONED], device["moments"][POISONED - 1]) == 0


def test_its_operators_do_not_grow_with_the_parameters(ranks: Any) -> None:
    for case in CASES:
        (found,) = ranks[1]
        assert max(found[case]["unread"]["ops"]) <= 18, case
