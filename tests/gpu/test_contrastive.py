"""Contrastive losses under nccl on one GPU: the float64 gradients and a row's bits; then time and peak memory.

Shapes: G rows of the global batch, which are all on this rank, E embedding.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ranks import on_ranks
from trainer.collectives import Group
from trainer.loci import Loci, same_place
from trainer.losses.contrastive import Contrast, SymmetricContrast, info_nce, symmetric_info_nce
from trainer.losses.ring import RingContrast, RingSymmetricContrast, ring_info_nce, ring_symmetric_info_nce

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
EMBEDDING = 128


def batch(rows: int, device: str) -> tuple[Tensor, Tensor, Loci]:
    """(first views, second views, loci)."""
    generator = torch.Generator().manual_seed(rows)
    first_GE, noise_GE = torch.randn(2, rows, EMBEDDING, generator=generator)
    start_G = torch.randint(0, 40 * rows, (rows,), generator=generator)
    places = torch.stack([start_G % 3, start_G, start_G + 100, 2 * torch.arange(rows) + 1], 1)
    first_GE, second_GE = (F.normalize(x, dim=1).to(device) for x in (first_GE, first_GE + 2 * noise_GE))
    return first_GE, second_GE, Loci(places.to(device))


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
            both = symmetric_info_nce(SymmetricContrast(*views, first_GE, second_GE, 0, scale, group, rows, loci, form))
        for task, loss, leaves in (("teacher", teacher, [views[0], scale]), ("two views", both, [*views, scale])):
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


@pytest.mark.parametrize("rows", [156, 2500])
def test_gradients_are_those_of_float64_and_of_the_same_bits_in_pieces(rows: int) -> None:
    (results,) = on_ranks(1, gradients_of_all, rows, "cuda", gpu=True)
    first_GE, second_GE, loci = batch(rows, "cpu")
    leaves = [first_GE.double().requires_grad_(), second_GE.double().requires_grad_(),
              torch.tensor(30.0, dtype=torch.float64, requires_grad=True)]  # fmt: skip
    same_GG = same_place(loci, loci) & ~torch.eye(rows, dtype=torch.bool)
    assert same_GG.any()
    logits_GG = (leaves[2] * leaves[0] @ leaves[1].T).masked_fill(same_GG, -torch.inf)
    one_way = F.cross_entropy(logits_GG, torch.arange(rows))
    both = (one_way + F.cross_entropy(logits_GG.T, torch.arange(rows))) / 2
    expected = {"teacher": torch.autograd.grad(one_way, [leaves[0], leaves[2]], retain_graph=True),
                "two views": torch.autograd.grad(both, leaves)}  # fmt: skip
    pieces = results.pop("pieces")
    for form, gradients in results.items():
        for got, wanted in zip(gradients, expected[form.rsplit(" ", 1)[0]], strict=True):
            assert float((got - wanted).norm() / wanted.norm()) <= 5e-6, form
    assert all(torch.equal(piece, results["teacher lse"][0]) for piece in pieces)


def naive_two_views(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    logits_GG, own_G = scale * first_GE @ second_GE.T, torch.arange(len(first_GE), device=first_GE.device)
    return (F.cross_entropy(logits_GG, own_G) + F.cross_entropy(logits_GG.T, own_G)) / 2


def naive_teacher(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    own_G = torch.arange(len(first_GE), device=first_GE.device)
    return F.cross_entropy(scale * first_GE @ second_GE.detach().T, own_G)


def our_two_views(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    return symmetric_info_nce(SymmetricContrast(
        first_GE, second_GE, first_GE.detach(), second_GE.detach(), 0, scale, Group(0, 1), len(first_GE)))


def our_teacher(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    own_G = torch.arange(len(first_GE), device=first_GE.device)
    return info_nce(Contrast(first_GE, second_GE, own_G, scale, len(first_GE)))


def cost(loss: Callable[..., Tensor], rows: int) -> tuple[float, int] | None:
    """(ms, peak bytes beyond the inputs) of forward and backward, the best of three; None: it does not fit."""
    first_GE, second_GE, _ = batch(rows, "cuda")
    scale = torch.tensor(30.0, device="cuda", requires_grad=True)
    leaves = [first_GE.requires_grad_(), second_GE.requires_grad_(), scale]
    best = math.inf
    try:
        for turn in range(4):
            for leaf in leaves:
                leaf.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            loss(*leaves).backward()
            end.record()
            torch.cuda.synchronize()
            if turn:
                best = min(best, start.elapsed_time(end))
        return best, torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError:
        return None
    finally:
        del leaves, scale
        torch.cuda.empty_cache()


@pytest.mark.timeout(900)
def test_time_and_peak_memory_as_the_batch_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints a table; memory of ours grows with the batch and not with its square."""
    tasks = {"teacher's keys": (our_teacher, naive_teacher), "two views": (our_two_views, naive_two_views)}
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}, E = {EMBEDDING}, fp32, one rank, forward and backward")
        print(f"{'':<16}{'G':>8}{'lse':>20}{'naive':>20}{'naive, compiled':>20}")
        for task, (ours, naive) in tasks.items():
            peaks = {}
            for rows in (1 << 12, 1 << 14, 1 << 16, 1 << 18):
                cells = [cost(loss, rows) for loss in (ours, naive, torch.compile(naive, dynamic=False))]
                print(f"{task:<16}{rows:>8}" + "".join(
                    f"{'does not fit':>20}" if cell is None else f"{cell[0]:>9.1f} ms {cell[1] / 2**20:>5.0f} MiB"
                    for cell in cells), flush=True)  # fmt: skip
                assert cells[0] is not None, f"{task}: {rows} rows do not fit"
                peaks[rows] = cells[0][1]
            assert math.log(peaks[1 << 18] / peaks[1 << 16]) / math.log(4) <= 1.1, f"{task}: {peaks}"
