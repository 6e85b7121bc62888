"""ShardedEMA of plain torch modules: on 1 and 2 gloo ranks the bits of a plain lerp, without DeepSpeed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import ShardedEMA

ROOT = Path(__file__).parents[2]

# Each rank trains a module of odd sizes with a tied weight and a buffer, and compares after every step.
RANK = """
import sys
for name in ("deepspeed", "ray", "mlflow", "pandas", "sklearn"):
    sys.modules[name] = None  # importing it fails
import torch
import torch.distributed as dist
from torch import nn
from trainer import ShardedEMA

rank, world, file, grouped = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
group = dist.new_group(list(range(world))) if grouped else None
torch.manual_seed(0)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.back = nn.Linear(7, 5), nn.Linear(5, 7, bias=False)
        self.again = nn.Linear(7, 5)
        self.again.weight = self.first.weight
        self.last = nn.Linear(5, 3).bfloat16()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += self.training
        return self.last(self.again(self.back(self.first(x))).bfloat16())

student = Odd()
teacher = ShardedEMA.of(student, group)
average = {name: parameter.detach().float().clone() for name, parameter in student.named_parameters()}
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
for step in range(4):
    student(torch.randn(4, 7)).float().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    momentum = 0.9 + 0.02 * step
    teacher.update(momentum)
    for name, parameter in student.named_parameters():
        average[name] = torch.lerp(average[name], parameter.detach().float(), 1 - momentum)
    full = dict(teacher.full_tensors())
    assert full.keys() == average.keys()
    for name, parameter in teacher.module.named_parameters():
        assert torch.equal(full[name].view(torch.int32), average[name].view(torch.int32)), name
        assert torch.equal(parameter, average[name].to(parameter.dtype)), name
        assert not parameter.requires_grad
    assert int(teacher.module.seen) == step + 1
entries = sum(tensor.numel() for tensor in average.values())
assert sum(shard.numel() for shard in teacher.shards) <= entries // world + 2 * world
state = teacher.state_dict()
assert state.keys() == student.state_dict().keys()
assert state["last.weight"].dtype == torch.float32
assert torch.equal(state["again.weight"], state["first.weight"])
teacher.module.load_state_dict(state)
other = ShardedEMA.of(Odd(), group)
other.load_state_dict(state)
assert all(torch.equal(tensor, average[name]) for name, tensor in other.full_tensors())
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
assert not [name for name in sys.modules if name.split(".")[0] == "deepspeed" and sys.modules[name]]
print("equal")
"""


@pytest.mark.parametrize(("world", "grouped"), [(1, False), (2, False), (2, True)])
def test_it_is_a_plain_lerp_bit_for_bit_on_any_number_of_ranks(
    tmp_path: Path, world: int, grouped: bool
) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(world), str(tmp_path / "store"), str(grouped)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in ranks:
        output, errors = process.communicate(timeout=100)
        assert (process.returncode, output) == (0, "equal\n"), errors


def test_the_student_is_left_alone() -> None:
    student = nn.Linear(3, 2)
    before = student.weight.detach().clone()
    teacher = ShardedEMA.of(student)
    with torch.no_grad():
        student.weight += 1
    teacher.update(0.5)
    assert torch.equal(student.weight.detach(), before + 1)
    assert torch.equal(teacher.module.weight, torch.lerp(before, before + 1, 0.5))
    assert student.weight.requires_grad
    assert student.training
    assert teacher.module.weight.data_ptr() != student.weight.data_ptr()


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match="the module has no parameters to average"):
        ShardedEMA.of(nn.ReLU())
    whole = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)])
    with pytest.raises(ValueError, match=r"parameter 0 is torch\.int64; only floating point can be averaged"):
        ShardedEMA.of(whole)
    apart = nn.ParameterList([torch.ones(2), torch.ones(2, device="meta")])
    with pytest.raises(ValueError, match="the parameters are on several devices, cpu, meta; use one"):
        ShardedEMA.of(apart)


def test_a_student_that_is_moved_later_is_refused_and_the_average_stays() -> None:
    student = nn.Linear(3, 2)
    teacher = ShardedEMA.of(student)
    before = teacher.state_dict()
    student.double()
    with pytest.raises(ValueError, match=r"were moved to other memory .* call ShardedEMA\.of after that"):
        teacher.update(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_a_momentum_beyond_0_and_1_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=f"momentum {momentum} is not within 0 and 1"):
        ShardedEMA.of(nn.Linear(2, 2)).update(momentum)


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    teacher = ShardedEMA.of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the saved teacher has 1 parameters that this one has not: other"):
        teacher.load_state_dict({**teacher.state_dict(), "other": torch.ones(1)})
