"""A planted collapse is named within 200 steps of a small run; a healthy run is left alone; ranks read the
same."""

from typing import Any

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import judged_cases, small_config
from tests.ranks import on_ranks

PLANTED = {
    "loss__mlm__weight": 0.0,
    "loss__contrastive__weight": 0.0,
    "loss__patch__weight": 0.0,
    "loss__distill__balance": "none",
    "views__crops__number": 0,
}
STEPS = 200


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = [markov_sequence(30_000, seed=1)]
    return write_dataset(tmp_path_factory.mktemp("toy"), {"train": contigs}, block_bp=1024, soft=True)


@pytest.fixture(scope="module")
def judged(toy: str) -> dict[str, dict[str, Any]]:
    return on_ranks(
        1,
        judged_cases,
        {
            "planted": (small_config(toy, **PLANTED), STEPS),
            "planted, other seed": (small_config(toy, run__seed=8, **PLANTED), STEPS),
            "healthy": (small_config(toy), STEPS),
        },
    )[0]


@pytest.mark.parametrize("name", ["planted", "planted, other seed"])
def test_a_planted_collapse_is_named(judged: Any, name: str) -> None:
    found = judged[name]
    step, sentence = found["first"]
    assert step <= STEPS
    assert sentence.startswith(f"step {step}: the teacher is one-hot on the same prototype for all samples")
    assert "(prototype_usage " in sentence
    assert found["readings"][step]["batch_health/collapsed"] == 1
    assert found["readings"][10]["batch_health/collapsed"] == 0


def test_a_healthy_run_is_left_alone_and_its_readings_are_all_there(judged: Any) -> None:
    found = judged["healthy"]
    assert found["first"] is None
    assert set(found["readings"]) == set(range(10, STEPS + 1, 10))
    assert {
        f"batch_health/{name}"
        for name in (
            "teacher_entropy",
            "kl",
            "embedding_std",
            "dead_dimensions",
            "effective_rank",
            "centred_rank",
            "alignment",
            "uniformity",
            "centre_drift",
            "prototype_usage",
            "prototypes_chosen",
            "teacher_information",
            "learned",
            "collapsed",
        )
    } <= found["readings"][STEPS].keys()


def test_readings_are_those_of_one_rank(toy: str, judged: Any) -> None:
    for (found,) in (
        by_case.values() for by_case in on_ranks(2, judged_cases, {"": (small_config(toy), 20)})
    ):
        for step in (10, 20):
            assert found["readings"][step] == pytest.approx(
                judged["healthy"]["readings"][step], rel=1e-3, abs=1e-5
            )
