"""Bytes that each rank needs to train a config, by ZeRO stage and number of ranks.

The network is made on torch's meta device, so that one of any size is counted in seconds. What is held is by
formula, activations are those of one forward of the student on the meta device, tensor by tensor.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from trainer.core import random
from trainer.core.collectives import Group
from trainer.data.windows import Windows
from trainer.distill.method import Method, StepInputs
from trainer.distill.step import read_student
from trainer.engine.config import Train
from trainer.losses.config import projection_heads
from trainer.models.config import build_backbone
from trainer.models.network import Crops, Network
from trainer.run.config import TrainConfig

_GIB = 1 << 30
_BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size, entries
_LIVE = 1_000_000_000  # its stage3_max_live_parameters
_ROWS = 2  # that activations are counted of


@dataclass(frozen=True)
class Held:
    """Bytes on one rank. ``gradients``: as they stand before the step. ``buffers``: of DeepSpeed's
    collectives, and under ZeRO-3 the weights that are gathered for a forward."""

    weights: int
    masters: int
    moments: int
    gradients: int
    teacher: int
    buffers: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = [f"{field.name} {getattr(self, field.name) / _GIB:.2f}" for field in fields(self)]
        return f"{self.total / _GIB:.2f} GiB a rank: {', '.join(parts)}"


def held(parameters: int, train: Train, *, stage: int, ranks: int, activations: int = 0) -> Held:
    """What a rank of ``ranks`` holds of a network with ``parameters`` at its fullest, before the optimiser's
    step; padding to equal parts is left out.

    The gradient is whole on every rank under ZeRO-1 and 2 as well: DeepSpeed lets go of it after the step,
    and beside it a rank has its own part in fp32. Under ZeRO-1 in bf16 it is whole in fp32 only: the one in
    bf16 goes at the end of the backward, when the activations have gone.
    """
    whole = 4 if train.precision == "fp32" else 2
    part = parameters / ranks
    own_masters = stage > 0 or train.precision == "bf16"
    weights = whole * (part if stage == 3 else parameters)
    gradients = {
        0: whole * parameters,
        1: whole * parameters + 4 * part if train.precision == "fp32" else 4 * parameters,
        2: whole * parameters + 4 * part,
        3: 4 * part,
    }[stage]
    return Held(
        weights=round(weights),
        masters=round(4 * (part if stage else parameters)) if own_masters else 0,
        moments=round(8 * (part if stage else parameters)),
        gradients=round(gradients),
        teacher=round(4 * part + weights),
        buffers=_buffers(parameters, train, stage=stage, ranks=ranks),
        activations=activations,
    )


def _buffers(parameters: int, train: Train, *, stage: int, ranks: int) -> int:
    zero = train.deepspeed.get("zero_optimization", {})
    whole = 4 if train.precision == "fp32" else 2
    bucket = int(zero.get("reduce_bucket_size", _BUCKET))
    if stage == 0 or (stage == 1 and train.precision == "bf16"):
        return 0  # it reduces the gradients where they lie
    if stage < 3:
        return whole * bucket
    live = min(parameters, int(zero.get("stage3_max_live_parameters", _LIVE))) if ranks > 1 else 0
    return 4 * bucket + whole * live


class _Alive(TorchDispatchMode):
    """``bytes`` of the tensors that were made inside and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen | given:
                    self._seen.add(storage._cdata)
                    self.bytes += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


def kept_for_backward(forward: Callable[[], Any]) -> int:
    """Bytes that ``forward``'s outputs keep alive: they themselves, and what their backward needs."""
    with _Alive() as alive:
        outputs = forward()
        found = alive.bytes
    del outputs
    return found


def network_on_meta(config: TrainConfig) -> Network:
    """The network of ``config`` in its compute dtype, without memory; with plain kernels, since others run on
    their own device alone (and keep less)."""
    model = config.model
    if "kernel" in type(model).NOT_EXPORTED:  # a way to compute; of dilated-conv it is a size
        model = model.model_copy(update={"kernel": "plain"})
    with torch.device("meta"):
        backbone = build_backbone(model, activation_checkpointing=config.train.activation_checkpointing)
        network = Network(backbone, heads=projection_heads(config.loss.terms(), backbone.hidden_size))
    return network.to(torch.bfloat16 if config.train.precision == "bf16" else torch.float32)


def activation_bytes(config: TrainConfig, network: Network, *, rows: int) -> int:
    """Bytes that the student's forward of ``rows`` windows keeps for its backward: the views of all
    directions, crops, heads. The losses' own are not counted."""
    method = Method(config.views, config.loss.terms(), config.train.global_batch, Group(0, 1))
    windows = random_windows(config, _ROWS)
    inputs = StepInputs.of([windows], method)
    (view,) = inputs.views
    crops = None
    if view.crops_XL is not None:
        readers = tuple(term.name for term in method.terms if term.reads_crops)
        crops = Crops(view.crops_XL, view.crop_length_X, readers)
    requests = inputs.student_requests(0, method.terms, network.heads)

    def on_meta(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, kwargs))
        return network(*args, **kwargs)

    return kept_for_backward(lambda: read_student(on_meta, view, requests, crops=crops)) * rows // _ROWS


def random_windows(config: TrainConfig, rows: int) -> Windows:
    """``rows`` windows of random letters, of the config's greatest length, with the flank that views need."""
    length, flank = max(part.length for part in config.data.length), config.views.flank
    width = length + 2 * flank
    codes_BS = torch.randint(
        0, 4, (rows, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    low_B, high_B = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), width)
    place_B3 = torch.tensor([0, flank, flank + length]).repeat(rows, 1)
    soft_BS = torch.zeros_like(codes_BS) if config.loss.needs_soft_mask else None
    level_BS = torch.zeros_like(codes_BS) if config.loss.needs_track else None
    key_B = random.fold(0, torch.arange(rows))
    return Windows(codes_BS, low_B, high_B, key_B, place_B3, flank, soft_BS, level_BS)
