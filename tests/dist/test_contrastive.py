"""Contrastive losses on 1 to 4 ranks: the float64 full batch's gradients, one rank's bits, and counted
collectives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cluster.process.compat import ALL_GATHER
from tests.ranks import on_ranks
from tests.unit.test_contrastive import Largest
from trainer.core.collectives import Group, gather_packed
from trainer.data.locus import Loci, same_place
from trainer.losses.infonce import Contrast, SymmetricContrast, info_nce, symmetric_info_nce
from trainer.losses.ring_infonce import (
    RingContrast,
    RingSymmetricContrast,
    ring_info_nce,
    ring_symmetric_info_nce,
)

# Rows of the global batch, features, scale, noise of the second view, keys of a block, with loci: odd where
# it may be.
CASES = {
    "small": (12, 16, 10.0, 1.0, None, True),
    "odd": (156, 33, 14.0, 1.0, 50, True),
    "hot": (156, 64, 100.0, 3.0, None, False),
    "wide": (396, 128, 10.0, 1.5, 100, True),
    "large": (1536, 64, 20.0, 1.5, None, False),
}
FORMS = ("teacher lse", "teacher ref", "teacher ring", "symmetric lse", "symmetric ref", "symmetric ring")
COLLECTIVES = (
    "all_gather_single",
    "all_gather_into_tensor",
    "all_gather",
    "all_reduce",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "broadcast",
    "all_to_all_single",
    "batch_isend_irecv",
)


def batch(name: str) -> tuple[Tensor, Tensor, Loci | None]:
    """(first views, second views, loci) of the whole global batch."""
    rows, features, _, noise, _, with_loci = CASES[name]
    generator = torch.Generator().manual_seed(rows)
    first_GE, noise_GE = torch.randn(2, rows, features, generator=generator)
    start_G, block_G = torch.randint(0, 4000, (rows,), generator=generator), torch.arange(rows) % 3
    content_G = 2 * torch.randint(0, 20 * rows, (rows,), generator=generator) + 1
    loci = Loci(torch.stack([block_G, start_G, start_G + 100, content_G], 1))
    return (
        F.normalize(first_GE, dim=1),
        F.normalize(first_GE + noise * noise_GE, dim=1),
        loci if with_loci else None,
    )


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often each collective and transfer was called inside."""
    counts: dict[str, int] = {}
    originals = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return originals[name](*args, **kwargs)

        return call

    try:
        for name in originals:
            setattr(dist, name, counting(name))
        yield counts
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def measure(group: Group) -> dict[str, dict[str, Any]]:
    """Of every case and form: this rank's share, its gradients, and what was called forward and backward."""
    results = {}
    for name, (rows, _, scale, _, block, _) in CASES.items():
        first_GE, second_GE, loci_G = batch(name)
        local = rows // group.size
        mine = slice(group.rank * local, (group.rank + 1) * local)
        locus_B = loci_G.rows(mine) if loci_G else None
        for form in FORMS:
            task, variant = form.split()
            first_BE, second_BE = (
                first_GE[mine].clone().requires_grad_(),
                second_GE[mine].clone().requires_grad_(),
            )
            leaf = torch.tensor(scale, requires_grad=True)
            with counted() as forward, Largest() as largest:
                payload = {"first": first_BE, "second": second_BE}
                if locus_B:
                    payload["places"] = locus_B.place_N4
                everywhere = {}
                if variant != "ring":
                    everywhere = {
                        key: value.flatten(0, 1) for key, value in gather_packed(group, payload).items()
                    }
                    places_G = Loci(everywhere["places"]) if locus_B else None
                if form == "teacher ring":
                    loss = ring_info_nce(RingContrast(first_BE, second_BE, leaf, group, rows, locus_B, block))
                elif form == "symmetric ring":
                    contrast = RingSymmetricContrast(first_BE, second_BE, leaf, group, rows, locus_B, block)
                    loss = ring_symmetric_info_nce(contrast)
                elif task == "teacher":
                    loss = info_nce(
                        Contrast(
                            first_BE,
                            everywhere["second"],
                            torch.arange(mine.start, mine.stop),
                            leaf,
                            rows,
                            locus_B,
                            places_G,
                            variant,
                            block,
                        )
                    )
                else:
                    loss = symmetric_info_nce(
                        SymmetricContrast(
                            first_BE,
                            second_BE,
                            everywhere["first"],
                            everywhere["second"],
                            mine.start,
                            leaf,
                            group,
                            rows,
                            places_G,
                            variant,
                            block,
                        )
                    )
            leaves = [first_BE, leaf] if task == "teacher" else [first_BE, leaf, second_BE]
            with counted() as backward:
                gradients = torch.autograd.grad(loss, leaves)
            results[f"{name} {form}"] = {
                "loss": loss.item(),
                "scale": gradients[1].item(),
                "features": torch.stack(gradients[::2]),
                "forward": forward,
                "backward": backward,
                "largest": largest.elements,
            }
    return results


def alone() -> dict[str, dict[str, Any]]:
    return measure(Group.of())


def with_two_threads() -> dict[str, dict[str, Any]]:
    """Each rank of two has them, as on a machine that one rank would have four of."""
    torch.set_num_threads(2)
    return measure(Group.of())


def in_halves() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Of all four ranks, and of two subgroups whose ranks do not stand side by side, at the same time."""
    handles = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    return measure(Group.of()), measure(Group.of(handles[dist.get_rank() % 2]))


def together(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Shares summed, features in rank order."""
    return {
        key: {
            "loss": sum(rank[key]["loss"] for rank in ranks),
            "scale": sum(rank[key]["scale"] for rank in ranks),
            "features": torch.cat([rank[key]["features"] for rank in ranks], 1),
        }
        for key in ranks[0]
    }


@pytest.fixture(scope="module")
def runs() -> dict[str, list[dict[str, dict[str, Any]]]]:
    """name -> what each rank measured, for 1, 2, 3 and 4 ranks and the halves of 4."""
    four = on_ranks(4, in_halves)
    return {
        "1": on_ranks(1, alone),
        "2": on_ranks(2, with_two_threads),
        "3": on_ranks(3, alone),
        "4": [rank[0] for rank in four],
        "half of 4": [four[0][1], four[2][1]],
        "other half": [four[1][1], four[3][1]],
    }


def full_batch(name: str, task: str) -> dict[str, Any]:
    """The float64 loss of the whole batch and its gradients."""
    rows, _, scale, *_ = CASES[name]
    first_GE, second_GE, loci_G = batch(name)
    first_GE, second_GE = first_GE.double().requires_grad_(), second_GE.double().requires_grad_()
    leaf = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    logits_GG = leaf * first_GE @ second_GE.T
    if loci_G:
        same_GG = same_place(loci_G, loci_G) & ~torch.eye(rows, dtype=torch.bool)
        assert same_GG.any()
        logits_GG = logits_GG.masked_fill(same_GG, -torch.inf)
    loss = F.cross_entropy(logits_GG, torch.arange(rows))
    leaves = [first_GE, leaf]
    if task == "symmetric":
        loss = (loss + F.cross_entropy(logits_GG.T, torch.arange(rows))) / 2
        leaves.append(second_GE)
    gradients = torch.autograd.grad(loss, leaves)
    return {"loss": loss.item(), "scale": gradients[1].item(), "features": torch.stack(gradients[::2])}


def error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def test_gradients_are_those_of_the_full_batch_in_float64(runs: dict[str, Any]) -> None:
    for name in CASES:
        for task in ("teacher", "symmetric"):
            reference = full_batch(name, task)
            for world, ranks in runs.items():
                for key, result in together(ranks).items():
                    if not key.startswith(f"{name} {task}"):
                        continue
                    assert result["loss"] == pytest.approx(reference["loss"], rel=5e-6), (world, key)
                    assert error(result["features"], reference["features"]) <= 5e-6, (world, key)
                    assert result["scale"] == pytest.approx(reference["scale"], rel=5e-6), (world, key)


def test_feature_gradients_are_the_same_bits_on_any_number_of_ranks(runs: dict[str, Any]) -> None:
    one = together(runs["1"])
    for world, ranks in runs.items():
        for key, result in together(ranks).items():
            if key.endswith("lse"):
                assert torch.equal(result["features"], one[key]["features"]), (world, key)


def test_the_ring_is_the_gathered_loss(runs: dict[str, Any]) -> None:
    for world, ranks in runs.items():
        results = together(ranks)
        for key in results:
            if key.endswith("ring"):
                ring, gathered = results[key], results[key.replace("ring", "lse")]
                assert ring["loss"] == pytest.approx(gathered["loss"], rel=1e-6), (world, key)
                assert error(ring["features"], gathered["features"]) <= 1e-6, (world, key)
                assert ring["scale"] == pytest.approx(gathered["scale"], rel=5e-6), (world, key)


def test_no_rank_of_a_ring_ever_holds_all_keys(runs: dict[str, Any]) -> None:
    rows, features, *_ = CASES["large"]
    for task in ("teacher", "symmetric"):
        for rank in runs["4"]:
            assert rank[f"large {task} lse"]["largest"] >= rows * features
            assert rank[f"large {task} ring"]["largest"] == rows * features // 4


def test_one_gather_of_embeddings_one_of_scalars_and_none_in_the_backward(runs: dict[str, Any]) -> None:
    for world, ranks in runs.items():
        for rank in ranks:
            for key, result in rank.items():
                size = len(ranks)
                rounds = 2 if "symmetric" in key else 1
                if size == 1:
                    expected: tuple[dict[str, int], dict[str, int]] = {}, {}
                elif key.endswith("ring"):
                    expected = {"batch_isend_irecv": rounds * (size - 1)}, {}
                elif key.endswith("symmetric ref"):
                    expected = {ALL_GATHER: 3}, {"all_reduce": 2}  # the payload's, and its own two
                else:
                    expected = {ALL_GATHER: rounds}, {}
                assert (result["forward"], result["backward"]) == expected, (world, key)
