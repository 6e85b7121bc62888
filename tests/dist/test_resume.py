"""A run that goes on from its checkpoint is the run that was never stopped: bit for bit on as many ranks, and with the
same state and samples on any other number."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.runs import names, stretches
from tests.dist.steps import coupled_config, small_config
from tests.ranks import on_ranks

SAVED, LAST = 3, 7
CASES = list(itertools.product([0, 1, 2, 3], ["fp32", "bf16"]))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small enough that step 3 of 24 windows of 48 bp is in the middle of the first epoch and step 7 in another."""
    contigs = {"train": [markov_sequence(5_000, seed=1)], "val": [markov_sequence(1_000, seed=2)]}
    return write_dataset(tmp_path_factory.mktemp("toy"), contigs, block_bp=512, soft=True)


def config(uri: str, folder: Path, stage: int, precision: str, world: int, **more: Any) -> dict[str, Any]:
    """Accumulation where it is allowed, loader workers, losses of every kind."""
    micro = {} if (stage, precision) == (0, "bf16") else {"train__micro_batch": 12 // world}
    kinds = {"run__dir": str(folder), "train__zero_stage": stage, "train__precision": precision, "data__workers": 2}
    made = coupled_config if stage == 2 else small_config
    return made(uri, **kinds, **micro, **more)


@pytest.mark.parametrize("world", [1, 2])
def test_the_same_number_of_ranks_goes_on_bit_for_bit(uri: str, tmp_path: Path, world: int) -> None:
    cases: dict[str, dict[str, Any]] = {}
    for stage, precision in CASES:
        name = f"{stage} {precision}"
        values = config(uri, tmp_path / name, stage, precision, world)
        cases[name] = {"values": values, "until": LAST, "save_at": (SAVED,), "look_at": SAVED}
        cases[f"{name} resumed"] = {"values": values, "until": LAST, "resumed": True}
    found = on_ranks(world, stretches, cases)[0]
    for stage, precision in CASES:
        name = f"{stage} {precision}"
        one, other = found[name], found[f"{name} resumed"]
        assert (one["first"], other["first"], other["said"]) == (0, SAVED, [])
        assert set(other["trained"]) == set(range(SAVED + 1, LAST + 1))
        for step, trained in other["trained"].items():
            assert trained == one["trained"][step], (name, step)  # metrics: losses, rate, momentum, norm, health
        assert other["hashes"] == one["hashes"], name
        assert len({hashes["teacher"] for hashes in one["hashes"].values()}) == LAST - SAVED + 1


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_state_and_samples(uri: str, tmp_path: Path, stage: int) -> None:
    """4 -> 2 -> 1 -> 3, each from the checkpoint of the one before."""
    straight = stretches_on(4, config(uri, tmp_path / "straight", stage, "fp32", 4), until=LAST + 1)
    folder, first = tmp_path / "elastic", 0
    before: dict[str, Any] = {}
    for number, world in enumerate([4, 2, 1, 3]):
        values = config(uri, folder, stage, "fp32", world)
        until = 2 * (number + 1)
        found = stretches_on(world, values, until=until, save_at=(until,), resumed=True)
        assert found["first"] == first
        if before:
            assert found["hashes"][first] == before["hashes"][first], world
        for step, trained in found["trained"].items():
            wanted = straight["trained"][step]
            assert trained["ids"] == wanted["ids"]
            for key, value in trained["metrics"].items():
                if not key.startswith("batch_health/"):
                    assert value == pytest.approx(wanted["metrics"][key], rel=1e-4 if key == "grad_norm" else 1e-5), key
        first, before = until, found
    for kind in ("exp_avg", "exp_avg_sq", "master", "teacher"):
        for name, tensor in before["whole"][kind].items():
            wanted = straight["whole"][kind][name]
            assert torch.allclose(tensor, wanted, rtol=2e-2, atol=2e-3 * float(wanted.abs().max())), (kind, name)
    ids = [tuple(row) for step in range(1, LAST + 2) for row in straight["trained"][step]["ids"]]
    assert len(set(ids)) == len(ids) == 24 * (LAST + 1)


def stretches_on(world: int, values: dict[str, Any], **case: Any) -> dict[str, Any]:
    return on_ranks(world, stretches, {"one": {"values": values, **case}})[0]["one"]


def test_checkpoints_are_kept_as_asked_for(uri: str, tmp_path: Path) -> None:
    values = config(uri, tmp_path / "run", 1, "fp32", 2, checkpoint={"keep_last": 2, "keep_every": 3})
    stretches_on(2, values, until=7, save_at=(1, 2, 3, 4, 5, 6, 7))
    assert names(tmp_path / "run") == ["step-00000003", "step-00000006", "step-00000007"]
