"""What tests/dist/test_teacher.py runs on every rank: one student and teacher for each ZeRO stage, precision
and accumulation, against an unsharded average of the gathered masters."""

import contextlib
import hashlib
import io
import itertools
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine import optimizer_adapters
from trainer.engine.deepspeed_config import EngineSettings
from trainer.engine.ema import ShardedEMA
from trainer.engine.engine import Engine
from trainer.engine.partition import FlatGroup
from trainer.engine.process_group import init_distributed

Case = tuple[int, str, int]  # ZeRO stage, precision, accumulation
CASES: list[Case] = list(itertools.product([0, 1, 2, 3], ["fp32", "bf16"], [1, 2]))
STEPS, SKIPPED = 6, (0, 3)
# entries up to which ZeRO-3 keeps a parameter whole on every rank; DeepSpeed's 100,000 would be all
KEPT_WHOLE = 10
BATCH = 12


class Odd(nn.Module):
    """Sizes that no number of ranks divides, norms, a weight used twice, a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.back = nn.Linear(5, 7, bias=False)
        self.again = nn.Linear(7, 5)
        self.again.weight = self.first.weight
        self.last = nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        x = self.back(self.norm(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.again(x)))


def make_engine(
    group: Group,
    stage: int,
    precision: str,
    accumulation: int,
    module: nn.Module | None = None,
    device: str = "cpu",
    kept_whole: int = KEPT_WHOLE,
) -> Engine:
    torch.manual_seed(11)
    settings = {"zero_optimization": {"stage3_param_persistence_threshold": kept_whole}} if stage == 3 else {}
    return Engine(
        module or Odd(),
        settings=engine_settings(stage, precision, group.size, accumulation, deepspeed=settings),
        device=torch.device(device),
        group=group,
    )


def engine_settings(
    stage: int, precision: Any, ranks: int, accumulation: int, **others: Any
) -> EngineSettings:
    return EngineSettings(
        zero_stage=stage,
        precision=precision,
        micro_batch=BATCH // ranks // accumulation,
        accumulation=accumulation,
        weight_decay=0.1,
        betas=(0.9, 0.99),
        **{"grad_clip": 0.0, **others},
    )


def whole(module: nn.Module) -> dict[str, bool]:
    """Parameter -> whether this rank has all of it between forwards, and not its partition alone."""
    return {name: parameter.numel() > 0 for name, parameter in module.named_parameters()}


def masters(engine: Engine) -> dict[str, Tensor]:
    """The whole fp32 masters, gathered plainly from every rank's partition."""
    found = {}
    for flat_group in engine.flat_groups():
        parts = collectives.gather_packed(engine.group, {"shard": flat_group.shard(engine.group)})[
            "shard"
        ].view(-1)
        found |= {
            name: parts[o : o + shape.numel()].view(shape).clone()
            for name, (o, shape) in flat_group.slots.items()
        }
    return found


def gradients(engine: Engine, step: int, *, poison: bool) -> None:
    """Forward and backward of all micro-batches of a step, on rows that depend on ``step`` alone; ``poison``:
    NaN on the last rank."""
    group = engine.group
    mine = rows_of(engine, BATCH, seed=step).chunk(group.size)[group.rank].chunk(engine.settings.accumulation)
    for m, rows in enumerate(mine):
        loss = engine.forward(rows).float().square().sum() / BATCH
        if poison and group.rank == group.size - 1:
            loss = loss * torch.nan
        engine.backward(loss)
        if m + 1 < len(mine):
            engine.end_micro_batch()


def train(engine: Engine, step: int, *, poison: bool) -> bool:
    """One step; whether it was applied."""
    gradients(engine, step, poison=poison)
    broken = (~engine.is_finite(engine.gradient_squares())).int()
    if int(collectives.sum_over_ranks(engine.group, broken)):
        engine.skip()
        return False
    applied, norm = engine.step(1e-2)
    assert applied and norm > 0, (applied, norm)
    return True


def student_differs(engine: Engine) -> int:
    """Entries of this rank's student weights that are not its masters in the compute dtype."""
    if engine.settings.zero_stage < 3:
        whole = masters(engine)
        return sum(
            int((parameter != whole[name].to(engine.settings.compute_dtype)).sum())
            for name, parameter in engine.network.named_parameters()
        )
    parameters: dict[str, Any] = dict(engine.network.named_parameters())
    return sum(
        int(
            (
                parameters[piece.name].ds_tensor[: piece.length]
                != group.shard(engine.group)[: piece.length].to(engine.settings.compute_dtype)
            ).sum()
        )
        for group in engine.flat_groups()
        for piece in group.pieces(engine.group)
    )


def rows_of(engine: Engine, count: int, *, seed: int) -> Tensor:
    """Random input of Odd, where and in the dtype in which the network computes."""
    x = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
    return x.to(next(engine.network.buffers()).device, engine.settings.compute_dtype)


def digest(tensors: dict[str, Tensor]) -> str:
    parts = [tensors[name].cpu().contiguous().numpy().tobytes() for name in sorted(tensors)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> int:
    """Entries that differ in any bit."""
    assert ours.keys() == theirs.keys()
    bits = [
        {name: tensor.cpu().contiguous().view(torch.int32) for name, tensor in of.items()}
        for of in (ours, theirs)
    ]
    return sum(int((bits[0][name] != bits[1][name]).sum()) for name in ours)


def one_case(
    group: Group,
    stage: int,
    precision: str,
    accumulation: int,
    saved: dict[str, Any] | None,
    device: str = "cpu",
) -> dict[str, Any]:
    engine = make_engine(group, stage, precision, accumulation, device=device)
    teacher = engine.teacher()
    torch.manual_seed(11)
    fresh = dict(Odd().named_parameters())
    reference = masters(engine)
    found: dict[str, Any] = {
        "start": same(reference, {name: fresh[name].detach() for name in reference})
        + student_differs(engine),
        "optimizer": type(engine._deepspeed.optimizer).__name__,
        "entries": sum(shard.numel() for shard in teacher.shards),
        "whole": (whole(engine.network), whole(teacher.module)),
    }
    applied, mismatches, kept, student, forward = [], 0, 0, 0, 0
    for step in range(STEPS):
        before = masters(engine)
        applied.append(train(engine, step, poison=step in SKIPPED))
        if applied[-1]:
            now = masters(engine)
            reference = {
                name: torch.lerp(reference[name], now[name], 1 - (0.9 + 0.01 * step)) for name in now
            }
            teacher.update(0.9 + 0.01 * step)
        else:
            kept += same(before, masters(engine))
        mismatches += same(dict(teacher.full_tensors()), reference)
        student += student_differs(engine)
        # At each step: from the second forward on ZeRO-3 knows the order and leaves whole what it keeps
        # whole.
        forward += forward_differs(teacher, engine, reference)
    fragments = {
        name: [(at, part.clone().cpu()) for at, part in parts] for name, parts in teacher.fragments().items()
    }
    for shard in teacher.shards:
        shard.fill_(torch.nan)
    everyone: list[Any] = [None] * group.size
    dist.all_gather_object(everyone, fragments, group=group.handle)
    together = {name: [part for one in everyone for part in one.get(name, ())] for name in reference}
    teacher.load(together)
    found |= {
        "applied": applied,
        "mismatches": mismatches,
        "kept": kept,
        "student": student,
        "resumed": same(dict(teacher.full_tensors()), reference),
        "forward": forward + forward_differs(teacher, engine, reference),
        "buffer": int(teacher.module.seen),
        "tied": stage == 3
        or teacher.module.again.weight.data_ptr() == teacher.module.first.weight.data_ptr(),
        "digest": digest(reference),
        "saved": {
            "fragments": together,
            "teacher": {name: tensor.cpu() for name, tensor in reference.items()},
        },
    }
    if saved:  # on another number of ranks, under another stage or precision
        teacher.load(saved["fragments"])
        found["reshard"] = same(dict(teacher.full_tensors()), saved["teacher"])
        assert train(engine, STEPS, poison=False)
        teacher.update(0.5)
        now = masters(engine)
        reference = {
            name: torch.lerp(saved["teacher"][name].to(device), master, 0.5) for name, master in now.items()
        }
        found["went on"] = same(dict(teacher.full_tensors()), reference) + forward_differs(
            teacher, engine, reference
        )
    engine._deepspeed.destroy()
    return found


def check(found: dict[str, Any], case: Case, *, resharded: bool) -> None:
    """What must hold of each thing that ``one_case`` finds."""
    assert found["start"] == 0, "masters or weights are not the network's own values"
    assert found["student"] == 0, "the student's weights are not its masters"
    assert found["applied"] == [step not in SKIPPED for step in range(STEPS)]
    assert found["kept"] == 0, "a skipped step changed masters"
    assert found["mismatches"] == 0
    assert found["resumed"] == 0
    assert found["forward"] == 0
    assert ("reshard" in found) == resharded
    assert found.get("reshard", 0) == 0, "a teacher saved elsewhere was not loaded as it was"
    assert found.get("went on", 0) == 0
    assert found["buffer"] == STEPS * case[2]
    assert found["tied"]


def forward_differs(teacher: ShardedEMA[Any], engine: Engine, reference: dict[str, Tensor]) -> int:
    """Entries of the teacher's outputs that are not those of an unsharded network in the compute dtype."""
    x = rows_of(engine, 8, seed=99)
    plain = Odd().to(x.device, x.dtype).eval()
    theirs = dict(teacher.module.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            # At the teacher's place within 256 bytes: a GPU chooses its kernel by it, and kernels round
            # differently.
            room = torch.empty(parameter.numel() + 256, dtype=x.dtype, device=x.device)
            shift = (theirs[name].data_ptr() - room.data_ptr()) % 256 // x.element_size()
            parameter.data = (
                room[shift : shift + parameter.numel()].view(parameter.shape).copy_(reference[name])
            )
        return int((teacher.module(x) != plain(x)).sum())


def run_cases(
    cases: list[Case], saved: dict[Case, Any], pairs: bool = False, device: str = "cpu"
) -> dict[Case, dict[str, Any]]:
    """``cases`` on the whole world; with ``pairs`` on each half of it by itself, on both at once.

    ``saved``: for each case a teacher that another call returned.
    """
    init_distributed(torch.device(device))
    group = Group.of()
    if pairs:
        halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        group = Group.of(halves[dist.get_rank() // 2])
    return {case: one_case(group, *case, saved.get(case), device) for case in cases}


class Watch(TorchDispatchMode):
    """Bytes of storage (``only`` of one dtype) that operations made and that is still alive; ``peak`` of
    it."""

    def __init__(self, only: torch.dtype | None = torch.float32) -> None:
        super().__init__()
        self._only = only
        self.alive, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and self._only in (None, tensor.dtype):
                storage = tensor.untyped_storage()
                # neither counted nor a view of what was there before
                if storage._cdata not in self._seen | given:
                    self._seen.add(storage._cdata)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def watched_bytes() -> dict[int, tuple[int, int, int, int]]:
    """ZeRO stage -> fp32 bytes at the peak, of making a bf16 teacher, two updates and a forward; of all
    masters; of the largest single parameter; and how many of the 24 parameters the teacher has whole on every
    rank."""
    init_distributed(torch.device("cpu"))
    found = {}
    for stage in range(4):
        engine = make_engine(
            Group.of(),
            stage,
            "bf16",
            1,
            nn.Sequential(*[nn.Linear(64, 64) for _ in range(12)]),
            kept_whole=64,
        )
        with Watch() as watch:
            teacher = engine.teacher()
            kept = sum(whole(teacher.module).values())
            for _ in range(2):
                teacher.update(0.9)
            with torch.no_grad():
                teacher.module(torch.zeros(1, 64, dtype=torch.bfloat16))
        found[stage] = (watch.peak, 4 * 12 * 65 * 64, 4 * 64 * 64, kept)
    return found


def printed() -> str:
    """What building a bf16 engine under ZeRO-1 and 3 and their teachers prints."""
    init_distributed(torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for stage in (1, 3):
            make_engine(Group.of(), stage, "bf16", 1).teacher()
    return said.getvalue()


def refusals() -> dict[str, str]:
    """What is said when an engine is built whose optimiser deals the masters out in a way that is not
    ours."""
    init_distributed(torch.device("cpu"))
    group, said = Group.of(), {}

    def build(name: str) -> None:
        try:
            make_engine(group, 1, "fp32", 1)
            said[name] = ""
        except ValueError as fault:
            said[name] = str(fault)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            optimizer_adapters.Adapter, "partitioned", swapped(optimizer_adapters.Adapter.partitioned)
        )
        build("swapped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_adapters, "_ADAPTERS", {})
        build("unknown")
    return said


def swapped(partitioned: Any) -> Any:
    """Two parameters of one size in each other's place."""

    def groups(*args: Any) -> list[FlatGroup]:
        first, *others = partitioned(*args)
        slots = dict(first.slots)
        one, other = slots["first.weight"], slots["back.weight"]
        slots |= {"first.weight": (other[0], one[1]), "back.weight": (one[0], other[1])}
        return [FlatGroup(first.numel, slots, first.masters), *others]

    return groups
