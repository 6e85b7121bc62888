"""Which version of a model has the alias champion: decided on dev scores alone.

Shapes: T tasks, R resamples, S seeds.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.evaluation.tasks.config import ENCODER_MODES, FLOORS
from trainer.evaluation.tasks.kinds.kind import Array
from trainer.evaluation.tasks.results.results import Result
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.tracking.registry import Registry
from trainer.tracking.version_notes import annotate

_BASELINES: Mapping[str, tuple[str, ...]] = {
    "from scratch": ("scratch",),
    "the better floor": FLOORS,
}
_RESAMPLES = 2000
_INTERVAL = 95  # percent

_BySeed = Mapping[str, Mapping[int, float]]  # mode -> seed -> the main score on dev
_Entry = tuple[str, str]  # a task and its settings


@dataclass(frozen=True)
class Difference:
    """How much better on dev one version is than another: the mean over ``tasks``, and its interval."""

    mean: float
    low: float
    high: float
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.tasks)
        return (
            f"mean difference on dev {self.mean:+.3f}, {_INTERVAL} % interval {self.low:+.3f} to "
            f"{self.high:+.3f}, over {len(self.tasks)} task{'s' * (len(self.tasks) != 1)} ({names})"
        )


@dataclass(frozen=True)
class Decision:
    """``version``: the new champion, or None if the champion stays as it is; ``reason``: one sentence.

    ``compared``: the numbers that it rests on, by name.
    """

    version: str | None
    reason: str
    compared: Mapping[str, float] = field(default_factory=dict)


def decide(results: Sequence[Result], *, champion: str | None, earlier: Sequence[Result] = ()) -> Decision:
    """Whether the version that ``results`` are of becomes champion.

    With a champion: both are compared on all tasks that both were scored on, on the same rows with the same
    settings, modes and seeds. On each task the best mode that uses the encoder counts. The version
    becomes champion if the interval of the mean difference is above 0. Without a champion: it becomes
    champion if it is better than its own network from scratch, or than the better floor, on some task.

    Args:
        results: at least one; all of one version, on any tasks. Of a repeated unit the last one counts.
        champion: the version that is champion now.
        earlier: the champion's results, on any tasks.
    """
    model, version = results[0].unit.model, results[0].unit.version
    name = f"champion of {model}"
    if not any(result.unit.mode in ENCODER_MODES for result in results):
        return Decision(None, f"{name}: unchanged, no mode that uses version {version} was run")
    if champion is None:
        return _decide_first(results, name)
    if champion == version:
        return Decision(None, f"{name}: version {champion} stays, it is the one that was scored")
    found = difference(results, earlier)
    if found is None:
        tasks = ", ".join(sorted({result.unit.task for result in results}))
        return Decision(
            None,
            f"{name}: version {champion} stays, because it was not scored on {tasks} with these rows, "
            f"settings and seeds (do so with --model models:/{model}/{champion})",
        )
    compared = {"difference": found.mean, "low": found.low, "high": found.high}
    compared["tasks"] = float(len(found.tasks))
    if found.low > 0:
        return Decision(version, f"{name}: version {version} follows version {champion} ({found})", compared)
    reason = f"{name}: version {champion} stays, version {version} is not surely better ({found})"
    return Decision(None, reason, compared)


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Difference | None:
    """The mean difference of the main score on dev over all tasks that both have, None if there is none.

    The interval is a percentile bootstrap (Efron 1979): tasks are drawn with replacement, and the seeds of
    each mode. A task with several settings counts once, as their mean.
    """
    own, other = _dev_scores(ours), _dev_scores(theirs)
    generator = np.random.default_rng(0)
    by_task: dict[str, list[tuple[float, Array]]] = defaultdict(list)
    for entry in [entry for entry in own if entry in other]:
        modes = [mode for mode in ENCODER_MODES if own[entry].get(mode) and other[entry].get(mode)]
        pairs = [_in_common(own[entry][mode], other[entry][mode]) for mode in modes]
        if pairs := [pair_2S for pair_2S in pairs if pair_2S.size]:
            by_task[entry[0]].append(_compare(pairs, generator))
    if not by_task:
        return None
    mean_T = np.array([np.mean([mean for mean, _ in entries]) for entries in by_task.values()])
    resampled_TR = np.array([np.mean([drawn_R for _, drawn_R in entries], 0) for entries in by_task.values()])
    drawn_TR = generator.integers(len(by_task), size=resampled_TR.shape)
    total_R = np.take_along_axis(resampled_TR, drawn_TR, 0).mean(0)
    low, high = np.percentile(total_R, [(100 - _INTERVAL) / 2, (100 + _INTERVAL) / 2])
    return Difference(float(mean_T.mean()), float(low), float(high), tuple(by_task))


def settle_champion(registry: Registry, model: str, version: str) -> str:
    """Sets the alias champion as ``decide`` says of all results in MLflow; the reason.

    The reason and its numbers also go into the tags and the description of the version.
    """
    results = past_results(registry, model, version)
    champion = _champion(registry, model)
    while True:
        others = champion is not None and champion != version
        earlier = past_results(registry, model, champion) if champion is not None and others else []
        decision = decide(results, champion=champion, earlier=earlier)
        before, champion = champion, _champion(registry, model)
        if champion == before:  # else another process has moved the alias meanwhile
            break
    tags = {f"champion.{key}": f"{value:.6g}" for key, value in decision.compared.items()}
    tags["champion.reason"] = decision.reason
    annotate(registry, model, version, tags=tags, heading="Champion", text=decision.reason)
    if decision.version is not None:
        registry.set_alias(model, "champion", decision.version)
    return decision.reason


def _champion(registry: Registry, model: str) -> str | None:
    found = registry.champion(model)
    return None if found is None else str(found.version)


def _decide_first(results: Sequence[Result], name: str) -> Decision:
    """Whether a version becomes the first champion."""
    version = results[0].unit.version
    metric = {(result.unit.task, result.settings): result.metric.heading for result in results}
    lost: list[str] = []
    for entry, by_seed in _dev_scores(results).items():
        ours = _best(by_seed, ENCODER_MODES)
        if ours is None:
            continue
        for what, modes in _BASELINES.items():
            theirs = _best(by_seed, modes)
            if theirs is None:
                continue
            sentence = f"dev {metric[entry]} {ours:.3f} on {entry[0]}, {what} {theirs:.3f}"
            if ours > theirs:
                compared = {"dev": ours, "baseline": theirs}
                return Decision(version, f"{name}: version {version}, the first ({sentence})", compared)
            lost.append(sentence)
    lacks = (
        f"it is nowhere better than the same network from scratch or the better floor ({'; '.join(lost)})"
        if lost
        else "it was not compared with the same network from scratch or a floor (modes scratch, kmer)"
    )
    return Decision(None, f"{name}: none yet; version {version} does not become the first, because {lacks}")


def _dev_scores(results: Sequence[Result]) -> Mapping[_Entry, _BySeed]:
    """The main score on dev by task and settings, mode, and seed."""
    scores: dict[_Entry, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        unit = result.unit
        scores[unit.task, result.settings][unit.mode][unit.seed] = result.val[result.metric.name]
    return scores


def _best(by_seed: _BySeed, modes: Sequence[str]) -> float | None:
    """The mean over the seeds of the best one of ``modes``; None if none was run."""
    means = [float(np.mean(list(by_seed[mode].values()))) for mode in modes if by_seed.get(mode)]
    return max(means, default=None)


def _in_common(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Array:
    """[2, S]: the scores of the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return np.array([[part[seed] for seed in seeds] for part in (ours, theirs)])


def _compare(pairs: Sequence[Array], generator: np.random.Generator) -> tuple[float, Array]:
    """The difference of two versions on one task, each by its best mode, and the same of resampled seeds [R].

    ``pairs``: of each mode, scores [2, S] of both versions for the same seeds.
    """
    means, resampled = [], []
    for scores_2S in pairs:
        drawn_RS = generator.integers(scores_2S.shape[1], size=(_RESAMPLES, scores_2S.shape[1]))
        means.append(scores_2S.mean(1))
        resampled.append(scores_2S[:, drawn_RS].mean(-1))
    ours, theirs = np.max(means, 0)
    ours_R, theirs_R = np.max(resampled, 0)
    return float(ours - theirs), ours_R - theirs_R
