"""The student under DeepSpeed: settings -> engine, and where its optimiser keeps the fp32 masters. The only user of it.

Nothing else touches DeepSpeed's internals. Checked with DeepSpeed 0.19.8; ZeRO 0, 1, 2 in fp32 and bf16.
"""

import os
import warnings
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from trainer.collectives import Group
from trainer.ema import FlatGroup
from trainer.heads import Network

Precision = Literal["fp32", "bf16"]

# DeepSpeed 0.19.8 calls what torch 2.13 deprecates, once a process.
warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)


def init_distributed(device: torch.device) -> None:
    """Join the process group that the launcher describes (RANK, WORLD_SIZE, MASTER_*); alone without a launcher."""
    # DeepSpeed would compile this op on CPU (25 s, needs g++) and leave 66 MiB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        else:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)


def leave_distributed(*, together: bool) -> None:
    """Close the process group; ``together`` waits for the other ranks first, so that none loses its peers at work."""
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
        precision: Precision,
        micro_batch: int,
        accumulation: int,
        weight_decay: float,
        betas: tuple[float, float],
        grad_clip: float,
    ) -> None:
        self.group = group
        self.accumulation = accumulation
        self.zero_stage = zero_stage
        network.to(device)
        decay = {n: p for n, p in network.named_parameters() if p.ndim >= 2}
        no_decay = {n: p for n, p in network.named_parameters() if p.ndim < 2}  # norms and biases
        named = [(decay, weight_decay), (no_decay, 0.0)]
        self._names = [list(parameters) for parameters, _ in named if parameters]
        optimizer = torch.optim.AdamW(
            [{"params": list(parameters.values()), "weight_decay": wd} for parameters, wd in named if parameters],
            lr=0.0,  # step() sets the rate; bf16 at stage 0 makes a step of its own while DeepSpeed sets up
            betas=betas,
            fused=True,
        )
        self._deepspeed, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=_deepspeed_config(
                group=group, zero_stage=zero_stage, precision=precision, micro_batch=micro_batch,
                accumulation=accumulation, grad_clip=grad_clip,
            ),
        )  # fmt: skip
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            self._deepspeed.optimizer.optimizer.state.clear()  # that step counts in AdamW's bias correction
        self.network: Network = self._deepspeed.module
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._deepspeed(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, this micro-batch's share of a sum over ranks and micro-batches."""
        # DeepSpeed takes the mean over both; the shares are summed, so that no share is weighted by its position.
        self._deepspeed.backward(loss * (self.accumulation * self.group.size))

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last is done."""
        self._deepspeed.step()

    def step(self, lr: float) -> tuple[bool, float]:
        """Apply the accumulated gradient at rate ``lr``: (whether it was applied, the global gradient norm).

        A norm that is not finite may have been applied (DeepSpeed looks for it in bf16 only): the run must end.
        """
        optimizer = self._deepspeed.optimizer
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = lr
        norm: float | None = None
        if isinstance(optimizer, torch.optim.Optimizer):  # ZeRO-0 in fp32 keeps no norm and steps over NaN
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        self._deepspeed.step()
        if norm is None:
            norm = float(self._deepspeed.get_global_grad_norm())
        return bool(self._deepspeed.was_step_applied()), norm

    def flat_groups(self) -> list[FlatGroup]:
        """Where each parameter lies in the optimiser's flat vectors, and the pieces of fp32 masters on this rank."""
        optimizer = self._deepspeed.optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            return self._partitioned(optimizer.bit16_groups_flat, optimizer.single_partition_of_fp32_groups)
        if isinstance(optimizer, BF16_Optimizer):
            return self._partitioned(optimizer.bf16_groups_flat, optimizer.fp32_groups_flat_partition)
        parameters = dict(self.network.named_parameters())
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            masters = [p.data for tensors in optimizer.fp32_groups for p in tensors]
        elif isinstance(optimizer, torch.optim.Optimizer):
            masters = [parameters[name].data for names in self._names for name in names]
        else:
            raise ValueError(f"no EMA adapter for DeepSpeed's {type(optimizer).__name__}")
        names = [name for names in self._names for name in names]
        return self._unpartitioned(dict(zip(names, masters, strict=True)))

    def _partitioned(self, flats: list[Tensor], partitions: list[Tensor]) -> list[FlatGroup]:
        parameters = dict(self.network.named_parameters())
        groups = []
        for names, flat, partition in zip(self._names, flats, partitions, strict=True):
            slots = {}
            for name in names:
                offset, remainder = divmod(parameters[name].data_ptr() - flat.data_ptr(), flat.element_size())
                assert remainder == 0 and 0 <= offset <= flat.numel() - parameters[name].numel(), (
                    f"{name} does not lie in its flat buffer"
                )
                slots[name] = (offset, parameters[name].shape)
            groups.append(FlatGroup(flat.numel(), slots, [(0, partition.data)]))
        return groups

    def _unpartitioned(self, masters: dict[str, Tensor]) -> list[FlatGroup]:
        """ZeRO-0 keeps every master on every rank: the partition is ours, an even cut of the concatenation."""
        shard = -(-sum(master.numel() for master in masters.values()) // self.group.size)
        start = self.group.rank * shard
        slots, pieces, offset = {}, [], 0
        for name, master in masters.items():
            slots[name] = (offset, master.shape)
            low, high = max(offset, start), min(offset + master.numel(), start + shard)
            if low < high:
                pieces.append((low - start, master.view(-1)[low - offset : high - offset]))
            offset += master.numel()
        return [FlatGroup(shard * self.group.size, slots, pieces)]


def _deepspeed_config(
    *, group: Group, zero_stage: int, precision: Precision, micro_batch: int, accumulation: int, grad_clip: float
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_batch_size": micro_batch * accumulation * group.size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": grad_clip,
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            "round_robin_gradients": False,  # breaks the order of the masters' flat vector
            "memory_efficient_linear": False,  # replaces F.linear in the whole process and rounds differently
        },
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        # Under ZeRO-0 DeepSpeed refuses to accumulate in another dtype; config.py allows no accumulation there.
        config["data_types"] = {"grad_accum_dtype": "fp32" if zero_stage else "bf16"}
        config["communication_data_type"] = "fp32"
    return config
