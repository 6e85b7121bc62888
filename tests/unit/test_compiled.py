"""Compiled forwards: the shapes that they meet, whole graphs for every preset, and what is said where one
cannot be compiled."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.test_backbones import letters, small
from trainer.engine import compiled
from trainer.engine.compiled import CompiledForward, counters, usable
from trainer.losses.contrastive import EmbeddingHead
from trainer.models.network import Crops, Network


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def forward_of(module: nn.Module, said: list[str] | None = None) -> CompiledForward:
    return CompiledForward(module, called="student", mode="default", say=(said or []).append)


def called(module: nn.Module, x: Tensor) -> tuple[list[str], Any]:
    """What is said of a call inside a step, and what it gives."""
    said: list[str] = []
    with CompiledForward(module, called="student", mode="default", say=said.append).inside():
        return said, module(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


class Talks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("a side effect that no graph can have")
        return x + 1


@pytest.mark.parametrize(
    ("name", "changes", "checkpointing"),
    [("findna", {"num_layers": 1}, False), ("dilated-conv", {"dilations": (2,)}, True)],
)
def test_padded_rows_crops_and_rows_without_gradient_each_have_a_graph_with_the_plain_bits(
    name: str, changes: dict[str, Any], checkpointing: bool
) -> None:
    backbone = small(name, activation_checkpointing=checkpointing, **changes)
    settings = {"mlp_size": 8, "embedding": 4, "scale": 10.0, "max_scale": 100.0, "learnable": True}
    network = Network(backbone, heads={"contrastive": EmbeddingHead(backbone.hidden_size, **settings)})
    names = set(network.state_dict())
    codes_BL, crops_XL = letters(4, 30), letters(6, 12)
    padded_B, padded_X = torch.tensor([30, 7, 12, 1]), torch.tensor([12, 3, 12, 12, 1, 5])
    noise_BLC = torch.randn(4, 30, 4)
    asked: list[dict[str, Any]] = [
        {"noise_BLC": noise_BLC},
        {"length_B": padded_B, "noise_BLC": noise_BLC},
        {"length_B": padded_B, "crops": Crops(crops_XL, None, ("contrastive",))},
        {"crops": Crops(crops_XL, padded_X, ("contrastive",)), "requests": {"contrastive": None}},
    ]

    def found(keywords: dict[str, Any]) -> list[Tensor]:
        outputs = network(codes_BL, **keywords)
        heads = [part for of in (outputs.heads, outputs.crops) for output in of.values() for part in output]
        tensors = [outputs.logits_BLV, outputs.pooled_BD, *heads]
        if not torch.is_grad_enabled():
            return tensors
        total = torch.stack([part.square().sum() for part in tensors]).sum()
        return tensors + list(torch.autograd.grad(total, list(network.parameters()), allow_unused=True))

    fast = forward_of(network)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            for keywords in asked if gradient else asked[:1]:
                plain = found(keywords)
                with fast.inside():
                    assert set(network.state_dict()) == names
                    for ours, theirs in zip(found(keywords), plain, strict=True):
                        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert fast.works
    assert fast.graphs == 5
    assert "forward" not in vars(network), "outside of a step it is as it was"


def test_hooks_and_calls_outside_of_a_step_see_the_module_as_it_is() -> None:
    module, seen = Scaled(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    fast = forward_of(module)
    module(torch.ones(2, 3))
    assert fast.graphs == 0
    with fast.inside():
        module(torch.ones(2, 3))
    assert (fast.graphs, seen) == (1, [1, 1])


def test_what_cannot_be_traced_is_said_and_computed_as_it_is() -> None:
    said, output = called(Talks(), torch.ones(2))
    assert torch.equal(output, torch.full((2,), 2.0))
    (sentence,) = said
    assert sentence.startswith(
        "train.compile: the student's forward is not compiled from here on, and computes the same more "
        "slowly: Unsupported: "
    )
    assert "\n" not in sentence


def test_a_fault_is_said_once_and_later_calls_are_plain() -> None:
    module, said = Talks(), list[str]()
    fast = CompiledForward(module, called="teacher", mode="default", say=said.append)
    for _ in range(3):
        with fast.inside():
            module(torch.ones(2))
    assert len(said) == 1 and said[0].startswith("train.compile: the teacher's forward")
    assert not fast.works


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    with torch._inductor.config.patch({"cpp.cxx": ("/none/g++",), "force_disable_caches": True}):
        said, output = called(Scaled(), torch.ones(2, 3))
    assert output.shape == (2, 3)
    assert "InvalidCxxCompiler: No working C++ compiler found" in said[0]


def test_a_python_that_torch_cannot_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any, **__: Any) -> Any:
        raise RuntimeError("torch.compile is not supported on Python 4")

    monkeypatch.setattr(torch, "compile", unable)
    said, output = called(Scaled(), torch.ones(2, 3))
    assert output.shape == (2, 3)
    assert said[0].endswith("more slowly: RuntimeError: torch.compile is not supported on Python 4")


def broken(graph: Any, inputs: Any) -> Any:
    raise KeyError("no kernel for this")


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", broken)
    assert "KeyError: 'no kernel for this'" in called(Scaled(), torch.ones(2, 3))[0][0]


def test_a_backward_that_does_not_compile_is_found_in_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=broken)
    monkeypatch.setattr(compiled, "BACKEND", backend)
    module = Scaled()
    said, output = called(module, torch.ones(2, 3))
    output.sum().backward()
    assert module.linear.weight.grad is not None
    assert "no kernel for this" in said[0]


def test_more_shapes_than_graphs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "GRAPHS", 2)
    module, said = Scaled(), list[str]()
    with torch._dynamo.config.patch(recompile_limit=2):
        fast = CompiledForward(module, called="student", mode="default", say=said.append)
        for rows in (2, 3, 4):
            with fast.inside():
                assert module(torch.ones(rows, 3)).shape == (rows, 3)
    assert fast.graphs == 2
    assert "Dynamo recompile limit exceeded" in said[0]


def test_so_many_shapes_have_a_graph_each_that_no_limit_of_torch_is_met() -> None:
    module, said = Scaled(), list[str]()
    fast = CompiledForward(module, called="student", mode="default", say=said.append)
    for rows in range(1, 11):  # torch's own limit is 8
        with fast.inside():
            module(torch.ones(rows, 3))
    assert (fast.graphs, fast.works, said) == (10, True, [])


@dataclass(frozen=True)
class Asked:
    x: Tensor
    times: list[int]


class Repeats(nn.Module):
    def forward(self, asked: Asked, *, also: dict[str, Tensor]) -> Tensor:
        return asked.x * asked.times[0] + also["y"]


def test_a_request_of_any_kind_is_compiled_once_for_its_shapes_and_values() -> None:
    module = Repeats()
    fast = forward_of(module)
    for rows, times in ((2, 3), (2, 3), (4, 3), (4, 5), (2, 3)):
        with fast.inside():
            found = module(Asked(torch.ones(rows), [times]), also={"y": torch.ones(rows)})
        assert found.tolist() == [times + 1.0] * rows
    assert (fast.works, fast.graphs) == (True, 3)


def test_a_fault_of_the_computation_itself_is_not_hidden() -> None:
    module = Scaled()
    with pytest.raises(RuntimeError), forward_of(module).inside():
        module(torch.ones(2, 4))


def test_cuda_graphs_on_a_cpu_are_refused_in_a_sentence() -> None:
    said: list[str] = []
    assert usable("reduce-overhead", torch.device("cpu"), say=said.append) == "default"
    assert said == [
        "train.compile: reduce-overhead records CUDA graphs, which a CPU does not have; it is as default here"
    ]
    assert usable("reduce-overhead", torch.device("cuda"), say=said.append) == "reduce-overhead"
    assert usable("off", torch.device("cpu"), say=said.append) == "off"
    assert len(said) == 1


def test_cuda_graphs_that_could_not_be_recorded_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_without_graphs(forward: Any, **_: Any) -> Any:
        def call(*args: Any) -> Any:
            counters["inductor"]["cudagraph_skips"] += len(said) == 0
            return forward(*args)

        return call

    said: list[str] = []
    monkeypatch.setattr(torch, "compile", compile_without_graphs)
    forward = CompiledForward(nn.Linear(2, 2), called="student", mode="reduce-overhead", say=said.append)
    for rows in (1, 2):
        forward(torch.zeros(rows, 2))
    assert said == [
        "train.compile: reduce-overhead recorded no CUDA graph of a part of the student's forward or "
        "backward, which computes the same more slowly; TORCH_LOGS=perf_hints says why"
    ]
