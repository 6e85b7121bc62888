"""Collectives against what each rank put in, and the teacher's refusal of groups that do not cover it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cluster.process import evidence
from configs import ConfigError
from tests.ranks import on_ranks
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.ema import FlatWeights, ShardedEMA
from trainer.engine.partition import FlatGroup


def every_collective() -> dict[str, Any]:
    group = Group.of()
    rank = group.rank
    packed = {
        "a": torch.full((2, 3), float(rank)),
        "b": torch.tensor(10.0 + rank),
        "c": torch.arange(4.0) * rank,
        "flags": torch.tensor([True, False, rank == 1]),
        "ids": torch.tensor([[(1 << 62) + rank], [-rank]]),
        "double": torch.tensor(1.0 + rank * 2.0**-50, dtype=torch.float64),
        "nan": torch.tensor([float("nan")]),
        "low": torch.tensor([-0.0, rank], dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    }
    before = torch.tensor([rank, 1], dtype=torch.int64)
    total = collectives.sum_over_ranks(group, before)
    flat = torch.zeros(group.size * 2)
    collectives.all_gather_flat(group, flat, torch.tensor([float(rank), -float(rank)]))
    return {
        "packed": collectives.gather_packed(group, packed if rank % 2 else dict(reversed(packed.items()))),
        "rows": collectives.gather_rows(group, torch.full((rank, 2), float(rank))),
        "total": total,
        "untouched": before,
        "flat": flat,
        "group": (group.rank, group.size),
    }


@pytest.mark.parametrize("world", [1, 3])
def test_collectives_bring_every_ranks_part_in_rank_order(world: int) -> None:
    for rank, got in enumerate(on_ranks(world, every_collective)):
        assert got["group"] == (rank, world)
        assert got["packed"]["a"].shape == (world, 2, 3)
        assert got["packed"]["a"][:, 0, 0].tolist() == list(range(world))
        assert got["packed"]["b"].tolist() == [10.0 + r for r in range(world)]
        assert got["packed"]["c"].tolist() == [[k * r for k in range(4)] for r in range(world)]
        assert got["packed"]["flags"].tolist() == [[True, False, r == 1] for r in range(world)]
        assert got["packed"]["ids"].tolist() == [[[(1 << 62) + r], [-r]] for r in range(world)]
        assert got["packed"]["double"].tolist() == [1.0 + r * 2.0**-50 for r in range(world)]
        assert got["packed"]["nan"].isnan().all()
        assert got["packed"]["low"].tolist() == [[0.0, float(r)] for r in range(world)]
        assert got["packed"]["low"][:, 0].signbit().all()
        assert got["packed"]["none"].shape == (world, 0, 3)
        assert got["rows"][:, 0].tolist() == [float(r) for r in range(world) for _ in range(r)]
        assert got["total"].tolist() == [sum(range(world)), world]
        assert got["untouched"].tolist() == [rank, 1]
        assert got["flat"].tolist() == [sign * float(r) for r in range(world) for sign in (1, -1)]


@dataclass(frozen=True)
class Message:
    """As ranks send them on the control path: of any size, and with what numbers cannot say."""

    text: str
    rank: int | None = None


def raised(block: Callable[[], None]) -> str:
    """Class and sentence of what ``block`` raises; "" for nothing."""
    try:
        block()
    except Exception as fault:
        return f"{type(fault).__name__}: {fault}"
    return ""


def objects_and_refusals() -> dict[str, Any]:
    group = Group.of()
    rank = group.rank

    def fails_on(which: set[int], fault: Exception) -> Callable[[], None]:
        def block() -> None:
            with collectives.together(group):
                if rank in which:
                    raise fault

        return block

    def first_fails(fault: Exception | None) -> Callable[[], None]:
        def block() -> None:
            with collectives.first_rank_decides(group, ConfigError, OSError):
                if rank == 0 and fault:
                    raise fault

        return block

    ranks = set(range(group.size))
    return {
        "first": collectives.object_from_first(group, Message("x" * 1000 * rank + "é", rank)),
        "none": collectives.object_from_first(group, None if rank == 0 else Message("of another")),
        "everywhere": collectives.gather_objects(group, Message("y" * rank, rank)),
        "together": [
            raised(fails_on(set(), OSError("o"))),
            raised(fails_on({group.size - 1}, OSError("the disk is full"))),
            raised(fails_on(ranks, ValueError("all alike"))),
        ],
        "first decides": [
            raised(first_fails(None)),
            raised(first_fails(OSError("the store is away"))),
            raised(first_fails(ConfigError("key: wrong"))),
            raised(first_fails(OSError(""))),
        ],
        "still in step": collectives.gather_objects(group, rank),
    }


@pytest.mark.parametrize("world", [1, 3])
def test_objects_reach_all_ranks_and_so_does_what_ends_one(world: int) -> None:
    for rank, got in enumerate(on_ranks(world, objects_and_refusals)):
        assert got["first"] == Message("é", 0)
        assert got["none"] is None
        assert got["everywhere"] == [Message("y" * r, r) for r in range(world)]
        last = rank == world - 1
        elsewhere = "ElsewhereError: 1 of the other ranks cannot go on, and say why"
        assert got["together"] == [
            "",
            "OSError: the disk is full" if last else elsewhere,
            "ElsewhereError: all alike" if rank else "ValueError: all alike",
        ]
        assert got["first decides"] == [
            "",
            "EverywhereError: the store is away",
            "ConfigError: key: wrong",
            "EverywhereError: ",
        ]
        assert got["still in step"] == list(range(world))


def what_torch_recorded() -> list[str]:
    for _ in range(10):
        collectives.sum_over_ranks(Group.of(), torch.zeros(3))
    return evidence.recorded()


def test_the_last_collectives_are_had_from_torchs_flight_recorder() -> None:
    """Of gloo, too; a rank that hangs shows them before it is killed."""
    for said in on_ranks(2, what_torch_recorded):
        assert said[0] == "collectives by torch's flight recorder, newest first:"
        assert len(said) == 9
        numbers = [
            re.fullmatch(
                r"  gloo:all_reduce (\d+) of group 0, Float \[\[3\]\]: (?:done|scheduled, "
                r"under way for "
                r"\d+ s)",
                line,
            )
            for line in said[1:]
        ]
        found = [int(number[1]) for number in numbers if number]
        assert found == list(range(found[0], found[0] - 8, -1))


def odd_teacher(momenta: list[float]) -> dict[str, Any]:
    """A teacher of 7 + 3 entries in two groups, cut at odd places, with negative zeros; and its unsharded
    twin."""
    group = Group.of()
    torch.manual_seed(0)
    module = torch.nn.ParameterDict({"w": torch.randn(7), "b": torch.randn(3)}).bfloat16()
    student = {name: torch.randn(tensor.shape) for name, tensor in module.items()}
    student["w"][2] = -0.0
    groups, views = [], []
    for name, tensor in student.items():
        shard = -(-tensor.numel() // group.size)
        flat = torch.zeros(shard * group.size)
        flat[: tensor.numel()] = tensor
        mine = flat[group.rank * shard : (group.rank + 1) * shard]
        groups.append(FlatGroup(len(flat), {name: (0, tensor.shape)}, [(0, mine)]))
        views.append((name, flat, mine))
    weights = FlatWeights(module, groups, group=group)
    teacher = ShardedEMA(module, torch.nn.Module(), groups, weights, group=group)
    reference = {name: tensor.clone() for name, tensor in student.items()}
    for step, momentum in enumerate(momenta):
        for _, flat, _ in views:
            flat += 0.1 * (step + 1)  # the masters move; flat and mine share memory
        teacher.update(momentum)
        for name, flat, _ in views:
            reference[name] = torch.lerp(reference[name], flat[: reference[name].numel()], 1 - momentum)
    full = dict(teacher.full_tensors())
    return {
        "equal": all(
            torch.equal(full[name].view(torch.int32), reference[name].view(torch.int32)) for name in full
        ),
        "forward": all(torch.equal(teacher.module[name], reference[name].bfloat16()) for name in full),
        "incomplete": what_load_says(teacher),
        "entries": sorted((shard.numel() for shard in teacher.shards), reverse=True),
    }


def what_load_says(teacher: ShardedEMA[Any]) -> tuple[str, bool]:
    """The sentence about fragments that lack the first entry of w on rank 0, and whether φ stayed as it
    was."""
    before = [shard.clone() for shard in teacher.shards]
    mine = teacher.fragments()
    if teacher.group.rank == 0:
        ((at, part),) = mine["w"]
        mine["w"] = [(at + 1, part[1:])]
    try:
        teacher.load(mine)
    except ValueError as fault:
        return str(fault), all(map(torch.equal, teacher.shards, before))
    return "", False


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("momenta", [[], [0.996, 0.999, 1.0, 0.5]])
def test_odd_sizes_give_the_bits_of_an_unsharded_average(world: int, momenta: list[float]) -> None:
    for rank, got in enumerate(on_ranks(world, odd_teacher, momenta)):
        assert got["equal"]
        assert got["forward"]
        assert got["entries"] == [-(-7 // world), -(-3 // world)]
        size, said = -(-7 // world), "1 of the other ranks cannot go on, and say why"
        if not rank:
            said = (
                f"the saved teacher lacks 1 of {size} entries of w from 0 on; "
                "load the fragments of every rank that saved"
            )
        assert got["incomplete"] == (said, True)
