"""Losses of the global batch on real ranks: gathered rows in, shares that sum to the whole, the same bits on
each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import on_ranks
from tests.unit.test_losses import expanded, spread
from tests.unit.test_sinkhorn import assignment
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.losses.koleo import Spread, koleo
from trainer.losses.sinkhorn import Assignment, sinkhorn
from trainer.losses.vicreg import Expanded, vicreg

ROWS, MICRO_BATCHES = 24, 2


def every_global_loss() -> dict[str, Any]:
    """This rank's shares, in micro-batches, of losses on the rows that it gathers from all ranks."""
    group = Group.of()
    count = ROWS // group.size
    mine = slice(group.rank * count, (group.rank + 1) * count)
    koleo_rows_BD = spread(0, ROWS).rows_BD[mine].clone().requires_grad_()
    vicreg_rows_BE = expanded(0, ROWS).rows_BE[mine].clone().requires_grad_()
    teacher_BE = expanded(0, ROWS).teacher_BE[mine]
    whole = assignment(0, ROWS, 11)
    payload = {"koleo": koleo_rows_BD, "vicreg": vicreg_rows_BE, "bottleneck": whole.bottleneck_NC[mine]}
    everywhere = {
        name: rows.flatten(0, 1) for name, rows in collectives.gather_packed(group, payload).items()
    }

    shares, values, size = group.size * MICRO_BATCHES, torch.zeros(2), count // MICRO_BATCHES
    for begin in range(0, count, size):
        rows, first_row = slice(begin, begin + size), mine.start + begin
        parts = [
            koleo(Spread(koleo_rows_BD[rows], everywhere["koleo"], first_row, shares, block=5)),
            vicreg(Expanded(vicreg_rows_BE[rows], everywhere["vicreg"], teacher_BE[rows], first_row, shares)),
        ]
        torch.stack(parts).sum().backward()
        values += torch.stack(parts).detach()
    balanced = Assignment(everywhere["bottleneck"], whole.prototypes_KC, None, whole.temperature, block=5)
    return {
        "values": values,
        "gradients": (koleo_rows_BD.grad, vicreg_rows_BE.grad),
        "probabilities": sinkhorn(balanced, mine),
    }


def whole_batch() -> tuple[Tensor, list[Tensor]]:
    leaves = [spread(0, ROWS).rows_BD.requires_grad_(), expanded(0, ROWS).rows_BE.requires_grad_()]
    values = torch.stack(
        [
            koleo(Spread(leaves[0], leaves[0].detach(), 0, 1)),
            vicreg(Expanded(leaves[1], leaves[1].detach(), expanded(0, ROWS).teacher_BE, 0, 1)),
        ]
    )
    return values.detach(), list(torch.autograd.grad(values.sum(), leaves))


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_ranks_and_micro_batches_are_the_single_process_loss(world: int) -> None:
    got = on_ranks(world, every_global_loss)
    values, gradients = whole_batch()
    torch.testing.assert_close(sum(rank["values"] for rank in got), values, rtol=1e-5, atol=1e-6)
    for i, gradient in enumerate(gradients):
        together = torch.cat([rank["gradients"][i] for rank in got])
        torch.testing.assert_close(together, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())
    together_NK = torch.cat([rank["probabilities"] for rank in got])
    assert torch.equal(together_NK, sinkhorn(assignment(0, ROWS, 11, block=5)))
