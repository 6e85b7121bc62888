"""Each measure against its naive reference, at its ends, and on rows that could make it NaN."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.distill import representation_metrics
from trainer.losses import prototype_metrics
from trainer.losses.dino import Dino, DinoConfig
from trainer.losses.patch import Patch, PatchConfig

SHAPES = [(12, 5), (5, 12), (40, 8)]


def units(rows: int, width: int, *, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=g), dim=1)


def distributions(*shape: int, seed: int = 0, sharp: float = 3.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(*shape, generator=g) * sharp, -1)


def naive_entropy(probability: list[float]) -> float:
    return -sum(p * math.log(p) for p in probability if p > 0)


def naive_stds(x: list[list[float]]) -> list[float]:
    found = []
    for column in zip(*x, strict=True):
        mean = sum(column) / len(column)
        found.append(
            math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1)) * math.sqrt(len(x[0]))
        )
    return found


def squared_distance(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_spread_of_each_dimension_equals_the_naive_loop(rows: int, width: int) -> None:
    x = units(rows, width)
    x[:, 1] *= 1e-4
    expected = naive_stds(x.tolist())
    assert representation_metrics.dimension_std(x).tolist() == pytest.approx(expected, rel=1e-6)
    assert representation_metrics.embedding_std(x) == pytest.approx(sum(expected) / width, rel=1e-6)
    assert (
        representation_metrics.dead_dimensions(x)
        == sum(std < 0.01 * sum(expected) / width for std in expected) / width
        == 1 / width
    )


def test_dead_is_measured_against_the_other_dimensions() -> None:
    """Windows close together in all dimensions alike have no dead one; without any spread all are dead."""
    close = torch.nn.functional.normalize(torch.ones(20, 8) + 1e-4 * torch.randn(20, 8), dim=1)
    assert representation_metrics.embedding_std(close) < 1e-3
    assert representation_metrics.dead_dimensions(close) == 0
    assert representation_metrics.dead_dimensions(close[:1].expand(20, 8)) == 1


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_effective_rank_equals_that_of_the_gram_matrix(rows: int, width: int) -> None:
    x = units(rows, width).double()
    for matrix, found in (
        (x, representation_metrics.effective_rank(x)),
        (x - x.mean(0), representation_metrics.centred_rank(x)),
    ):
        singular = torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0).sqrt().tolist()
        share = [value / sum(singular) for value in singular]
        assert found == pytest.approx(math.exp(naive_entropy(share)), rel=1e-4)


def test_rank_counts_dimensions() -> None:
    x = torch.eye(16)[torch.arange(63) % 3]
    assert representation_metrics.effective_rank(x) == pytest.approx(3, rel=1e-6)
    assert representation_metrics.centred_rank(x) == pytest.approx(2, rel=1e-6)  # three points lie in a plane
    near = torch.nn.functional.normalize(torch.ones(64, 16) + 0.01 * torch.randn(64, 16), dim=1)
    assert representation_metrics.effective_rank(near) < 1.3, "the common direction takes it all"
    assert representation_metrics.centred_rank(near) > 10


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_alignment_and_uniformity_equal_the_naive_loops(rows: int, width: int) -> None:
    first, second = units(rows, width), units(rows, width, seed=1)
    a, b = first.tolist(), second.tolist()
    expected = sum(squared_distance(p, q) for p, q in zip(a, b, strict=True)) / rows
    assert representation_metrics.alignment(first, second) == pytest.approx(expected, rel=1e-5)
    pairs = [math.exp(-2 * squared_distance(a[i], a[j])) for i in range(rows) for j in range(i)]
    assert representation_metrics.uniformity(first) == pytest.approx(
        math.log(sum(pairs) / len(pairs)), rel=1e-5
    )


def test_entropy_and_divergence_equal_the_naive_loops() -> None:
    p, q = distributions(4, 3, 7), distributions(4, 3, 7, seed=1)
    found_entropy, found_kl = prototype_metrics.entropy(p), prototype_metrics.divergence(p, q.log())
    for b in range(4):
        for place in range(3):
            ps, qs = p[b, place].tolist(), q[b, place].tolist()
            assert found_entropy[b, place].item() == pytest.approx(naive_entropy(ps), rel=1e-5)
            expected = sum(x * math.log(x / y) for x, y in zip(ps, qs, strict=True))
            assert found_kl[b, place].item() == pytest.approx(expected, rel=1e-4)


def test_divergence_at_its_ends() -> None:
    one_hot = torch.eye(4)
    assert prototype_metrics.divergence(one_hot, one_hot.log()).tolist() == [0] * 4  # 0 · log(0 / 0) is 0
    assert prototype_metrics.divergence(one_hot, torch.full((4, 4), 0.25).log()).tolist() == pytest.approx(
        [math.log(4)] * 4
    )
    assert (
        prototype_metrics.divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]).log()).item()
        == math.inf
    )


@given(seed=st.integers(0, 999), prototypes=st.integers(1, 9), sharp=st.floats(0, 60))
@settings(max_examples=60, deadline=None)
def test_divergence_is_never_negative_and_zero_of_itself(seed: int, prototypes: int, sharp: float) -> None:
    p, q = (distributions(5, prototypes, seed=seed + i, sharp=sharp) for i in range(2))
    assert (prototype_metrics.divergence(p, q.clamp(min=1e-30).log()) >= 0).all()
    assert prototype_metrics.divergence(p, p.log()).tolist() == pytest.approx([0] * 5, abs=1e-5)


def test_centre_drift_equals_its_formula_and_reads_as_documented() -> None:
    now, before = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 50)
    moved = (now - before).tolist()
    spread = math.sqrt(sum(v**2 for v in before.tolist()) / 50)
    mean = sum(moved) / 50
    expected = math.sqrt(sum((v - mean) ** 2 for v in moved) / 50) / spread
    assert representation_metrics.centre_drift(now, before) == pytest.approx(expected, rel=1e-5)
    assert representation_metrics.centre_drift(before, before) == 0
    assert representation_metrics.centre_drift(before + 7, before) == pytest.approx(
        0, abs=1e-6
    )  # softmax does not see it
    assert representation_metrics.centre_drift(-before, before) == pytest.approx(2)
    assert representation_metrics.centre_drift(3.5 * before, before) == pytest.approx(2.5)
    assert representation_metrics.centre_drift(before, torch.zeros(50)) == 0  # nothing to measure against
    both = torch.stack([before, -before])
    assert representation_metrics.centre_drift(both + torch.tensor([[1.0], [5.0]]), both) == pytest.approx(
        0, abs=1e-6
    )
    assert representation_metrics.centre_drift(2 * both, both) == pytest.approx(1)


def readings(
    unit_GE: Tensor | None = None, *, other_GE: Tensor | None = None, sums_PS: Tensor | None = None
) -> dict[str, float]:
    """Of embeddings, and of the prototypes as the loss ``distill`` names them."""
    found = representation_metrics.readings(unit_GE, other_GE=other_GE)
    if sums_PS is not None:
        found |= Dino(DinoConfig()).readings({"sums": sums_PS[None]})
    return found


def naive_sums(teacher: Tensor, student_log: Tensor) -> dict[str, float]:
    rows, positions, prototypes = teacher.shape
    t, s = teacher.tolist(), student_log.tolist()
    usage = chosen = entropies = kls = of_means = 0.0
    for p in range(positions):
        mean = [sum(t[b][p][k] for b in range(rows)) / rows for k in range(prototypes)]
        usage += math.exp(naive_entropy(mean)) / prototypes / positions
        of_means += naive_entropy(mean) / positions
        chosen += (
            len({max(range(prototypes), key=t[b][p].__getitem__) for b in range(rows)})
            / prototypes
            / positions
        )
        for b in range(rows):
            entropies += naive_entropy(t[b][p]) / rows / positions
            kls += (
                sum(x * (math.log(x) - y) for x, y in zip(t[b][p], s[b][p], strict=True)) / rows / positions
            )
    return {
        "health/prototype_usage": usage,
        "health/prototypes_chosen": chosen,
        "health/teacher_entropy": entropies,
        "health/kl": kls,
        "health/teacher_information": of_means - entropies,
        "health/learned": of_means - entropies - kls,
    }


@pytest.mark.parametrize(("rows", "positions", "prototypes"), [(6, 3, 5), (1, 1, 4), (9, 2, 1)])
def test_prototype_readings_equal_the_naive_loops_however_they_were_shared_out(
    rows: int, positions: int, prototypes: int
) -> None:
    teacher, student = (
        distributions(rows, positions, prototypes),
        distributions(rows, positions, prototypes, seed=1),
    )
    expected = naive_sums(teacher, student.log())
    if rows < prototype_metrics.FEWEST:
        expected = {name: expected[name] for name in ("health/teacher_entropy", "health/kl")}
    parts = [
        prototype_metrics.prototype_sums(t, s)
        for t, s in zip(teacher.split(2), student.log().split(2), strict=True)
    ]
    found = readings(sums_PS=torch.stack(parts).sum(0))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_information_is_the_divergence_of_a_student_that_knows_the_mean_alone() -> None:
    teacher = distributions(40, 2, 6)
    mean = teacher.mean(0).log().expand_as(teacher)
    found = readings(sums_PS=prototype_metrics.prototype_sums(teacher, mean))
    assert found["health/teacher_information"] == pytest.approx(found["health/kl"], rel=1e-4)
    assert found["health/learned"] == pytest.approx(0, abs=1e-5)
    one_each = torch.eye(6)[torch.arange(36) % 6][:, None]
    found = readings(sums_PS=prototype_metrics.prototype_sums(one_each, one_each.clamp(min=1e-9).log()))
    assert found["health/teacher_information"] == pytest.approx(math.log(6), rel=1e-5)
    assert found["health/learned"] == pytest.approx(math.log(6), rel=1e-5)


def test_usage_at_its_ends_and_by_position() -> None:
    def read(teacher: Tensor) -> tuple[float, float]:
        found = readings(sums_PS=prototype_metrics.prototype_sums(teacher, teacher.clamp(min=1e-9).log()))
        return found["health/prototype_usage"], found["health/prototypes_chosen"]

    eye = torch.eye(8)
    assert read(eye[:, None]) == pytest.approx((1, 1))
    assert read(eye[torch.full((6, 1), 3)]) == pytest.approx((1 / 8, 1 / 8))
    assert read(torch.full((6, 1, 8), 1 / 8))[0] == pytest.approx(1)
    # Each position has a prototype of its own, whatever the sample: as collapsed as one for all.
    assert read(eye[None, :4].expand(6, 4, 8)) == pytest.approx((1 / 8, 1 / 8))


POINTS: dict[str, Callable[[], Tensor]] = {
    "one row": lambda: units(1, 8),
    "two rows": lambda: units(2, 8),
    "constant rows": lambda: units(1, 8).expand(9, 8),
    "duplicates": lambda: units(4, 8).repeat(3, 1),
    "zero vectors": lambda: torch.zeros(9, 8),
    "some zero vectors": lambda: torch.cat([torch.zeros(3, 8), units(4, 8)]),
    "one dimension": lambda: torch.ones(7, 1),
    "bf16": lambda: units(9, 8).bfloat16(),
}


@pytest.mark.parametrize("name", sorted(POINTS))
def test_no_reading_is_nan_whatever_the_embeddings(name: str) -> None:
    x = POINTS[name]()
    found = readings(x, other_GE=x)
    assert all(math.isfinite(value) for value in found.values()), found
    assert found["health/alignment"] == 0
    assert ("health/embedding_std" in found) == (name not in ("one row", "two rows"))
    assert ("health/centred_rank" in found) == (name not in ("one row", "two rows", "one dimension"))
    if name in ("constant rows", "zero vectors", "one dimension"):
        assert found["health/embedding_std"] == pytest.approx(0, abs=1e-6)
        assert found["health/dead_dimensions"] == 1
        assert found["health/uniformity"] == pytest.approx(0, abs=1e-6)
        assert found["health/effective_rank"] == pytest.approx(0 if name == "zero vectors" else 1, abs=1e-6)
        assert found.get("health/centred_rank", 0) == 0


@pytest.mark.parametrize(
    "teacher", [torch.eye(4)[:1, None], torch.eye(4)[:1, None].expand(5, 1, 4), torch.full((3, 2, 4), 0.25)]
)
def test_no_reading_is_nan_whatever_the_prototypes(teacher: Tensor) -> None:
    student = torch.log_softmax(teacher * 1e4, -1)
    found = readings(sums_PS=prototype_metrics.prototype_sums(teacher, student))
    assert all(math.isfinite(value) for value in found.values()), found
    assert ("health/prototype_usage" in found) == ("health/prototypes_chosen" in found) == (len(teacher) >= 4)
    assert found.get("health/teacher_information", 0.0) == pytest.approx(0, abs=1e-6), "all rows say the same"


def test_what_is_not_finite_reads_as_nan_and_raises_nothing() -> None:
    """A non-finite step is dealt with elsewhere; looking at it must not end the run."""
    x = units(9, 8)
    x[3, 2] = math.nan
    found = readings(
        x,
        sums_PS=prototype_metrics.prototype_sums(torch.full((3, 1, 4), math.nan), torch.zeros(3, 1, 4)),
    )
    for name in ("embedding_std", "effective_rank", "centred_rank", "uniformity", "kl"):
        assert math.isnan(found[f"health/{name}"]), name


def test_readings_hold_what_their_tensors_allow() -> None:
    x, p = units(9, 8), distributions(9, 2, 5)
    embeddings = {
        f"health/{name}"
        for name in (
            "embedding_std",
            "dimension_std_min",
            "dead_dimensions",
            "effective_rank",
            "centred_rank",
            "uniformity",
        )
    }
    assert readings() == {}
    assert readings(x).keys() == embeddings
    assert readings(x, other_GE=x).keys() == embeddings | {"health/alignment"}
    names = (
        "teacher_entropy",
        "kl",
        "prototype_usage",
        "prototypes_chosen",
        "teacher_information",
        "learned",
    )
    judged = {f"health/{name}" for name in names}
    assert readings(sums_PS=prototype_metrics.prototype_sums(p, p.log())).keys() == judged


@pytest.mark.parametrize("rows", range(1, 7))
def test_what_says_how_samples_differ_is_left_out_of_too_few(rows: int) -> None:
    x, p = units(rows, 8), distributions(rows, 5, 7)
    found = readings(x, other_GE=units(rows, 8, seed=1), sums_PS=prototype_metrics.prototype_sums(p, p.log()))
    always = {f"health/{name}" for name in ("alignment", "teacher_entropy", "kl")}
    differ = {
        f"health/{name}"
        for name in (
            "embedding_std",
            "dimension_std_min",
            "dead_dimensions",
            "effective_rank",
            "uniformity",
            "prototype_usage",
            "prototypes_chosen",
            "teacher_information",
            "learned",
        )
    }
    expected = (
        always if rows < 4 else always | differ if rows == 4 else always | differ | {"health/centred_rank"}
    )
    assert found.keys() == expected


@given(seed=st.integers(0, 9999), rows=st.integers(1, 6), width=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_readings_are_what_their_functions_say(seed: int, rows: int, width: int) -> None:
    x = units(rows, width, seed=seed)
    found = readings(x)
    functions = {
        "embedding_std": representation_metrics.embedding_std,
        "dead_dimensions": representation_metrics.dead_dimensions,
        "effective_rank": representation_metrics.effective_rank,
        "centred_rank": representation_metrics.centred_rank,
        "uniformity": representation_metrics.uniformity,
        "dimension_std_min": lambda rows: float(representation_metrics.dimension_std(rows).min()),
    }
    assert found == {
        f"health/{name}": function(x) for name, function in functions.items() if f"health/{name}" in found
    }
    assert bool(found) == (rows >= prototype_metrics.FEWEST)


NOTHING_GIVEN = [
    (lambda: representation_metrics.embedding_std(torch.zeros(0, 4)), "health of no embeddings"),
    (lambda: representation_metrics.effective_rank(torch.zeros(0, 4)), "health of no embeddings"),
    (lambda: representation_metrics.uniformity(torch.zeros(0, 4)), "health of no embeddings"),
    (lambda: representation_metrics.alignment(torch.zeros(2, 4), torch.zeros(3, 4)), "or of unlike ones"),
    (
        lambda: prototype_metrics.prototype_sums(torch.ones(2, 1, 4), torch.ones(3, 1, 4)),
        r"rows of .*\[2, 1, 4\].*\[3, 1, 4",
    ),
]


def test_no_row_of_prototypes_reads_nothing() -> None:
    """As where no hidden letter has a partner in the teacher's view."""
    assert readings(sums_PS=torch.zeros(2, 11)) == {}
    assert Patch(PatchConfig()).readings({"sums": torch.zeros(3, 1, 11)}) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    NOTHING_GIVEN,
)
def test_a_caller_that_gives_no_rows_is_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        call()
