"""The kernels of a mixer layer on a GPU: against formulas in fp64, and a network against its plain layers."""

from typing import Any

import pytest
import torch

from tests import mixers
from tests.gpu import where
from tests.mixers import Case
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig

pytestmark = [
    *where.marks,
    pytest.mark.skipif(where.REHEARSE, reason="tests/unit/test_mixer_kernels.py has them in the interpreter"),
]
CASES = [
    Case("bfloat16", 2, 1010, 11, 28, 512),  # findna
    Case("bfloat16", 3, 137, 11, 28, 512, ragged=True),
    Case("float16", 3, 137, 11, 28, 512, ragged=True, normed=True),
    Case("bfloat16", 2, 37, 5, 5, 31),
    Case("bfloat16", 2, 300, 12, 32, 1000, ragged=True),
    Case("bfloat16", 1, 7, 3, 7, 70, normed=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernels_are_the_formulas(case: Case) -> None:
    bound = 6e-3 if case.dtype == "bfloat16" else 1e-3  # one rounding is 2e-3 and 2e-4
    found = mixers.errors(case, "cuda")
    assert {name: error for name, error in found.items() if not error < bound} == {}


def results(kernel: str, *, compiled: bool = False, **settings: Any) -> list[torch.Tensor]:
    """Hidden states and gradients of a small network in bf16, whole and ragged."""
    torch.manual_seed(3)
    config = ChordMixerConfig(
        num_layers=4, num_groups=9, group_channels=28, intermediate_size=512, num_summary=10, kernel=kernel
    )
    network: Any = ChordMixer(config, **settings).to("cuda", torch.bfloat16)
    if compiled:
        torch._dynamo.reset()
        network = torch.compile(network, fullgraph=True, dynamic=False)
    codes = torch.randint(0, 4, (5, 300), dtype=torch.uint8, device="cuda")
    found = []
    for length_B in (None, torch.tensor([300, 1, 17, 200, 299], device="cuda")):
        network.zero_grad()
        hidden = network(codes, length_B=length_B)
        real = torch.ones(5, 300, 1, device="cuda")
        if length_B is not None:
            real = (torch.arange(300, device="cuda") < length_B[:, None])[..., None].float()
        ((hidden.letters_BLD.float() * real).sin().sum() + hidden.summary_BPD.float().sum()).backward()
        found += [hidden.letters_BLD.detach() * real, *(p.grad.clone() for p in network.parameters())]
    return [each.float() for each in found]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_network_of_kernels_is_the_network_of_plain_layers(compiled: bool, checkpointing: bool) -> None:
    plain = results("plain")
    ours = results("triton", compiled=compiled, activation_checkpointing=checkpointing)
    for mine, theirs in zip(ours, plain, strict=True):
        assert float((mine - theirs).norm()) <= 0.02 * float(theirs.norm()) + 1e-6


def test_it_computes_by_kernels_unless_it_is_told_not_to() -> None:
    network = ChordMixer(ChordMixerConfig(num_layers=1)).to("cuda", torch.bfloat16)
    assert network.plain_because(torch.device("cuda"), torch.bfloat16) is None
