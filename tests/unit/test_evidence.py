"""What a rank shows before it is killed: of one whose interpreter runs, of one whose main thread never comes
back."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.process import evidence, heartbeat

ROOT = Path(__file__).parents[2]
# A mutex that is locked twice waits for ever, in C; with the interpreter's lock, nothing of Python runs any
# more.
RANK = """
import ctypes, sys, threading
from cluster.process.heartbeat import heartbeat
library = (ctypes.PyDLL if "all" in sys.argv else ctypes.CDLL)(None)
def the_place_where_it_hangs():
    mutex = ctypes.create_string_buffer(64)
    print("stuck", flush=True)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)
heartbeat.step(7)
for number in range(20):
    with heartbeat.inside(f"all_gather of {number}"):
        pass
with heartbeat.inside("backward", phase=True):
    the_place_where_it_hangs()
"""


@contextmanager
def rank(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {heartbeat.ENV: str(folder / "0.heartbeat")}
    with subprocess.Popen(
        [sys.executable, "-c", RANK, *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "stuck\n"
            yield process
        finally:
            process.kill()


def test_a_rank_that_is_stuck_in_c_shows_its_stacks_and_its_last_collectives_as_often_as_it_is_asked(
    tmp_path: Path,
) -> None:
    with rank(tmp_path) as process:
        assert process.stderr
        for _ in range(2):
            evidence.ask(process.pid, str(tmp_path / "0.heartbeat"))
            said = list(iter(process.stderr.readline, f"{evidence.END}\n"))
            assert any("in the_place_where_it_hangs" in line for line in said), said
            at = said.index("torch has recorded no collective; its own record, newest first:\n")
            assert said[at + 1] == "  21 backward, in step 7\n"
            assert said[at + 8] == "  14 all_gather of 13, in step 7\n"
        assert heartbeat.read(tmp_path / "0.heartbeat").describe() == (
            "step 7, inside backward (collective 21, last issued all_gather of 19)"
        )


def test_where_the_interpreter_itself_is_stuck_the_stacks_come_all_the_same(tmp_path: Path) -> None:
    with rank(tmp_path, "all") as process:
        assert process.stderr
        evidence.ask(process.pid, str(tmp_path / "0.heartbeat"))
        while "in the_place_where_it_hangs" not in (line := process.stderr.readline()):
            assert line, "it ended without a word"


def test_one_that_is_gone_is_asked_in_vain(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    evidence.ask(gone.pid, str(tmp_path / "none"))


def test_both_recorders_of_torch_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """nccl has one of its own, which only a build with nccl knows; what is under way is told from what is
    done."""

    def entry(name: str, number: int, at_s: float, **more: object) -> dict[str, object]:
        return {
            "profiling_name": name,
            "collective_seq_id": number,
            "process_group": ["0", "default_pg"],
            "input_dtypes": ["Float"],
            "input_sizes": [[4]],
            "retired": False,
            "state": "scheduled",
            "time_created_ns": time.time_ns() - int(at_s * 1e9),
        } | more

    def dump(*entries: object) -> object:
        return lambda includeCollectives, onlyActive: json.dumps({"entries": entries}).encode()

    both = {
        "_dump_fr_trace_json": dump(entry("gloo:all_gather", 8, 400, retired=True)),
        "_dump_nccl_trace_json": dump(
            entry("nccl:all_reduce", 9, 301, state="started"),
            entry("nccl:broadcast", 8, 302, state="completed"),
        ),
    }
    monkeypatch.setitem(sys.modules, "torch._C._distributed_c10d", SimpleNamespace(**both))
    assert evidence.recorded() == [
        "collectives by torch's flight recorder, newest first:",
        "  nccl:all_reduce 9 of group 0, Float [[4]]: started, under way for 301 s",
        "  nccl:broadcast 8 of group 0, Float [[4]]: done",
        "  gloo:all_gather 8 of group 0, Float [[4]]: done",
    ]
    monkeypatch.setitem(sys.modules, "torch._C._distributed_c10d", SimpleNamespace())
    assert evidence.recorded() == []
