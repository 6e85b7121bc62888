"""A student under DeepSpeed, ZeRO 0 to 3 in fp32 and bf16, and the teacher that follows its fp32 masters.

Where the optimiser keeps the master of each parameter (optimizer_adapters.py) is proven on random values
whenever an engine is built.
"""

import contextlib
import io
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from cluster.process.heartbeat import heartbeat
from trainer.core import collectives, random
from trainer.core import device as devices
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.engine.compiled import CompiledForward, usable
from trainer.engine.deepspeed_config import EngineSettings, inference_config, training_config
from trainer.engine.ema import FlatWeights, M, ShardedEMA, Weights, blank_copy
from trainer.engine.flat_adapters import Decision, FlatAdapter
from trainer.engine.optimizer_adapters import PartitionedWeights, adapter_for
from trainer.engine.optimizer_state import OptimizerState
from trainer.engine.partition import FlatGroup, check_cover
from trainer.engine.process_group import DataParallel


class Engine(Generic[M]):
    """A module being trained: forward, backward over micro-batches, step; and its masters as FlatGroups."""

    def __init__(self, network: M, *, settings: EngineSettings, device: torch.device, group: Group) -> None:
        """``network`` is taken over.

        Raises:
            ValueError: the optimiser does not keep the masters where its adapter expects them.
        """
        self.settings, self.group, self.device = settings, group, device
        network.to(device)
        # Before DeepSpeed changes the network. Cast at once, so that no fp32 copy is ever made.
        self._blank: M | None = blank_copy(network, dtype=settings.compute_dtype)
        self._compile = usable(settings.compile, device, say=say if group.rank == 0 else _silent)
        self.forwards: list[CompiledForward] = []
        self._compiled(network, "student")
        named = dict(network.named_parameters())
        values = {name: parameter.detach().clone() for name, parameter in named.items()}
        shapes = {name: value.shape for name, value in values.items()}
        self._optimizer, names = _make_optimizer(named, settings, fused=devices.is_queued(device))
        for name, parameter in named.items():
            parameter.data.copy_(_probe(name, parameter.shape))
        self._mpu = None if group.handle is None else DataParallel(group)
        self._deepspeed = _initialize(
            model=network,
            optimizer=self._optimizer,
            mpu=self._mpu,
            config=training_config(settings, ranks=group.size),
        )
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            # It has taken a step at rate 0 while it was set up, which would count in AdamW's bias correction.
            self._deepspeed.optimizer.optimizer.state.clear()
        self.network: M = self._deepspeed.module
        self._adapter = adapter_for(self._deepspeed.optimizer, self.network, names, group)
        check_cover(shapes, self.flat_groups())
        self._check_masters(shapes)
        self._set_weights(values)
        self.optimizer_state = OptimizerState(self._adapter, self._optimizer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs, with gradient; one call for each ``backward``, since DeepSpeed hooks each
        call."""
        with heartbeat.inside("forward", phase=True):
            return self._deepspeed(*args, **kwargs)

    @contextlib.contextmanager
    def fast(self) -> Iterator[None]:
        """The block is a training step: student and teacher compute compiled, as train.compile says."""
        if self._compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # what the last step put out may be written over
        with contextlib.ExitStack() as stack:
            for forward in self.forwards:
                stack.enter_context(forward.inside())
            yield

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, which is summed over ranks and micro-batches."""
        # DeepSpeed takes the mean over both.
        with heartbeat.inside("backward", phase=True):
            self._deepspeed.backward(loss * (self.settings.accumulation * self.group.size))

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last is done."""
        self._deepspeed.step()

    def gradient_squares(self) -> Tensor:
        """fp64 [n]: squared norms of this rank's part of the global batch's gradient; their sums over ranks
        are what ``decide`` wants."""
        return self._adapter.squares()

    def is_finite(self, squares_n: Tensor) -> Tensor:
        """bool 0-d, which may differ by rank: the part of the gradient with these squares is finite, and so
        is the norm of the whole gradient if every rank's part has the same norm."""
        return squares_n.sum() * self.group.size <= torch.finfo(torch.float32).max  # NaN is not

    def decide(self, squares_n: Tensor, is_broken: Tensor) -> Decision | None:
        """Whether the step is to be applied, from the squares of all ranks and whether anything else is not
        finite (bool 0-d). None where the host decides: DeepSpeed steps by itself, under ZeRO-0 and 3."""
        if not isinstance(self._adapter, FlatAdapter):
            return None
        norm = torch.linalg.vector_norm(squares_n.float().sqrt())
        return Decision(norm.isfinite() & ~is_broken, norm)

    @property
    def steps_unread(self) -> bool:
        """Whether ``step_where`` is to be used, so that the host need not wait for a decision."""
        return isinstance(self._adapter, FlatAdapter) and devices.is_queued(self.device)

    def step_where(self, decision: Decision, lr: float) -> None:
        """Apply the accumulated gradient at rate ``lr`` if ``decision`` says so; the host reads nothing.

        If not, weights, masters, moments and the number of steps taken keep their bits.
        """
        self._optimizer.found_inf = (~decision.applies).float()  # fused AdamW then writes nothing
        self._take_step(lr, decision.norm)

    def step(self, lr: float, decision: Decision | None = None) -> tuple[bool, float]:
        """Apply the accumulated gradient at rate ``lr``: (whether it was applied, the global gradient norm).

        A collective without a ``decision``.
        """
        if not isinstance(self._adapter, FlatAdapter):
            return self._deepspeeds_step(lr)
        if decision is None:
            squares_n = collectives.sum_over_ranks(self.group, self.gradient_squares())
            decision = self.decide(squares_n, torch.zeros_like(squares_n[0], dtype=torch.bool))
            assert decision is not None, "this adapter steps by itself"
        applies, norm = bool(decision.applies), float(decision.norm)
        if applies:
            self._optimizer.found_inf = None
            self._take_step(lr, decision.norm)
        else:
            self.skip()
        return applies, norm

    def skip(self) -> None:
        """Discard the accumulated gradient: weights, masters and moments keep their bits."""
        self._optimizer.paused = True
        try:
            self._deepspeed.step()  # DeepSpeed's own counters and buffers are then as after any step
        finally:
            self._optimizer.paused = False

    def _take_step(self, lr: float, norm: Tensor) -> None:
        assert isinstance(self._adapter, FlatAdapter), "DeepSpeed takes its own norm"
        self._set_rate(lr)
        self._adapter.norm = norm
        try:
            with heartbeat.inside("the optimiser's step", phase=True):
                self._deepspeed.step()  # which calls the adapter's
        finally:
            self._adapter.norm = None

    def _deepspeeds_step(self, lr: float) -> tuple[bool, float]:
        """Reads the norm, and waits for it."""
        self._set_rate(lr)
        norm: float | None = None
        if isinstance(self._deepspeed.optimizer, torch.optim.Optimizer):  # ZeRO-0 in fp32 keeps no norm
            norm = float(torch.nn.utils.get_total_norm(self._adapter.gradients()))
        with heartbeat.inside("the optimiser's step", phase=True):
            self._deepspeed.step()
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm())
        return bool(self._deepspeed.was_step_applied()), norm

    def _set_rate(self, lr: float) -> None:
        for parameter_group in self._deepspeed.optimizer.param_groups:
            parameter_group["lr"] = lr

    def teacher(self) -> ShardedEMA[M]:
        """The teacher of this student, equal to its masters; to be called once, by all ranks."""
        assert self._blank is not None, "a student has one teacher"
        module, self._blank = self._blank, None
        self._compiled(module, "teacher")
        groups = self.flat_groups()
        weights: Weights
        if self.settings.zero_stage == 3:
            config = inference_config(self.settings)
            offload = _initialize(model=module, mpu=self._mpu, config=config).optimizer
            weights = PartitionedWeights(module, groups, offload.persistent_parameters)
        else:
            weights = FlatWeights(module, groups, group=self.group)
        return ShardedEMA(module, self.network, groups, weights, group=self.group)

    def flat_groups(self) -> list[FlatGroup]:
        """Where each parameter lies in the optimiser's partition, and the fp32 masters on this rank."""
        return self._adapter.flat_groups()

    def _compiled(self, module: nn.Module, called: str) -> None:
        """From now on a step calls ``module`` compiled, as train.compile says."""
        if self._compile != "off":
            self.forwards.append(CompiledForward(module, called=called, mode=self._compile, say=say))

    def _check_masters(self, shapes: Mapping[str, torch.Size]) -> None:
        """Every master on this rank must be the probe that was put into its parameter."""
        parts = [(name, 0, master.view(-1)) for name, master in self._adapter.whole_masters().items()]
        for flat_group in self.flat_groups():
            shard = flat_group.shard(self.group)
            parts += [
                (piece.name, piece.at, shard[piece.offset : piece.offset + piece.length])
                for piece in flat_group.pieces(self.group)
            ]
        fault = None
        for name, start, found in parts:
            probe = _probe(name, shapes[name]).view(-1)[start : start + len(found)]
            rounded = probe.to(found.device, self.settings.compute_dtype).float()
            if fault is None and (wrong := int((found != rounded).sum())):
                kind = f"DeepSpeed {deepspeed.__version__}'s {type(self._deepspeed.optimizer).__name__}"
                fault = (
                    f"{kind} keeps {wrong} of {len(found)} fp32 masters of {name} elsewhere than it was "
                    "known to, so the teacher would average the wrong entries; empty train.deepspeed or go "
                    "back to the pinned version"
                )
        collectives.raise_together(self.group, fault)

    def _set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Set masters and weights to ``values``, the masters without the rounding of the compute dtype."""
        for flat_group in self.flat_groups():
            shard = flat_group.empty_shard(self.group)
            for piece in flat_group.pieces(self.group):
                own = values[piece.name].view(-1)[piece.at : piece.at + piece.length]
                shard[piece.offset : piece.offset + piece.length] = own
            for offset, master in flat_group.masters:
                master.copy_(shard[offset : offset + master.numel()])
        for name, master in self._adapter.whole_masters().items():
            master.copy_(values[name])
        self._adapter.write_weights()


def _silent(text: str) -> None:
    """Another rank says it."""


class _AdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``paused``, and, where it is fused, where ``found_inf`` is 1."""

    paused = False
    found_inf: Tensor | None = None  # fp32 0-d, as torch.amp's GradScaler gives it

    def step(self, closure: Any = None) -> Any:
        return None if self.paused else super().step(closure)


def _make_optimizer(
    named: Mapping[str, nn.Parameter], settings: EngineSettings, *, fused: bool
) -> tuple[_AdamW, list[list[str]]]:
    """(the optimiser, the names of the parameters of each of its groups): norms and biases do not decay.

    ``fused`` is for GPUs only: on CPU, fused AdamW rounds by an entry's place in its tensor, hence by the
    partition.
    """
    decay = [name for name, parameter in named.items() if parameter.ndim >= 2]
    no_decay = [name for name, parameter in named.items() if parameter.ndim < 2]
    groups = [(names, rate) for names, rate in ((decay, settings.weight_decay), (no_decay, 0.0)) if names]
    optimizer = _AdamW(
        [{"params": [named[name] for name in names], "weight_decay": rate} for names, rate in groups],
        lr=0.0,  # step() sets the rate; bf16 at stage 0 takes a step of its own while DeepSpeed is set up
        betas=settings.betas,
        fused=fused,
    )
    return optimizer, [names for names, _ in groups]


def _initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, without the page on its memory that BF16_Optimizer prints at every start."""
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


def _probe(name: str, shape: torch.Size) -> Tensor:
    """Random values for one parameter, on CPU: the same on all ranks, different for every name."""
    key = random.fold(zlib.crc32(name.encode()), torch.zeros(1, dtype=torch.int64))
    return random.normals(key, "probe", shape.numel()).view(shape)
