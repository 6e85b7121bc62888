"""The names of the curves of a pretraining run: what its versions, or its teacher while it trains, score on
labelled tasks.

``downstream/TASK/MODE_METRIC`` is a version on test and ``MODE_dev_METRIC`` on dev, by the fine-tuning.
``online_probe_dev_METRIC``, ``online_knn_dev_METRIC`` and ``floor_dev_METRIC`` are the teacher while it
trains. ``probe_METRIC`` and ``knn_METRIC`` are then the same two curves by their short names, so that the
test score of a version's probe is ``probe_test_METRIC`` on such a run.
"""

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

PROBE, KNN, FLOOR = "online_probe_dev", "online_knn_dev", "floor_dev"  # before _METRIC
_SHORT = {"probe": PROBE, "knn": KNN}
ONLINE_TAG = "val.tasks"  # of a pretraining run: the names of the tasks that it reads itself, as JSON
_NO_METRIC_NAME = re.compile(r"[^\w\-. ]", re.ASCII)  # what MLflow takes in no part of a name


def plain(name: str) -> str:
    """The name of a task as a part of a metric's name."""
    return _NO_METRIC_NAME.sub("_", name)


def downstream(task: str, score: str) -> str:
    """The metric of a ``task``."""
    return f"downstream/{plain(task)}/{score}"


class Curve(NamedTuple):
    """What a curve is of."""

    task: str
    metric: str


def online_scores(metric: str, *, probe: float, knn: float, floor: float) -> dict[str, float]:
    """Score -> value of one reading while the run trains, short names too."""
    values = {PROBE: probe, KNN: knn, FLOOR: floor, "probe": probe, "knn": knn}
    return {f"{name}_{metric}": value for name, value in values.items()}


def of_online_probe(name: str) -> Curve | None:
    """The curve of ``TASK/SCORE``, if that is the probe while the run trains."""
    task, _, score = name.rpartition("/")
    return Curve(task, score.removeprefix(f"{PROBE}_")) if score.startswith(f"{PROBE}_") else None


def of_test(name: str, there: Container[str]) -> Curve | None:
    """The curve of ``TASK/SCORE``, if it is a version's on test; ``there``: all metrics of the run."""
    task, _, score = name.rpartition("/")
    mode, _, metric = score.partition("_")
    short = _SHORT.get(mode)
    if short and downstream(task, f"{short}_{metric}") in there:
        return None
    if score.startswith((f"{PROBE}_", f"{KNN}_")) or metric.startswith("dev_"):
        return None
    return Curve(task, metric.removeprefix("test_"))


def online_tag(tasks: Sequence[str]) -> dict[str, str]:
    """The tag of a run that reads ``tasks`` itself; none if there are no such tasks."""
    return {ONLINE_TAG: json.dumps(list(tasks))} if tasks else {}


def read_online(tags: Mapping[str, str]) -> list[str]:
    """The names of the tasks that the run with these tags reads itself."""
    return [str(name) for name in json.loads(tags.get(ONLINE_TAG, "[]"))]
