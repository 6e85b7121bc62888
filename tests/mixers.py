"""A mixer layer in plain formulas, and cases that the kernels must get right.

``python -m tests.mixers`` compares the kernels with the formulas in fp64 in Triton's interpreter, which a
process is in from its start or not at all, and prints the relative errors of each case as JSON.
"""

import json
import os
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.engine.ema import ShardedEMA
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.mixer_function import _Launch, mixer_layer, padded
from trainer.models.mixer_rotation import Rotation, shifts_of

PARTS = ("out", "dx", "dh", "dW1", "db1", "dW2", "db2")


class Case(NamedTuple):
    dtype: str
    circles: int
    positions: int
    groups: int
    group_channels: int
    intermediate: int
    ragged: bool = False
    normed: bool = False  # h is another tensor than x

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


CASES = [
    Case("float32", 2, 37, 5, 5, 31),  # nothing is a multiple of anything
    Case("float32", 3, 50, 4, 28, 40, ragged=True),
    Case("float32", 2, 37, 1, 5, 31, ragged=True, normed=True),
    Case("float32", 2, 9, 11, 28, 70, normed=True),  # shifts beyond the circle, as wide as findna
    Case("float16", 2, 61, 11, 4, 70, ragged=True),
    Case("float16", 1, 64, 8, 8, 64),  # everything is
    *(Case("float32", 1, 21, groups, 3, 16, ragged=True) for groups in range(2, 12)),
]


class Layer(NamedTuple):
    x: Tensor
    h: Tensor | None
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    dy: Tensor
    circle_B: Tensor | None


def layer_of(case: Case, device: str = "cpu") -> Layer:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(*shape, generator=generator) * scale
        return drawn.to(device, getattr(torch, case.dtype))

    hidden, inner = case.groups * case.group_channels, case.intermediate
    rows = (case.circles, case.positions, hidden)
    circle_B = torch.randint(1, case.positions + 1, (case.circles,), generator=generator)
    return Layer(
        normal(*rows),
        normal(*rows) if case.normed else None,
        normal(inner, hidden, scale=hidden**-0.5),
        normal(inner, scale=0.1),
        normal(hidden, inner, scale=inner**-0.5),
        normal(hidden, scale=0.1),
        normal(*rows),
        circle_B.to(device) if case.ragged else None,
    )


def rotated(update_BTD: Tensor, case: Case, circle_B: Tensor | None) -> Tensor:
    """Row by row and group by group."""
    place_T = torch.arange(case.positions, device=update_BTD.device)
    rows = []
    for number, update_TD in enumerate(update_BTD):
        n = case.positions if circle_B is None else int(circle_B[number])
        groups = update_TD.split(case.group_channels, 1)
        moved = [
            group[torch.where(place_T < n, (place_T + shift) % n, place_T)]
            for group, shift in zip(groups, shifts_of(case.groups), strict=True)
        ]
        rows.append(torch.cat(moved, 1))
    return torch.stack(rows)


def formula(layer: Layer, case: Case) -> list[Tensor]:
    """PARTS in fp64, by autograd."""
    leaves = {
        name: of.double().requires_grad_()
        for name, of in layer._asdict().items()
        if of is not None and name not in ("dy", "circle_B")
    }
    h = leaves.get("h", leaves["x"])
    update = F.linear(F.gelu(F.linear(h, leaves["w1"], leaves["b1"])), leaves["w2"], leaves["b2"])
    out = leaves["x"] + rotated(update, case, layer.circle_B)
    out.backward(layer.dy.double())
    grads = [leaves[name].grad for name in ("x", "h", "w1", "b1", "w2", "b2") if name in leaves]
    return [out.detach(), *(grad for grad in grads if grad is not None)]


def by_kernels(layer: Layer, case: Case) -> list[Tensor]:
    """PARTS by the kernels; padding must be zeros."""
    hidden = layer.x.shape[-1]

    def wide(rows: Tensor) -> Tensor:
        return F.pad(rows.detach(), (0, padded(hidden) - hidden)).requires_grad_()

    x, h = wide(layer.x), None if layer.h is None else wide(layer.h)
    weights = tuple(of.detach().clone().requires_grad_() for of in (layer.w1, layer.b1, layer.w2, layer.b2))
    rotation = Rotation(
        x, num_groups=case.groups, group_channels=case.group_channels, circle_B=layer.circle_B
    )
    out = mixer_layer(x, h, weights, rotation)  # type: ignore[arg-type]
    out.backward(F.pad(layer.dy, (0, padded(hidden) - hidden)))
    found = [out.detach(), *(of.grad for of in (x, h, *weights) if of is not None and of.grad is not None)]
    assert all((rows[..., hidden:] == 0).all() for rows in found[: 3 if case.normed else 2]), "padding"
    return [rows[..., :hidden] if rows.ndim == 3 else rows for rows in found]


def errors(case: Case, device: str = "cpu") -> dict[str, float]:
    """Relative errors (Frobenius) of the parts against fp64."""
    layer = layer_of(case, device)
    names = [name for name in PARTS if case.normed or name != "dh"]
    pairs = zip(names, by_kernels(layer, case), formula(layer, case), strict=True)
    return {name: float((found.double() - true).norm() / true.norm()) for name, found, true in pairs}


class PlainLaunch(_Launch):
    """What each kernel computes, as one formula each."""

    def _shift(self, rows: Tensor, *, back: bool) -> Tensor:
        group_channels = self.rotated["C"]
        like = rows.view(-1, self.T, self.X)
        rotation = Rotation(
            like,
            num_groups=self.D // group_channels,
            group_channels=group_channels,
            circle_B=self.circle_B,
        )
        index = rotation.read_by if back else rotation.reads
        return rows.reshape(-1, rotation.channels).index_select(0, index).view(rows.shape)

    def expand(self, h: Tensor, w1: Tensor, b1: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        s = F.pad(F.linear(h, w1, b1), (0, self.Y - self.H))
        return s, F.gelu(s)

    def contract(self, a: Tensor, w2: Tensor, b2: Tensor, x: Tensor) -> Tensor:
        return x + self._shift(F.pad(F.linear(a, w2, b2), (0, self.X - self.D)), back=False)

    def unrotate(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        du = self._shift(dy, back=True)
        return du, du.sum(0)[: self.D]

    def slope(self, du: Tensor, w2: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        below = 0.5 * (1 + torch.erf(s / 2**0.5))
        ds = (du[:, : self.D] @ w2) * (below + s * torch.exp(-s * s / 2) / (2 * torch.pi) ** 0.5)
        return ds, s * below, ds.sum(0)[: self.H]

    def restore(self, ds: Tensor, w1: Tensor, dy: Tensor, *, add: bool) -> Tensor:
        return ds[:, : self.H] @ w1 + (dy if add else 0)


NETWORKS = ("eager", "eager checkpointed", "compiled", "compiled checkpointed")


def difference(network: str) -> float:
    """The largest relative difference of hidden states and gradients of a small network of kernels from those
    of plain layers, whole and ragged, with a norm and without."""
    codes = torch.randint(0, 4, (3, 29), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    largest = 0.0
    for norm in ("none", "layer") if network == "eager" else ("layer",):
        sizes = {
            "num_layers": 2,
            "num_groups": 4,
            "group_channels": 4,
            "intermediate_size": 24,
            "num_summary": 3,
        }
        for length_B in (None, torch.tensor([29, 7, 15])):
            results = []
            for kernel in ("plain", "triton"):
                torch.manual_seed(0)
                config = ChordMixerConfig(**sizes, norm=norm, kernel=kernel)
                module: Any = ChordMixer(config, activation_checkpointing="checkpointed" in network)
                forward = module
                if kernel == "triton" and network.startswith("compiled"):
                    torch._dynamo.reset()
                    forward = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
                hidden = forward(codes, length_B=length_B)
                (hidden.letters_BLD.sin().sum() + hidden.summary_BPD.cos().sum()).backward()
                with torch.no_grad():
                    again = forward(codes, length_B=length_B)
                assert torch.equal(again.letters_BLD, hidden.letters_BLD)
                results.append([hidden.letters_BLD.detach(), *(p.grad for p in module.parameters())])
            pairs = zip(*results, strict=True)
            largest = max(largest, *(float((ours - plain).norm() / plain.norm()) for plain, ours in pairs))
    return largest


def misaligned() -> float:
    """The largest difference between a network and its average, whose weights are views into one buffer."""
    torch.manual_seed(0)
    # 3 x 28 channels, so that a weight of 64 columns begins at 8 of 16 bytes.
    config = ChordMixerConfig(
        num_layers=1, num_groups=3, group_channels=28, intermediate_size=64, num_summary=1, kernel="triton"
    )
    network = ChordMixer(config).half()
    codes = torch.randint(0, 4, (2, 20), dtype=torch.uint8)
    average = ShardedEMA.of(network)
    begins = {weight.data_ptr() % 16 for weight in average.module.parameters()}
    assert len(begins) > 1, "all weights lie well by chance"
    with torch.no_grad():
        difference = average.module(codes).letters_BLD - network(codes).letters_BLD
    return float(difference.abs().max())


def read_within() -> bool:
    """Whether a hook on a map within a layer gets its input although kernel is triton."""
    seen = []
    network = ChordMixer(
        ChordMixerConfig(num_layers=1, num_groups=2, group_channels=4, intermediate_size=8, kernel="triton")
    )
    network.activation_modules()[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    network(torch.zeros(1, 5, dtype=torch.uint8))
    return seen == [(1, 15, 8)]


def second_derivative() -> str:
    """What is said where the gradient's own gradient is asked for."""
    case = Case("float32", 1, 5, 2, 4, 8)
    layer = layer_of(case)
    x = F.pad(layer.x, (0, padded(8) - 8)).requires_grad_()
    rotation = Rotation(x, num_groups=2, group_channels=4)
    out = mixer_layer(x, None, (layer.w1, layer.b1, layer.w2, layer.b2), rotation)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as fault:
        return str(fault)
    return "nothing"


def main() -> int:
    torch.set_num_threads(1)
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
    found: dict[str, Any] = {case.name: errors(case) for case in CASES}
    found["networks"] = {name: difference(name) for name in NETWORKS}
    found["others"] = {f.__name__: f() for f in (misaligned, read_within, second_derivative)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
