"""A cluster whose head has no CPU, while nodes join it and one dies: tests/faults/nodes.py."""

import json
import os
import subprocess
import sys

import pytest

from tests.faults.nodes import ASSEMBLIES, EACH


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_tasks_follow_the_nodes_and_stay_near_each_other() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    program = [sys.executable, "-m", "tests.faults.nodes"]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=170)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    ran = found["ran"]
    assert len(ran) == len(ASSEMBLIES) * EACH
    assert set(ran) == {"first", "second", "third"}, (
        "the head runs nothing, and every node that joins is used"
    )
    met = {(name, node) for name, node in zip((a for a in ASSEMBLIES for _ in range(EACH)), ran, strict=True)}
    assert len(met) <= 13, "spread over all nodes, they would be prepared about 16 to 18 times"
    asked = found["asked"]
    assert asked[0] == len(ran) and asked[-1] == 0, "and nothing is asked for any more"
