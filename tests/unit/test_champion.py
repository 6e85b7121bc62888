"""trainer.evaluation.tasks.champion: which version becomes champion, as a table."""

from collections.abc import Sequence

import pytest

from trainer.evaluation.tasks.champion import Decision, decide
from trainer.evaluation.tasks.results import Result, Unit


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


OURS = [result("2", "probe", 0.6), result("2", "kmer", 0.9), result("2", "finetune", 0.4)]


@pytest.mark.parametrize(
    ("results", "champion", "earlier", "version", "reason"),
    [
        (OURS[1:2], None, [], None, "unchanged, neither probe nor fine-tuning was run"),
        ([result("2", "scratch", 0.9)], "1", [], None, "unchanged, neither probe nor fine-tuning was run"),
        (OURS, None, [], "2", "version 2, the first (dev MCC 0.600 on t)"),
        (OURS, "2", [], None, "version 2 stays"),
        (OURS, "1", [], None, "version 1 stays, because it was not scored on t with these rows"),
        (OURS, "1", [result("1", "probe", 0.1, task="u")], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.1, settings="other")], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.1, seed=1)], None, "not scored on t"),
        (OURS, "1", [result("1", "kmer", 0.1)], None, "not scored on t"),
        (OURS, "1", [result("1", "probe", 0.5)], "2", "version 2 (dev MCC 0.600 on t, was 0.500)"),
        (OURS, "1", [result("1", "probe", 0.6)], None, "version 1 stays (dev MCC 0.600 on t, ours 0.600)"),
        (OURS, "1", [result("1", "probe", 0.7)], None, "version 1 stays (dev MCC 0.700 on t, ours 0.600)"),
        # Only what both have is compared: here the mode in which this version is the worse one.
        (OURS, "1", [result("1", "finetune", 0.5)], None, "version 1 stays (dev MCC 0.500 on t, ours 0.400)"),
        # The better one of probe and fine-tuning counts, on both sides.
        (OURS, "1", [result("1", "finetune", 0.65), result("1", "probe", 0.2)], None, "stays (dev MCC 0.650"),
        # Of a repeat the last counts.
        (OURS, "1", [result("1", "probe", 0.9), result("1", "probe", 0.3)], "2", "0.600 on t, was 0.300)"),
        # Means over the seeds that both have.
        (
            [*OURS, result("2", "probe", 0.2, seed=1)],
            "1",
            [result("1", "probe", 0.5), result("1", "probe", 0.1, seed=1), result("1", "probe", 0.9, seed=2)],
            "2",
            "version 2 (dev MCC 0.400 on t, was 0.300)",
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
        "champion of m: version 1 stays, because it was not scored on t with these rows and settings "
        "(do so with --model models:/m/1)",
    )
