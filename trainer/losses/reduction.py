"""What the losses have in common: fp32 under any autocast, shares of a global value, this rank's rows among
all.

Shapes: B rows of this rank, G of all ranks, D features.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainer.core import device


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which matrix products on the tensor's device stay in their operands' dtype, autocast or
    not."""
    return torch.autocast(tensor.device.type, enabled=False)


def over_total(loss_sum: Tensor, total: Tensor | float) -> Tensor:
    """``loss_sum`` / ``total``, and 0 where nothing counts in the global batch: then ``loss_sum`` must be 0
    itself, which is looked at where a look costs nothing."""
    if not isinstance(total, Tensor):
        total = torch.full_like(loss_sum, total)
    if not device.is_queued(loss_sum.device):
        assert total > 0 or not loss_sum > 0, f"a loss of {loss_sum:g} is to be divided by a total of {total}"
    return loss_sum / torch.where(total > 0, total, 1).to(loss_sum.dtype)


def as_share(value: Tensor, ranks: int) -> Tensor:
    """``value`` / ``ranks`` with the full gradient of ``value``.

    For a loss of the global batch that every rank computes whole, with gradient to its own rows only. The
    ranks' values must sum to ``value`` and so be divided. The gradients are parts of one sum already (each
    rank adds what flows through its own rows) and must not be.
    """
    return (value - value.detach()) + value.detach() / ranks  # 0 with the gradient, and the number


def among_all(rows_BD: Tensor, all_GD: Tensor, first_row: int) -> Tensor:
    """fp32 [G, D]: the gathered rows, with this rank's own in their place, through which the gradient
    flows."""
    end = first_row + len(rows_BD)
    assert first_row >= 0 and end <= len(all_GD), f"rows {first_row} to {end} of {len(all_GD)} gathered ones"
    assert rows_BD.shape[1:] == all_GD.shape[1:], (
        f"own rows of {rows_BD.shape[1:]}, gathered of {all_GD.shape[1:]}"
    )
    assert not all_GD.requires_grad, "gathered rows carry no gradient; it flows through each rank's own rows"
    return torch.cat([all_GD[:first_row].float(), rows_BD.float(), all_GD[end:].float()])
