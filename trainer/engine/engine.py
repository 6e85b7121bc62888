"""A student under DeepSpeed, ZeRO 0 to 3 in fp32 and bf16, and the teacher that follows its fp32 masters.

Where the optimiser keeps the master of each parameter (optimizer_adapters.py) is proven on random values
whenever an engine is built.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, Generic

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from cluster.process.heartbeat import heartbeat
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.deepspeed_config import EngineSettings, inference_config, training_config
from trainer.engine.ema import FlatWeights, M, ShardedEMA, Weights, blank_copy
from trainer.engine.optimizer_adapters import PartitionedWeights, adapter_for
from trainer.engine.optimizer_state import OptimizerState
from trainer.engine.partition import FlatGroup, check_cover
from trainer.engine.probe import probe, wrong_entries
from trainer.engine.process_group import DataParallel
from trainer.engine.recipe import Given, Recipe, Source, no_memory


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
        named = dict(skeleton.named_parameters())
        shapes = {name: parameter.shape for name, parameter in named.items()}
        self._optimizer, names = _make_optimizer(named, settings, fused=device.type == "cuda")
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

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, which is summed over ranks and micro-batches."""
        # DeepSpeed takes the mean over both.
        with heartbeat.inside("backward", phase=True):
            self._deepspeed.backward(loss * (self.settings.accumulation * self.group.size))

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last is done."""
        self._deepspeed.step()

    def gradient_is_finite(self) -> Tensor:
        """bool 0-d, which may differ by rank: this rank's part of the global batch's gradient is finite, and
        so is the norm of the whole gradient if every rank's part has the same norm."""
        gradients = self._adapter.gradients()
        if not gradients:
            return torch.tensor(True, device=next(self.network.parameters()).device)
        square = torch.stack(torch._foreach_norm(gradients)).double().square().sum() * self.group.size
        return square <= torch.finfo(torch.float32).max  # NaN is not

    def step(self, lr: float) -> tuple[bool, float]:
        """Apply the accumulated gradient at rate ``lr``: (whether it was applied, the global gradient
        norm)."""
        optimizer = self._deepspeed.optimizer
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = lr
        norm: float | None = None
        if isinstance(optimizer, torch.optim.Optimizer):  # ZeRO-0 in fp32 keeps no norm
            norm = float(torch.nn.utils.get_total_norm(self._adapter.gradients()))
        with heartbeat.inside("the optimiser's step", phase=True):
            self._deepspeed.step()
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm())
        return bool(self._deepspeed.was_step_applied()), norm

    def skip(self) -> None:
        """Discard the accumulated gradient: weights, masters and moments keep their bits."""
        self._optimizer.paused = True
        try:
            self._deepspeed.step()  # DeepSpeed's own counters and buffers are then as after any step
        finally:
            self._optimizer.paused = False

    def teacher(self) -> ShardedEMA[M]:
        """The teacher of this student, equal to its masters; to be called once, by all ranks."""
        assert self._blank is not None, "a student has one teacher"
        module, self._blank = self._blank, None
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


class _AdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``paused``."""

    paused = False

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
