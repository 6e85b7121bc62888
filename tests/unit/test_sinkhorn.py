"""Log-space Sinkhorn-Knopp against the naive loop in float64, and against what fp32 does to the naive one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.losses.sinkhorn import Assignment, sinkhorn

EVERYTHING = slice(None)


def assignment(seed: int, rows: int = 23, prototypes: int = 7, size: int = 6, **changes: Any) -> Assignment:
    g = torch.Generator().manual_seed(seed)
    bottleneck_NC, prototypes_KC = (
        F.normalize(torch.randn(n, size, generator=g), dim=-1) for n in (rows, prototypes)
    )
    return replace(Assignment(bottleneck_NC, prototypes_KC, None, 0.04, block=5), **changes)


def naive(a: Assignment, dtype: torch.dtype = torch.float64, *, highest: float = 0.0) -> Tensor:
    """The loop of the docstring; ``highest`` is taken off the exponents, as one might do against overflow."""
    cosines_NK = (a.bottleneck_NC.double() @ a.prototypes_KC.double().T).to(dtype)
    q_NK = ((cosines_NK - highest) / a.temperature).exp()
    weight_N = torch.ones(len(q_NK)) if a.weight_N is None else a.weight_N
    for _ in range(a.iterations):
        for k in range(q_NK.shape[1]):
            q_NK[:, k] /= sum(weight_N[n] * q_NK[n, k] for n in range(len(q_NK)))
        for n in range(len(q_NK)):
            q_NK[n, :] /= sum(q_NK[n, k] for k in range(q_NK.shape[1]))
    return q_NK


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 17),
    prototypes=st.integers(1, 9),
    temperature=st.sampled_from([0.01, 0.02, 0.04, 0.1]),
    iterations=st.integers(1, 4),
    block=st.integers(1, 20),
    weighted=st.booleans(),
)
def test_equals_the_naive_loop(
    seed: int, rows: int, prototypes: int, temperature: float, iterations: int, block: int, weighted: bool
) -> None:
    a = assignment(seed, rows, prototypes, temperature=temperature, iterations=iterations, block=block)
    if weighted:
        weight_N = (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.6).float()
        a = replace(a, weight_N=weight_N.index_fill(0, torch.tensor(0), 1))
    got_NK = sinkhorn(a, EVERYTHING)
    assert got_NK.dtype == torch.float32
    torch.testing.assert_close(got_NK.double(), naive(a), rtol=1e-6 / temperature, atol=1e-7 / temperature)
    torch.testing.assert_close(got_NK.sum(1), torch.ones(rows), rtol=0, atol=1e-6)


def extreme() -> Assignment:
    """At 0.01, and half the rows at prototype 0; nobody looks at prototype 2, opposite to it."""
    axis_C = torch.tensor([1.0, 0.0])
    return Assignment(
        torch.stack([axis_C, axis_C, axis_C.flip(0), axis_C.flip(0)]),
        torch.stack([axis_C, axis_C.flip(0), -F.normalize(torch.ones(2), dim=0)]),
        None,
        0.01,
    )


def test_stays_finite_where_exponentials_leave_fp32() -> None:
    a = extreme()
    assert naive(a, torch.float32).isnan().any()  # exp(100) is past fp32
    assert naive(a, torch.float32, highest=1.0).isnan().any()  # exp(-171) is 0, and so is the prototype's sum
    torch.testing.assert_close(sinkhorn(a).double(), naive(a), rtol=1e-5, atol=1e-6)
    assert sinkhorn(a)[:, 2].sum() > 0.5  # even that prototype gets much of its share of 4 / 3


def test_prototypes_come_out_balanced() -> None:
    a = assignment(0, 500, 9, block=64)
    share = 500 / 9
    plain_NK = torch.softmax(a.bottleneck_NC @ a.prototypes_KC.T / a.temperature, -1)
    after = [plain_NK, *(sinkhorn(replace(a, iterations=i)) for i in (1, 3, 10, 30, 200))]
    off = [(balanced_NK.sum(0) - share).abs().max().item() / share for balanced_NK in after]
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.5 and off[-1] < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_block_changes_only_rounding(seed: int, weighted: bool) -> None:
    a = assignment(seed, 300, 70, 16, block=300)
    if weighted:
        a = replace(a, weight_N=(torch.arange(300) % 3 > 0).float())
    for block in (7, 64, 299, 1024):
        # A cosine's rounding over the temperature; how products round depends on the block and on threads.
        torch.testing.assert_close(sinkhorn(replace(a, block=block)), sinkhorn(a), rtol=0, atol=5e-6)


@pytest.mark.parametrize("block", [1, 5, 8, 64])
def test_rows_get_the_same_bits_whichever_are_asked_for(block: int) -> None:
    a = assignment(1, 41, 13, block=block)
    whole_NK = sinkhorn(a, EVERYTHING)
    for begin in range(42):
        for end in (begin, begin + 1, begin + 10, 41):
            assert torch.equal(sinkhorn(a, slice(begin, end)), whole_NK[begin:end]), f"rows {begin} to {end}"


def test_rows_of_weight_zero_move_nobody() -> None:
    a = assignment(2, 20, 7)
    alone_NK = sinkhorn(a)
    padded = replace(
        a,
        bottleneck_NC=torch.cat([a.prototypes_KC[:5], a.bottleneck_NC, a.prototypes_KC[:3]]),
        weight_N=torch.cat([torch.zeros(5), torch.ones(20), torch.zeros(3)]),
    )
    torch.testing.assert_close(sinkhorn(padded, slice(5, 25)), alone_NK, rtol=0, atol=1e-6)
    torch.testing.assert_close(sinkhorn(padded).sum(1), torch.ones(28), rtol=0, atol=1e-6)


def test_where_no_row_counts_nothing_is_balanced() -> None:
    a = assignment(3, weight_N=torch.zeros(23))
    torch.testing.assert_close(
        sinkhorn(a), torch.softmax(a.bottleneck_NC @ a.prototypes_KC.T / a.temperature, -1)
    )
    nobody = replace(a, bottleneck_NC=a.bottleneck_NC[:0], weight_N=None)
    assert sinkhorn(nobody).shape == (0, 7)


def test_a_vector_that_is_not_finite_is_not_hidden() -> None:
    a = assignment(4)
    a.bottleneck_NC[17, 0] = torch.nan
    assert sinkhorn(a, slice(0, 5)).isnan().all()


def test_autocast_and_gradient_do_not_reach_it() -> None:
    a = assignment(5)
    with torch.autocast("cpu", torch.bfloat16):
        got_NK = sinkhorn(replace(a, bottleneck_NC=a.bottleneck_NC.clone().requires_grad_()))
    assert torch.equal(got_NK, sinkhorn(a))
    assert not got_NK.requires_grad


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation gives."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("rows", [200, 3000])
def test_no_tensor_is_larger_than_a_block_of_scores(rows: int) -> None:
    a = assignment(6, rows, 50, 4, block=64, weight_N=torch.ones(rows))
    with Largest() as largest:
        sinkhorn(a, slice(100, 120))
    assert largest.entries == max(64 * 50, rows)


def test_wrong_use_is_a_fault() -> None:
    a = assignment(7)
    for changes, message in (
        ({"iterations": 0}, "0 iterations over blocks of 5 rows"),
        ({"block": 0}, "3 iterations over blocks of 0 rows"),
        ({"temperature": 0.0}, r"a teacher temperature of 0\.0"),
    ):
        with pytest.raises(AssertionError, match=message):
            sinkhorn(replace(a, **changes))
    with pytest.raises(AssertionError, match=r"the wanted rows slice\(0, 9, 2\) are not one stretch"):
        sinkhorn(a, slice(0, 9, 2))
