"""Messages as lines of JSON, and lines that are none."""

import math

import pytest

from trainer.tracking.messages import (
    Attachment,
    Export,
    FileUpload,
    Message,
    Metrics,
    Tags,
    from_line,
    to_line,
)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            Metrics(5, 3, {"é": 0.1, "lr": 1e-300}),
            '{"time": 5, "step": 3, "metrics": {"\\u00e9": 0.1, "lr": 1e-300}}',
        ),
        (Tags(6, {"checkpoint.uri": "/a\nb"}), '{"time": 6, "tags": {"checkpoint.uri": "/a\\nb"}}'),
        (
            Attachment(7, "config.yaml", {"a": {"b": [1, None]}}),
            '{"time": 7, "name": "config.yaml", "values": {"a": {"b": [1, null]}}}',
        ),
        (FileUpload(8, "/run/track/log.txt"), '{"time": 8, "path": "/run/track/log.txt"}'),
        (Export(8, 6, 12_000), '{"time": 8, "step": 6, "export_bp": 12000}'),
    ],
)
def test_lines_are_those_of_the_versions_before(message: Message, line: str) -> None:
    assert to_line(message) == line
    assert from_line(line) == from_line(line.encode()) == message


def test_values_that_are_no_numbers() -> None:
    message = from_line(to_line(Metrics(1, 1, {"nan": math.nan, "inf": -math.inf})))
    assert isinstance(message, Metrics)
    assert math.isnan(message.values["nan"])
    assert message.values["inf"] == -math.inf


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0" * 20,
        b"\xff",
        b"7",
        b"[]",
        b"{}",
        b'{"time": 1}',
        b'{"time": 1, "metrics": {}}',
        b'{"time": 1, "step": 1, "metrics": 3}',
        b'{"time": 1, "export_bp": 3}',
        b'{"step": 1, "metrics": {}}',
        b'{"time": 1, "step": 1, "met',
    ],
)
def test_a_damaged_line_is_no_message(line: bytes) -> None:
    assert from_line(line) is None
