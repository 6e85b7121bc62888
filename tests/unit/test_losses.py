"""Each loss against its naive float64 loop, in value and gradient, and its shares against the whole.

The contrastive loss and Sinkhorn have files of their own. Shapes: as in the losses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.counting import Count, queued
from trainer.losses.distillation import Distilled, centred_probabilities, distillation
from trainer.losses.koleo import Spread, koleo
from trainer.losses.masked_lm import Scored, masked_nucleotides
from trainer.losses.reduction import as_share
from trainer.losses.sigreg import KNOTS, LAST_KNOT, Sketch, distance, sigreg, slices
from trainer.losses.vicreg import Expanded, vicreg

ZERO = torch.zeros((), dtype=torch.float64)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(seed: int, rows: int = 5, letters: int = 11, *, weighted: bool = True) -> Scored:
    g = generator(seed)
    target_BL = torch.rand(rows, letters, generator=g) < 0.4
    weight_BL = torch.rand(rows, letters, generator=g)
    total = float((weight_BL if weighted else target_BL.float())[target_BL].sum())
    return Scored(
        3 * torch.randn(rows, letters, 4, generator=g),
        torch.randint(0, 4, (rows, letters), generator=g, dtype=torch.uint8),
        target_BL,
        weight_BL if weighted else None,
        total,
    )


def naive_masked(s: Scored) -> Tensor:
    total = ZERO
    for b, place in s.target_BL.nonzero().tolist():
        weight = 1.0 if s.weight_BL is None else float(s.weight_BL[b, place])
        total = (
            total
            - weight * torch.softmax(s.logits_BLV[b, place].double(), 0)[int(s.labels_BL[b, place])].log()
        )
    return total / (s.total or 1)


def distilled(seed: int, places: int = 5, readings: int = 3, *, weighted: bool = True) -> Distilled:
    g = generator(seed)
    weight_N = (torch.rand(places, generator=g) < 0.7).float() if weighted else torch.ones(places)
    return Distilled(
        2 * torch.rand(readings, places, 7, generator=g) - 1,
        torch.softmax(5 * torch.randn(places, 7, generator=g), -1),
        weight_N if weighted else None,
        0.1,
        float(weight_N.sum()) * readings,
    )


def naive_distillation(d: Distilled) -> Tensor:
    total = ZERO
    for r in range(len(d.student_SNK)):
        for n in range(len(d.teacher_NK)):
            log_student_K = torch.softmax(d.student_SNK[r, n].double() / d.temperature, 0).log()
            for k in range(len(log_student_K)):
                total = (
                    total
                    - (1 if d.weight_N is None else d.weight_N[n]) * d.teacher_NK[n, k] * log_student_K[k]
                )
    return total / (d.total or 1)


def spread(seed: int, rows: int = 9, features: int = 5) -> Spread:
    all_GD = 4 * torch.randn(rows, features, generator=generator(seed))
    return Spread(all_GD.clone(), all_GD, 0, 1, block=4)


def naive_koleo(s: Spread) -> Tensor:
    unit_GD = [row.double() / row.double().norm() for row in s.rows_BD]
    total = ZERO
    for g, row in enumerate(unit_GD):
        distances = [(row - other).norm() for h, other in enumerate(unit_GD) if h != g]
        total = total - (min(distances) + torch.finfo(s.all_GD.dtype).eps).log() / len(unit_GD)
    return total


def expanded(seed: int, rows: int = 9, features: int = 5) -> Expanded:
    g = generator(seed)  # some features vary less than 1, some more
    all_GE = torch.randn(rows, features, generator=g) * torch.linspace(0.2, 2, features) + 3
    return Expanded(all_GE.clone(), all_GE, torch.randn(rows, features, generator=g), 0, 1)


def naive_vicreg(x: Expanded) -> Tensor:
    z, t = x.rows_BE.double(), x.teacher_BE.double()
    rows, size = z.shape
    mean = sum(z[g] for g in range(rows)) / rows
    total = (
        x.invariance * sum((z[g, e] - t[g, e]) ** 2 for g in range(rows) for e in range(size)) / (rows * size)
    )
    for e in range(size):
        for f in range(size):
            c = sum((z[g, e] - mean[e]) * (z[g, f] - mean[f]) for g in range(rows)) / (rows - 1)
            if e != f:
                total = total + x.covariance * c**2 / size
            else:
                total = total + x.variance * torch.clamp(1 - (c + 1e-4).sqrt(), min=0) / size
    return total


def sketch(seed: int, rows: int = 9, features: int = 5, number: int = 3) -> Sketch:
    g = generator(seed)
    all_GE = torch.randn(rows, features, generator=g) * torch.linspace(0.2, 2, features) + 0.5
    slices_EK = slices(seed, features, number, device=torch.device("cpu"))
    return Sketch(all_GE.clone(), all_GE, slices_EK, 0, 1)


def naive_sigreg(s: Sketch) -> Tensor:
    x, total, step = s.rows_BE.double(), ZERO, LAST_KNOT / (KNOTS - 1)
    for k in range(s.slices_EK.shape[1]):
        for j in range(KNOTS):
            t = j * step
            normal = math.exp(-(t**2) / 2)
            along = [x[g] @ s.slices_EK[:, k].double() for g in range(len(x))]
            real = sum(torch.cos(t * u) for u in along) / len(x)
            imaginary = sum(torch.sin(t * u) for u in along) / len(x)
            weight = 2 * normal * (step if 0 < j < KNOTS - 1 else step / 2)
            total = total + weight * ((real - normal) ** 2 + imaginary**2)
    return len(x) * total / s.slices_EK.shape[1]


def part_of(field: str, *, dim: int = 0, others: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Cuts rows out of ``field`` and ``others``; where there are gathered rows, says where the part stands in
    them."""

    def cut(inputs: Any, begin: int, end: int, parts: int) -> Any:
        tensors = {name: value for name in others if (value := getattr(inputs, name)) is not None}
        changes: dict[str, Any] = {name: value[begin:end] for name, value in tensors.items()}
        changes[field] = getattr(inputs, field).narrow(dim, begin, end - begin)
        return replace(
            inputs, **changes, **({"first_row": begin, "ranks": parts} if hasattr(inputs, "ranks") else {})
        )

    return cut


@dataclass(frozen=True)
class Case:
    loss: Callable[[Any], Tensor]
    naive: Callable[[Any], Tensor]
    make: Callable[..., Any]  # of a seed and a number of rows
    leaf: str
    cut: Callable[..., Any]
    dim: int = 0  # of the rows in the leaf


def masked_as_on_a_gpu(s: Scored) -> Tensor:
    """The loss of all letters, which reads no number of them."""
    with queued(), Count() as count:
        value = masked_nucleotides(s)
    assert not count.reads, count.reads
    return value


CASES = {
    "masked": Case(
        masked_nucleotides,
        naive_masked,
        scored,
        "logits_BLV",
        part_of("logits_BLV", others=("labels_BL", "target_BL", "weight_BL")),
    ),
    "masked, on a GPU": Case(
        masked_as_on_a_gpu,
        naive_masked,
        scored,
        "logits_BLV",
        part_of("logits_BLV", others=("labels_BL", "target_BL", "weight_BL")),
    ),
    "distillation": Case(
        distillation,
        naive_distillation,
        distilled,
        "student_SNK",
        part_of("student_SNK", dim=1, others=("teacher_NK", "weight_N")),
        dim=1,
    ),
    "koleo": Case(koleo, naive_koleo, spread, "rows_BD", part_of("rows_BD")),
    "vicreg": Case(vicreg, naive_vicreg, expanded, "rows_BE", part_of("rows_BE", others=("teacher_BE",))),
    "sigreg": Case(sigreg, naive_sigreg, sketch, "rows_BE", part_of("rows_BE")),
}


def differentiate(loss: Callable[[Any], Tensor], inputs: Any, leaf: str) -> tuple[Tensor, Tensor]:
    """Value, and gradient to the field ``leaf``."""
    variable = getattr(inputs, leaf).detach().clone().requires_grad_()
    value = loss(replace(inputs, **{leaf: variable}))
    return value.detach(), torch.autograd.grad(value, variable)[0]


def assert_equals_naive(case: Case, inputs: Any) -> None:
    value, gradient = differentiate(case.loss, inputs, case.leaf)
    exact = replace(inputs, **{case.leaf: getattr(inputs, case.leaf).double()})
    expected, reference = differentiate(case.naive, exact, case.leaf)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-6)
    spacing = torch.finfo(gradient.dtype).eps
    scale = reference.abs().max().item()
    torch.testing.assert_close(
        gradient.double(), reference.double(), rtol=2 * max(spacing, 1e-5), atol=1e-5 * scale
    )


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=25, deadline=None)
@given(seed=seeds, rows=st.integers(2, 9), dtype=st.sampled_from(DTYPES))
def test_loss_equals_its_naive_loop_in_value_and_gradient(
    name: str, seed: int, rows: int, dtype: torch.dtype
) -> None:
    case = CASES[name]
    inputs = case.make(seed, rows)
    both = {"koleo": ("rows_BD", "all_GD"), "vicreg": ("rows_BE", "all_GE"), "sigreg": ("rows_BE", "all_GE")}
    fields = both.get(name, (case.leaf,))
    assert_equals_naive(
        case, replace(inputs, **{field: getattr(inputs, field).to(dtype) for field in fields})
    )


@pytest.mark.parametrize(
    "case",
    [
        replace(CASES["masked"], make=lambda seed: scored(seed, weighted=False)),
        replace(CASES["distillation"], make=lambda seed: distilled(seed, weighted=False)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_no_weights_are_weights_of_one(case: Case, seed: int) -> None:
    assert_equals_naive(case, case.make(seed))


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=25, deadline=None)
@given(seed=seeds, cuts=st.lists(st.integers(0, 11), min_size=1, max_size=3))
def test_shares_sum_to_the_whole_and_their_gradients_are_its_gradient(
    name: str, seed: int, cuts: list[int]
) -> None:
    """As ranks and micro-batches would compute them; also where one of them has no row at all."""
    case, bounds = CASES[name], [0, *sorted(cuts), 11]
    inputs = case.make(seed, 11)
    value, gradient = differentiate(case.loss, inputs, case.leaf)
    parts = [
        differentiate(case.loss, case.cut(inputs, begin, end, len(bounds) - 1), case.leaf)
        for begin, end in pairwise(bounds)
    ]
    assert sum(part.item() for part, _ in parts) == pytest.approx(value.item(), rel=1e-5, abs=1e-7)
    together = torch.cat([gradient for _, gradient in parts], case.dim)
    torch.testing.assert_close(together, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("name", sorted(CASES))
def test_autocast_changes_no_bit(name: str) -> None:
    case = CASES[name]
    inputs = case.make(0, 11)
    value, gradient = differentiate(case.loss, inputs, case.leaf)

    def under_autocast(inputs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return case.loss(inputs)

    low_value, low_gradient = differentiate(under_autocast, inputs, case.leaf)
    assert torch.equal(low_value, value)
    assert torch.equal(low_gradient, gradient)


def test_a_share_is_exact_and_keeps_the_whole_gradient() -> None:
    x = torch.tensor(3e7, requires_grad=True)
    share = as_share(2 * x, 1000)
    assert share.item() == torch.tensor(6e7 / 1000).item()
    assert torch.autograd.grad(share, x)[0].item() == 2


@pytest.mark.parametrize("loss", [masked_nucleotides, masked_as_on_a_gpu])
def test_masked_loss_touches_exactly_the_targets_whatever_stands_elsewhere(
    loss: Callable[[Scored], Tensor],
) -> None:
    s = scored(0)
    s = replace(
        s,
        logits_BLV=s.logits_BLV.masked_fill(~s.target_BL[..., None], math.nan),
        labels_BL=s.labels_BL.masked_fill(~s.target_BL, 255),
    )
    value, gradient = differentiate(loss, s, "logits_BLV")
    assert math.isfinite(value)
    assert torch.equal(gradient.abs().sum(-1) > 0, s.target_BL)


def test_a_repeat_of_weight_zero_is_as_if_not_scored() -> None:
    s = scored(1, weighted=False)
    repeat_BL = torch.rand(s.target_BL.shape, generator=generator(2)) < 0.5
    without = replace(s, target_BL=s.target_BL & ~repeat_BL)
    got = differentiate(masked_nucleotides, replace(s, weight_BL=(~repeat_BL).float()), "logits_BLV")
    torch.testing.assert_close(got, differentiate(masked_nucleotides, without, "logits_BLV"))


def test_nothing_that_counts_gives_zero_and_no_gradient() -> None:
    s, d = scored(0), distilled(0)
    nothing = torch.zeros_like(s.target_BL)
    empty_mask = replace(s, target_BL=nothing, total=0.0)
    weightless = replace(s, weight_BL=nothing.float(), total=0.0)
    no_place = replace(d, weight_N=torch.zeros(5), total=0.0)
    for loss, inputs, leaf in (
        (masked_nucleotides, empty_mask, "logits_BLV"),
        (masked_as_on_a_gpu, empty_mask, "logits_BLV"),
        (masked_nucleotides, weightless, "logits_BLV"),
        (masked_as_on_a_gpu, weightless, "logits_BLV"),
        (distillation, no_place, "student_SNK"),
    ):
        value, gradient = differentiate(loss, inputs, leaf)
        assert value == 0
        assert gradient.count_nonzero() == 0


def test_a_total_of_zero_over_scored_letters_is_a_fault() -> None:
    with pytest.raises(AssertionError, match=r"a loss of \d+\.\d+ is to be divided by a total of 0\.0"):
        masked_nucleotides(replace(scored(0, weighted=False), total=0.0))


def test_places_that_do_not_count_get_no_gradient() -> None:
    d = distilled(1)
    assert d.weight_N is not None and 0 < d.weight_N.sum() < len(d.weight_N)
    _, gradient_SNK = differentiate(distillation, d, "student_SNK")
    assert torch.equal(gradient_SNK.abs().sum((0, 2)) > 0, d.weight_N > 0)


def test_gradient_in_what_must_not_have_any_is_a_fault() -> None:
    d, s, x = distilled(0), spread(0), expanded(0)
    with pytest.raises(AssertionError, match="the teacher's probabilities carry no gradient"):
        distillation(replace(d, teacher_NK=d.teacher_NK.clone().requires_grad_()))
    with pytest.raises(AssertionError, match="gathered rows carry no gradient"):
        koleo(replace(s, all_GD=s.all_GD.clone().requires_grad_()))
    with pytest.raises(AssertionError, match="the teacher's rows carry no gradient"):
        vicreg(replace(x, teacher_BE=x.teacher_BE.clone().requires_grad_()))


def test_rows_that_do_not_fit_the_gathered_ones_are_a_fault() -> None:
    with pytest.raises(AssertionError, match="rows 3 to 12 of 9 gathered ones"):
        koleo(replace(spread(0), first_row=3))
    with pytest.raises(AssertionError, match=r"own rows of .*\[4\].*, gathered of .*\[5\]"):
        koleo(replace(spread(0), rows_BD=torch.ones(9, 4)))
    with pytest.raises(AssertionError, match=r"rows of \(9, 5\) and of the teacher \(8, 5\)"):
        vicreg(replace(expanded(0), teacher_BE=torch.ones(8, 5)))
    with pytest.raises(AssertionError, match="rows 3 to 12 of 9 gathered ones"):
        sigreg(replace(sketch(0), first_row=3))


def test_centring_and_sharpening() -> None:
    cosines = torch.tensor([[0.5, 0.1, 0.0]])
    sharp = centred_probabilities(cosines, None, 0.04)
    assert sharp[0, 0] == pytest.approx(math.exp(12.5) / (math.exp(12.5) + math.exp(2.5) + 1), rel=1e-5)
    centred = centred_probabilities(cosines.bfloat16(), cosines[0].bfloat16(), 0.04)
    torch.testing.assert_close(centred, torch.full((1, 3), 1 / 3))


def test_koleo_moves_a_row_that_is_only_the_neighbour_of_another_ranks_row() -> None:
    """Own row 0 lies nearest to row 1 and row 2, of another rank, nearest to row 0: both pairs push row 0."""
    angle_G = torch.tensor([0.0, 0.1, -0.3, 2.0])
    all_GD = torch.stack([angle_G.cos(), angle_G.sin()], 1)
    s = Spread(all_GD[:1], all_GD, first_row=0, ranks=2)
    value, gradient_BD = differentiate(koleo, s, "rows_BD")
    chord_G = 2 * torch.sin(torch.tensor([0.1, 0.1, 0.3, 1.9]) / 2)
    assert value.item() == pytest.approx(-chord_G.log().mean().item() / 2, rel=1e-5)
    # d(-log chord)/d angle = -cot(difference / 2) / 2, of the two pairs with row 1 and of the one with row 2
    slope = (2 / math.tan(0.05) - 1 / math.tan(0.15)) / 2 / 4
    torch.testing.assert_close(gradient_BD, torch.tensor([[0.0, slope]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("equal", [2, 7])
def test_koleo_of_equal_rows_and_of_zeros_is_finite(dtype: torch.dtype, equal: int) -> None:
    all_GD = torch.randn(7, 5, generator=generator(0))
    all_GD[:equal] = all_GD[0]
    all_GD[-1] *= 0 if equal < 7 else 1
    s = Spread(all_GD.to(dtype), all_GD.to(dtype), 0, 1)
    value, gradient_BD = differentiate(koleo, s, "rows_BD")
    assert value.isfinite()
    assert gradient_BD.isfinite().all()
    assert gradient_BD[:equal].abs().max() < 10  # other rows may have one of the equal ones as neighbour
    if equal == 7:
        assert value.item() == pytest.approx(-math.log(torch.finfo(dtype).eps), rel=1e-5)
        assert gradient_BD.count_nonzero() == 0
    else:
        assert gradient_BD[-1].count_nonzero() == 0


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_koleos_epsilon_is_of_the_coarser_dtype(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    own_BD, all_GD = (torch.ones(3, 4, dtype=dtype) for dtype in dtypes)
    assert koleo(Spread(own_BD, all_GD, 0, 1)).item() == pytest.approx(-math.log(2**-7), rel=1e-5)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_koleo_finds_the_same_neighbours_in_blocks_of_any_size(block: int) -> None:
    s = spread(3, 37, 6)
    got = differentiate(koleo, replace(s, block=block), "rows_BD")
    torch.testing.assert_close(got, differentiate(koleo, s, "rows_BD"), rtol=1e-6, atol=1e-7)


def test_vicreg_of_collapsed_rows_is_finite_and_is_the_variance_hinge_alone() -> None:
    all_GE = torch.full((6, 4), 0.7)
    value, gradient_BE = differentiate(vicreg, Expanded(all_GE, all_GE, all_GE, 0, 1), "rows_BE")
    assert value.item() == pytest.approx(25 * (1 - 0.01), rel=1e-5)
    assert gradient_BE.isfinite().all()


def test_vicreg_coefficients_weigh_its_three_terms() -> None:
    x, off = expanded(5), {"invariance": 0.0, "variance": 0.0, "covariance": 0.0}
    terms = [vicreg(replace(x, **{**off, name: 1.0})).item() for name in off]
    assert min(terms) > 0
    assert vicreg(x).item() == pytest.approx(25 * terms[0] + 25 * terms[1] + terms[2], rel=1e-5)
    assert terms[0] == pytest.approx((x.rows_BE - x.teacher_BE).square().mean().item(), rel=1e-5)


def test_a_global_batch_of_one_row_is_refused() -> None:
    advice = r".* has 1 row\(s\); use a global batch of at least 2, or weight 0 for this loss"
    with pytest.raises(ValueError, match="KoLeo needs a neighbour" + advice):
        koleo(spread(0, 1))
    with pytest.raises(ValueError, match="VICReg needs a variance" + advice):
        vicreg(expanded(0, 1))
    with pytest.raises(ValueError, match="SIGReg needs a distribution" + advice):
        sigreg(sketch(0, 1))


def test_normal_rows_are_the_least_of_sigreg_whatever_the_batch() -> None:
    """Rows of one point, of too small and of too large a spread, and with a mean, all cost more."""
    found = []
    for rows in (64, 1024):
        normal_GE = torch.randn(rows, 8, generator=generator(0))
        slices_EK = slices(0, 8, 64, device=torch.device("cpu"))

        def value(rows_GE: Tensor, slices_EK: Tensor = slices_EK) -> float:
            return sigreg(Sketch(rows_GE, rows_GE, slices_EK, 0, 1)).item()

        found.append(value(normal_GE))
        others = [value(change) for change in (normal_GE * 0, normal_GE / 3, normal_GE * 3, normal_GE + 1)]
        assert found[-1] < 2 < 5 < min(others)
    assert found[0] == pytest.approx(found[1], rel=0.5)


@pytest.mark.parametrize("block", [1, 4, 512])
def test_sigreg_reads_the_other_ranks_rows_in_blocks_of_any_size(block: int) -> None:
    s = sketch(3, 11)
    part = replace(s, rows_BE=s.rows_BE[4:7], first_row=4, ranks=3)
    got = differentiate(sigreg, replace(part, block=block), "rows_BE")
    torch.testing.assert_close(got, differentiate(sigreg, part, "rows_BE"), rtol=1e-6, atol=1e-7)


def test_slices_are_unit_vectors_of_their_key_alone() -> None:
    first, again, other = (slices(key, 6, 50, device=torch.device("cpu")) for key in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(50))
    assert (first @ first.T / 50 - torch.eye(6) / 6).abs().max() < 0.15, "all directions alike"


def test_the_distance_to_the_other_view_is_a_share_of_the_mean() -> None:
    x, y = torch.randn(6, 4, generator=generator(0)), torch.randn(6, 4, generator=generator(1))
    parts = [distance(x[i : i + 2], y[i : i + 2], rows=6).item() for i in (0, 2, 4)]
    assert sum(parts) == pytest.approx((x - y).square().mean().item(), rel=1e-6)
    with pytest.raises(AssertionError, match=r"rows of \(6, 4\) and \(2, 4\)"):
        distance(x, y[:2], rows=6)
