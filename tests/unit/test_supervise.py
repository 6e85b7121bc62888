"""The supervisor with a program that plays the training: what it does and says of each fault; nothing is
left."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import supervise as command
from cluster.launch.config import ClusterConfig
from cluster.launch.hostfile import read_hostfile
from cluster.launch.nodes import HostNodes, LocalNodes, NodeLost
from configs import ConfigError, validate
from tests import signals

ROOT = Path(__file__).parents[2]
MARK = "DNA_TEST_MARK"
TOY = str(ROOT / "tests/toy.py")


class Supervisor:
    def __init__(
        self,
        folder: Path,
        *toy: str,
        cluster: tuple[str, ...] = (),
        config: str = "local",
        reads: bool = True,
    ) -> None:
        """``reads``: whether anybody reads what it says."""
        folder.mkdir(exist_ok=True)
        self.mark, self.lines = uuid.uuid4().hex, []
        command = [
            sys.executable,
            "-m",
            "cluster",
            "train",
            "--config",
            f"configs/cluster/{config}.yaml",
            f"program=[{TOY}]",
            f"fit=[{TOY}]",
            "launch.ranks_per_node=2",
            "restart_pause_s=0.05",
            "survivor_s=1",
            "probe_every_s=0.2",
            "rejoin_after_s=0.1",
            *cluster,
            "--",
            str(folder),
            *toy,
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {MARK: self.mark},
            text=True,
            stderr=subprocess.PIPE,
            preexec_fn=signals.hear,
        )
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait(self) -> int:
        code = self.process.wait(60)
        time.sleep(0.1)
        return code

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def left(self, what: str = "") -> list[int]:
        """pids of what it has started, whose command has ``what`` in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    ours = f"{MARK}={self.mark}" in (entry / "environ").read_text(errors="replace")
                    if ours and what in (entry / "cmdline").read_text(errors="replace").replace("\0", " "):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def start(*toy: str, **more: Any) -> Supervisor:
        made.append(Supervisor(tmp_path / "run", *toy, **more))
        return made[-1]

    yield start
    for each in made:
        for pid in each.left():
            os.kill(pid, signal.SIGKILL)
        each.process.wait()


def test_a_run_ends_and_leaves_nothing(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    run = supervise("steps=12", cluster=("launch.ranks_per_node=4",))
    assert run.wait() == 0, run.said
    assert "supervisor: 4 ranks on 1 nodes: localhost (4)" in run.said
    assert "world 4 from 0" in run.said
    assert (tmp_path / "run/checkpoint").read_text() == "10"
    assert run.left() == []


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("kill", r"rank 1 on localhost was killed by signal 9 \(out of memory, or by hand\) \(step 8\)"),
        ("fail", r"rank 1 on localhost ended with code 1: the data are wrong in row 7 \(step 8\)"),
        (
            "stop",
            r"rank 1 on localhost is stopped \(SIGSTOP\): step 8, after .*; 1 of 2 ranks wait in all_reduce",
        ),
        ("hang", r"rank 1 on localhost hangs: step 8, after all_reduce .*; 1 of 2 ranks wait in all_reduce"),
    ],
)
def test_a_fault_is_named_and_the_run_goes_on_from_its_checkpoint(
    supervise: Callable[..., Supervisor], what: str, sentence: str
) -> None:
    run = supervise("steps=20", f"once={what}:1:8", cluster=("hang_timeout_s=1",))
    assert run.wait() == 0, run.said
    assert re.search(sentence + r".*; restarting in 0.05 s from the checkpoint of step 5", run.said), run.said
    assert "world 2 from 5" in run.said
    assert run.left() == []
    if what in ("stop", "hang"):  # what each does is shown before it is killed
        assert re.search(
            r"supervisor: rank 0, before being killed:\n(\[rank 0\] .*\n)*\[rank 0\]   File .* in any\n",
            run.said,
        ), run.said
        assert re.search(r"\[rank 0\]   10 all_reduce, in step 8\n", run.said), run.said
        other = (
            r"   File .* in befall"
            if what == "hang"
            else " nothing: the process, or its interpreter, is stopped"
        )
        assert re.search(
            rf"supervisor: rank 1, before being killed:\n(\[rank 1\] .*\n)*\[rank 1\]{other}\n", run.said
        ), run.said


@pytest.mark.parametrize("what", ["talk", "write"])
def test_output_that_nobody_reads_holds_nobody_up(
    supervise: Callable[..., Supervisor], tmp_path: Path, what: str
) -> None:
    """As after Ctrl-S; or what reads it is gone, as tee is after a Ctrl-C. The run is told to stop, and
    saves."""
    run = supervise("steps=5000", "once=talk:0:2,talk:1:2", reads=False)
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    if what == "write":
        assert run.process.stderr
        run.process.stderr.close()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75
    assert int((tmp_path / "run/checkpoint").read_text()) >= 5
    assert run.left() == []


def test_a_long_phase_that_advances_is_no_hang_and_one_that_does_not_is(
    supervise: Callable[..., Supervisor],
) -> None:
    """As at the end of a run, where all wait for the upload of a checkpoint, which a thread does piece by
    piece."""
    run = supervise("steps=8", "once=upload:0:7", cluster=("hang_timeout_s=1",))
    assert run.wait() == 0, run.said
    assert run.said.count("supervisor: ") == 1, run.said
    run = supervise("steps=8", "once=upload:0:7,stall:0:8", cluster=("hang_timeout_s=1", "max_faults=1"))
    assert run.wait() == 1
    assert re.search(
        r"rank 0 on localhost hangs: step 8, inside waiting for the checkpoint .*, no move for", run.said
    )


def test_repeated_faults_end_it_with_their_cause(supervise: Callable[..., Supervisor]) -> None:
    run = supervise("steps=20", "always=fail", cluster=("max_faults=3",))
    assert run.wait() == 1
    assert run.said.count("supervisor: 2 ranks") == 3
    assert (
        "error: 3 faults in a row without a newer checkpoint than any from before; the last: rank" in run.said
    )
    assert run.said.rstrip().endswith("ended with code 1: the data are wrong in row 7 (step 0)")


def test_a_wrong_config_ends_it_at_once(supervise: Callable[..., Supervisor]) -> None:
    run = supervise("steps=20", "always=usage")
    assert run.wait() == 2
    assert run.said.count("error: train.lr: missing") == 1  # said by both ranks
    assert run.said.count("supervisor: ") == 1


@pytest.mark.parametrize(
    ("fits", "code", "sentence"),
    [
        ("none", 2, "error: no number fits"),
        ("broken", 1, "did not say how many ranks fit: it ended with code 1"),
    ],
)
def test_the_number_of_ranks_cannot_be_found(
    supervise: Callable[..., Supervisor], fits: str, code: int, sentence: str
) -> None:
    run = supervise("steps=20", f"fits={fits}")
    assert run.wait() == code
    assert sentence in run.said
    assert run.left() == []


def test_the_largest_number_of_ranks_that_fits(supervise: Callable[..., Supervisor]) -> None:
    run = supervise("steps=6", "fits=1,2,4", cluster=("launch.ranks_per_node=3",))
    assert run.wait() == 0
    assert "world 2 from 0" in run.said


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGTERM, 75, "told to stop"),
        (signal.SIGHUP, 75, "told to stop"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_told_to_stop_it_saves_and_the_next_start_goes_on(
    supervise: Callable[..., Supervisor], tmp_path: Path, number: int, code: int, word: str
) -> None:
    run = supervise("steps=500")
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    run.process.send_signal(number)
    assert run.wait() == code
    assert f"supervisor: {word}; the state is saved; the same command goes on" in run.said
    assert run.left() == []
    saved = (tmp_path / "run/checkpoint").read_text()
    again = supervise(f"steps={int(saved) + 3}")
    assert again.wait() == 0
    assert f"world 2 from {saved}" in again.said


def test_a_rank_that_does_not_listen_is_killed(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    run = supervise("steps=5000", "once=deaf:1:2", cluster=("grace_s=1",))
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75
    assert re.search(r"[12] ranks had to be killed: what came after the last checkpoint is lost", run.said), (
        run.said
    )
    assert run.left() == []


def test_nothing_outlives_a_supervisor_or_an_agent_that_is_killed(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    run = supervise("steps=5000")
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    (agent,) = run.left("cluster.launch.agent")
    ranks = set(run.left(TOY)) - {run.process.pid}
    os.kill(agent, signal.SIGKILL)
    run.until(lambda: "localhost: its agent was killed by SIGKILL; restarting" in run.said)
    run.until(lambda: not ranks & set(run.left(TOY)))
    run.until(lambda: len(set(run.left(TOY)) - {run.process.pid}) == 2)
    run.process.kill()
    run.until(lambda: run.left() == [])


def test_told_to_stop_it_does_not_claim_what_could_not_be_saved(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    run = supervise("steps=5000", "disk=full")
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75
    sentence = (
        r"supervisor: told to stop; rank [01] on localhost ended with code 1: no space left on the disk "
        r"\(step \d+\): what came after the last checkpoint is lost; the same command goes on"
    )
    assert re.search(sentence, run.said), run.said
    assert "is saved" not in run.said


def test_ranks_that_always_stop_by_themselves_are_faults(supervise: Callable[..., Supervisor]) -> None:
    """Each of them ends with 75; started anew for ever, they would come to nothing."""
    run = supervise("steps=20", "always=preempt", cluster=("max_faults=3",))
    assert run.wait() == 1
    assert (
        "error: 3 faults in a row without a newer checkpoint than any from before; the last: the ranks were "
        "told to "
        "stop, not by the supervisor, and had nothing new to save" in run.said
    )


def test_ranks_that_nobody_told_to_stop_are_started_anew(supervise: Callable[..., Supervisor]) -> None:
    run = supervise("steps=12", "once=preempt:0:6", cluster=("grace_s=0.3",))
    assert run.wait() == 0, run.said
    assert run.said.count("world 2") == 2


def test_a_node_that_comes_back_is_taken_in(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """Two "hosts" of this machine; one cannot be reached until a file is there."""
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1  # the other\n")
    reach = tmp_path / "reach"
    reach.write_text(
        f'#!/bin/sh\nname=$1; shift; [ "$name" = localhost ] || [ -e {tmp_path}/up ] || '
        '{ echo no route to $name >&2; exit 255; }\nexec "$@"\n'
    )
    reach.chmod(0o755)
    run = supervise(
        "steps=600",
        config="hosts",
        cluster=(
            f"launch.hostfile={tmp_path}/hosts",
            f"launch.remote={reach} {{host}}",
            "launch.ranks_per_node=1",
        ),
    )
    run.until(lambda: "world 1 from 0" in run.said)
    assert "left out: 127.0.0.1: its agent ended (255): no route to 127.0.0.1" in run.said
    run.until(lambda: (tmp_path / "run/checkpoint").exists())
    (tmp_path / "up").touch()
    run.until(lambda: "127.0.0.1 can be used again: saving, then restarting with more ranks" in run.said)
    run.until(lambda: re.search("world 2 from [1-9]", run.said))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75


def test_too_few_nodes(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a\nb slots=2\n")
    run = supervise(
        "steps=6",
        config="hosts",
        cluster=(f"launch.hostfile={tmp_path}/hosts", "launch.remote=false {host}", "wait_for_nodes_s=0.3"),
    )
    assert run.wait() == 1
    assert (
        "error: 0 nodes answer and min_nodes is 1; a: its agent ended (1); b: its agent ended (1)" in run.said
    )


def test_arguments_that_are_missing_or_wrong() -> None:
    def said(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "cluster", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, words = said("train", "--config", "configs/cluster/local.yaml")
    assert (code, "arguments are missing: -- --config" in words) == (2, True)
    code, words = said("train", "--config", "configs/cluster/local.yaml", "max_falts=1", "--", "x")
    assert (code, "max_falts: unknown key, did you mean 'max_faults'?" in words) == (2, True)
    code, words = said("train", "--config", "configs/cluster/local.yaml", "min_nodes=2", "--", "x")
    assert (code, "min_nodes: 2 is more than the 1 of this machine alone" in words) == (2, True)
    assert said("trian")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_stop_while_it_joins_its_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    before = {each: signal.signal(each, lambda *_: pytest.fail("it is not heard")) for each in signals.STOPS}
    monkeypatch.setattr(command, "open_nodes", lambda _: signal.raise_signal(number))
    try:
        assert command.main(["--config", str(ROOT / "configs/cluster/local.yaml"), "--", "x"]) == 75
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "error: told to stop; nothing was running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no host"),
        ("a slots=0", r"line 1: 'a slots=0' must be NAME slots=RANKS"),
        ("a\nb slots=x", "line 2: 'b slots=x' must be"),
        ("a\n# c\na slots=2", "line 3: a is there already"),
    ],
)
def test_hostfiles_that_are_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_hostfile(str(tmp_path / "hosts"))
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file or directory"):
        read_hostfile(str(tmp_path / "nowhere"))


def test_hosts_and_configs(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=3 # one\n\nno.such.host\n")
    assert read_hostfile(str(tmp_path / "hosts")) == {"localhost": 3, "no.such.host": 1}
    nodes = HostNodes(str(tmp_path / "hosts"), "no-such-command {host}")
    assert [(place.address, place.slots) for place in nodes.places()] == [
        ("127.0.0.1", 3),
        ("no.such.host", 1),
    ]
    with pytest.raises(NodeLost, match=r"localhost: cannot run no-such-command: No such file or directory"):
        nodes.connect(nodes.places()[0])
    assert LocalNodes(5).places()[0].slots == 5
    for launch, sentence in (
        ({"kind": "hostfile"}, "hostfile: missing"),
        ({"remote": "ssh host"}, "must name {host}"),
        ({"remote": "ssh '{host}"}, "cannot be split"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            validate(ClusterConfig, {"launch": launch}, source="x")
