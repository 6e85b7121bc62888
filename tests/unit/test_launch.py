"""The training command around the run: what it hands to ``train``, and how it ends."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.process.exits import EXIT_FAILED, EXIT_PREEMPTED, LOST_PEERS
from trainer.core.collectives import Group
from trainer.run import launch as launching
from trainer.run.hooks import Hook
from trainer.run.launch import launch

DEMO = str(Path(__file__).parents[2] / "configs/train/demo.yaml")


class Stub:
    """In place of ``train`` and the process group: what they are called with, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: int | Exception) -> None:
        self.called: list[Any] = []
        self.answer = answer
        monkeypatch.setattr(launching, "train", self.train)
        monkeypatch.setattr(launching, "init_distributed", lambda device: self.called.append(device))
        monkeypatch.setattr(launching, "leave_distributed", lambda together: self.called.append(together))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def train(self, config: Any, **given: Any) -> int:
        self.called.append({"run": config.run.dir, **given})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_run_gets_the_config_and_the_users_hooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub, hooks = Stub(monkeypatch, EXIT_PREEMPTED), [Hook()]
    assert launch(DEMO, [f"run.dir={tmp_path}/run"], hooks=hooks) == EXIT_PREEMPTED
    device, given, together = stub.called
    assert (device, together) == (torch.device("cpu"), True)
    assert given.pop("stops").code == 0
    assert given == {
        "run": f"{tmp_path}/run",
        "device": torch.device("cpu"),
        "group": Group(0, 1),
        "hooks": hooks,
    }


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("[..../gloo/transport/tcp/pair.cc:534] Connection closed by peer", f"error: {LOST_PEERS} in step"),
        ("the disk is full", "error: the disk is full"),
    ],
)
def test_lost_peers_are_told_from_other_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str, sentence: str
) -> None:
    stub = Stub(monkeypatch, RuntimeError(fault))
    assert launch(DEMO, ["run.dir=unused"]) == EXIT_FAILED
    assert stub.called[-1] is False, "this rank does not wait for the others"
    assert capsys.readouterr().err.startswith(sentence)


def test_the_ranks_of_this_host_are_known_by_their_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    own = launching._pids_of_this_host(Group(0, 1))
    assert own == [os.getpid()]

    def gathered(group: Group, process: Any) -> list[Any]:
        elsewhere = launching._Process("another host", 7)
        return [elsewhere, launching._Process(process.host, 8), process]

    monkeypatch.setattr(launching.collectives, "gather_objects", gathered)
    assert launching._pids_of_this_host(Group(0, 1)) == [8, os.getpid()]
