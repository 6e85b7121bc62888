"""The teacher in shards is the unsharded average, bit for bit: stage x precision x ranks x accumulation, with
skipped steps, resumed, and saved on another number of ranks under another stage. Its forward, too."""

from typing import Any

import pytest
import torch

from tests.dist.teachers import CASES, Case, check, printed, refusals, run_cases, watched_bytes
from tests.ranks import on_ranks
from trainer.engine.partition import FlatGroup, check_cover

pytestmark = pytest.mark.timeout(300)  # all cases run in the first test

# Whose teacher each loads: of another number of ranks, and of the next case, so of another stage or
# precision, too.
WORLDS: list[tuple[str, int, list[Case]]] = [
    ("3", 3, [case for case in CASES if case[2] == 2]),
    ("1", 1, CASES),
    ("4", 4, [case for case in CASES if case[2] == 2]),
    ("2", 2, CASES),
    ("2 of 4", 4, [case for case in CASES if case[2] == 2]),
]
SIZES = {"3": 3, "1": 1, "4": 4, "2": 2, "2 of 4": 2}


@pytest.fixture(scope="module")
def matrix() -> dict[str, list[dict[Case, dict[str, Any]]]]:
    """ranks -> by rank: case -> what it found."""
    results: dict[str, list[dict[Case, dict[str, Any]]]] = {}
    saved: dict[Case, Any] = {}
    for name, world, cases in WORLDS:
        results[name] = on_ranks(world, run_cases, cases, saved, name == "2 of 4")
        teachers = [found["saved"] for found in results[name][0].values()]
        saved = dict(zip(CASES, (teachers[1:] + teachers[:1]) * 2, strict=False))
    return results


@pytest.mark.parametrize(
    ("ranks", "case"), [(name, case) for name, _, cases in WORLDS for case in cases], ids=str
)
def test_the_sharded_teacher_is_the_unsharded_average(matrix: Any, ranks: str, case: Case) -> None:
    for found in (by_case[case] for by_case in matrix[ranks]):
        check(found, case, resharded=ranks != "3")


@pytest.mark.parametrize("ranks", [name for name, _, _ in WORLDS])
def test_each_rank_holds_its_share_and_padding(matrix: Any, ranks: str) -> None:
    entries, parameters = 7 * 5 + 5 + 5 + 5 + 5 * 7 + 5 + 5 * 3 + 3, 8  # of tests.dist.teachers.Odd
    for by_case in matrix[ranks]:
        for found in by_case.values():
            assert entries / SIZES[ranks] <= found["entries"] <= entries / SIZES[ranks] + parameters


@pytest.mark.parametrize("ranks", [name for name, _, _ in WORLDS])
def test_zero_3_keeps_biases_and_norms_whole_and_cuts_weights(matrix: Any, ranks: str) -> None:
    """Both ways of writing a teacher's weights are used: into its partition, and gathered again."""
    vectors = {"first.bias", "norm.weight", "norm.bias", "again.bias", "last.bias"}
    for by_case in matrix[ranks]:
        for (stage, _, _), found in by_case.items():
            for whole in found["whole"]:
                assert whole == {
                    name: stage < 3 or name in vectors
                    for name in vectors | {"first.weight", "back.weight", "last.weight"}
                }


def test_every_kind_of_optimizer_was_seen(matrix: Any) -> None:
    assert {found["optimizer"] for found in matrix["2"][0].values()} == {
        "AdamW",
        "FP16_UnfusedOptimizer",
        "DeepSpeedZeroOptimizer",
        "BF16_Optimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    }


@pytest.mark.parametrize(("ranks", "accumulation"), [("1", 1), ("1", 2), ("2", 1)])
def test_all_stages_give_the_same_bits_on_one_and_two_ranks(
    matrix: Any, ranks: str, accumulation: int
) -> None:
    """With accumulation on two ranks ZeRO-2 and 3 add gradients in another order than 0 and 1, so nobody
    could."""
    assert len({matrix[ranks][0][stage, "fp32", accumulation]["digest"] for stage in range(4)}) == 1


def test_in_bf16_no_rank_ever_holds_the_fp32_teacher() -> None:
    for by_stage in on_ranks(2, watched_bytes):
        for stage, (peak, whole, largest, kept) in by_stage.items():
            assert kept == (12 if stage == 3 else 24), f"ZeRO-{stage}"
            assert whole / 2 <= peak <= whole / 2 + largest, f"ZeRO-{stage}: {peak} bytes of {whole}"


def test_building_an_engine_prints_nothing() -> None:
    assert on_ranks(1, printed) == [""]


def test_masters_that_lie_elsewhere_are_noticed_when_the_engine_is_built() -> None:
    for said in on_ranks(2, refusals):
        assert "fp32 masters of first.weight elsewhere than it was known to" in said["swapped"]
        assert said["unknown"] == "no teacher follows DeepSpeed's DeepSpeedZeroOptimizer; known are "


def test_groups_that_do_not_cover_the_network_are_refused_by_name() -> None:
    wanted = {"weight": torch.Size([3, 2]), "bias": torch.Size([3])}
    half = [FlatGroup(6, {"weight": (0, torch.Size([3, 2]))}, [(0, torch.zeros(6))])]
    with pytest.raises(ValueError, match="network and optimiser differ in 1 parameters: bias"):
        check_cover(wanted, half)
    with pytest.raises(ValueError, match="parameter weight stands in two optimiser groups"):
        check_cover(wanted, half * 2)
