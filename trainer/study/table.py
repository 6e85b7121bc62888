"""The rows of a study: one for each task, number of training rows, arm, seeds and mode, from what MLflow has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainer.evaluation.tasks.config import FLOORS, MODES
from trainer.evaluation.tasks.results.results import Result
from trainer.study.config import FLOOR

ALL = "all"  # the number of training rows, where all of them were asked for
KEYS = ["task", "rows", "arm", "mode"]
_FIRST = [
    "task", "group", "kind", "metric", "rows", "train_rows", "arm", "pretrain_seed", "mode", "task_seed", "dev",
    "test",
]  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A task with a number of training rows (``ALL`` or the number as text), as the study asks for it."""

    task: str
    rows: str
    group: str


@dataclass(frozen=True)
class Version:
    """A registered version of the study: its arm, its seed, the scratch arm that is made of its network, if any,
    and what its pretraining cost."""

    arm: str
    seed: int
    scratch: str | None
    flops: float
    seconds: float | None


def study_table(
    results: Iterable[Result], *, asked: Mapping[tuple[str, str], Asked], versions: Mapping[str, Version]
) -> pd.DataFrame:
    """A row for each result that is the study's, the last of several; sorted as tasks, rows and arms were given.

    Args:
        asked: by (task, settings). Results with other settings are not the study's.
        versions: by number.

    Floors, and what is learned from scratch, depend on no version: they are there once. Their ``pretrain_seed``
    is missing, and the arm of floors is ``floor``.
    """
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        unit, wanted = result.unit, asked.get((result.unit.task, result.settings))
        version = versions.get(unit.version)
        if wanted is None or version is None:
            continue
        row = _row(result, wanted, version)
        if row is not None:
            key = tuple(row[name] for name in ("task", "rows", "arm", "mode", "pretrain_seed", "task_seed"))
            if key in latest and not result.seconds:  # a copy of another version's, which took no time
                row = latest[key]
            latest[key] = row
    if not latest:
        return pd.DataFrame(columns=_FIRST)
    table = pd.DataFrame(list(latest.values()))
    table["pretrain_seed"] = table["pretrain_seed"].astype("Int64")
    order = {name: at for at, name in enumerate(dict.fromkeys((one.task, one.rows) for one in asked.values()))}
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


def _row(result: Result, asked: Asked, version: Version) -> dict[str, Any] | None:
    """A row; None of a mode that the study does not count."""
    unit, main = result.unit, result.metric.name
    arm, seed = version.arm, version.seed
    flops, seconds = version.flops, version.seconds
    if unit.mode in (*FLOORS, "scratch"):
        arm, seed, flops, seconds = FLOOR if unit.mode in FLOORS else version.scratch, None, 0.0, 0.0
        if arm is None:
            return None
    others = {f"test_{name}": value for name, value in result.test.items() if name != main}
    values = [
        unit.task, asked.group, result.kind, main, asked.rows, result.rows.get("train", 0), arm, seed, unit.mode,
        unit.seed, result.val[main], result.test[main],
    ]  # fmt: skip
    return dict(zip(_FIRST, values, strict=True)) | others | {
        "pretrain_flops": flops,
        "pretrain_seconds": seconds,
        "seconds": result.seconds,
        "chosen": result.chosen,
        "settings": result.settings,
        "version": unit.version,
    }


def floors(table: pd.DataFrame) -> pd.DataFrame:
    """The better floor on dev of each task and number of rows: columns task, rows, mode, dev, test. Of equals the
    first."""
    rows = table[table["arm"] == FLOOR]
    best = rows.sort_values("dev", ascending=False, kind="stable").groupby(["task", "rows"], sort=False).head(1)
    return best[["task", "rows", "mode", "dev", "test"]].reset_index(drop=True)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of ``dev`` and ``test`` over all seeds, and the sample standard deviation of test, for each of KEYS."""
    aggregates = {"dev": ("dev", "mean"), "test": ("test", "mean"), "sd": ("test", "std"), "n": ("test", "size")}
    return table.groupby(KEYS, sort=False).agg(**aggregates).reset_index()  # type: ignore[call-overload]


def chosen_on_dev(table: pd.DataFrame) -> pd.DataFrame:
    """The mode that is best on dev of each task, number of rows and arm (floors too), with its test score."""
    averaged = means(table)
    best = averaged.sort_values("dev", ascending=False, kind="stable")
    best = best.groupby(["task", "rows", "arm"], sort=False).head(1)
    return best.sort_index().reset_index(drop=True)


def numbers_of_rows(table: pd.DataFrame) -> Sequence[str]:
    """The numbers of rows that were asked for, smallest first, all of them last."""
    return sorted(table["rows"].unique(), key=lambda rows: (rows == ALL, 0 if rows == ALL else int(rows)))
