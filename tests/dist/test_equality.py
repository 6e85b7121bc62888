"""The same numbers on 1, 2 and 4 ranks, and a sharded teacher that is the unsharded one, bit for bit."""

from typing import Any

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import run_steps, small_config
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


@pytest.mark.parametrize("micro", [4, 8])
def test_accumulation_changes_no_loss(toy: str, alone: dict[str, Any], micro: int) -> None:
    (result,) = on_ranks(1, run_steps, small_config(toy, train__micro_batch=micro, train__zero_stage=1), 20)
    assert largest_difference(result["losses"], alone["losses"]) < 1e-5
    assert result["mismatches"] == 0


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


def test_bf16_losses_follow_fp32(toy: str, alone: dict[str, Any]) -> None:
    (result,) = on_ranks(1, run_steps, small_config(toy, train__precision="bf16", train__zero_stage=2), 6)
    assert largest_difference(result["losses"], alone["losses"][:6]) < 0.05
