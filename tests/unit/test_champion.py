"""trainer.evaluation.tasks.results.champion: which version becomes champion, as a table."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from trainer.evaluation.tasks.results import champion as rule
from trainer.evaluation.tasks.results.champion import Decision, decide, difference
from trainer.evaluation.tasks.results.results import Result, Unit


def result(
    version: str, mode: str, dev: float, *, seed: int = 0, task: str = "t", settings: str = "s"
) -> Result:
    """A result whose test score says the opposite of its dev score."""
    return Result(
        Unit("m", version, task, mode, seed),
        val={"mcc": dev, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.5},
        test={"mcc": 1 - dev, "accuracy": 0.5, "f1_macro": 0.5, "auroc": 0.5},
        settings=settings,
    )


def of_seeds(version: str, *devs: float, mode: str = "finetune", task: str = "t") -> list[Result]:
    return [result(version, mode, dev, seed=seed, task=task) for seed, dev in enumerate(devs)]


OURS = [result("2", "probe", 0.6), result("2", "kmer", 0.9), result("2", "finetune", 0.4)]
PROBE = OURS[:1]


@pytest.mark.parametrize(
    ("results", "champion", "earlier", "version", "reason"),
    [
        # Only modes that use the encoder can make a champion.
        (OURS[1:2], None, [], None, "unchanged, no mode that uses version 2 was run"),
        ([result("2", "scratch", 0.9)], "1", [], None, "unchanged, no mode that uses version 2"),
        # The first one has to be better than something that needs no pretraining.
        (PROBE, None, [], None, "was not compared with the same network from scratch or a floor"),
        (OURS, None, [], None, "dev MCC 0.600 on t, the better floor 0.900"),
        ([*PROBE, result("2", "scratch", 0.5)], None, [], "2", "the first (dev MCC 0.600 on t, from scratch"),
        ([*PROBE, result("2", "scratch", 0.6)], None, [], None, "nowhere better than the same network"),
        (
            [*PROBE, result("2", "kmer", 0.5)],
            None,
            [],
            "2",
            "the first (dev MCC 0.600 on t, the better floor",
        ),
        ([*PROBE, result("2", "kmer", 0.5), result("2", "onehot", 0.7)], None, [], None, "floor 0.700"),
        ([*PROBE, result("2", "scratch", 0.7), result("2", "kmer", 0.5)], None, [], "2", "floor 0.500"),
        ([*OURS, *of_seeds("2", 0.3, task="u"), result("2", "kmer", 0.2, task="u")], None, [], "2", "on u"),
        # Other rows are another thing, also of the same task.
        ([*PROBE, result("2", "kmer", 0.1, settings="other")], None, [], None, "was not compared"),
        # Its mean over the seeds counts, not the best seed.
        ([*of_seeds("2", 0.9, 0.1), result("2", "scratch", 0.6)], None, [], None, "0.500 on t, from scratch"),
        # Against a champion.
        (OURS, "2", [], None, "version 2 stays"),
        (OURS, "1", [], None, "version 1 stays, because it was not scored on t with these rows"),
        (OURS, "1", [result("1", "probe", 0.1, task="u")], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.1, settings="other")], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.1, seed=1)], None, "not scored on t"),
        (OURS, "1", [result("1", "kmer", 0.1)], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.5)], "2", "2 follows version 1 (mean difference on dev +0.100"),
        (OURS, "1", [result("1", "probe", 0.6)], None, "version 1 stays, version 2 is not surely better"),
        (OURS, "1", [result("1", "probe", 0.7)], None, "mean difference on dev -0.100"),
        # Only what both have is compared: here the mode in which this version is the worse one.
        (OURS, "1", [result("1", "finetune", 0.5)], None, "mean difference on dev -0.100"),
        # The better one of probe and fine-tuning counts, on both sides.
        (OURS, "1", [result("1", "finetune", 0.65), result("1", "probe", 0.2)], None, "-0.050"),
        # Of a repeat the last counts.
        (OURS, "1", [result("1", "probe", 0.9), result("1", "probe", 0.3)], "2", "+0.300"),
        # Better in the mean, but not on every seed: not sure.
        (of_seeds("2", 0.9, 0.4, 0.5), "1", of_seeds("1", 0.5, 0.5, 0.5), None, "-0.100 to +0.400"),
        (of_seeds("2", 0.6, 0.7, 0.6), "1", of_seeds("1", 0.5, 0.5, 0.5), "2", "+0.133"),
        # Means over the seeds that both have.
        (of_seeds("2", 0.6, 0.2), "1", of_seeds("1", 0.5, 0.1, 0.9), "2", "+0.100"),
        # All tasks that both have count, each once.
        (
            [*of_seeds("2", 0.9), *of_seeds("2", 0.3, task="u"), *of_seeds("2", 0.9, task="only ours")],
            "1",
            [*of_seeds("1", 0.5), *of_seeds("1", 0.4, task="u")],
            None,
            "+0.150, 95 % interval -0.100 to +0.400, over 2 tasks (t, u)",
        ),
        (
            [*of_seeds("2", 0.9), *of_seeds("2", 0.5, task="u")],
            "1",
            [*of_seeds("1", 0.5), *of_seeds("1", 0.4, task="u")],
            "2",
            "+0.250, 95 % interval +0.100 to +0.400, over 2 tasks (t, u)",
        ),
    ],
)
def test_decision(
    results: Sequence[Result],
    champion: str | None,
    earlier: Sequence[Result],
    version: str | None,
    reason: str,
) -> None:
    decision = decide(results, champion=champion, earlier=earlier)
    assert decision.version == version
    assert decision.reason.startswith("champion of m: ")
    assert reason in decision.reason


def test_a_champion_that_is_not_comparable_is_named_with_the_command_that_helps() -> None:
    assert decide(OURS, champion="1") == Decision(
        None,
        "champion of m: version 1 stays, because it was not scored on t with these rows, settings and seeds "
        "(do so with --model models:/m/1)",
    )


def test_a_decision_carries_its_numbers() -> None:
    decision = decide(of_seeds("2", 0.6, 0.7), champion="1", earlier=of_seeds("1", 0.5, 0.5))
    assert decision.compared == pytest.approx({"difference": 0.15, "low": 0.1, "high": 0.2, "tasks": 1})


def test_several_settings_of_a_task_count_as_one_task() -> None:
    """A low-label curve of one task does not outvote another task."""
    ours = [result("2", "probe", 0.9, settings=rows) for rows in ("100", "500", "all")]
    theirs = [result("1", "probe", 0.5, settings=rows) for rows in ("100", "500", "all")]
    found = difference([*ours, *of_seeds("2", 0.2, task="u")], [*theirs, *of_seeds("1", 0.4, task="u")])
    assert found is not None
    assert found.mean == pytest.approx((0.4 - 0.2) / 2)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    """40 tasks with noise of known size: the interval has the width of a normal one."""
    noise = np.random.default_rng(1)
    ours, theirs = [], []
    for task in range(40):
        ours += of_seeds("2", 0.5 + noise.normal(0.02, 0.1), task=f"t{task}")
        theirs += of_seeds("1", 0.5, task=f"t{task}")
    found = difference(ours, theirs)
    assert found is not None
    width = 2 * 1.96 * 0.1 / np.sqrt(40)
    assert found.high - found.low == pytest.approx(width, rel=0.3)
    assert found.low < found.mean < found.high


def test_a_champion_that_another_process_made_meanwhile_is_compared_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standing = ["1"]
    stored = {"1": [result("1", "probe", 0.1)], "2": [result("2", "probe", 0.5)]}
    stored["3"] = [result("3", "probe", 0.9)]

    def past(registry: object, model: str, version: str) -> list[Result]:
        if version == "1":
            standing[0] = "3"  # while version 2 is compared with version 1
        return stored[version]

    class Reading:
        def champion(self, model: str) -> object:
            return SimpleNamespace(version=standing[0])

        def set_alias(self, name: str, alias: str, version: str) -> None:
            standing[0] = version

    monkeypatch.setattr(rule, "past_results", past)
    monkeypatch.setattr(rule, "annotate", lambda *_, **__: None)
    reason = rule.settle_champion(Reading(), "m", "2")  # type: ignore[arg-type]
    assert standing == ["3"] and "version 3 stays" in reason
