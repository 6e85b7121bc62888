"""cluster.process.host: what jobs and the doctor take for the cores of this process."""

import os
from pathlib import Path

import pytest

from cluster.process import host
from cluster.process.host import quota, usable


@pytest.mark.parametrize(
    ("files", "has", "processes"),
    [
        ({}, 8, 8),
        ({"pod/cpu.max": "max 100000\n"}, 8, 8),
        ({"pod/cpu.max": "250000 100000\n"}, 2.5, 2),
        ({"pod/cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"pod/cpu.max": "400000 100000\n", "cpu.max": "300000 100000"}, 3, 3),
        ({"pod/cpu.max": "9900000 100000\n"}, 8, 8),
    ],
)
def test_the_lowest_limit_counts(
    files: dict[str, str], has: float, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(host, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "fs")
    (tmp_path / "cgroup").write_text("0::/pod\n")
    (tmp_path / "fs" / "pod").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "fs" / name).write_text(text)
    assert quota() == has and usable() == processes
