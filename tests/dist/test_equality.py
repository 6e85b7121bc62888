"""The same numbers on 1, 2 and 4 ranks under every ZeRO stage, and a sharded teacher that is the unsharded
one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import coupled_config, run_cases, small_config, taught_config
from tests.ranks import on_ranks

pytestmark = pytest.mark.timeout(300)  # all cases run in the first test

STEPS, FEW = 20, 6
Changes = dict[str, Any]
CONVOLUTIONS = {
    "model": {"name": "dilated-conv", "hidden_size": 20, "stem_kernel": 5, "kernel": 3, "dilations": [1, 4]}
}
# ranks -> name: (config, changes of it, steps). The first three on one rank are what all others are compared
# with.
CASES: dict[int, dict[str, tuple[str, Changes, int]]] = {
    1: {
        "plain": ("plain", {}, STEPS),
        "coupled": ("coupled", {}, STEPS),
        "convolutions": ("convolutions", {}, FEW),
        "plain, 6 micro-batches": ("plain", {"train__micro_batch": 4}, STEPS),
        "coupled, 3 micro-batches, ZeRO-0": (
            "coupled",
            {"train__micro_batch": 8, "train__zero_stage": 0},
            STEPS,
        ),
        "taught": ("taught", {}, FEW),
        "weighted": ("weighted", {}, FEW),
        "weighted, 3 micro-batches": ("weighted", {"train__micro_batch": 8}, FEW),
        "taught, 3 micro-batches": ("taught", {"train__micro_batch": 8}, FEW),
        "plain, activation checkpointing": ("plain", {"train__activation_checkpointing": True}, 5),
    },
    2: {
        "plain, ZeRO-0": ("plain", {"train__zero_stage": 0}, STEPS),
        "plain, ZeRO-1": ("plain", {"train__zero_stage": 1}, STEPS),
        "plain, ZeRO-2, 3 micro-batches": ("plain", {"train__zero_stage": 2, "train__micro_batch": 4}, STEPS),
        "plain, ZeRO-3": ("plain", {"train__zero_stage": 3}, STEPS),
        "plain, ring": ("plain", {"loss__contrastive__variant": "ring"}, STEPS),
        "plain, ref": ("plain", {"loss__contrastive__variant": "ref"}, 5),
        "coupled, ZeRO-1, 2 micro-batches": ("coupled", {"train__micro_batch": 6}, STEPS),
        "coupled, ZeRO-2": ("coupled", {"train__zero_stage": 2}, 5),
        "coupled, ring, ZeRO-3, 3 micro-batches": (
            "coupled",
            {"loss__contrastive__variant": "ring", "train__zero_stage": 3, "train__micro_batch": 4},
            STEPS,
        ),
        "taught, ZeRO-3, 2 micro-batches": (
            "taught",
            {"train__zero_stage": 3, "train__micro_batch": 6},
            FEW,
        ),
        "weighted, ZeRO-2, 2 micro-batches": (
            "weighted",
            {"train__zero_stage": 2, "train__micro_batch": 6},
            FEW,
        ),
        "coupled, ref": ("coupled", {"loss__contrastive__variant": "ref"}, 5),
        "convolutions, ZeRO-1": ("convolutions", {}, FEW),
        "convolutions, ZeRO-3, 3 micro-batches, activation checkpointing": (
            "convolutions",
            {"train__zero_stage": 3, "train__micro_batch": 4, "train__activation_checkpointing": True},
            FEW,
        ),
        "plain, ZeRO-3, activation checkpointing": (
            "plain",
            {"train__zero_stage": 3, "train__activation_checkpointing": True},
            5,
        ),
    },
    4: {
        "plain, ZeRO-1": ("plain", {"train__zero_stage": 1}, STEPS),
        "coupled, ZeRO-3, 2 micro-batches": (
            "coupled",
            {"train__zero_stage": 3, "train__micro_batch": 3},
            10,
        ),
        "convolutions, ZeRO-2": ("convolutions", {"train__zero_stage": 2}, FEW),
        "taught, 2 micro-batches": ("taught", {"train__micro_batch": 3}, FEW),
        "weighted": ("weighted", {}, FEW),
    },
}
BF16 = {
    1: {
        "ZeRO-0": (0, 24),
        "ZeRO-1": (1, 24),
        "ZeRO-1, 6 micro-batches": (1, 4),
        "ZeRO-2, 6 micro-batches": (2, 4),
        "ZeRO-3, 6 micro-batches": (3, 4),
    },
    2: {"ZeRO-0": (0, 12), "ZeRO-1": (1, 12), "ZeRO-2": (2, 12), "ZeRO-3": (3, 12)},
}
OPTIMIZERS = {
    "0": "FP16_UnfusedOptimizer",
    "1": "BF16_Optimizer",
    "2": "DeepSpeedZeroOptimizer",
    "3": "DeepSpeedZeroOptimizer_Stage3",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toy_dataset(tmp_path_factory.mktemp("toy"))


def toy_dataset(folder: Path) -> str:
    contigs = [markov_sequence(30_000, seed=1), markov_sequence(40, seed=2)]  # one shorter than a window
    return write_dataset(folder, {"train": contigs}, block_bp=1024, soft=True, track=True)


@pytest.fixture(scope="module")
def runs(toy: str) -> dict[int, list[dict[str, Any]]]:
    """ranks -> by rank: case -> its numbers; bf16 cases begin with "bf16"."""
    configs = {
        "plain": small_config,
        "coupled": coupled_config,
        "taught": taught_config,
        "weighted": partial(small_config, loss__mlm__track_floor=0.2),
        "convolutions": partial(small_config, **CONVOLUTIONS),
    }
    found = {}
    for world in (1, 2, 4):
        cases = {
            name: (configs[kind](toy, **changes), steps)
            for name, (kind, changes, steps) in CASES[world].items()
        }
        for name, (stage, micro) in BF16.get(world, {}).items():
            cases[f"bf16 {name}"] = (
                small_config(toy, train__precision="bf16", train__zero_stage=stage, train__micro_batch=micro),
                6,
            )
        if world == 2:
            cases["two steps"] = (small_config(toy), 2)
        if world == 1:
            cases["half"] = (small_config(toy, train__global_batch=12, train__steps=40), 4)
        found[world] = on_ranks(world, run_cases, cases)
    return found


def largest_difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    return max(abs(a[name] / b[name] - 1) for a, b in zip(one, two, strict=True) for name in a)


@pytest.mark.parametrize(("world", "name"), [(world, name) for world in CASES for name in CASES[world]])
def test_losses_and_samples_are_those_of_one_rank(runs: Any, world: int, name: str) -> None:
    kind, _, steps = CASES[world][name]
    alone = runs[1][0][kind]
    together: dict[Any, Any] = {}
    for result in (by_case[name] for by_case in runs[world]):
        assert largest_difference(result["losses"], alone["losses"][:steps]) < 1e-5
        assert result["norms"] == pytest.approx(alone["norms"][:steps], rel=1e-4)
        assert result["mismatches"] == 0
        assert (
            result["entries"] / world
            <= result["shard_entries"]
            <= result["entries"] / world + result["names"]
        )
        assert not together.keys() & result["samples"].keys()
        together |= result["samples"]
    assert together == {key: sample for key, sample in alone["samples"].items() if key[0] < steps}


def test_every_loss_is_there_and_learns(runs: Any) -> None:
    plain, coupled = runs[1][0]["plain"], runs[1][0]["coupled"]
    assert plain["losses"][0].keys() == {"mlm", "distill", "patch", "contrastive", "total"}
    assert coupled["losses"][0].keys() == plain["losses"][0].keys() | {"koleo", "vicreg"}
    weighted = runs[1][0]["weighted"]["losses"][0]
    assert weighted["mlm"] != pytest.approx(plain["losses"][0]["mlm"], rel=1e-4), "of the same letters"
    assert weighted["distill"] == plain["losses"][0]["distill"]
    assert runs[1][0]["taught"]["losses"][0].keys() == plain["losses"][0].keys() | {"sigreg"}
    for result in (plain, coupled):
        assert result["losses"][-1]["mlm"] < result["losses"][0]["mlm"]


@pytest.mark.parametrize(("world", "name"), [(world, name) for world in BF16 for name in BF16[world]])
def test_bf16_gradients_are_those_of_fp32_under_every_stage(runs: Any, world: int, name: str) -> None:
    """DeepSpeed's bf16 optimisers accumulate in ways of their own: norms tell what losses under AdamW
    hide."""
    alone = runs[1][0]["plain"]
    for result in (by_case[f"bf16 {name}"] for by_case in runs[world]):
        assert result["optimizer"] == OPTIMIZERS[name.removeprefix("ZeRO-")[0]]
        assert result["mismatches"] == 0
        assert result["moved"] > 0
        # A gradient added twice, or a step made at set-up, shows at once; later norms tell bf16's rounding,
        # too.
        assert result["norms"][0] == pytest.approx(alone["norms"][0], rel=0.02)
        assert result["first_update"] == pytest.approx(alone["first_update"], rel=0.02)
        assert result["norms"] == pytest.approx(alone["norms"][:6], rel=0.3)
        assert largest_difference(result["losses"], alone["losses"][:6]) < 0.05


def test_momentum_is_a_function_of_samples_not_of_ranks_or_batches(runs: Any) -> None:
    alone = runs[1][0]["plain"]
    assert runs[1][0]["half"]["momenta"][1::2] == alone["momenta"][:2]
    (shared,) = {tuple(by_case["two steps"]["momenta"]) for by_case in runs[2]}
    assert list(shared) == alone["momenta"][:2]
