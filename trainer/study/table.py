"""The rows of a study: one for each task, number of training rows, arm, seeds and mode."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainer.evaluation.tasks.config import FLOORS, MODES, SEEDLESS
from trainer.evaluation.tasks.results.results import Result
from trainer.study.config import FLOOR, SCRATCH

ALL = "all"  # the number of training rows, where all of them were asked for
_KEY = ("task", "rows", "arm", "mode", "pretrain_seed", "task_seed")
KEYS = ["task", "rows", "arm", "mode"]
_FIRST = [
    "task",
    "group",
    "kind",
    "metric",
    "rows",
    "train_rows",
    "arm",
    "pretrain_seed",
    "mode",
    "task_seed",
    "dev",
    "test",
]


@dataclass(frozen=True)
class Asked:
    """A task with a number of training rows (``ALL``, or the number as text), as the study asks for it; the
    digest of its settings, and the modes and seeds in which it is asked for."""

    task: str
    rows: str
    group: str
    settings: str
    modes: tuple[str, ...]
    seeds: tuple[int, ...]

    def includes(self, result: Result) -> bool:
        unit = result.unit
        return (
            (unit.task, result.settings) == (self.task, self.settings)
            and unit.mode in self.modes
            and (unit.mode in SEEDLESS or unit.seed in self.seeds)
        )


@dataclass(frozen=True)
class Version:
    """A registered version of the study: its arm, its seed, the scratch arm that is made of its network, if
    any, and what its pretraining cost."""

    arm: str
    seed: int
    scratch: str | None
    flops: float
    seconds: float | None


def study_table(
    results: Iterable[Result], *, asked: Sequence[Asked], versions: Mapping[str, Version]
) -> pd.DataFrame:
    """A row for each result that is the study's, sorted as tasks, rows and arms were given.

    ``asked``: results with other settings are not the study's. ``versions``: by number.

    Floors, and what is learned from scratch, depend on no version: they are there once. Their
    ``pretrain_seed`` is missing, and the arm of floors is ``floor``.
    """
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        version = versions.get(result.unit.version)
        if version is None:
            continue
        for wanted in [one for one in asked if one.includes(result)]:
            row = _row(result, wanted, version)
            key = tuple(row[name] for name in _KEY)
            # Of several the last one, but no copy of another version's, which took no time.
            if row["arm"] and (key not in latest or result.seconds):
                latest[key] = row
    if not latest:
        return pd.DataFrame(columns=_FIRST)
    table = pd.DataFrame(list(latest.values()))
    table["pretrain_seed"] = table["pretrain_seed"].astype("Int64")
    order = {name: at for at, name in enumerate(dict.fromkeys((one.task, one.rows) for one in asked))}
    arms = [*(FLOOR,), *dict.fromkeys(name for v in versions.values() for name in (v.scratch, v.arm) if name)]
    place = pd.DataFrame(
        {
            "at": [order[task, rows] for task, rows in zip(table["task"], table["rows"], strict=True)],
            "arm": table["arm"].map(arms.index),
            "mode": table["mode"].map(MODES.index),
            "seed": table["pretrain_seed"].fillna(-1),
            "task_seed": table["task_seed"],
        }
    )
    return table.loc[place.sort_values(list(place.columns), kind="stable").index].reset_index(drop=True)


def _row(result: Result, asked: Asked, version: Version) -> dict[str, Any]:
    """A row; without an arm where the study does not count what it is."""
    unit, main = result.unit, result.metric.name
    seed: int | None
    arm, seed, flops, seconds = version.arm, version.seed, version.flops, version.seconds
    if unit.mode in (*FLOORS, SCRATCH):
        arm = FLOOR if unit.mode in FLOORS else version.scratch or ""
        seed, flops, seconds = None, 0.0, 0.0
    others = {f"test_{name}": value for name, value in result.test.items() if name != main}
    values = [
        unit.task,
        asked.group,
        result.kind,
        main,
        asked.rows,
        result.rows.get("train", 0),
        arm,
        seed,
        unit.mode,
        unit.seed,
        result.val[main],
        result.test[main],
    ]
    return (
        dict(zip(_FIRST, values, strict=True))
        | others
        | {
            "pretrain_flops": flops,
            "pretrain_seconds": seconds,
            "seconds": result.seconds,
            "chosen": result.chosen,
            "settings": result.settings,
            "version": unit.version,
        }
    )


def floors(table: pd.DataFrame) -> pd.DataFrame:
    """The better floor on dev of each task and number of rows: columns task, rows, mode, dev, test. Of equals
    the first."""
    rows = table[table["arm"] == FLOOR]
    best = (
        rows.sort_values("dev", ascending=False, kind="stable").groupby(["task", "rows"], sort=False).head(1)
    )
    return best[["task", "rows", "mode", "dev", "test"]].reset_index(drop=True)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of ``dev`` and ``test`` over all seeds, and the sample deviation of test, for each of KEYS."""
    aggregates = {
        "dev": ("dev", "mean"),
        "test": ("test", "mean"),
        "sd": ("test", "std"),
        "n": ("test", "size"),
    }
    return table.groupby(KEYS, sort=False).agg(**aggregates).reset_index()


def chosen_on_dev(table: pd.DataFrame) -> pd.DataFrame:
    """The mode that is best on dev of each task, number of rows and arm (floors too), with its test score."""
    averaged = means(table)
    best = averaged.sort_values("dev", ascending=False, kind="stable")
    best = best.groupby(["task", "rows", "arm"], sort=False).head(1)
    return best.sort_index().reset_index(drop=True)


def numbers_of_rows(table: pd.DataFrame) -> Sequence[str]:
    """The numbers of rows that were asked for, smallest first, all of them last."""
    return sorted(table["rows"].unique(), key=lambda rows: (rows == ALL, 0 if rows == ALL else int(rows)))
