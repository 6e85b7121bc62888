"""Contrastive losses against the naive ones, on two gloo processes: gradient error, saved memory, speed.

Naive: all logits at once, autograd, and for two views a gather that carries gradients. Both sides start from
local embeddings and end with their gradients; what they gather is in the time.
Shapes: B rows of a rank, G = 2·B of the global batch, E embedding.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.process.compat import ALL_GATHER
from tests.bench.harness import Row, rate
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import counted_collectives, coupled_config
from tests.ranks import on_ranks
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.losses.infonce import Contrast, SymmetricContrast, Variant, info_nce, symmetric_info_nce

ROWS_GLOBAL, ROWS_SMALL, EMBEDDING, SCALE = 4096, 768, 128, 14.0
TASKS = {"teacher": "teacher's keys", "symmetric": "two views"}
SMALL, LARGE, NAIVE_LARGE = 256, 16_384, 4096  # rows of the global batch between which memory is compared


def rows() -> list[Row]:
    """For both losses: relative gradient error, exponent of saved memory, speed."""
    answers = on_ranks(2, measure)
    found = []
    for task, label in TASKS.items():
        errors = {
            variant: max(rank[task, variant, "error"] for rank in answers) for variant in ("lse", "ref")
        }
        found.append(
            Row(
                f"contrastive, {label}: gradient error",
                errors["lse"],
                errors["ref"],
                errors["lse"] / errors["ref"],
                "relative",
                "≤ 5e-6",
                "naive, both against fp64",
            )
        )
        exponents = {variant: answers[0][task, variant, "exponent"] for variant in ("lse", "ref")}
        found.append(
            Row(
                f"contrastive, {label}: saved bytes ~ G^x",
                exponents["lse"],
                exponents["ref"],
                exponents["lse"] / exponents["ref"],
                "exponent",
                "≤ 1.1",
                "naive",
            )
        )
        fast, slow = answers[0][task, "rate"]
        found.append(
            Row(
                f"contrastive, {label}: G = {ROWS_GLOBAL}",
                fast,
                slow,
                fast / slow,
                "k rows/s",
                "≥ 1",
                "naive, gathered gradients",
            )
        )
    return [*found, *on_more_ranks(), *collectives_of_a_step()]


def on_more_ranks() -> list[Row]:
    """Worst error against float64, and entries whose bits are not one rank's, on 1 to 4 ranks."""
    answers = {world: on_ranks(world, gradients) for world in (1, 2, 3, 4)}
    found = []
    for task, label in TASKS.items():
        worst = max(rank[task, "error"] for ranks in answers.values() for rank in ranks)
        found.append(
            Row(
                f"contrastive, {label}: worst error, 1 to 4 ranks",
                worst,
                5e-6,
                worst / 5e-6,
                "relative",
                "≤ 5e-6",
                "the target, against fp64",
            )
        )
        whole = {
            world: torch.cat([rank[task, "gradient"] for rank in ranks]) for world, ranks in answers.items()
        }
        wrong = sum(int((whole[world] != whole[1]).sum()) for world in (2, 4))
        found.append(
            Row(
                f"contrastive, {label}: bits unlike one rank's",
                wrong,
                2 * whole[1].numel(),
                wrong / (2 * whole[1].numel()),
                "entries",
                "0",
                "compared, on 2 and 4 ranks",
            )
        )
    return found


def gradients() -> dict[Any, Any]:
    """On one rank: (task, "gradient") -> of this rank's rows of the first view, (task, "error") -> of all of
    them."""
    group, found = Group.of(), {}
    for task in TASKS:
        views, scale = leaves(group, ROWS_SMALL)
        reference = full_batch(group, task, ROWS_SMALL)
        ours = torch.autograd.grad(step(group, task, views, scale, "lse"), [*views, scale], allow_unused=True)
        found[task, "gradient"] = ours[0]
        found[task, "error"] = largest_error(group, ours, reference)
    return found


def collectives_of_a_step() -> list[Row]:
    """Of a whole training step, DeepSpeed's own left out, with the student's own keys."""
    with tempfile.TemporaryDirectory() as folder:
        uri = write_dataset(
            Path(folder), {"train": [markov_sequence(30_000, seed=1)]}, block_bp=1024, soft=True
        )
        counts = on_ranks(2, counted_collectives, coupled_config(uri, train__micro_batch=4))[0]
    gathers = counts["forward"][ALL_GATHER]
    backward = sum(counts["backward"].values())
    return [
        Row(
            "gathers a step, student's keys, 3 micro-batches",
            gathers,
            2,
            gathers / 2,
            "calls",
            "1 + 1 scalar",
            "the target",
        ),
        Row("collectives in its backward, DeepSpeed's aside", backward, 0, 0.0, "calls", "0", "the target"),
    ]


def measure() -> dict[Any, Any]:
    """On one rank of two: (task, variant, what) -> figure, and (task, "rate") -> (ours, naive) in k rows a
    second."""
    group, found = Group.of(), {}
    for task in TASKS:
        views, scale = leaves(group, ROWS_GLOBAL)
        reference = full_batch(group, task, ROWS_GLOBAL)
        for variant in ("lse", "ref"):
            loss = step(group, task, views, scale, variant)
            ours = torch.autograd.grad(loss, [*views, scale], allow_unused=True)
            found[task, variant, "error"] = largest_error(group, ours, reference)
            large = LARGE if variant == "lse" else NAIVE_LARGE
            sizes = [saved_bytes(group, task, variant, size) for size in (SMALL, large)]
            found[task, variant, "exponent"] = math.log(sizes[1] / sizes[0]) / math.log(large / SMALL)

        def timed(variant: Variant, task: str = task) -> Callable[[], None]:
            return lambda: step(group, task, views, scale, variant).backward()  # noqa: B023

        found[task, "rate"] = rate(ROWS_GLOBAL / 1e3, timed("lse"), timed("ref"))
    return found


def leaves(group: Group, rows_global: int) -> tuple[list[Tensor], Tensor]:
    """([this rank's rows of either view], scale)."""
    mine = slice(group.rank * rows_global // group.size, (group.rank + 1) * rows_global // group.size)
    return [view_GE[mine].clone().requires_grad_() for view_GE in both_views(rows_global)], torch.tensor(
        SCALE, requires_grad=True
    )


def both_views(rows_global: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    first_GE, noise_GE = torch.randn(2, rows_global, EMBEDDING, generator=generator)
    return [F.normalize(first_GE, dim=1), F.normalize(first_GE + 1.5 * noise_GE, dim=1)]


def step(group: Group, task: str, views: list[Tensor], scale: Tensor, variant: Variant) -> Tensor:
    """This rank's share of the loss, with the gather that it needs."""
    rows_global, first_row = group.size * len(views[0]), group.rank * len(views[0])
    if task == "symmetric" and variant == "ref":  # gathers by itself
        contrast = SymmetricContrast(*views, *views, first_row, scale, group, rows_global, variant="ref")
        return symmetric_info_nce(contrast)
    payload = {"second": views[1]} if task == "teacher" else {"first": views[0], "second": views[1]}
    gathered = {name: keys.flatten(0, 1) for name, keys in collectives.gather_packed(group, payload).items()}
    if task == "teacher":
        own_B = torch.arange(first_row, first_row + len(views[0]))
        return info_nce(Contrast(views[0], gathered["second"], own_B, scale, rows_global, variant=variant))
    return symmetric_info_nce(
        SymmetricContrast(
            *views,
            gathered["first"],
            gathered["second"],
            first_row,
            scale,
            group,
            rows_global,
            variant=variant,
        )
    )


def largest_error(group: Group, ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Relative, of the gradients of both views' rows and of the scale, of which each rank has a share."""
    whole = [*ours[:2], collectives.sum_over_ranks(group, ours[2])]
    return max(
        float((got - wanted).norm() / wanted.norm())
        for got, wanted in zip(whole, reference, strict=True)
        if got is not None
    )


def full_batch(group: Group, task: str, rows_global: int) -> list[Tensor]:
    """float64 gradients of this rank's rows of the first and the second view, and of the scale."""
    views = [view_GE.double().requires_grad_() for view_GE in both_views(rows_global)]
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    logits_GG, own_G = scale * views[0] @ views[1].T, torch.arange(rows_global)
    loss = F.cross_entropy(logits_GG, own_G)
    if task == "symmetric":
        loss = (loss + F.cross_entropy(logits_GG.T, own_G)) / 2
    *features, of_scale = torch.autograd.grad(loss, [*views, scale])
    return [*(gradient_GE.chunk(group.size)[group.rank] for gradient_GE in features), of_scale]


def saved_bytes(group: Group, task: str, variant: Variant, rows_global: int) -> int:
    """What autograd keeps on this rank between forward and backward."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    views, scale = leaves(group, rows_global)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(group, task, views, scale, variant)
    return sum(sizes.values())
