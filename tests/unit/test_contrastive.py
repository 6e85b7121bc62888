"""Contrastive losses against naive double loops in float64, in value and gradient; their extremes; what they
keep."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.core.collectives import Group
from trainer.data.locus import Loci
from trainer.losses.infonce import Contrast, SymmetricContrast, clamped_scale, info_nce, symmetric_info_nce
from trainer.losses.ring_infonce import (
    RingContrast,
    RingSymmetricContrast,
    ring_info_nce,
    ring_symmetric_info_nce,
)

ALONE = Group(0, 1)
ROWS_TOTAL = 47


def unit(rows: int, features: int, seed: int, *, near: Tensor | None = None) -> Tensor:
    """Random unit vectors; with ``near``, close to the given ones."""
    noise = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    return F.normalize(noise if near is None else near.detach() + noise / features**0.5, dim=1)


def crowded(rows: int, seed: int) -> Loci:
    """Windows of 100 in 3 blocks of 600, so that many overlap; some contents occur twice."""
    generator = torch.Generator().manual_seed(seed)
    start_N = torch.randint(0, 500, (rows,), generator=generator)
    block_N = torch.randint(0, 3, (rows,), generator=generator)
    content_N = 2 * torch.randint(0, 10 * rows, (rows,), generator=generator) + 1
    return Loci(torch.stack([block_N, start_N, start_N + 100, content_N], 1))


def the_same(a: list[int], b: list[int]) -> bool:
    return (a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])) or a[3] == b[3]


def cross_entropies(
    logit: Callable[[int, int], Tensor], own: list[int], places: tuple[Loci, Loci] | None, keys: int
) -> Tensor:
    """The naive loop: logit(b, g) of every query against its own key and all of other places."""
    here, there = [[], []] if places is None else [p.place_N4.tolist() for p in places]
    total = torch.zeros((), dtype=torch.float64)
    for b, positive in enumerate(own):
        others = [
            g for g in range(keys) if g == positive or places is None or not the_same(here[b], there[g])
        ]
        total = total + torch.stack([logit(b, g) for g in others]).logsumexp(0) - logit(b, positive)
    return total


def naive(
    query_BE: Tensor, keys_GE: Tensor, own: list[int], scale: Tensor, places: tuple[Loci, Loci] | None
) -> Tensor:
    def logit(b: int, g: int) -> Tensor:
        return scale * (query_BE[b] * keys_GE[g]).sum()

    return cross_entropies(logit, own, places, len(keys_GE)) / ROWS_TOTAL


def naive_symmetric(
    first_BE: Tensor, second_BE: Tensor, scale: Tensor, places: tuple[Loci, Loci] | None
) -> Tensor:
    def logit(i: int, j: int) -> Tensor:
        return scale * (first_BE[i] * second_BE[j]).sum()

    rows = list(range(len(first_BE)))
    one_way = cross_entropies(logit, rows, places, len(rows))
    return (one_way + cross_entropies(lambda j, i: logit(i, j), rows, places, len(rows))) / (2 * ROWS_TOTAL)


def doubles(leaves: list[Tensor]) -> list[Tensor]:
    """Leaves of the reference: gradients of ``leaf.double()`` would be rounded to fp32 term by term."""
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


def agree(
    ours: tuple[Tensor, list[Tensor]], reference: tuple[Tensor, list[Tensor]], variant: str = "lse"
) -> None:
    """Loss and leaves of both. Rounding grows with the scale; "ref" moreover cancels where a loss is
    small."""
    tolerance = 1e-5 * max(1.0, ours[1][-1].item() / 20)
    floor = 1e-2 if variant == "ref" else 1e-12
    assert ours[0].dtype == torch.float32 and ours[0].shape == ()
    assert abs(ours[0].item() - reference[0].item()) <= tolerance * (reference[0].item() + floor)
    got, wanted = (
        torch.autograd.grad(3 * loss, leaves, retain_graph=True) for loss, leaves in (ours, reference)
    )
    for gradient, expected in zip(got, wanted, strict=True):
        assert (gradient - expected).norm() <= tolerance * (expected.norm() + floor)


SIZES = [(1, 1, 3), (1, 7, 5), (5, 12, 8), (13, 29, 17)]


@pytest.mark.parametrize("variant", ["lse", "ref"])
@pytest.mark.parametrize("scale", [0.7, 14.0, 100.0])
@pytest.mark.parametrize("with_loci", [False, True])
def test_a_teachers_keys_equal_the_naive_loop(variant: Any, scale: float, with_loci: bool) -> None:
    for seed, (rows, keys, features) in enumerate(SIZES):
        keys_GE = unit(keys, features, seed)
        positive_B = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))[:rows]
        leaves = [
            unit(rows, features, seed + 50, near=keys_GE[positive_B]).requires_grad_(),
            torch.tensor(scale, requires_grad=True),
        ]
        loci_G = crowded(keys, seed)
        places = (loci_G.rows(positive_B), loci_G) if with_loci else None
        exact = doubles(leaves)
        expected = naive(exact[0], keys_GE.double(), positive_B.tolist(), exact[1], places), exact
        contrast = Contrast(
            leaves[0], keys_GE, positive_B, leaves[1], ROWS_TOTAL, *(places or ()), variant=variant
        )
        for block in (None, 1, 5, keys):
            agree((info_nce(replace(contrast, block=block)), leaves), expected, variant)
        if variant == "lse" and rows == keys:
            ring = RingContrast(
                leaves[0], keys_GE[positive_B], leaves[1], ALONE, ROWS_TOTAL, places and places[0]
            )
            agree((ring_info_nce(ring), leaves), expected)


@pytest.mark.parametrize("variant", ["lse", "ref", "ring"])
@pytest.mark.parametrize("scale", [0.7, 14.0, 100.0])
@pytest.mark.parametrize("with_loci", [False, True])
def test_two_views_equal_the_naive_loop(variant: Any, scale: float, with_loci: bool) -> None:
    for seed, (rows, features) in enumerate([(1, 3), (2, 5), (9, 8), (21, 17)]):
        first_BE = unit(rows, features, seed)
        leaves = [
            first_BE.requires_grad_(),
            unit(rows, features, seed + 50, near=first_BE).requires_grad_(),
            torch.tensor(scale, requires_grad=True),
        ]
        loci_G = crowded(rows, seed) if with_loci else None
        exact = doubles(leaves)
        expected = naive_symmetric(*exact, (loci_G, loci_G) if loci_G else None), exact
        for block in (None, 1, 4):
            if variant == "ring":
                ring = RingSymmetricContrast(*leaves, ALONE, ROWS_TOTAL, loci_G, block=block)
                agree((ring_symmetric_info_nce(ring), leaves), expected)
            else:
                gathered = [leaf.detach() for leaf in leaves[:2]]
                contrast = SymmetricContrast(
                    *leaves[:2], *gathered, 0, leaves[2], ALONE, ROWS_TOTAL, loci_G, variant
                )
                agree((symmetric_info_nce(replace(contrast, block=block)), leaves), expected, variant)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 150), st.integers(0, 150), st.integers(1, 70), st.integers(1, 400), st.integers(0, 1000)
)
def test_any_sizes_equal_the_full_softmax(rows: int, more: int, features: int, block: int, seed: int) -> None:
    """Over several tiles and blocks; the reference is the whole matrix in float64."""
    keys = rows + more
    keys_GE, loci_G = unit(keys, features, seed), crowded(keys, seed)
    positive_B = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))[:rows]
    query_BE, scale = unit(rows, features, seed + 1).requires_grad_(), torch.tensor(20.0, requires_grad=True)
    contrast = Contrast(
        query_BE, keys_GE, positive_B, scale, ROWS_TOTAL, loci_G.rows(positive_B), loci_G, block=block
    )
    place_G = loci_G.place_N4.T
    start, end = (torch.maximum, place_G[1]), (torch.minimum, place_G[2])
    overlap_GG = start[0](start[1][:, None], start[1]) < end[0](end[1][:, None], end[1])
    same_GG = overlap_GG & (place_G[0][:, None] == place_G[0]) | (place_G[3][:, None] == place_G[3])
    logits_BG = scale.double() * (query_BE.double() @ keys_GE.double().T)
    logits_BG = logits_BG.masked_fill(same_GG[positive_B].scatter(1, positive_B[:, None], False), -torch.inf)
    expected = F.cross_entropy(logits_BG, positive_B, reduction="sum") / ROWS_TOTAL
    ours = info_nce(contrast)
    assert abs(ours.item() - expected.item()) < 1e-5 * (1 + expected.item())
    for got, wanted in zip(
        *(torch.autograd.grad(x, [query_BE, scale]) for x in (ours, expected)), strict=True
    ):
        assert float((got - wanted).norm()) < 1e-5 * (1 + float(wanted.norm()))


def symmetric(first_BE: Tensor, second_BE: Tensor, scale: Tensor, **more: Any) -> Tensor:
    return symmetric_info_nce(
        SymmetricContrast(
            first_BE, second_BE, first_BE.detach(), second_BE.detach(), 0, scale, ALONE, len(first_BE), **more
        )
    )


@pytest.mark.parametrize("variant", ["lse", "ref"])
def test_rows_without_negatives_give_zero_and_not_nan(variant: Any) -> None:
    """All windows show one place: nothing is left to tell apart."""
    rows = 70
    one_place = Loci(torch.tensor([[1, 0, 100, 3]]).repeat(rows, 1))
    leaves = [unit(rows, 8, seed).requires_grad_() for seed in (0, 1)] + [
        torch.tensor(100.0, requires_grad=True)
    ]
    own_B = torch.arange(rows)
    teacher = Contrast(leaves[0], leaves[1].detach(), own_B, leaves[2], rows, one_place, one_place, variant)
    for loss in (info_nce(teacher), symmetric(*leaves, loci_G=one_place, variant=variant)):
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, leaves, allow_unused=True):
            assert gradient is None or not gradient.any()


@pytest.mark.parametrize("variant", ["lse", "ref"])
def test_identical_rows_at_scale_100_give_log_g(variant: Any) -> None:
    rows = 130
    same_BE = unit(1, 24, 0).repeat(rows, 1)
    leaves = [*(same_BE.clone().requires_grad_() for _ in range(2)), torch.tensor(100.0, requires_grad=True)]
    teacher = Contrast(leaves[0], same_BE, torch.arange(rows), leaves[2], rows, variant=variant, block=50)
    for loss in (info_nce(teacher), symmetric(*leaves, variant=variant, block=50)):
        assert loss.item() == pytest.approx(math.log(rows), rel=1e-6)
        for gradient in torch.autograd.grad(loss, leaves, allow_unused=True):
            assert gradient is None or float(gradient.abs().max()) < 1e-4


def test_a_loss_close_to_zero_keeps_its_digits() -> None:
    """Where the positive has nearly all the weight, 1 - P and log Σ - l cancel in fp32 unless they are never
    formed."""
    keys_GE = F.normalize(torch.eye(6) + 0.01 * unit(6, 6, 0), dim=1)
    leaves = [keys_GE.clone().requires_grad_(), torch.tensor(21.0, requires_grad=True)]
    ours = info_nce(Contrast(leaves[0], keys_GE, torch.arange(6), leaves[1], ROWS_TOTAL))
    exact = doubles(leaves)
    expected = naive(exact[0], keys_GE.double(), list(range(6)), exact[1], None)
    assert 0 < expected.item() < 1e-8
    agree((ours, leaves), (expected, exact))


@pytest.mark.parametrize("features", [16, 33, 128])
def test_a_rows_gradient_is_the_same_bits_whatever_other_rows_are_in_the_call(features: int) -> None:
    keys, scale = 120, torch.tensor(30.0)
    keys_GE = unit(keys, features, 0)
    query_BE = unit(keys, features, 1, near=keys_GE)

    def gradient(first: int, last: int) -> Tensor:
        query = query_BE[first:last].clone().requires_grad_()
        info_nce(Contrast(query, keys_GE, torch.arange(first, last), scale, keys)).backward()
        assert query.grad is not None
        return query.grad

    whole = gradient(0, keys)
    for pieces in (1, 2, 4, 8, 120):
        edges = range(0, keys + 1, keys // pieces)
        assert torch.equal(torch.cat([gradient(*edge) for edge in pairwise(edges)]), whole), pieces


@pytest.mark.parametrize(("rows", "features"), [(7, 5), (24, 64), (156, 33), (1100, 48)])
def test_threads_change_no_bit(rows: int, features: int) -> None:
    """A machine's threads are dealt to its ranks, so with more ranks each has fewer."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            views = [unit(rows, features, seed).requires_grad_() for seed in (0, 1)]
            results.append(torch.autograd.grad(symmetric(*views, torch.tensor(30.0)), views))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))


def test_shares_of_micro_batches_sum_to_the_whole() -> None:
    keys_GE, scale = unit(12, 8, 0), torch.tensor(10.0)
    query_BE = unit(12, 8, 1)
    contrast = Contrast(query_BE, keys_GE, torch.arange(12), scale, 12)
    parts = sum(
        info_nce(replace(contrast, query_BE=query_BE[part], positive_B=contrast.positive_B[part])).item()
        for part in (slice(0, 5), slice(5, 12))
    )
    assert parts == pytest.approx(info_nce(contrast).item(), rel=1e-6)


def test_bf16_inputs_and_autocast_change_nothing_inside() -> None:
    """Computed in fp32 from what bf16 holds, and the gradient comes back as bf16."""
    views = [unit(20, 16, seed).bfloat16().requires_grad_() for seed in (0, 1)]
    scale = torch.tensor(30.0, requires_grad=True)
    whole = [view.detach().float().requires_grad_() for view in views]
    for variant in ("lse", "ref"):
        expected = symmetric(*whole, scale, variant=variant)
        with torch.autocast("cpu", torch.bfloat16):
            loss = symmetric(*views, scale, variant=variant)
        assert loss.dtype == torch.float32 and loss.item() == expected.item()
        got, wanted = torch.autograd.grad(loss, views), torch.autograd.grad(expected, whole)
        assert all(
            g.dtype == torch.bfloat16 and torch.equal(g, w.bfloat16())
            for g, w in zip(got, wanted, strict=True)
        )


def test_without_gradient_the_value_is_the_same_and_only_what_needs_one_gets_one() -> None:
    views, scale = [unit(9, 8, seed) for seed in (0, 1)], torch.tensor(12.0, requires_grad=True)
    loss = symmetric(*views, scale)
    with torch.no_grad():
        quiet = symmetric(*views, scale)
    assert loss.requires_grad and not quiet.requires_grad and loss.item() == quiet.item()
    alone = torch.tensor(12.0)
    query_BE = views[0].clone().requires_grad_()
    taught = info_nce(Contrast(query_BE, views[1], torch.arange(9), alone, 9))
    with torch.no_grad():
        assert info_nce(Contrast(query_BE, views[1], torch.arange(9), alone, 9)).item() == taught.item()
    (from_query,) = torch.autograd.grad(taught, query_BE)
    expected = F.cross_entropy(12 * query_BE @ views[1].T, torch.arange(9))
    torch.testing.assert_close(from_query, torch.autograd.grad(expected, query_BE)[0], rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_together_is_said() -> None:
    views, scale = [unit(6, 8, seed) for seed in (0, 1)], torch.tensor(1.0)
    with pytest.raises(AssertionError, match="6 and 6 gathered rows are not those of 1 ranks with 3 each"):
        symmetric_info_nce(SymmetricContrast(views[0][:3], views[1][:3], *views, 0, scale, ALONE, 6))
    with pytest.raises(AssertionError, match="a block of 0 keys holds none"):
        symmetric(*views, scale, block=0)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """What the graph of run() keeps for its backward."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def losses_of(rows: int, keys: int, **more: Any) -> dict[str, Callable[[], Tensor]]:
    features = 8
    scale = torch.tensor(10.0, requires_grad=True)
    views = [unit(rows, features, seed).requires_grad_() for seed in (0, 1)]
    contrast = Contrast(views[0], unit(keys, features, 2), torch.arange(rows), scale, keys, **more)
    return {"teacher": lambda: info_nce(contrast), "symmetric": lambda: symmetric(*views, scale, **more)}


@pytest.mark.parametrize("name", ["teacher", "symmetric"])
def test_all_logits_at_once_never_exist(name: str) -> None:
    rows, keys, block = 1024, 2048, 256
    with Largest() as largest:
        losses_of(rows, keys, block=block)[name]().backward()
    assert largest.elements <= max(64 * block, keys * 16)
    with Largest() as largest:
        losses_of(rows, keys, variant="ref")[name]()
    assert largest.elements >= rows * rows  # what the measure is worth


@pytest.mark.parametrize("name", ["teacher", "symmetric"])
def test_what_is_kept_for_the_backward_grows_with_the_batch_and_not_with_its_square(name: str) -> None:
    """Two ranks' share: B = G / 2, from G = 256 to 16,384; the naive one up to 2,048."""

    def exponent(low: int, high: int, **more: Any) -> float:
        small, large = (saved_bytes(losses_of(keys // 2, keys, **more)[name]) for keys in (low, high))
        return math.log(large / small) / math.log(high / low)

    assert exponent(256, 16_384) <= 1.1
    assert exponent(256, 2048, variant="ref") > 1.8


@given(st.floats(-3, 8), st.floats(-2, 2).filter(bool), st.sampled_from([2.0, 30.0, 100.0]))
def test_scale_is_clamped_and_only_the_way_back_is_open(
    log_scale: float, upstream: float, maximum: float
) -> None:
    leaf = torch.tensor(log_scale, requires_grad=True)
    scale = clamped_scale(leaf, maximum)
    assert scale.item() == pytest.approx(min(math.exp(log_scale), maximum), rel=1e-5)
    (gradient,) = torch.autograd.grad(upstream * scale, leaf)
    blocked = (
        leaf.item() > math.log(maximum) and upstream < 0
    )  # a step against the gradient would go further up
    assert gradient.item() == pytest.approx(0 if blocked else upstream * scale.item(), rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_scale_carried_past_its_limit_comes_back(momentum: float) -> None:
    """A plain clamp would hold it there for good."""
    leaf = torch.tensor(math.log(100.0) + 0.3, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=1e-4, momentum=momentum)
    for _ in range(200):
        optimizer.zero_grad()
        (clamped_scale(leaf, 100.0) - 50).square().backward()
        optimizer.step()
    assert clamped_scale(leaf, 100.0).item() == pytest.approx(50, rel=1e-3)
    stuck = torch.tensor(math.log(100.0) + 0.3, requires_grad=True)
    (stuck.clamp(max=math.log(100.0)).exp() - 50).square().backward()
    assert stuck.grad is not None and stuck.grad.item() == 0
