"""The guard names each kind of collapse, waits for it to last, and says nothing of health."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.distill import representation_metrics
from trainer.distill.collapse_guard import CollapseGuard, Limits, PrototypeWatch
from trainer.losses import prototype_metrics
from trainer.losses.dino import Dino, DinoConfig
from trainer.losses.patch import Patch, PatchConfig

K = 32
HEALTHY = {
    "health/embedding_std": 0.03,
    "health/dead_dimensions": 0.0,
    "health/effective_rank": 1.2,
    "health/centred_rank": 2.4,
    "health/alignment": 0.1,
    "health/uniformity": -0.004,
    "health/teacher_entropy": 0.9 * math.log(K),
    "health/kl": 0.05,
    "health/prototype_usage": 0.9,
    "health/prototypes_chosen": 0.4,
    "health/teacher_information": 0.3,
    "health/learned": 0.25,
    "health/centre_drift": 0.5,
    "health/patch_entropy": 0.9 * math.log(K),
    "health/patch_kl": 0.5,
    "health/patch_usage": 0.9,
    "health/patch_chosen": 0.4,
    "health/patch_information": 0.6,
    "health/patch_learned": 0.1,
}
COLLAPSED = {
    "point": (
        {"health/embedding_std": 1e-4},
        "the embeddings of all samples are the same point",
        "embedding_std 0.0001 is below 0.001",
    ),
    "rank": (
        {"health/centred_rank": 1.01},
        "the embeddings differ in few dimensions only",
        "centred_rank 1.01 is below 1.2",
    ),
    "dead": (
        {"health/dead_dimensions": 0.8},
        "most dimensions of the embeddings are the same for all samples",
        "dead_dimensions 0.8 is above 0.5",
    ),
    "drift": ({"health/centre_drift": 6.0}, "the teacher's centre runs away", "centre_drift 6 is above 3"),
    "uniform": (
        {
            "health/teacher_entropy": 0.99 * math.log(K),
            "health/teacher_information": 0.03,
            "health/learned": -0.004,
            "health/kl": 1e-3,
        },
        "the teacher is uniform over the prototypes for all samples, and the student too: nothing to learn",
        "teacher_entropy 3.431 is above 3.396, teacher_information 0.03 is below 0.1, "
        "learned -0.004 is below 0.01, kl 0.001 is below 0.1",
    ),
    "one-hot": (
        {"health/prototype_usage": 1.2 / K, "health/kl": 1e-3},
        "the teacher is one-hot on the same prototype for all samples, and the student agrees",
        "prototype_usage 0.0375 is below 0.0625, kl 0.001 is below 0.1",
    ),
    "choice": (
        {"health/prototypes_chosen": 1 / K, "health/kl": 1e-3},
        "the teacher prefers the same prototype for all samples, and the student agrees",
        "prototypes_chosen 0.03125 is below 0.0625, teacher_entropy 3.119 is below 3.396, "
        "kl 0.001 is below 0.1",
    ),
    "patch uniform": (
        {
            "health/patch_entropy": 0.99 * math.log(K),
            "health/patch_information": 0.03,
            "health/patch_learned": -0.17,
            "health/patch_kl": 0.2,
        },
        "the teacher is uniform over the prototypes for all letters, and the student too: nothing to learn",
        "patch_entropy 3.431 is above 3.396, patch_information 0.03 is below 0.1, "
        "patch_learned -0.17 is below 0.01, patch_kl 0.2 is below 0.3",
    ),
    "patch one-hot": (
        {"health/patch_usage": 1.2 / K, "health/patch_kl": 0.2},
        "the teacher is one-hot on the same prototype for all letters, and the student agrees",
        "patch_usage 0.0375 is below 0.0625, patch_kl 0.2 is below 0.3",
    ),
    "patch choice": (
        {"health/patch_chosen": 1 / K, "health/patch_kl": 0.2},
        "the teacher prefers the same prototype for all letters, and the student agrees",
        "patch_chosen 0.03125 is below 0.0625, patch_entropy 3.119 is below 3.396, patch_kl 0.2 is below 0.3",
    ),
}


def guard(
    *, patience: int = 3, prototypes: int = K, max_kl: float | None = None, **limits: float
) -> CollapseGuard:
    """Of both losses over prototypes, with their own limits on KL unless told."""
    watches = [
        PrototypeWatch.of(Dino(DinoConfig(prototypes=K))),
        PrototypeWatch.of(Patch(PatchConfig(prototypes=K))),
    ]
    watches[0] = replace(watches[0], prototypes=prototypes)
    if max_kl is not None:
        watches = [replace(watch, max_kl=max_kl) for watch in watches]
    return CollapseGuard(watches, patience=patience, limits=Limits(**limits))


def said(watch: CollapseGuard, readings: dict[str, float], times: int) -> list[str | None]:
    return [watch.check(readings, step=10 * i) for i in range(1, times + 1)]


def test_every_kind_is_tested() -> None:
    assert COLLAPSED.keys() == guard().state().keys()


@pytest.mark.parametrize("kind", sorted(COLLAPSED))
def test_a_collapse_that_lasts_is_named_with_value_and_limit(kind: str) -> None:
    changes, what, evidence = COLLAPSED[kind]
    first, second, third = said(guard(), HEALTHY | changes, 3)
    assert first is None
    assert second is None
    assert third == f"step 30: {what} ({evidence}, 3 readings in a row)"


def test_health_is_not_spoken_of() -> None:
    watch = guard(patience=1)
    assert said(watch, HEALTHY, 5) == [None] * 5
    assert set(watch.state().values()) == {0}


@pytest.mark.parametrize("kind", ["uniform", "one-hot", "choice"])
def test_a_student_that_still_has_to_follow_is_no_collapse(kind: str) -> None:
    """At the start the teacher prefers one prototype for all until the centre has moved: KL is what tells."""
    changes = COLLAPSED[kind][0] | {"health/kl": 0.4}
    assert said(guard(patience=1), HEALTHY | changes, 5) == [None] * 5


def test_one_healthy_reading_begins_the_count_anew() -> None:
    watch, bad = guard(), HEALTHY | COLLAPSED["point"][0]
    assert said(watch, bad, 2) == [None, None]
    assert watch.check(HEALTHY, step=30) is None
    assert said(watch, bad, 2) == [None, None]
    assert watch.check(bad, step=60) is not None


def test_it_is_said_again_every_so_many_readings_while_it_lasts() -> None:
    sentences = said(guard(), HEALTHY | COLLAPSED["point"][0], 7)
    assert [i for i, sentence in enumerate(sentences, 1) if sentence] == [3, 6]
    assert sentences[5] is not None and "6 readings in a row" in sentences[5]


def test_of_two_kinds_the_one_that_has_lasted_longest_is_told() -> None:
    watch, rank, point = guard(patience=2), COLLAPSED["rank"][0], COLLAPSED["point"][0]
    said(watch, HEALTHY | rank, 2)
    first, second = said(watch, HEALTHY | rank | point, 2)
    assert first is None
    assert second is not None and "few dimensions" in second and "4 readings" in second


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_or_not_finite_is_not_judged_and_breaks_no_streak(value: float | None) -> None:
    watch, bad = guard(), HEALTHY | COLLAPSED["one-hot"][0]
    said(watch, bad, 2)
    gap = {name: v for name, v in bad.items() if name != "health/kl"} | (
        {} if value is None else {"health/kl": value}
    )
    assert watch.check(gap, step=25) is None
    assert watch.state()["one-hot"] == 2
    assert watch.check({}, step=26) is None
    sentence = watch.check(bad, step=30)
    assert sentence is not None and "3 readings in a row" in sentence


def test_without_a_distillation_loss_prototypes_are_not_judged() -> None:
    watch = CollapseGuard(patience=1)
    assert watch.state().keys() == {"point", "rank", "dead", "drift"}
    assert watch.check(HEALTHY | COLLAPSED["one-hot"][0], step=1) is None


@pytest.mark.parametrize("prototypes", [1, 2])
def test_how_many_prototypes_are_used_is_not_judged_where_there_are_two_at_most(prototypes: int) -> None:
    """Below 2 of 2 is every teacher that is not exactly uniform, and one of one is all that there is."""
    watch = guard(patience=1, prototypes=prototypes)
    assert watch.state().keys() == COLLAPSED.keys() - {"one-hot", "choice"}
    few = {"health/prototype_usage": 0.9, "health/prototypes_chosen": 0.5, "health/kl": 1e-3}
    assert (
        said(watch, HEALTHY | few | {"health/teacher_entropy": 0.5 * math.log(prototypes)}, 3) == [None] * 3
    )
    assert {"one-hot", "choice"} <= guard(prototypes=3).state().keys()
    assert {"one-hot", "choice"} <= guard(prototypes=2, min_prototypes=1.5).state().keys()


def test_a_uniform_teacher_of_two_prototypes_is_told() -> None:
    uniform = COLLAPSED["uniform"][0] | {"health/teacher_entropy": math.log(2)}
    sentence = guard(patience=1, prototypes=2).check(HEALTHY | uniform, step=1)
    assert sentence is not None and COLLAPSED["uniform"][1] in sentence


@pytest.mark.parametrize(
    ("prototypes", "entropy", "information", "kl", "named"),
    [
        (512, 6.21, 0.025, 0.03, True),  # the demo of the fifth version from step 50 on: 0.995 of log 512
        (512, 6.19, 0.028, 0.029, True),
        (4096, 8.28, 0.03, 0.03, True),
        (512, 6.19, 0.3, 0.05, False),  # so sure of so little that all together are even, and learned
        (512, 5.28, 0.05, 0.04, False),  # not even: the other kinds are for that
        (512, 6.19, 0.03, 0.4, False),  # the student is not there yet
        (512, 6.20, 0.035, 0.014, False),  # young: little is told as yet, but most of it is learned
    ],
)
def test_a_teacher_that_is_uniform_in_effect_is_named_at_any_number_of_prototypes(
    prototypes: int, entropy: float, information: float, kl: float, named: bool
) -> None:
    seen = {
        "health/teacher_entropy": entropy,
        "health/teacher_information": information,
        "health/learned": information - kl,
        "health/kl": kl,
    }
    sentence = guard(patience=1, prototypes=prototypes).check(HEALTHY | seen, step=1)
    assert (sentence is not None) == named


# What the old demo reads on yeast, one rank: step, teacher_entropy, teacher_information,
# kl, prototype_usage, prototypes_chosen. K = 512.
OLD_DEMO = [
    (10, 4.948, 0.5201, 0.6088, 0.463, 0.041),
    (20, 5.827, 0.2578, 0.4317, 0.858, 0.065),
    (30, 6.074, 0.1164, 0.1503, 0.953, 0.072),
    (40, 6.12, 0.063, 0.0736, 0.946, 0.051),
    (50, 6.13, 0.0413, 0.0474, 0.936, 0.041),
    (60, 6.144, 0.0343, 0.0398, 0.942, 0.036),
    (70, 6.159, 0.0318, 0.0405, 0.954, 0.037),
    (80, 6.171, 0.0312, 0.0355, 0.965, 0.036),
    (90, 6.184, 0.0297, 0.0315, 0.976, 0.053),
    (100, 6.194, 0.0277, 0.0294, 0.983, 0.06),
    (110, 6.2, 0.026, 0.0285, 0.988, 0.06),
    (120, 6.205, 0.0256, 0.0267, 0.993, 0.067),
]


def test_the_old_demos_teacher_is_named_within_200_steps() -> None:
    watch = guard(patience=5, prototypes=512)
    names = ("teacher_entropy", "teacher_information", "kl", "prototype_usage", "prototypes_chosen")
    said_at = []
    for step, *values in OLD_DEMO:
        seen = {f"health/{name}": value for name, value in zip(names, values, strict=True)}
        seen["health/learned"] = seen["health/teacher_information"] - seen["health/kl"]
        if sentence := watch.check(HEALTHY | seen, step=step):
            assert COLLAPSED["uniform"][1] in sentence
            said_at.append(step)
    assert said_at == [80]


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("point", {"min_std": 0.0}),
        ("rank", {"min_rank": 0.0}),
        ("dead", {"max_dead": 1.0}),
        ("drift", {"max_drift": math.inf}),
        ("uniform", {"max_entropy": 2.0}),
        ("uniform", {"min_information": 0.0}),
        ("uniform", {"min_learned": -math.inf}),
        ("one-hot", {"min_prototypes": 0.0}),
        ("choice", {"min_prototypes": 0.0}),
        ("choice", {"max_kl": 0.0}),
    ],
)
def test_each_limit_can_be_switched_off(kind: str, limit: dict[str, float]) -> None:
    assert said(guard(patience=1, **limit), HEALTHY | COLLAPSED[kind][0], 3) == [None] * 3


@given(bad=st.lists(st.booleans(), max_size=25), cut=st.integers(0, 25), patience=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_a_resumed_guard_says_what_an_uninterrupted_one_says(
    bad: list[bool], cut: int, patience: int
) -> None:
    whole, resumed = guard(patience=patience), guard(patience=patience)
    expected, found = [], []
    for step, is_bad in enumerate(bad):
        if step == cut:
            state = json.loads(json.dumps(resumed.state()))
            resumed = guard(patience=patience)
            resumed.restore(state)
        readings = HEALTHY | (COLLAPSED["choice"][0] if is_bad else {})
        expected.append(whole.check(readings, step=step))
        found.append(resumed.check(readings, step=step))
    assert found == expected
    runs = "".join("x" if b else " " for b in bad).split(" ")
    assert sum(sentence is not None for sentence in expected) == sum(len(run) // patience for run in runs)


def test_a_state_of_other_kinds_is_taken_as_far_as_it_goes() -> None:
    """A run that is resumed by another version: what is new begins at 0, what is gone is forgotten."""
    watch = guard()
    watch.restore({"point": 2, "no longer there": 7})
    assert watch.state() == dict.fromkeys(COLLAPSED, 0) | {"point": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [({"patience": 0}, "a patience of 0 readings"), ({"prototypes": 0}, "0 prototypes")],
)
def test_impossible_settings_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        guard(**values)


def planted(kind: str) -> dict[str, float]:
    """Readings of tensors that have collapsed in this way, the patch head's if it begins with "patch"."""
    patch, kind = kind.startswith("patch "), kind.removeprefix("patch ")
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(48, 16, generator=g)
    embeddings = torch.nn.functional.normalize(noise, dim=1)
    logits_BPK = torch.randn(48, 2, K, generator=g)
    centre, before = torch.randn(2, K, generator=g)
    if kind == "point":
        embeddings = torch.nn.functional.normalize(1 + 1e-4 * noise, dim=1)
    elif kind == "rank":
        embeddings = torch.nn.functional.normalize(noise[:1] * noise[:, 1:2].sign() + 1e-3 * noise, dim=1)
    elif kind == "dead":
        embeddings = torch.nn.functional.normalize(
            torch.cat([noise[:, :6], torch.ones(48, 10) * 0.1], 1), dim=1
        )
        embeddings[:, 6:] = 0.1
    elif kind == "drift":
        centre = 5 * before
    elif kind == "uniform":
        logits_BPK = logits_BPK * 1e-2
    elif kind == "one-hot":
        logits_BPK = logits_BPK + 40 * torch.eye(K)[:2]  # each position its own, whatever the sample
    elif kind == "choice":
        logits_BPK = logits_BPK * 0.2 + 2 * torch.eye(K)[3]
    probability_BPK = torch.softmax(logits_BPK, -1)
    mean_PK = probability_BPK.mean(0).log()
    student = logits_BPK.log_softmax(-1) if kind == "healthy" else mean_PK.expand_as(logits_BPK)
    sums_PS = prototype_metrics.prototype_sums(probability_BPK, student)
    term = Patch(PatchConfig()) if patch else Dino(DinoConfig())
    found = representation_metrics.readings(embeddings) | term.readings({"sums": sums_PS[None]})
    return found | {"health/centre_drift": representation_metrics.centre_drift(centre, before)}


@pytest.mark.parametrize("kind", sorted(COLLAPSED))
def test_the_guard_understands_the_readings_of_collapsed_tensors(kind: str) -> None:
    sentence = guard(patience=1).check(planted(kind), step=1)
    assert sentence is not None and COLLAPSED[kind][1] in sentence


def test_the_guard_says_nothing_of_the_readings_of_healthy_tensors() -> None:
    assert guard(patience=1).check(planted("healthy"), step=1) is None
    assert guard(patience=1).check(planted("patch healthy"), step=1) is None


def test_collapsed_says_whether_it_lasts() -> None:
    watch = guard(patience=3)
    lasts = [
        (watch.check(HEALTHY | {"health/embedding_std": std}, step=step), watch.collapsed)[1]
        for step, std in enumerate([0.0, 0.0, 0.0, 0.0, 0.03, 0.0])
    ]
    assert lasts == [False, False, True, True, False, False]


@pytest.mark.parametrize("rows", range(1, prototype_metrics.FEWEST + 1))
def test_a_few_rows_are_no_collapse_unless_they_are_enough_to_show_it(rows: int) -> None:
    """All samples of a batch of one are the same point, and choose the same prototype."""
    point = torch.nn.functional.normalize(torch.ones(rows, 16), dim=1)
    one_BPK = (20 * torch.eye(K)[:2]).softmax(-1).expand(rows, 2, K)
    readings = representation_metrics.readings(point, other_GE=point)
    sums_PS = prototype_metrics.prototype_sums(one_BPK, one_BPK.log())
    readings |= Dino(DinoConfig()).readings({"sums": sums_PS[None]})
    watch = guard(patience=1)
    sentence = watch.check(readings, step=1)
    shown = {kind for kind, streak in watch.state().items() if streak}
    if rows < prototype_metrics.FEWEST:
        assert sentence is None and shown == set(), sentence
    else:
        assert shown == {"point", "dead", "one-hot", "choice"}
