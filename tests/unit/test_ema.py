"""The teacher in one process: what waits for what while its weights are under way, how partitions are cut,
and what cannot be loaded. Ranks are played one after the other where there are several."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.core import collectives
from trainer.core.collectives import Group, Pending
from trainer.engine.ema import FlatWeights, ShardedEMA
from trainer.engine.optimizer_adapters import PartitionedWeights
from trainer.engine.partition import FlatGroup

ALONE = Group(0, 1)
Layout = tuple[int, int, dict[str, tuple[int, torch.Size]]]  # ranks, entries of the flat vector, slots


class Late:
    """Weights that reach the module only when they are waited for; ``log``: "write" and "arrive" as they
    happen."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.log = module, list[str]()

    def write(self, shards: Sequence[Tensor]) -> Pending:
        self.log.append("write")
        values = torch.cat([shard.clone() for shard in shards])

        def arrive() -> None:
            self.log.append("arrive")
            nn.utils.vector_to_parameters(values, self.module.parameters())

        return Pending([SimpleNamespace(wait=arrive)])

    def since(self) -> list[str]:
        """The log since the last call."""
        log, self.log = self.log, []
        return log


class Net(nn.Module):
    """4 + 2 parameters, 0 at first; a buffer, also 0."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(3))


def alone(weight: Sequence[float] = (1, 2, 3, 4)) -> tuple[Any, Net, list[Tensor]]:
    """A teacher of Net with late weights, its student, and the masters: ``weight``, and 5 and -0 as bias."""
    module, student = Net(), Net()
    masters = [torch.tensor(weight, dtype=torch.float32), torch.tensor([5, -0.0])]
    groups = [
        FlatGroup(4, {"weight": (0, torch.Size([2, 2]))}, [(0, masters[0][:1]), (1, masters[0][1:])]),
        FlatGroup(2, {"bias": (0, torch.Size([2]))}, [(0, masters[1])]),
    ]
    return ShardedEMA(module, student, groups, Late(module), group=ALONE), student, masters


def entries(module: nn.Module) -> list[float]:
    return nn.utils.parameters_to_vector(module.parameters()).tolist()


def test_the_module_waits_for_its_weights_once() -> None:
    teacher, _, _ = alone()
    assert teacher._weights.log == ["write"]
    assert entries(teacher._module) == [0] * 6, "they came unasked, so this test could not tell"
    assert entries(teacher.module) == [1, 2, 3, 4, 5, 0]
    assert entries(teacher.module) == [1, 2, 3, 4, 5, 0]
    assert teacher._weights.log == ["write", "arrive"]


def test_an_update_waits_for_the_one_before_and_the_module_has_the_last() -> None:
    teacher, _, masters = alone()
    for master in masters:
        master += 8
    teacher.update(0.75)
    assert teacher._weights.since() == ["write", "arrive", "write"]
    teacher.update(0.5)
    assert teacher._weights.since() == ["arrive", "write"]
    assert entries(teacher.module) == [6, 7, 8, 9, 10, 5]
    assert teacher._weights.since() == ["arrive"]


def test_the_whole_teacher_is_gathered_after_what_is_under_way() -> None:
    teacher, _, masters = alone()
    masters[0].zero_()
    teacher.update(0.5)
    teacher._weights.since()
    full = teacher.full_tensors()
    name, tensor = next(full)
    assert teacher._weights.since() == ["arrive"]
    assert (name, tensor.tolist()) == ("weight", [[0.5, 1.0], [1.5, 2.0]])
    name, tensor = next(full)
    assert (name, tensor.tolist(), tensor.signbit().tolist()) == ("bias", [5, 0], [False, True])
    assert list(full) == []


def test_fragments_are_the_average_and_need_no_weights() -> None:
    teacher, _, masters = alone()
    masters[1].zero_()
    teacher.update(0.5)
    teacher._weights.since()
    fragments = {
        name: [(at, part.tolist()) for at, part in parts] for name, parts in teacher.fragments().items()
    }
    assert fragments == {"weight": [(0, [1, 2, 3, 4])], "bias": [(0, [2.5, 0])]}
    assert teacher._weights.since() == []
    assert [part.data_ptr() for ((_, part),) in teacher.fragments().values()] == [
        shard.data_ptr() for shard in teacher.shards
    ]


def test_loading_waits_for_what_is_under_way_and_brings_the_module_up_to_it() -> None:
    teacher, _, _ = alone()
    teacher.load(vectors(weight=[(0, [9, 8, 7, 6])], bias=[(0, [5, 4])]))
    assert teacher._weights.since() == ["write", "arrive", "write"]
    assert entries(teacher.module) == [9, 8, 7, 6, 5, 4]


def test_its_own_fragments_can_be_loaded() -> None:
    teacher, _, _ = alone()
    teacher.load(teacher.fragments())
    assert entries(teacher.module) == [1, 2, 3, 4, 5, 0]


@given(seed=st.integers(0, 99), momentum=st.sampled_from([0.0, 0.5, 0.996, 0.9999, 1.0]))
def test_the_update_is_one_lerp_and_leaves_the_masters(seed: int, momentum: float) -> None:
    g = torch.Generator().manual_seed(seed)
    before = torch.randn(4, generator=g)
    teacher, _, masters = alone(before.tolist())
    masters[0].copy_(after := torch.randn(4, generator=g))
    teacher.update(momentum)
    assert teacher.shards[0].tolist() == torch.lerp(before, after, 1 - momentum).tolist()
    assert torch.equal(masters[0], after)


def test_the_module_is_in_eval_mode_without_gradient() -> None:
    teacher, student, _ = alone()
    assert not teacher.module.training
    assert student.training
    assert [parameter.requires_grad for parameter in teacher.module.parameters()] == [False, False]
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_buffers_are_copies_of_the_students_at_the_last_update() -> None:
    student = Net()
    student.seen.fill_(1)
    module = Net()
    group = FlatGroup(
        6, {"weight": (0, torch.Size([2, 2])), "bias": (4, torch.Size([2]))}, [(0, torch.zeros(6))]
    )
    teacher = ShardedEMA(module, student, [group], Late(module), group=ALONE)
    assert teacher.module.seen.tolist() == [1, 1, 1]
    student.seen.fill_(2)
    assert teacher.module.seen.tolist() == [1, 1, 1], "it is the student's own"
    teacher.update(1.0)
    assert teacher.module.seen.tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alone_the_weights_are_views_into_one_buffer_a_group(dtype: torch.dtype) -> None:
    module = Net().to(dtype)
    masters = torch.arange(8.0) / 3  # padded by one in front of the bias and one behind
    group = FlatGroup(8, {"weight": (0, torch.Size([2, 2])), "bias": (5, torch.Size([2]))}, [(0, masters)])
    weights = FlatWeights(module, [group], group=ALONE)
    teacher = ShardedEMA(module, Net(), [group], weights, group=ALONE)
    for _ in range(2):
        expected = teacher.shards[0].to(dtype)
        assert torch.equal(teacher.module.weight, expected[:4].view(2, 2))
        assert torch.equal(teacher.module.bias, expected[5:7])
        masters += 1
        teacher.update(0.5)
    assert teacher.module.weight.dtype == dtype
    assert teacher.module.bias.data_ptr() - teacher.module.weight.data_ptr() == 5 * dtype.itemsize


def test_groups_that_do_not_divide_are_a_fault_of_ours() -> None:
    group = FlatGroup(5, {"weight": (0, torch.Size([5]))}, [(0, torch.zeros(2))])
    with pytest.raises(AssertionError, match="5 entries do not divide by 2 ranks"):
        ShardedEMA(nn.Module(), nn.Module(), [group], Late(nn.Module()), group=Group(0, 2))


# --- partitions

SHAPES = st.lists(st.integers(0, 4), max_size=2).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A flat group with padding in front of, between and behind its parameters."""
    world, end, slots = draw(st.integers(1, 5)), draw(st.integers(0, 2)), {}
    for index, shape in enumerate(draw(st.lists(SHAPES, min_size=1, max_size=5))):
        slots[f"p{index}"] = (end, torch.Size(shape))
        end += torch.Size(shape).numel() + draw(st.integers(0, 2))
    padding = draw(st.integers(0, 2))
    return world, (-(-end // world) + padding) * world, slots


def owners(numel: int, slots: dict[str, tuple[int, torch.Size]]) -> list[tuple[str, int] | None]:
    """For each entry of the flat vector: which parameter's it is, and which of its entries; None is
    padding."""
    found: list[tuple[str, int] | None] = [None] * numel
    for name, (offset, shape) in slots.items():
        for k in range(shape.numel()):
            found[offset + k] = (name, k)
    return found


@given(layouts())
def test_pieces_are_what_a_cut_of_the_flat_vector_gives(layout: Layout) -> None:
    world, numel, slots = layout
    flat, size = owners(numel, slots), numel // world
    for rank in range(world):
        found: list[tuple[str, int] | None] = [None] * size
        pieces = list(FlatGroup(numel, slots, []).pieces(Group(rank, world)))
        for name, at, offset, length in pieces:
            assert length > 0
            found[offset : offset + length] = [(name, at + k) for k in range(length)]
        assert found == flat[rank * size :][:size]
        assert len({piece.name for piece in pieces}) == len(pieces), "a parameter's part is one piece"


@given(layout=layouts(), data=st.data())
def test_a_shard_has_the_masters_and_zeros_elsewhere(layout: Layout, data: st.DataObject) -> None:
    """Masters in as many tensors as one likes; what they do not cover is padding."""
    world, numel, slots = layout
    size = numel // world
    flat = torch.arange(1.0, numel + 1)
    for rank in range(world):
        mine = flat[rank * size :][:size].clone()
        cuts = sorted(data.draw(st.sets(st.integers(0, size))) | {0, size})
        parts = [(low, mine[low:high]) for low, high in itertools.pairwise(cuts)] or [(0, mine)]
        kept = [part for part in parts if data.draw(st.booleans())] or parts[:1]
        shard = FlatGroup(numel, slots, kept).shard(Group(rank, world))
        expected = [0.0] * size
        for low, part in kept:
            expected[low : low + len(part)] = part.tolist()
        assert shard.dtype == torch.float32
        assert shard.tolist() == expected
        mine.zero_()
        assert shard.tolist() == expected, "it is the masters themselves"


# --- loading


def vectors(**fragments: Sequence[tuple[int, Sequence[float]]]) -> dict[str, list[tuple[int, Tensor]]]:
    return {
        name: [(at, torch.tensor(values, dtype=torch.float32)) for at, values in parts]
        for name, parts in fragments.items()
    }


@given(layout=layouts(), data=st.data())
@settings(max_examples=50)
def test_any_cut_of_a_saved_teacher_loads_on_any_number_of_ranks(layout: Layout, data: st.DataObject) -> None:
    """Overlapping fragments of the same bits, in any order, NaN and signed zeros among them; padding becomes
    zeros. What the ranks then save is the whole teacher."""
    world, numel, slots = layout
    whole = torch.arange(numel) + 0.5
    whole[::5], whole[1::5] = torch.nan, -0.0
    saved: dict[str, list[tuple[int, Tensor]]] = {}
    for name, (offset, shape) in slots.items():
        n = shape.numel()
        cuts = sorted(data.draw(st.sets(st.integers(0, n))) | {0, n})
        spans = list(itertools.pairwise(cuts)) + data.draw(
            st.lists(st.tuples(*[st.integers(0, n)] * 2), max_size=3)
        )
        saved[name] = [
            (low, whole[offset + low : offset + max(low, high)].clone())
            for low, high in data.draw(st.permutations(spans))
        ]
    flat = [
        0 if owner is None else bits
        for owner, bits in zip(owners(numel, slots), whole.view(torch.int32).tolist(), strict=True)
    ]
    size, again = numel // world, dict[tuple[str, int], int]()
    with pytest.MonkeyPatch.context() as patch:  # the other ranks have nothing to object to
        patch.setattr(collectives, "gather_objects", lambda group, fault: [fault])
        for rank in range(world):
            group = FlatGroup(numel, slots, [(0, torch.ones(size))])
            module = nn.ParameterList([torch.zeros(size)])
            teacher = ShardedEMA(module, nn.Module(), [group], Late(module), group=Group(rank, world))
            teacher.load(saved)
            assert teacher.shards[0].view(torch.int32).tolist() == flat[rank * size :][:size]
            assert torch.equal(
                teacher.module[0].detach().view(torch.int32), teacher.shards[0].view(torch.int32)
            )
            again |= {
                (name, at + k): bits
                for name, parts in teacher.fragments().items()
                for at, part in parts
                for k, bits in enumerate(part.view(torch.int32).tolist())
            }
    assert again == {owner: bits for owner, bits in zip(owners(numel, slots), flat, strict=True) if owner}


REST = "build the network that it was saved from"
VECTOR = "give it as torch.float32 with one dimension"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "missing",
        {"weight": [(1, torch.ones(2))]},
        "the saved teacher lacks 2 of 4 entries of weight from 0 on; load the fragments of every rank that "
        "saved",
    ),
    (
        "none",
        {"weight": []},
        "the saved teacher lacks 4 of 4 entries of weight from 0 on; load the fragments of every rank that "
        "saved",
    ),
    (
        "twice the same, not the whole",
        {"weight": [(0, torch.ones(2)), (0, torch.ones(2))]},
        "the saved teacher lacks 2 of 4 entries of weight from 0 on; load the fragments of every rank that "
        "saved",
    ),
    (
        "disagreeing",
        {"weight": [(0, torch.ones(4)), (1, torch.tensor([1.0, 2.0, 3.0]))]},
        "the saved teacher has two values for 2 entries of weight within 1 to 4; load the fragments of one "
        "save",
    ),
    (
        "sign of zero",
        {"bias": [(0, torch.zeros(2)), (1, -torch.zeros(1))]},
        "the saved teacher has two values for 1 entries of bias within 1 to 2; load the fragments of one "
        "save",
    ),
    (
        "beyond",
        {"weight": [(0, torch.ones(5))]},
        f"the saved teacher has entries 0 to 5 of weight, which has 0 to 4 here; {REST}",
    ),
    (
        "beyond, later",
        {"bias": [(0, torch.ones(2)), (1, torch.ones(2))]},
        f"the saved teacher has entries 1 to 3 of bias, which has 0 to 2 here; {REST}",
    ),
    (
        "below 0",
        {"weight": [(0, torch.ones(4)), (-1, torch.ones(2))]},
        f"the saved teacher has entries -1 to 1 of weight, which has 0 to 4 here; {REST}",
    ),
    (
        "unknown",
        {"other": [], "more": [(0, torch.ones(1))]},
        f"the saved teacher has 2 parameters that this one has not: more, other; {REST}",
    ),
    (
        "double",
        {"weight": [(0, torch.ones(4, dtype=torch.float64))]},
        f"the saved teacher has weight from 0 on as torch.float64 of shape (4,); {VECTOR}",
    ),
    (
        "integers",
        {"bias": [(1, torch.ones(1, dtype=torch.int32))]},
        f"the saved teacher has bias from 1 on as torch.int32 of shape (1,); {VECTOR}",
    ),
    (
        "two dimensions",
        {"weight": [(0, torch.ones(2, 2))]},
        f"the saved teacher has weight from 0 on as torch.float32 of shape (2, 2); {VECTOR}",
    ),
    (
        "no dimension",
        {"weight": [(3, torch.tensor(1.0))]},
        f"the saved teacher has weight from 3 on as torch.float32 of shape (); {VECTOR}",
    ),
]


@pytest.mark.parametrize(
    ("changed", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_changes(changed: dict[str, Any], said: str) -> None:
    teacher, _, _ = alone()
    saved = vectors(weight=[(0, [9, 9, 9, 9])], bias=[(0, [9, 9])])
    with pytest.raises(ValueError, match="the saved teacher") as fault:
        teacher.load(saved | changed)
    assert str(fault.value) == said
    assert teacher._weights.log == ["write"], "weights were written although it was refused"
    assert [shard.tolist() for shard in teacher.shards] == [[1, 2, 3, 4], [5, 0]]
    assert entries(teacher.module) == [1, 2, 3, 4, 5, 0]


def test_the_first_fault_is_told_and_a_later_good_parameter_does_not_hide_it() -> None:
    teacher, _, _ = alone()
    with pytest.raises(ValueError, match="lacks 4 of 4 entries of weight from 0 on"):
        teacher.load(vectors(bias=[(0, [9, 9])]))
    with pytest.raises(ValueError, match="lacks 4 of 4 entries of weight from 0 on"):
        teacher.load({})


def test_each_rank_looks_at_its_own_part_alone_and_speaks_of_the_others() -> None:
    """Of 6 entries on 2 ranks, entry 4 has two values: rank 1 says which, and rank 0 that another cannot go
    on."""
    saved = vectors(w=[(0, [1, 2, 3, 4, 5, 6]), (4, [7])])
    said = []
    for rank in range(2):
        group = FlatGroup(6, {"w": (0, torch.Size([6]))}, [(0, torch.zeros(3))])
        module = nn.ParameterList([torch.zeros(3)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collectives, "gather_objects", lambda group, fault: [False, True])
            teacher = ShardedEMA(module, nn.Module(), [group], Late(module), group=Group(rank, 2))
            with pytest.raises(ValueError, match=r"saved teacher|other ranks") as fault:
                teacher.load(saved)
        said.append(str(fault.value))
        assert teacher.shards[0].tolist() == [0, 0, 0]
    assert said == [
        "1 of the other ranks cannot go on, and say why",
        "the saved teacher has two values for 1 entries of w within 4 to 5; load the fragments of one save",
    ]


def test_partitions_are_written_before_who_reads_them_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ZeRO-3 DeepSpeed gathers on a stream of its own: the write is waited for, whatever the library
    does."""
    told: list[str] = []
    event = SimpleNamespace(
        record=lambda stream: told.append(f"event on {stream}"), synchronize=lambda: told.append("waited")
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    data = SimpleNamespace(copy_=lambda shard: told.append("written"))
    part = SimpleNamespace(data=data, device=torch.device("cuda", 1))
    module: Any = SimpleNamespace(named_parameters=lambda: [("w", SimpleNamespace(ds_tensor=part))])
    weights = PartitionedWeights(module, [FlatGroup(4, {"w": (0, torch.Size([4]))}, [])], [])
    pending = weights.write([torch.zeros(4)])
    assert told == ["written", "event on the stream of cuda:1"]
    pending.wait()
    pending.wait()
    assert told[2:] == ["waited"]
