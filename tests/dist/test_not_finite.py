"""A loss or gradient that is not finite on one rank: the step is skipped on all, as if it had never been."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.process.compat import ALL_GATHER
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import counted_cases, coupled_config, poisoned_cases, small_config
from tests.ranks import on_ranks

pytestmark = pytest.mark.timeout(300)  # all cases run in the first test

PRECISIONS = {"fp32": 0, "bf16": 1}
CASES = [
    (stage, precision, what)
    for stage in range(4)
    for precision in PRECISIONS
    for what in ("loss", "gradient")
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    contigs = [markov_sequence(30_000, seed=1)]
    return write_dataset(tmp_path_factory.mktemp("toy"), {"train": contigs}, block_bp=1024, soft=True)


@pytest.fixture(scope="module")
def skipped(toy: str) -> dict[Any, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """case -> by rank: (poisoned at step 2 of 3 on one rank, step 2 left out)."""
    poisoned, kinds = [], {"loss": ("loss", 1), "gradient": ("gradient", 0), "": ("leave out", 0)}
    for stage, precision, what in CASES:
        # Accumulation, too, where DeepSpeed allows it: a poisoned micro-batch must not reach the next step.
        micro = 12 if (stage, precision) == (0, "bf16") else 6
        values = small_config(
            toy, train__zero_stage=stage, train__precision=precision, train__micro_batch=micro
        )
        poisoned += [(values, {2: kinds[what]}, 3), (values, {2: kinds[""]}, 3)]
    by_rank = on_ranks(2, poisoned_cases, poisoned)
    pairs = [list(zip(found[::2], found[1::2], strict=True)) for found in by_rank]
    return {case: [of_rank[number] for of_rank in pairs] for number, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_poisoned_step_is_as_if_it_had_never_been(skipped: Any, case: Any) -> None:
    for poisoned, left_out in skipped[case]:
        assert poisoned["sentence"] == ""
        assert poisoned["skipped"] == 1
        assert poisoned["metrics"][1] == {"train/skipped_steps": 1.0}
        assert poisoned["metrics"][::2] == left_out["metrics"]
        for part in ("masters", "teacher", "centres"):
            for name, tensor in left_out[part].items():
                assert torch.equal(poisoned[part][name], tensor), f"{part} {name}"


def test_the_run_ends_after_so_many_steps_on_end_and_lists_their_samples(toy: str, tmp_path: Path) -> None:
    values = small_config(toy, train__max_skipped=2, run__dir=str(tmp_path / "run"))
    poison = {1: ("loss", 0), 3: ("gradient", 1), 4: ("loss", 1)}
    both = on_ranks(2, poisoned_cases, [(values, poison, 6)])
    for rank, (found,) in enumerate(both):
        assert [sorted(metrics)[0] for metrics in found["metrics"]] == [
            "train/skipped_steps",
            "ema/momentum",
            "train/skipped_steps",
            "train/skipped_steps",
        ]
        assert found["metrics"][2] == {"train/skipped_steps": 2.0}
        assert found["skipped"] == 3
        assert found["sentence"].startswith(
            "step 4: no finite loss and gradient in 2 steps in a row, {'mlm': nan"
        ), rank
        assert found["sentence"].endswith(f"the samples are listed in {tmp_path / 'run' / 'not_finite.json'}")
    saved = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert [entry["step"] for entry in saved["steps"]] == [3, 4]
    assert saved["steps"][1]["losses"]["mlm"] == "nan"
    ids = [row for (found,) in both for row in found["ids"].tolist()]
    assert saved["steps"][1]["samples"] == ids
    assert len(ids) == 24


@pytest.fixture(scope="module")
def counts(toy: str) -> list[dict[str, Any]]:
    lse = {"train__zero_stage": 1}
    cases = {
        "teacher keys": small_config(toy, **lse),
        "teacher keys, 3 micro-batches": small_config(toy, train__micro_batch=4, **lse),
        "student keys": coupled_config(toy, **lse),
        "student keys, 3 micro-batches": coupled_config(toy, train__micro_batch=4, **lse),
        "ring": small_config(toy, loss__contrastive__variant="ring", **lse),
    }
    return on_ranks(2, counted_cases, cases)


@pytest.mark.parametrize("micro", ["", ", 3 micro-batches"])
def test_one_gather_a_step_and_none_in_backward(counts: list[dict[str, Any]], micro: str) -> None:
    """Besides DeepSpeed's own: the packed gather, the all-reduce of losses and the verdict, one scalar gather
    where the student's own keys have a gradient."""
    for by_case in counts:
        assert by_case[f"teacher keys{micro}"] == {
            "forward": {ALL_GATHER: 1, "all_reduce": 1},
            "backward": {},
        }
        assert by_case[f"student keys{micro}"] == {
            "forward": {ALL_GATHER: 2, "all_reduce": 1},
            "backward": {},
        }


def test_the_ring_passes_keys_on_instead_and_nothing_in_backward(counts: list[dict[str, Any]]) -> None:
    for by_case in counts:
        assert by_case["ring"]["backward"] == {}
        assert by_case["ring"]["forward"][ALL_GATHER] == 1  # of all that is not keys
        assert by_case["ring"]["forward"].keys() > {ALL_GATHER, "all_reduce"}
