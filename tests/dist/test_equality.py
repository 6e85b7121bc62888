"""The same numbers on 1, 2 and 4 ranks, and a sharded teacher that is the unsharded one, bit for bit."""

from typing import Any

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import poisoned_step, run_steps, small_config
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = [markov_sequence(30_000, seed=1), markov_sequence(40, seed=2)]  # one shorter than a window
    return write_dataset(tmp_path_factory.mktemp("toy"), {"train": contigs}, block_bp=1024)


@pytest.fixture(scope="module")
def alone(toy: str) -> dict[str, Any]:
    return on_ranks(1, run_steps, small_config(toy), 20)[0]


def largest_difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    return max(abs(a[name] / b[name] - 1) for a, b in zip(one, two, strict=True) for name in a)


@pytest.mark.parametrize(("world", "stage"), [(2, 0), (2, 1), (2, 2), (4, 1)])
def test_losses_and_samples_are_those_of_one_rank(toy: str, alone: dict[str, Any], world: int, stage: int) -> None:
    ranks = on_ranks(world, run_steps, small_config(toy, train__zero_stage=stage), 20)
    for result in ranks:
        assert result["losses"][0].keys() == {"mlm", "distill", "contrastive", "total"}
        assert largest_difference(result["losses"], alone["losses"]) < 1e-5
        assert result["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert result["mismatches"] == 0
        assert result["entries"] / world <= result["shard_entries"] <= result["entries"] / world + 8
    together: dict[Any, Any] = {}
    for result in ranks:
        assert not together.keys() & result["samples"].keys()
        together |= result["samples"]
    assert together == alone["samples"]
    assert ranks[0]["losses"][-1]["mlm"] < ranks[0]["losses"][0]["mlm"]


@pytest.mark.parametrize(("world", "micro", "stage"), [(1, 4, 1), (1, 8, 0), (2, 4, 2)])
def test_accumulation_changes_no_loss(toy: str, alone: dict[str, Any], world: int, micro: int, stage: int) -> None:
    values = small_config(toy, train__micro_batch=micro, train__zero_stage=stage)
    for result in on_ranks(world, run_steps, values, 20):
        assert largest_difference(result["losses"], alone["losses"]) < 1e-5
        assert result["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert result["mismatches"] == 0


@pytest.mark.parametrize(("stage", "micro"), [(0, 24), (1, 24), (1, 4), (2, 4)])
def test_bf16_gradients_are_those_of_fp32_under_every_stage_and_accumulation(
    toy: str, alone: dict[str, Any], stage: int, micro: int
) -> None:
    """DeepSpeed's bf16 optimisers accumulate in ways of their own: norms tell what losses under AdamW hide."""
    values = small_config(toy, train__precision="bf16", train__zero_stage=stage, train__micro_batch=micro)
    (result,) = on_ranks(1, run_steps, values, 6)
    # A gradient added twice, or a step made at set-up, shows at once; later norms tell bf16's rounding, too.
    assert result["norms"][0] == pytest.approx(alone["norms"][0], rel=0.02)
    assert result["first_update"] == pytest.approx(alone["first_update"], rel=0.02)
    assert result["norms"] == pytest.approx(alone["norms"][:6], rel=0.3)
    assert largest_difference(result["losses"], alone["losses"][:6]) < 0.02


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_teacher(toy: str, stage: int) -> None:
    for result in on_ranks(2, poisoned_step, small_config(toy, train__zero_stage=stage)):
        assert result["teacher_moved"] == 0
        assert result["sentence"].startswith(("step 1: the gradient is not finite (norm nan)",
                                              "step 1: the gradient is not finite (norm inf)"))  # as ZeRO says it


def test_a_loss_that_is_not_finite_ends_the_run(toy: str) -> None:
    (result,) = on_ranks(1, poisoned_step, small_config(toy), "loss")
    assert result["teacher_moved"] == 0
    assert result["sentence"].startswith("step 1: the loss is not finite")


def test_momentum_is_a_function_of_samples_not_of_ranks_or_batches(toy: str, alone: dict[str, Any]) -> None:
    half = small_config(toy, train__global_batch=12, train__steps=40)
    (smaller,) = on_ranks(1, run_steps, half, 4)
    assert smaller["momenta"][1::2] == alone["momenta"][:2]
    (shared,) = {tuple(result["momenta"]) for result in on_ranks(2, run_steps, small_config(toy), 2)}
    assert list(shared) == alone["momenta"][:2]


@pytest.mark.parametrize(
    ("world", "stage", "optimizer"),
    [(1, 0, "FP16_UnfusedOptimizer"), (2, 0, "FP16_UnfusedOptimizer"), (2, 1, "BF16_Optimizer"),
     (2, 2, "DeepSpeedZeroOptimizer")],
)
def test_bf16_teacher_is_the_average_of_the_fp32_masters(toy: str, world: int, stage: int, optimizer: str) -> None:
    values = small_config(toy, train__precision="bf16", train__zero_stage=stage, ema__momentum=0.999)
    for result in on_ranks(world, run_steps, values, 6):
        assert result["optimizer"] == optimizer
        assert result["mismatches"] == 0
        assert result["moved"] > 0
        assert result["losses"][-1]["total"] > 0
