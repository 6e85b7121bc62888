"""A run that goes on from its checkpoint is the run that was never stopped: bit for bit on as many ranks, and
with the same state and samples on any other number."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.datasets import markov_sequence, write_dataset
from tests.dist.runs import names, stretches
from tests.dist.steps import coupled_config, small_config
from tests.ranks import on_ranks
from trainer.data.dataset import Dataset

SAVED, LAST = 2, 5
CASES = list(itertools.product([0, 1, 2, 3], ["fp32", "bf16"]))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small enough that step 2 of 24 windows of 48 bp is in the middle of the first epoch and step 5 in
    another."""
    contigs = {"train": [markov_sequence(4_000, seed=1)], "val": [markov_sequence(1_000, seed=2)]}
    return write_dataset(tmp_path_factory.mktemp("toy"), contigs, block_bp=512, soft=True)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four of sixteen blocks are."""
    folder = tmp_path_factory.mktemp("damaged")
    uri = write_dataset(folder, {"train": [markov_sequence(4_000, seed=1)]}, block_bp=256)
    for shard, entry in Dataset(uri, "train").blocks[2:6]:
        content = bytearray((folder / shard.name).read_bytes())
        content[entry.offset + entry.size - 1] ^= 1
        (folder / shard.name).write_bytes(content)
    return uri


def config(uri: str, folder: Path, stage: int, precision: str, world: int, **more: Any) -> dict[str, Any]:
    """Accumulation where it is allowed, loader workers, losses of every kind."""
    micro = {} if (stage, precision) == (0, "bf16") else {"train__micro_batch": 12 // world}
    kinds = {
        "run__dir": str(folder),
        "train__zero_stage": stage,
        "train__precision": precision,
        "data__workers": 2,
    }
    made = coupled_config if stage == 2 else small_config
    return made(uri, **kinds, **micro, **more)


@pytest.mark.parametrize(
    ("world", "cases", "last"),
    [
        (1, [(0, "fp32"), (3, "bf16")], LAST),
        (2, CASES, LAST),
        pytest.param(2, CASES, SAVED + 50, marks=pytest.mark.faults),
    ],
)
def test_the_same_number_of_ranks_goes_on_bit_for_bit(
    uri: str, tmp_path: Path, world: int, cases: list[tuple[int, str]], last: int
) -> None:
    runs: dict[str, dict[str, Any]] = {}
    for stage, precision in cases:
        name = f"{stage} {precision}"
        values = config(uri, tmp_path / name, stage, precision, world, train__steps=60)
        runs[name] = {"values": values, "until": last, "save_at": (SAVED,), "look_at": SAVED}
        runs[f"{name} resumed"] = {"values": values, "until": last, "resumed": True}
    found = on_ranks(world, stretches, runs)[0]
    for stage, precision in cases:
        name = f"{stage} {precision}"
        one, other = found[name], found[f"{name} resumed"]
        assert (one["first"], other["first"], other["said"]) == (0, SAVED, [])
        assert set(other["trained"]) == set(range(SAVED + 1, last + 1))
        for step, trained in other["trained"].items():
            # metrics: losses, rate, momentum, norm, health
            assert trained == one["trained"][step], (name, step)
        assert other["hashes"] == one["hashes"], name
        assert len({hashes["teacher"] for hashes in one["hashes"].values()}) == last - SAVED + 1
    epochs = {row[1] for trained in found["0 fp32"]["trained"].values() for row in trained["ids"]}
    assert len(epochs) > 1, "the run goes on in the middle of an epoch and ends in another"


def test_another_number_of_ranks_goes_on_with_the_same_state_and_samples(
    uri: str, damaged: str, tmp_path: Path
) -> None:
    """4 -> 2 -> 1 -> 3, a step each, from the checkpoint of the one before, against four steps of 2 ranks.

    So does the number of damaged blocks that were skipped, which is only asked for at the last step.
    """
    worlds, stages = [4, 2, 1, 3], [0, 1, 3]
    values = config(uri, tmp_path / "straight", 2, "fp32", 2) | {
        "loss": config(uri, tmp_path, 0, "fp32", 1)["loss"]
    }
    skips: dict[str, Any] = {"data__on_corrupt": "skip", "loss__mlm__soft_weight": 1.0}
    whole = config(damaged, tmp_path / "skips straight", 0, "fp32", 2, **skips)
    both = on_ranks(
        2,
        stretches,
        {
            "": {"values": values, "until": len(worlds), "look_at": 99},
            "skips": {"values": whole, "until": len(worlds), "look_at": 99},
        },
    )[0]
    straight = both[""]
    before: dict[Any, dict[str, Any]] = {}
    for last, world in enumerate(worlds, start=1):
        cases: dict[Any, dict[str, Any]] = {
            stage: {
                "values": config(uri, tmp_path / str(stage), stage, "fp32", world),
                "until": last,
                "save_at": (last,),
                "resumed": True,
            }
            for stage in stages
        }
        cases["skips"] = {
            "values": config(damaged, tmp_path / "skips", 0, "fp32", world, **skips),
            "until": last,
            "save_at": (last,),
            "resumed": True,
            "tracked": len(worlds),
        }
        found = on_ranks(world, stretches, cases)[0]
        for stage in stages:
            one = found[stage]
            assert one["first"] == last - 1
            if before:
                assert one["hashes"][last - 1] == before[stage]["hashes"][last - 1], (stage, world)
            trained, wanted = one["trained"][last], straight["trained"][last]
            assert trained["ids"] == wanted["ids"]
            for key, value in trained["metrics"].items():
                if not key.startswith("batch_health/"):
                    assert value == pytest.approx(
                        wanted["metrics"][key], rel=1e-4 if key == "grad_norm" else 1e-5
                    ), key
        before = found
    counts = [trained["metrics"]["data/skipped_blocks"] for trained in both["skips"]["trained"].values()]
    assert counts[0] > 0 and counts[-1] > counts[0] and counts == sorted(counts), counts
    assert before["skips"]["trained"][len(worlds)]["metrics"]["data/skipped_blocks"] == counts[-1]
    for stage in stages:
        assert before[stage]["applied"] == len(worlds)
        for kind in ("exp_avg", "exp_avg_sq", "master", "teacher"):
            for name, tensor in before[stage]["whole"][kind].items():
                wanted = straight["whole"][kind][name]
                assert torch.allclose(tensor, wanted, rtol=2e-2, atol=2e-3 * float(wanted.abs().max())), (
                    kind,
                    name,
                )
    ids = [tuple(row) for trained in straight["trained"].values() for row in trained["ids"]]
    assert len(set(ids)) == len(ids) == 24 * len(worlds)


def stretches_on(world: int, values: dict[str, Any], **case: Any) -> dict[str, Any]:
    return on_ranks(world, stretches, {"one": {"values": values, **case}})[0]["one"]


def test_checkpoints_are_kept_as_asked_for(uri: str, tmp_path: Path) -> None:
    values = config(uri, tmp_path / "run", 1, "fp32", 2, checkpoint={"keep_last": 2, "keep_every": 3})
    stretches_on(2, values, until=7, save_at=(1, 2, 3, 4, 5, 6, 7))
    assert names(tmp_path / "run") == ["step-00000003", "step-00000006", "step-00000007"]
