"""What the contrastive loss costs on one rank: time and peak memory of ours, the plain formula, and that
compiled.

Shapes: G rows of the global batch, which are all on this rank, E embedding.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.core.collectives import Group
from trainer.data.locus import Loci
from trainer.losses.infonce import Contrast, SymmetricContrast, info_nce, symmetric_info_nce

EMBEDDING = 128
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cost(NamedTuple):
    """Of a forward and backward; ``peak_bytes`` beyond the inputs, 0 on a CPU, where they are not counted."""

    ms: float
    peak_bytes: int


def batch(rows: int, device: str) -> tuple[Tensor, Tensor, Loci]:
    """(first views, second views, loci)."""
    generator = torch.Generator().manual_seed(rows)
    first_GE, noise_GE = torch.randn(2, rows, EMBEDDING, generator=generator)
    start_G = torch.randint(0, 40 * rows, (rows,), generator=generator)
    places = torch.stack([start_G % 3, start_G, start_G + 100, 2 * torch.arange(rows) + 1], 1)
    first_GE, second_GE = (F.normalize(x, dim=1).to(device) for x in (first_GE, first_GE + 2 * noise_GE))
    return first_GE, second_GE, Loci(places.to(device))


def naive_two_views(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    logits_GG, own_G = scale * first_GE @ second_GE.T, torch.arange(len(first_GE), device=first_GE.device)
    return (F.cross_entropy(logits_GG, own_G) + F.cross_entropy(logits_GG.T, own_G)) / 2


def naive_teacher(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    own_G = torch.arange(len(first_GE), device=first_GE.device)
    return F.cross_entropy(scale * first_GE @ second_GE.detach().T, own_G)


def our_two_views(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    return symmetric_info_nce(
        SymmetricContrast(
            first_GE, second_GE, first_GE.detach(), second_GE.detach(), 0, scale, Group(0, 1), len(first_GE)
        )
    )


def our_teacher(first_GE: Tensor, second_GE: Tensor, scale: Tensor) -> Tensor:
    own_G = torch.arange(len(first_GE), device=first_GE.device)
    return info_nce(Contrast(first_GE, second_GE, own_G, scale, len(first_GE)))


TASKS: dict[str, tuple[Loss, Loss]] = {
    "teacher's keys": (our_teacher, naive_teacher),
    "two views": (our_two_views, naive_two_views),
}


def cost(loss: Loss, rows: int, device: str, *, turns: int = 3) -> Cost | None:
    """The best of ``turns``, after one that warms up; None: it does not fit."""
    first_GE, second_GE, _ = batch(rows, device)
    scale = torch.tensor(30.0, device=device, requires_grad=True)
    leaves = [first_GE.requires_grad_(), second_GE.requires_grad_(), scale]
    gpu, best, peak = device == "cuda", math.inf, 0
    try:
        for turn in range(turns + 1):
            for leaf in leaves:
                leaf.grad = None
            before = 0
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            loss(*leaves).backward()
            if gpu:
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated() - before
            if turn:
                best = min(best, time.perf_counter() - start)
        return Cost(best * 1e3, peak)
    except torch.OutOfMemoryError:
        return None
    finally:
        del leaves, scale
        if gpu:
            torch.cuda.empty_cache()
