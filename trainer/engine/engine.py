"""A student under DeepSpeed, ZeRO 0 to 3 in fp32 and bf16, and the teacher that follows its fp32 masters.

Where the optimiser keeps the master of each parameter (optimizer_adapters.py) is proven on random values
whenever an engine is built.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from cluster.process.heartbeat import heartbeat
from trainer.core import collectives
from trainer.core import device as devices
from trainer.core.collectives import Group
from trainer.core.console import say
from trainer.engine.adamw import make_optimizer
from trainer.engine.compiled import CompiledForward, usable
from trainer.engine.deepspeed_config import EngineSettings, inference_config, training_config
from trainer.engine.ema import FlatWeights, M, ShardedEMA, Weights, blank_copy
from trainer.engine.flat_adapters import Decision, FlatAdapter
from trainer.engine.optimizer_adapters import PartitionedWeights, adapter_for
from trainer.engine.optimizer_state import OptimizerState
from trainer.engine.partition import FlatGroup, check_cover, no_memory
from trainer.engine.probe import probe, wrong_entries
from trainer.engine.process_group import DataParallel
from trainer.engine.recipe import Given, Recipe, Source


class Engine(Generic[M]):
    """A module being trained: forward, backward over micro-batches, step; and its masters as FlatGroups."""

    def __init__(
        self, network: M | Recipe[M], *, settings: EngineSettings, device: torch.device, group: Group
    ) -> None:
        """``network`` is taken over. Of a Recipe no rank holds all values at once.

        Raises:
            ValueError: the optimiser does not keep the masters where its adapter expects them.
        """
        self.settings, self.group, self.device = settings, group, device
        source: Source[M] = network if isinstance(network, Recipe) else Given(network)
        skeleton = source.skeleton()
        for buffer in skeleton.buffers():
            buffer.data = buffer.data.to(device)
        for parameter in skeleton.parameters():
            parameter.data = no_memory(parameter, dtype=settings.compute_dtype, device=device)
        # Before DeepSpeed changes the network.
        self._blank: M | None = blank_copy(skeleton, dtype=settings.compute_dtype)
        self._compile = usable(settings.compile, device, say=say if group.rank == 0 else _silent)
        self.forwards: list[CompiledForward] = []
        self._compiled(skeleton, "student")
        named = dict(skeleton.named_parameters())
        shapes = {name: parameter.shape for name, parameter in named.items()}
        self._optimizer, names = make_optimizer(named, settings, fused=devices.is_queued(device))
        self._mpu = None if group.handle is None else DataParallel(group)
        config = training_config(settings, ranks=group.size)
        # In the compute dtype at once, and under ZeRO-3 one after the other: no rank has all in fp32.
        filled = ((parameter, self._probe(name, parameter.shape)) for name, parameter in named.items())
        if settings.zero_stage == 3:
            partition_parameters(filled, config, mpu=self._mpu)
        else:
            for parameter, values in filled:
                parameter.data = values
        self._deepspeed = _initialize(model=skeleton, optimizer=self._optimizer, mpu=self._mpu, config=config)
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            # It has taken a step at rate 0 while it was set up, which would count in AdamW's bias correction.
            self._deepspeed.optimizer.optimizer.state.clear()
        self.network: M = self._deepspeed.module
        self._adapter = adapter_for(self._deepspeed.optimizer, self.network, names, group)
        check_cover(shapes, self.flat_groups())
        self._check_masters()
        self._set_weights(source)
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
            empty = (
                (parameter, torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device))
                for parameter in module.parameters()
            )
            partition_parameters(empty, config, mpu=self._mpu)
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

    def _check_masters(self) -> None:
        """Every master on this rank must be the probe that was put into its parameter."""
        parts = [(name, 0, master.view(-1)) for name, master in self._adapter.whole_masters().items()]
        for flat_group in self.flat_groups():
            parts += [(name, at, master) for name, at, master in flat_group.master_pieces(self.group)]
        fault = None
        for name, start, found in parts:
            if fault is None and (wrong := wrong_entries(found, name, first=start)):
                kind = f"DeepSpeed {deepspeed.__version__}'s {type(self._deepspeed.optimizer).__name__}"
                fault = (
                    f"{kind} keeps {wrong} of {len(found)} fp32 masters of {name} elsewhere than it was "
                    "known to, so the teacher would average the wrong entries; empty train.deepspeed or go "
                    "back to the pinned version"
                )
        collectives.raise_together(self.group, fault)

    def _set_weights(self, source: Source[M]) -> None:
        """Set masters and weights to the values of ``source``, the masters without the rounding of the
        compute dtype."""
        whole, parts = self._adapter.whole_masters(), dict[str, list[tuple[int, Tensor]]]()
        for flat_group in self.flat_groups():
            for _, master in flat_group.masters:
                master.zero_()  # padding too
            for name, at, master in flat_group.master_pieces(self.group):
                parts.setdefault(name, []).append((at, master))

        def take(name: str, value: Tensor) -> None:
            if name in whole:
                whole[name].copy_(value)
                return
            for at, master in parts.get(name, ()):
                master.copy_(value.reshape(-1)[at : at + len(master)])

        source.give(take)
        self._adapter.write_weights()

    def _probe(self, name: str, shape: torch.Size) -> Tensor:
        """Random values of ``shape`` in the compute dtype."""
        dtype = self.settings.compute_dtype
        return probe(name, first=0, length=shape.numel(), device=self.device, dtype=dtype).view(shape)


def _silent(text: str) -> None:
    """Another rank says it."""


def _initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, without the page on its memory that BF16_Optimizer prints at every start."""
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


def partition_parameters(
    filled: Iterable[tuple[nn.Parameter, Tensor]], config: Mapping[str, Any], *, mpu: DataParallel | None
) -> None:
    """Give each parameter its values and cut them over the ranks at once, as ZeRO-3 does, before the next.

    A generator of values thus needs memory for one whole parameter at a time. A collective.
    """
    first: Any = None
    with contextlib.redirect_stdout(io.StringIO()):
        for parameter, values in filled:
            parameter.data = values
            if first is None:
                first = parameter
                deepspeed.zero.Init(
                    module=nn.ParameterList([parameter]),
                    data_parallel_group=mpu and mpu.get_data_parallel_group(),
                    dtype=values.dtype,
                    config_dict_or_path=dict(config),
                    mpu=mpu,
                )
            else:
                first.convert_to_zero_parameters(param_list=[parameter])
