"""What a training run sends to MLflow: metrics of a step, tags, small files, and that an
export is to become a version; each as a line of JSON.

The same lines stand in the outbox, in ``metrics.jsonl`` of a checkpoint, and in the queue.jsonl of versions
without an outbox.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """``time``, here and below: when it was logged, in ms since 1970."""

    time: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Tags:
    time: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class Attachment:
    """``values`` as the artifact ``name``, a YAML or JSON file by its ending."""

    time: int
    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class FileUpload:
    """The local file ``path`` as an artifact of the same name, as it is when MLflow takes it."""

    time: int
    path: str


@dataclass(frozen=True)
class Export:
    """The export of ``step`` is whole, and is to become a version. ``bp``: that were read up to it."""

    time: int
    step: int
    bp: int


Message = Metrics | Tags | Attachment | FileUpload | Export


def to_line(message: Message) -> str:
    """One line of JSON, without its end."""
    content: dict[str, Any]
    match message:
        case Metrics(time, step, values):
            content = {"time": time, "step": step, "metrics": dict(values)}
        case Tags(time, values):
            content = {"time": time, "tags": dict(values)}
        case Attachment(time, name, values):
            content = {"time": time, "name": name, "values": dict(values)}
        case FileUpload(time, path):
            content = {"time": time, "path": path}
        case Export(time, step, bp):
            content = {"time": time, "step": step, "export_bp": bp}
    return json.dumps(content)


def from_line(line: str | bytes) -> Message | None:
    """The message of a line; None if the line is damaged, as a crash of the machine may leave it."""
    try:
        content = json.loads(line)
        time = int(content["time"])
        if "metrics" in content:
            return Metrics(time, int(content["step"]), dict(content["metrics"]))
        if "tags" in content:
            return Tags(time, dict(content["tags"]))
        if "path" in content:
            return FileUpload(time, str(content["path"]))
        if "export_bp" in content:
            return Export(time, int(content["step"]), int(content["export_bp"]))
        return Attachment(time, str(content["name"]), dict(content["values"]))
    except (ValueError, KeyError, TypeError):
        return None
