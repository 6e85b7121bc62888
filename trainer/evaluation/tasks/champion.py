"""Which version of a model has the alias champion: decided on dev scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluation.tasks.config import ENCODER_MODES
from trainer.evaluation.tasks.results import Result, summarise
from trainer.evaluation.tasks.results_log import past_results
from trainer.tracking.registry import Registry


@dataclass(frozen=True)
class Decision:
    """``version``: the new champion, or None if the champion stays as it is; ``reason``: one sentence."""

    version: str | None
    reason: str


def decide(results: Sequence[Result], *, champion: str | None, earlier: Sequence[Result] = ()) -> Decision:
    """Whether the version that ``results`` are of becomes champion.

    It does if there is no champion, or if its better one of probe and fine-tuning beats the champion's in the
    mean main score on dev. Compared are the modes and seeds that both have, on the same rows with the same
    settings; if there are none, the champion stays.

    Args:
        results: at least one; of one version, one task and the same settings.
        champion: the version that is champion now.
        earlier: the champion's results, on any tasks.
    """
    unit, settings, metric = results[0].unit, results[0].settings, results[0].metric.heading
    name = f"champion of {unit.model}"
    ours = _best_on_dev(results)
    if ours is None:
        return Decision(None, f"{name}: unchanged, neither probe nor fine-tuning was run")
    if champion is None:
        reason = f"{name}: version {unit.version}, the first (dev {metric} {ours:.3f} on {unit.task})"
        return Decision(unit.version, reason)
    if champion == unit.version:
        return Decision(None, f"{name}: version {champion} stays")
    comparable = [r for r in earlier if r.unit.task == unit.task and r.settings == settings]
    common = _modes_and_seeds(results) & _modes_and_seeds(comparable)
    ours, theirs = (
        _best_on_dev([r for r in part if (r.unit.mode, r.unit.seed) in common])
        for part in (results, comparable)
    )
    if ours is None or theirs is None:
        return Decision(
            None,
            f"{name}: version {champion} stays, because it was not scored on {unit.task} with these rows "
            f"and settings (do so with --model models:/{unit.model}/{champion})",
        )
    if ours <= theirs:
        return Decision(
            None,
            f"{name}: version {champion} stays (dev {metric} {theirs:.3f} on {unit.task}, ours {ours:.3f})",
        )
    reason = f"{name}: version {unit.version} (dev {metric} {ours:.3f} on {unit.task}, was {theirs:.3f})"
    return Decision(unit.version, reason)


def settle_champion(registry: Registry, results: Sequence[Result]) -> str:
    """Sets the alias champion as ``decide`` says; the reason."""
    model, version = results[0].unit.model, results[0].unit.version
    found = registry.champion(model)
    champion = None if found is None else str(found.version)
    others = champion is not None and champion != version
    earlier = past_results(registry, model, champion) if champion is not None and others else []
    decision = decide(results, champion=champion, earlier=earlier)
    if decision.version is not None:
        registry.set_alias(model, "champion", decision.version)
    return decision.reason


def _modes_and_seeds(results: Sequence[Result]) -> set[tuple[str, int]]:
    return {(result.unit.mode, result.unit.seed) for result in results}


def _best_on_dev(results: Sequence[Result]) -> float | None:
    summary = summarise([result for result in results if result.unit.mode in ENCODER_MODES])
    return None if summary.empty else float(summary["dev_score"].max())
