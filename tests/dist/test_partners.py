"""Training with partners: the same samples to the bit, and the same losses, on 1, 2 and 4 ranks."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.dist.steps import run_cases, small_config
from tests.orthologs import relatives, relatives_dataset
from tests.ranks import on_ranks

STEPS = 5


def cases(uri: str) -> dict[str, tuple[dict[str, Any], int]]:
    partners = {"data__partners": {"share": 0.7}}
    ring = {"loss__contrastive__variant": "ring", "train__micro_batch": 6}
    return {
        "plain": (small_config(uri, **partners), STEPS),
        "ring": (small_config(uri, **partners, **ring), STEPS),
        "off": (small_config(uri), 1),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> dict[int, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("relatives")
    relatives_dataset(folder, relatives())
    return {world: on_ranks(world, run_cases, cases(str(folder / "dataset"))) for world in (1, 2, 4)}


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_on_any_number_of_ranks(runs: dict[int, list[dict[str, Any]]], world: int) -> None:
    (alone,) = runs[1]
    for case in ("plain", "ring"):
        samples: dict[Any, Any] = {}
        for rank in runs[world]:
            samples |= rank[case]["samples"]
        assert samples == alone["plain"]["samples"]
        for rank in runs[world]:
            for one, two in zip(rank[case]["losses"], alone["plain"]["losses"], strict=True):
                assert one.keys() == two.keys()
                assert all(math.isclose(one[name], two[name], rel_tol=1e-5) for name in one)


def test_the_student_s_samples_are_those_without_partners(runs: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = runs[1]
    first = {key: row for key, row in alone["plain"]["samples"].items() if key[0] == 0}
    assert first.keys() == alone["off"]["samples"].keys()
    other = 0
    for key, (student, mask, teacher, noise) in alone["off"]["samples"].items():
        assert first[key][:2] == (student, mask) and first[key][3] == noise
        other += first[key][2] != teacher
    assert 0.4 < other / len(first) < 0.9
    plain, off = alone["plain"]["losses"][0], alone["off"]["losses"][0]
    assert plain["mlm"] == pytest.approx(off["mlm"], rel=1e-6), "the same letters are asked for"
    assert plain["contrastive"] != off["contrastive"]
