"""The names of the curves of a pretraining run: what its versions, or its teacher while it trains, score on
labelled tasks.

``downstream/TASK/MODE_METRIC`` is a version on test and ``MODE_dev_METRIC`` on dev, by the fine-tuning.
``online_probe_dev_METRIC``, ``online_knn_dev_METRIC`` and ``floor_dev_METRIC`` are the teacher while it
trains. ``probe_METRIC`` and ``knn_METRIC`` are then the same two curves by their short names, so that the
test score of a version's probe is ``probe_test_METRIC`` on such a run.
"""

import json
import re
from collections.abc import Mapping, Sequence

ONLINE_TAG = "val.tasks"  # of a pretraining run: the names of the tasks that it reads itself, as JSON
_NO_METRIC_NAME = re.compile(r"[^\w\-. ]", re.ASCII)  # what MLflow takes in no part of a name


def plain(name: str) -> str:
    """The name of a task as a part of a metric's name."""
    return _NO_METRIC_NAME.sub("_", name)


def downstream(task: str, score: str) -> str:
    """The metric of a ``task``."""
    return f"downstream/{plain(task)}/{score}"


def online_tag(tasks: Sequence[str]) -> dict[str, str]:
    """The tag of a run that reads ``tasks`` itself; none if there are no such tasks."""
    return {ONLINE_TAG: json.dumps(list(tasks))} if tasks else {}


def read_online(tags: Mapping[str, str]) -> list[str]:
    """The names of the tasks that the run with these tags reads itself."""
    return [str(name) for name in json.loads(tags.get(ONLINE_TAG, "[]"))]
