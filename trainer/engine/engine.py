"""The student under DeepSpeed, ZeRO 0 to 3 in fp32 and bf16, and the teacher that follows its fp32 masters.

The mapping from names to masters (masters.py) is proven on random values whenever an engine is built.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from cluster.process.heartbeat import heartbeat
from trainer.core import collectives, random
from trainer.core.collectives import Group
from trainer.engine import deepspeed_config
from trainer.engine.ema import FlatWeights, ShardedEMA, Weights
from trainer.engine.optimizer_adapters import PartitionedWeights, adapter_for
from trainer.engine.optimizer_state import Saved
from trainer.engine.partition import FlatGroup, check_cover
from trainer.models.network import Network

# DeepSpeed also warns of optimisers that are not torch's own class, as _AdamW is not.
deepspeed.utils.logger.setLevel(logging.WARNING)
deepspeed.utils.logger.addFilter(lambda record: "untested" not in record.getMessage())
# DeepSpeed 0.19.8 calls what torch 2.13 deprecates, once a process.
warnings.filterwarnings(
    "ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*", category=FutureWarning
)


def init_distributed(device: torch.device) -> None:
    """Join the process group that the launcher describes (RANK, WORLD_SIZE, MASTER_*); alone without a
    launcher."""
    # DeepSpeed would compile this op on CPU (25 s, needs g++) and leave 66 MiB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1
            )
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        else:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)


def leave_distributed(*, together: bool) -> None:
    """Close the process group; ``together`` waits for the other ranks first, so that none loses its peers at
    work."""
    if dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()


class Engine:
    """A network being trained: forward, backward over micro-batches, step; and its masters as FlatGroups."""

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        group: Group,
        zero_stage: int,
        precision: deepspeed_config.Precision,
        micro_batch: int,
        accumulation: int,
        weight_decay: float,
        betas: tuple[float, float],
        grad_clip: float,
        deepspeed_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``network`` is taken over. ValueError if the optimiser does not keep the masters where its adapter
        says."""
        self.group, self.device = group, device
        self.accumulation = accumulation
        self.zero_stage = zero_stage
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._extra, self._precision = deepspeed_settings or {}, precision
        network.to(device)
        named = dict(network.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        decay = {n: p for n, p in named.items() if p.ndim >= 2}
        no_decay = {n: p for n, p in named.items() if p.ndim < 2}  # norms and biases
        self._mpu = None if group.handle is None else _DataParallel(group)
        groups = [(part, wd) for part, wd in ((decay, weight_decay), (no_decay, 0.0)) if part]
        self._names = [list(parameters) for parameters, _ in groups]
        self._optimizer = _AdamW(
            [{"params": list(parameters.values()), "weight_decay": wd} for parameters, wd in groups],
            lr=0.0,  # step() sets the rate; bf16 at stage 0 makes a step of its own while DeepSpeed sets up
            betas=betas,
            fused=device.type
            == "cuda",  # on CPU it rounds by an entry's place in its tensor, hence by the partition
        )
        self._blank: Network | None = _blank_copy(network, self.compute_dtype)
        first = {name: parameter.detach().clone() for name, parameter in named.items()}
        for name, parameter in named.items():
            parameter.data.copy_(_probe(name, parameter.shape))
        self._deepspeed = _initialize(
            model=network,
            optimizer=self._optimizer,
            mpu=self._mpu,
            config=deepspeed_config.settings(
                self._extra,
                ranks=group.size,
                stage=zero_stage,
                precision=precision,
                micro_batch=micro_batch,
                accumulation=accumulation,
                grad_clip=grad_clip,
            ),
        )
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            self._deepspeed.optimizer.optimizer.state.clear()  # that step counts in AdamW's bias correction
        self.network: Network = self._deepspeed.module
        self._adapter = adapter_for(self._deepspeed.optimizer, self.network, self._names, group)
        check_cover(self._shapes, self.flat_groups())
        self._check_masters()
        self._set_weights(first)
        self.saved = Saved(self._adapter, self._optimizer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs, with gradient; one call for each ``backward``, since DeepSpeed hooks each
        call."""
        with heartbeat.inside("forward", phase=True):
            return self._deepspeed(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, this micro-batch's share of a sum over ranks and
        micro-batches."""
        # DeepSpeed takes the mean over both; the shares are summed, so that no share is weighted by its
        # position.
        with heartbeat.inside("backward", phase=True):
            self._deepspeed.backward(loss * (self.accumulation * self.group.size))

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last is done."""
        self._deepspeed.step()

    def gradient_is_finite(self) -> Tensor:
        """bool 0-d: all that this rank holds of the global batch's gradient is finite, and so is a norm of as
        much on every rank; it may differ by rank."""
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
        """Throw the accumulated gradient away: weights, masters and moments keep their bits."""
        self._optimizer.paused = True
        try:
            self._deepspeed.step()  # with all of DeepSpeed's own counters and buffers as after any step
        finally:
            self._optimizer.paused = False

    def teacher(self) -> ShardedEMA[Network]:
        """The teacher of this student, equal to its masters; to be called once, by all ranks."""
        assert self._blank is not None, "a student has one teacher"
        module, self._blank = self._blank, None
        groups = self.flat_groups()
        weights: Weights
        if self.zero_stage == 3:
            offload = _initialize(
                model=module,
                mpu=self._mpu,
                config=deepspeed_config.frozen_settings(self._extra, precision=self._precision),
            ).optimizer
            weights = PartitionedWeights(module, groups, offload.persistent_parameters)
        else:
            weights = FlatWeights(module, groups, group=self.group, dtype=self.compute_dtype)
        return ShardedEMA(module, self.network, groups, weights, group=self.group)

    def flat_groups(self) -> list[FlatGroup]:
        """Where each parameter lies in the optimiser's partition, and the pieces of fp32 masters on this
        rank."""
        return self._adapter.groups()

    def _check_masters(self) -> None:
        """Every master on this rank must be what was put into its parameter before DeepSpeed took it over."""
        parts = [(name, 0, master.view(-1)) for name, master in self._adapter.everywhere().items()]
        for flat_group in self.flat_groups():
            shard = flat_group.shard(self.group)
            parts += [
                (piece.name, piece.at, shard[piece.offset : piece.offset + piece.length])
                for piece in flat_group.pieces(self.group)
            ]
        fault = None
        for name, start, found in parts:
            probe = _probe(name, self._shapes[name]).view(-1)[start : start + len(found)]
            wrong = int((found != probe.to(found.device, self.compute_dtype).float()).sum())
            if wrong and fault is None:
                kind = f"DeepSpeed {deepspeed.__version__}'s {type(self._deepspeed.optimizer).__name__}"
                fault = (
                    f"{kind} keeps {wrong} of {len(found)} fp32 masters of {name} elsewhere than it was "
                    f"known to, "
                    "so the teacher would average the wrong entries; empty train.deepspeed or go back to the "
                    "pinned version"
                )
        collectives.raise_together(self.group, fault, device=parts[0][2].device)

    def _set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Masters and weights become ``values``, the masters without the compute dtype's rounding."""
        for flat_group in self.flat_groups():
            shard = flat_group.empty_shard(self.group)
            for piece in flat_group.pieces(self.group):
                own = values[piece.name].view(-1)[piece.at : piece.at + piece.length]
                shard[piece.offset : piece.offset + piece.length] = own
            for offset, master in flat_group.masters:
                master.copy_(shard[offset : offset + master.numel()])
        for name, master in self._adapter.everywhere().items():
            master.copy_(values[name])
        self._adapter.write_weights()


def _initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, without the page on its memory that BF16_Optimizer prints at every start."""
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


class _AdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``paused``."""

    paused = False

    def step(self, closure: Any = None) -> Any:
        return None if self.paused else super().step(closure)


class _DataParallel:
    """The process group as DeepSpeed asks for it: all of it data parallel, nothing model parallel."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)

    def get_data_parallel_group(self) -> Any:
        return self._group.handle

    def get_data_parallel_group_ranks(self) -> list[int]:
        assert self._group.handle is not None, "the whole world needs no mpu"
        return dist.get_process_group_ranks(self._group.handle)

    def get_data_parallel_world_size(self) -> int:
        return self._group.size

    def get_data_parallel_rank(self) -> int:
        return self._group.rank

    def get_model_parallel_group(self) -> Any:
        return self._alone

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0


def _probe(name: str, shape: torch.Size) -> Tensor:
    """Random values for one parameter, on CPU, the same on all ranks and other ones for every name."""
    key = random.fold(zlib.crc32(name.encode()), torch.zeros(1, dtype=torch.int64))
    return random.normals(key, "probe", shape.numel()).view(shape)


def _blank_copy(network: Network, dtype: torch.dtype) -> Network:
    """The same network, tied parameters tied, its parameters uninitialised in ``dtype``: no fp32 copy is ever
    made."""
    blanks: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, dtype=dtype), requires_grad=False)
        for p in network.parameters()
    }
    return copy.deepcopy(network, blanks).to(dtype)
