"""The optimisers whose rank has its part of the gradient and of the masters flat, and the step that is taken
here in place of DeepSpeed's: ZeRO-1 and ZeRO-2.

DeepSpeed reads the norm of the gradient on the host, a GPU so waits for it, and goes over the parameters one
by one. Here the norm, the clipping and the decision stay on the device, and each operation has all parameters
of a group. What DeepSpeed does besides (its counters, what it clears) is left to its own ``step``, which
calls this one. Checked with DeepSpeed 0.19.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.utils import all_gather_dp_groups
from torch import Tensor, nn

from trainer.core.collectives import Group
from trainer.engine.adapter import Adapter, squared_norm
from trainer.engine.partition import FlatGroup

_EPSILON = 1e-6  # beside the norm, as DeepSpeed has it


@dataclass(frozen=True)
class Decision:
    """Whether a step is applied, and the norm of its gradient; on the device, the same on all ranks.

    ``applies``: bool 0-d. ``norm``: fp32 0-d, infinite or NaN where the gradient is.
    """

    applies: Tensor
    norm: Tensor


class FlatAdapter(Adapter):
    """A step from flat gradients. ``adamw``: the optimiser of the masters."""

    def __init__(
        self, optimizer: Any, network: nn.Module, names: Sequence[Sequence[str]], group: Group
    ) -> None:
        super().__init__(optimizer, network, names, group)
        self.norm: Tensor | None = None  # of the gradient that the next step applies; None: it only clears
        optimizer.step = self._step

    def squares(self) -> Tensor:
        """fp64 [n], by group of the optimiser: summed over ranks, the squared norms of the whole gradient."""
        parts = self.gradients_by_group()
        zero = torch.zeros((), dtype=torch.float64, device=self.masters()[0].device)
        return torch.stack([squared_norm(part) if part else zero for part in parts])

    def gradients(self) -> list[Tensor]:
        return [gradient for part in self.gradients_by_group() for gradient in part]

    def gradients_by_group(self) -> list[list[Tensor]]:
        """This rank's part of the reduced gradient, cut at the parameters, without padding."""
        raise NotImplementedError

    def masters(self) -> list[Tensor]:
        """This rank's fp32 masters, flat, by group."""
        raise NotImplementedError

    def weights(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        """(all weights, flat, by group; the same by group and rank)."""
        raise NotImplementedError

    def take_gradients(self) -> list[Tensor]:
        """fp32: the gradient of ``masters``, flat, by group; DeepSpeed keeps none of it."""
        raise NotImplementedError

    def clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Scale them in place, such that the norm of the whole, which is ``norm``, is at most that of the
        config."""
        raise NotImplementedError

    @torch.no_grad()
    def _step(self, closure: None = None) -> None:
        gradients, norm = self.take_gradients(), self.norm
        if norm is None:
            return
        if self.optimizer.clip_grad > 0:
            self.clip(gradients, norm)
        for master, gradient in zip(self.masters(), gradients, strict=True):
            master.grad = gradient
        self.optimizer.optimizer.step()
        for master in self.masters():
            master.grad = None
        self.optimizer._lazy_init_hp_params_optimizer_state()
        self.optimizer._global_grad_norm = norm
        flats, by_rank = self.weights()
        for parts, master in zip(by_rank, self.masters(), strict=True):
            parts[self.group.rank].data.copy_(master)
        all_gather_dp_groups(
            groups_flat=flats,
            partitioned_param_groups=by_rank,
            dp_process_group=self.optimizer.real_dp_process_group,
            start_alignment_factor=self.optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=self.optimizer.allgather_bucket_size,
        )


class FlatBf16(FlatAdapter):
    """ZeRO-1 in bf16 with fp32 gradients, of which every rank has the whole."""

    def __init__(
        self, optimizer: Any, network: nn.Module, names: Sequence[Sequence[str]], group: Group
    ) -> None:
        super().__init__(optimizer, network, names, group)
        assert not optimizer.immediate_grad_update, "gradients are brought to fp32 at the end of a backward"
        self._pieces = [
            [part[piece.offset : piece.offset + piece.length] for piece in flat_group.pieces(group)]
            for flat_group, part in zip(
                self.flat_groups(), optimizer.fp32_groups_gradient_flat_partition, strict=True
            )
        ]
        self._is_first = True  # no micro-batch has been added up since the gradient was cleared
        self._clear = optimizer.clear_hp_grads
        optimizer.update_hp_grads = self._add_up
        optimizer.clear_hp_grads = self._clear_all
        optimizer.clear_lp_grads = self._drop

    def flat_groups(self) -> list[FlatGroup]:
        return self.partitioned(self.optimizer.bf16_groups_flat, self.optimizer.fp32_groups_flat_partition)

    def gradients_by_group(self) -> list[list[Tensor]]:
        return self._pieces

    def masters(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.fp32_groups_flat_partition
        return found

    def weights(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        return self.optimizer.bf16_groups_flat, self.optimizer.bf16_partitioned_groups

    def take_gradients(self) -> list[Tensor]:
        return list(self.optimizer.fp32_groups_gradient_flat_partition)  # which is cleared after the step

    def clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        torch._foreach_mul_(gradients, (self.optimizer.clip_grad / (norm + _EPSILON)).clamp(max=1.0))

    def write_weights(self) -> None:
        self.gather(self.optimizer.bf16_groups_flat)

    @torch.no_grad()
    def _add_up(self, clear_lp_grads: bool = False) -> None:
        """Add the gradients of a micro-batch, which are bf16, to the fp32 ones: one operation for all."""
        own, added = list[Tensor](), list[Tensor]()
        for group, flats in zip(
            self.optimizer.bf16_groups, self.optimizer.fp32_groups_gradients, strict=True
        ):
            for parameter, flat in zip(group, flats, strict=True):
                if parameter.grad is not None:
                    own.append(flat)
                    added.append(parameter.grad.reshape(-1))
                    parameter.grad = None
        if added:
            (torch._foreach_copy_ if self._is_first else torch._foreach_add_)(own, added)
        self._is_first = False

    def _clear_all(self) -> None:
        self._clear()
        self._is_first = True

    def _drop(self, set_to_none: bool = True) -> None:
        """No zeros in place of gradients: autograd would have to add to them."""
        for group in self.optimizer.bf16_groups:
            for parameter in group:
                parameter.grad = None


class FlatZero12(FlatAdapter):
    """ZeRO-1 in fp32, ZeRO-2."""

    def flat_groups(self) -> list[FlatGroup]:
        return self.partitioned(
            self.optimizer.bit16_groups_flat, self.optimizer.single_partition_of_fp32_groups
        )

    def gradients_by_group(self) -> list[list[Tensor]]:
        found = []
        for i, parameters in enumerate(self.optimizer.params_in_partition):
            parts = self.optimizer.averaged_gradients.get(i) or ()
            real = (part for part in parts if not getattr(part, "_zero_padding", False))
            found.append([part for part, _ in zip(real, parameters, strict=False)])  # zeros may follow
        return found

    def masters(self) -> list[Tensor]:
        found: list[Tensor] = self.optimizer.single_partition_of_fp32_groups
        return found

    def weights(self) -> tuple[list[Tensor], list[list[Tensor]]]:
        return self.optimizer.bit16_groups_flat, self.optimizer.parallel_partitioned_bit16_groups

    def take_gradients(self) -> list[Tensor]:
        optimizer, taken = self.optimizer, []
        optimizer.micro_step_id = -1  # DeepSpeed's INITIAL_MICRO_STEP_ID
        for i, master in enumerate(self.masters()):
            flat = optimizer._get_preflattened_grad_partition(i)
            if flat is None:
                flat = optimizer.flatten(optimizer.averaged_gradients[i])
            assert flat.numel() == master.numel(), (
                f"{flat.numel()} entries of a gradient for {master.numel()} masters"
            )
            taken.append(flat.to(master.dtype))
            optimizer._release_preflattened_grad_buffers(i)
            optimizer.averaged_gradients[i] = optimizer.all_grad_tensors[i] = None
        optimizer.zero_grad(set_to_none=True)
        return taken

    def clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        scale = ((norm + _EPSILON) / self.optimizer.clip_grad).clamp(min=1.0)
        torch._foreach_mul_(gradients, 1.0 / scale)

    def write_weights(self) -> None:
        self.gather(self.optimizer.bit16_groups_flat)
