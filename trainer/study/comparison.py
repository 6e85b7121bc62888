"""Paired differences between two arms, with bootstrap intervals over tasks and seeds.

Shapes: T tasks, P pretraining seeds, S seeds of a task; N draws, G groups of tasks, M tasks of a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trainer.evaluation.tasks.config import ENCODER_MODES
from trainer.study.config import FLOOR, SCRATCH, Statistics
from trainer.study.table import floors, numbers_of_rows

Array = np.ndarray[Any, Any]
_PIECE = 500  # bootstrap samples at once


@dataclass(frozen=True)
class Differences:
    """Test scores of one arm less those of another.

    Attributes:
        tasks, groups: of each row of ``value_TPS``.
        value_TPS: NaN where one of the two was not run.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    value_TPS: Array

    @property
    def of_tasks(self) -> Array:
        """The mean over the seeds of each task."""
        return np.nanmean(self.value_TPS, axis=(1, 2))


@dataclass(frozen=True)
class Comparison:
    """What an arm is better by than another, in one mode, with one number of training rows.

    Attributes:
        mean: over the tasks. ``low`` to ``high`` covers it with the share that was asked for.
        ahead, tied: the number of tasks in which the first is better, or both are as good.
        by_task: task -> mean difference over its seeds.
        pretrain_seeds: how many there are; with one the interval says nothing of pretraining's own chance.
    """

    first: str
    second: str
    mode: str
    rows: str
    mean: float
    low: float
    high: float
    ahead: int
    tied: int
    by_task: dict[str, float]
    groups: int
    pretrain_seeds: int

    @property
    def tasks(self) -> int:
        return len(self.by_task)


def compare_all(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], statistics: Statistics
) -> list[Comparison]:
    """Each pair in each mode and number of training rows in which both were run, most rows first."""
    found = []
    encoders = set(table.loc[table["mode"].isin(ENCODER_MODES), "arm"])
    for first, second in pairs:
        for rows in reversed(numbers_of_rows(table)):
            for mode in ENCODER_MODES:
                pair = differences(table[table["rows"] == rows], first, second, mode)
                if pair is not None:
                    label = mode if {first, second} & encoders else SCRATCH
                    found.append(compare(pair, (first, second, label, rows), statistics))
    return found


def differences(table: pd.DataFrame, first: str, second: str, mode: str) -> Differences | None:
    """``first`` less ``second`` in ``mode`` on the tasks that both have; None if there are none.

    An arm from scratch counts with its mode scratch in finetune, the floor with the better one on
    dev. Seeds are paired: what has no pretraining seed (or no seed at all) stands against all.
    """
    one, other = scores(table, first, mode), scores(table, second, mode)
    if one.empty or other.empty:
        return None
    groups = dict(zip(table["task"], table["group"], strict=True))
    tasks = [task for task in dict.fromkeys(one["task"]) if task in set(other["task"])]
    if not tasks:
        return None
    pretrain = sorted({*one["pretrain_seed"].dropna(), *other["pretrain_seed"].dropna()}) or [0]
    seeds = sorted({*one["task_seed"].dropna(), *other["task_seed"].dropna()}) or [0]
    value = _cube(one, tasks, pretrain, seeds) - _cube(other, tasks, pretrain, seeds)
    kept = ~np.isnan(value).all(axis=(1, 2))
    if not kept.any():
        return None
    names = [task for task, keep in zip(tasks, kept, strict=True) if keep]
    return Differences(tuple(names), tuple(groups[name] for name in names), value[kept])


def scores(table: pd.DataFrame, arm: str, mode: str) -> pd.DataFrame:
    """Columns task, pretrain_seed, task_seed and test of an arm, as ``differences`` pairs them."""
    if arm == FLOOR:
        return floors(table).assign(pretrain_seed=np.nan, task_seed=np.nan)
    own = table[table["arm"] == arm]
    if (own["mode"] == SCRATCH).any():
        found = own[own["mode"] == SCRATCH]
        return found if mode == "finetune" else found.iloc[:0]
    found = own[own["mode"] == mode]
    # A probe has one solution: its seed 0 is no seed.
    return found.assign(task_seed=np.nan) if mode == "probe" else found


def _cube(scores: pd.DataFrame, tasks: Sequence[str], pretrain: Sequence[int], seeds: Sequence[int]) -> Array:
    """[T, P, S] of test scores; what has no seed counts for every one."""
    value_TPS = np.full((len(tasks), len(pretrain), len(seeds)), np.nan)
    place = {task: at for at, task in enumerate(tasks)}
    for row in scores.to_dict("records"):
        if row["task"] in place:
            p = slice(None) if pd.isna(row["pretrain_seed"]) else pretrain.index(row["pretrain_seed"])
            s = slice(None) if pd.isna(row["task_seed"]) else seeds.index(row["task_seed"])
            value_TPS[place[row["task"]], p, s] = row["test"]
    return value_TPS


def compare(pair: Differences, names: tuple[str, str, str, str], statistics: Statistics) -> Comparison:
    """The comparison of ``names``: first, second, mode, rows."""
    first, second, mode, rows = names
    by_task_T = pair.of_tasks
    means = bootstrap(pair, samples=statistics.samples, seed=statistics.seed)
    tail = (1 - statistics.interval) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Comparison(
        first,
        second,
        mode,
        rows,
        mean=float(by_task_T.mean()),
        low=float(low),
        high=float(high),
        ahead=int((by_task_T > 0).sum()),
        tied=int((by_task_T == 0).sum()),
        by_task=dict(zip(pair.tasks, by_task_T.tolist(), strict=True)),
        groups=len(set(pair.groups)),
        pretrain_seeds=pair.value_TPS.shape[1],
    )


def bootstrap(pair: Differences, *, samples: int, seed: int) -> Array:
    """Means over tasks of ``samples`` draws with replacement of groups of tasks, of pretraining seeds (the
    same draw for all tasks, since they share the network) and of each task's seeds."""
    rng = np.random.default_rng(seed)
    of_groups = [
        np.flatnonzero([group == name for group in pair.groups]) for name in dict.fromkeys(pair.groups)
    ]
    members_GM = np.full((len(of_groups), max(map(len, of_groups))), -1)
    for number, members in enumerate(of_groups):
        members_GM[number, : len(members)] = members
    pieces = [min(_PIECE, samples - at) for at in range(0, samples, _PIECE)]
    return np.concatenate([_draws(pair.value_TPS, members_GM, rng, count) for count in pieces])


def _draws(value_TPS: Array, members_GM: Array, rng: np.random.Generator, count: int) -> Array:
    """``count`` means over drawn tasks. A group that is drawn twice gets seeds of its tasks anew."""
    _, pretrain, seeds = value_TPS.shape
    groups = len(members_GM)
    task_NGM = members_GM[rng.integers(groups, size=(count, groups))]
    p_NP = rng.integers(pretrain, size=(count, pretrain))
    s_NGMS = rng.integers(seeds, size=(*task_NGM.shape, seeds))
    drawn_NGMPS = value_TPS[task_NGM[..., None, None], p_NP[:, None, None, :, None], s_NGMS[..., None, :]]
    known = ~np.isnan(drawn_NGMPS)
    sums_NGM, counts_NGM = np.where(known, drawn_NGMPS, 0).sum((3, 4)), known.sum((3, 4))
    # A draw without any result of a task: its mean over what there is.
    fallback_NGM = np.nanmean(value_TPS, axis=(1, 2))[task_NGM]
    of_task_NGM = np.where(counts_NGM > 0, sums_NGM / np.maximum(counts_NGM, 1), fallback_NGM)
    real_NGM = task_NGM >= 0
    result: Array = np.where(real_NGM, of_task_NGM, 0).sum((1, 2)) / real_NGM.sum((1, 2))
    return result


def sentences(comparisons: Sequence[Comparison], *, interval: float, percent: bool = True) -> Iterator[str]:
    """Each comparison in a sentence, times 100 where ``percent``."""
    scale = 100 if percent else 1
    for one in comparisons:
        rows = "all training rows" if one.rows == "all" else f"{int(one.rows):,} training rows"
        verdict = "is ahead of" if one.low > 0 else "is behind" if one.high < 0 else "is not told from"
        yield (
            f"{one.first} {verdict} {one.second} ({one.mode}, {rows}): {scale * one.mean:+.1f} "
            f"[{scale * one.low:+.1f}, {scale * one.high:+.1f}] ({interval:.0%} interval), better on "
            f"{one.ahead} of {one.tasks} tasks"
        )
