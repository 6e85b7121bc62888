"""Contrastive losses under nccl on one GPU: the float64 gradients and a row's bits, and memory as the batch
grows.

Shapes: G rows of the global batch, which are all on this rank, E embedding.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.gpu import where
from tests.gpu.contrastive_cost import TASKS, batch, cost
from tests.gpu.where import DEVICE, few
from tests.ranks import on_ranks
from trainer.core.collectives import Group
from trainer.data.locus import same_place
from trainer.losses.infonce import Contrast, SymmetricContrast, info_nce, symmetric_info_nce
from trainer.losses.ring_infonce import (
    RingContrast,
    RingSymmetricContrast,
    ring_info_nce,
    ring_symmetric_info_nce,
)

pytestmark = where.marks


def gradients_of_all(rows: int, device: str) -> dict[str, Any]:
    """Of every form its gradients, and of "lse" those of the queries in 1, 2 and 4 calls."""
    group = Group.of()
    first_GE, second_GE, loci = batch(rows, device)
    own_G, results = torch.arange(rows, device=device), {}
    for form in ("lse", "ref", "ring"):
        views = [first_GE.clone().requires_grad_(), second_GE.clone().requires_grad_()]
        scale = torch.tensor(30.0, device=device, requires_grad=True)
        if form == "ring":
            teacher = ring_info_nce(RingContrast(views[0], second_GE, scale, group, rows, loci))
            both = ring_symmetric_info_nce(RingSymmetricContrast(*views, scale, group, rows, loci))
        else:
            teacher = info_nce(Contrast(views[0], second_GE, own_G, scale, rows, loci, loci, form))
            both = symmetric_info_nce(
                SymmetricContrast(*views, first_GE, second_GE, 0, scale, group, rows, loci, form)
            )
        for task, loss, leaves in (
            ("teacher", teacher, [views[0], scale]),
            ("two views", both, [*views, scale]),
        ):
            results[f"{task} {form}"] = [x.cpu() for x in torch.autograd.grad(loss, leaves)]
    results["pieces"] = []
    for pieces in (1, 2, 4):
        parts = []
        for own in own_G.chunk(pieces):
            query = first_GE[own].clone().requires_grad_()
            info_nce(Contrast(query, second_GE, own, scale.detach(), rows, loci.rows(own), loci)).backward()
            assert query.grad is not None
            parts.append(query.grad.cpu())
        results["pieces"].append(torch.cat(parts))
    return results


@pytest.mark.parametrize("rows", few([156, 2500]))
def test_gradients_are_those_of_float64_and_of_the_same_bits_in_pieces(rows: int) -> None:
    (results,) = on_ranks(1, gradients_of_all, rows, DEVICE, gpu=not where.REHEARSE)
    first_GE, second_GE, loci = batch(rows, "cpu")
    leaves = [
        first_GE.double().requires_grad_(),
        second_GE.double().requires_grad_(),
        torch.tensor(30.0, dtype=torch.float64, requires_grad=True),
    ]
    same_GG = same_place(loci, loci) & ~torch.eye(rows, dtype=torch.bool)
    assert same_GG.any()
    logits_GG = (leaves[2] * leaves[0] @ leaves[1].T).masked_fill(same_GG, -torch.inf)
    one_way = F.cross_entropy(logits_GG, torch.arange(rows))
    both = (one_way + F.cross_entropy(logits_GG.T, torch.arange(rows))) / 2
    expected = {
        "teacher": torch.autograd.grad(one_way, [leaves[0], leaves[2]], retain_graph=True),
        "two views": torch.autograd.grad(both, leaves),
    }
    pieces = results.pop("pieces")
    for form, gradients in results.items():
        for got, wanted in zip(gradients, expected[form.rsplit(" ", 1)[0]], strict=True):
            assert float((got - wanted).norm() / wanted.norm()) <= 5e-6, form
    assert all(torch.equal(piece, results["teacher lse"][0]) for piece in pieces)


@pytest.mark.skipif(where.REHEARSE, reason="memory is counted on a GPU only")
@pytest.mark.parametrize("task", TASKS)
def test_memory_grows_with_the_batch_and_not_with_its_square(task: str) -> None:
    ours, _ = TASKS[task]
    found = [cost(ours, rows, DEVICE) for rows in (1 << 14, 1 << 16)]
    assert found[0] and found[1], "they fit"
    assert math.log(found[1].peak_bytes / found[0].peak_bytes) / math.log(4) <= 1.1
