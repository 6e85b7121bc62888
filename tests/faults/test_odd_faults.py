"""What the supervisor makes of odd faults of ranks and nodes: it runs in this process, the toy's ranks do
not."""

import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import members, supervise
from cluster.launch.config import ClusterConfig
from cluster.launch.nodes import HostNodes, Link, LocalNodes, NodeLost, Nodes, Place
from cluster.launch.supervise import Supervisor
from configs import validate

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
MARK = "DNA_TEST_MARK"  # in the environment of all that a run starts
TOY = str(ROOT / "tests/toy.py")
FORCED = 130  # the exit code where the test's own time limit has ended it
LIMIT_S = 40.0


class ManyNodes(LocalNodes):
    """This machine as several nodes, of which those in ``down`` cannot be reached."""

    def __init__(self, count: int) -> None:
        super().__init__(1)
        self.names, self.down = [f"node{number}" for number in range(count)], set[str]()

    def places(self) -> list[Place]:
        return [Place(name, "127.0.0.1", 1) for name in self.names]

    def connect(self, place: Place) -> Link:
        if place.name in self.down:
            raise NodeLost(f"{place.name}: no route to it")
        return super().connect(place)


class Run:
    """One run in this process: what it said, what is left of it, and what is to be done meanwhile."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], mark: str) -> None:
        self.folder, self._capfd, self._mark, self.said = folder, capfd, mark, ""
        self.supervisor: Supervisor | None = None

    def __call__(
        self,
        *toy: str,
        nodes: Nodes | None = None,
        meanwhile: Callable[[], None] | None = None,
        **config: Any,
    ) -> int:
        """The exit code; FORCED where it does not end by itself. ``meanwhile`` runs beside it."""
        given = {
            "program": [TOY],
            "fit": [TOY],
            "restart_pause_s": 0.05,
            "survivor_s": 1,
            "probe_every_s": 0.2,
            "rejoin_after_s": 0.1,
            "grace_s": 20,
        } | config
        self.supervisor = Supervisor(
            validate(ClusterConfig, given, source="test"), [str(self.folder), *toy], nodes or LocalNodes(2)
        )
        faults: list[BaseException] = []

        def beside() -> None:
            try:
                meanwhile and meanwhile()
            except BaseException as fault:
                faults.append(fault)
                self.interrupt()
                self.interrupt()

        limit, other = (
            threading.Timer(LIMIT_S, lambda: (self.interrupt(), self.interrupt())),
            threading.Thread(target=beside),
        )
        limit.start()
        other.start()
        try:
            return self.supervisor.run()
        finally:
            limit.cancel()
            other.join()
            self.hear()
            assert not faults, f"{faults[0]!r}\n{self.said}"

    def interrupt(self, number: int = signal.SIGINT) -> None:
        nobodys = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
        if signal.getsignal(number) not in nobodys:  # and not this process
            before = self.supervisor and self.supervisor._code
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 5
            while (
                not before and self.supervisor and not self.supervisor._code and time.monotonic() < deadline
            ):
                time.sleep(0.01)

    def hear(self) -> str:
        self.said += self._capfd.readouterr().err
        return self.said

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S - 5
        while not condition():
            assert time.monotonic() < deadline, "it was not so in time"
            time.sleep(0.02)

    def saved(self) -> int:
        path = self.folder / "checkpoint"
        return int(path.read_text()) if path.exists() else 0

    def left(self, what: str = "") -> list[int]:
        """pids of what it has started and that is there still, whose command has ``what`` in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    ours = f"{MARK}={self._mark}" in (entry / "environ").read_text(errors="replace")
                    if ours and what in (entry / "cmdline").read_text(errors="replace").replace("\0", " "):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def rank(self, number: int) -> int:
        (pid,) = [
            pid
            for pid in self.left(TOY)
            if f"RANK={number}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
        ]
        return pid


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run", capfd, mark)
    yield run
    left = run.left()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "processes were left"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{path} {{host}}"


def hostfile(folder: Path, *names: str) -> str:
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in names))
    return str(folder / "hosts")


# ---- ranks


@pytest.mark.parametrize(("what", "how"), [("stop", r"is stopped \(SIGSTOP\)"), ("hang", "hangs")])
def test_of_three_ranks_the_one_that_hangs_is_named(run: Run, what: str, how: str) -> None:
    assert run("steps=12", f"once={what}:2:8", nodes=LocalNodes(3), hang_timeout_s=1) == 0, run.said
    assert re.search(
        rf"supervisor: rank 2 on localhost {how}: step 8, after all_reduce \(collective 9\), no move for "
        r"[12] s; 2 of 3 ranks wait in all_reduce; restarting in 0.05 s from the checkpoint of step 5",
        run.said,
    ), run.said
    assert "world 3 from 5" in run.said


def test_slow_ranks_are_no_hang(run: Run) -> None:
    """One takes a while for a step; one is busy for longer than the time-out, and the others wait for it."""
    assert run("steps=10", "once=slow:0:3,slow:1:4,busy:1:6,busy:0:8", hang_timeout_s=1) == 0, run.said
    assert run.said.count("supervisor: ") == 1, run.said


def test_a_rank_that_hangs_before_it_meets_the_others(run: Run) -> None:
    """Nobody listens where the ranks meet, and the network is whole all the same."""
    with pytest.raises(RuntimeError, match=r"rank 0 on node0 hangs: step 0, before any collective"):
        run("steps=5", "always=hang:0", nodes=ManyNodes(2), start_timeout_s=1, max_faults=1)


def test_a_newer_checkpoint_forgives_earlier_faults(run: Run) -> None:
    assert run("steps=20", "once=kill:1:8,kill:0:13,kill:1:18", max_faults=2) == 0, run.said
    assert re.findall(r"from the checkpoint of step (\d+)", run.said) == ["5", "10", "15"]


def test_faults_without_a_newer_checkpoint_add_up(run: Run) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"^2 faults in a row without a newer checkpoint than that of step 5; the "
        r"last: rank 1 on localhost was killed by signal 9.*step 8\)$",
    ):
        run("steps=20", "once=kill:1:8,kill:0:7", max_faults=2)


def test_ranks_that_stop_again_and_again_by_themselves(run: Run) -> None:
    with pytest.raises(
        RuntimeError, match=r"3 faults in a row .*; the last: the ranks were told to stop, not by the s"
    ):
        run("steps=20", "always=preempt", max_faults=3)
    assert run.said.count("2 ranks on 1 nodes") == 3


@pytest.mark.parametrize(
    ("what", "word"), [("quiet", "no output"), ("missing", "python: can't open file '/x/")]
)
def test_a_node_whose_config_or_files_are_others_is_told_of_and_done_without(
    run: Run, what: str, word: str
) -> None:
    """Ranks other than 0 leave it to that one to say what is wrong with the config, and it finds nothing."""
    assert run("steps=20", f"always={what}:1", nodes=ManyNodes(2)) == 0, run.said
    assert (
        "supervisor: rank 1 on node1 ended with code 2, its config, files or code differ from those "
        "of the others: "
        f"{word}"
    ) in run.said
    assert "supervisor: node1 is left out from now on: 2 faults in a row were on it" in run.said
    assert "world 1 from 0" in run.said


def test_what_a_rank_leaves_behind_does_not_hold_the_run_up(run: Run) -> None:
    """A process in a session of its own keeps the rank's output open."""
    assert run("steps=6", "always=leave:1") == 0, run.said
    (other,) = run.left("sleep")
    os.kill(other, signal.SIGKILL)
    run.until(lambda: not run.left())


# ---- told to stop


def test_a_state_that_could_not_be_saved_is_not_called_saved(run: Run) -> None:
    def stop() -> None:
        run.until(run.saved)
        run.interrupt(signal.SIGTERM)

    assert run("steps=5000", "disk=full", meanwhile=stop) == 75
    assert re.search(
        r"supervisor: told to stop; rank \d on localhost ended with code 1: no space left on the disk "
        r"\(step \d+\): what came after the last checkpoint is lost; the same",
        run.said,
    ), run.said


def test_a_rank_that_dies_while_all_are_to_save_is_not_waited_for(run: Run) -> None:
    def stop() -> None:
        run.until(run.saved)
        run.interrupt(signal.SIGTERM)
        os.kill(run.rank(1), signal.SIGKILL)

    start = time.monotonic()
    assert run("steps=5000", "once=deaf:0:2,deaf:1:2", meanwhile=stop, grace_s=LIMIT_S) == 75, run.said
    assert time.monotonic() - start < LIMIT_S / 2
    assert "told to stop; rank 1 on localhost was killed by signal 9" in run.said


def test_a_second_ctrl_c_ends_it_at_once(run: Run) -> None:
    def stop() -> None:
        run.until(run.saved)
        run.interrupt()
        run.interrupt()

    start = time.monotonic()
    assert run("steps=5000", "once=deaf:0:2,deaf:1:2", meanwhile=stop, grace_s=LIMIT_S) == 130
    assert time.monotonic() - start < LIMIT_S / 2
    assert (
        "supervisor: interrupted; 2 ranks had to be killed: what came after the last checkpoint is lost"
        in run.said
    )


def test_told_to_stop_while_a_node_does_not_answer(run: Run, tmp_path: Path) -> None:
    nodes = HostNodes(hostfile(tmp_path, "a", "b"), script(tmp_path / "reach", "exec sleep 100"))
    start = time.monotonic()
    assert (
        run(
            "steps=5",
            nodes=nodes,
            meanwhile=lambda: (run.until(lambda: len(run.left("sleep")) == 2), run.interrupt(signal.SIGTERM)),
        )
        == 75
    )
    assert time.monotonic() - start < LIMIT_S / 4
    assert "supervisor: told to stop; nothing was running; the same command goes on" in run.said


def test_told_to_stop_before_the_ranks_have_begun(run: Run, tmp_path: Path) -> None:
    """They do not hear SIGTERM yet, and end by it; nothing is lost."""
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")

    def stop() -> None:
        run.until(lambda: run.hear().count("importing") == 2)
        run.interrupt(signal.SIGTERM)

    assert run("steps=5", program=[str(tmp_path / "slow.py")], meanwhile=stop) == 75
    assert "supervisor: told to stop; the state is saved; the same command goes on" in run.said


# ---- nodes


def test_a_node_that_does_not_answer_delays_no_restart(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = script(tmp_path / "reach", '[ "$1" = localhost ] || exec sleep 100\nshift\nexec "$@"')
    nodes = HostNodes(hostfile(tmp_path, "localhost", "127.0.0.1"), remote)
    monkeypatch.setattr(members, "READY_S", 2.0)
    monkeypatch.setattr(supervise, "READY_S", 2 * LIMIT_S)
    start = time.monotonic()
    assert run("steps=20", "pause=0.05", "once=kill:0:18", nodes=nodes) == 0, run.said
    assert time.monotonic() - start < LIMIT_S / 2
    assert run.said.count("left out: 127.0.0.1: its agent has not answered for 2 s") == 2


def test_what_a_remote_shell_says_of_its_own_is_no_event(run: Run, tmp_path: Path) -> None:
    remote = script(
        tmp_path / "reach", "shift\necho Welcome to this host\nprintf '\\377\\n'\necho '[1]'\nexec \"$@\""
    )
    assert run("steps=5", nodes=HostNodes(hostfile(tmp_path, "localhost"), remote)) == 0, run.said


def test_a_node_with_two_faults_on_end_is_left_out_until_it_is_needed(run: Run) -> None:
    nodes = ManyNodes(3)

    def lose() -> None:
        run.until(lambda: "world 2 from" in run.hear())
        run.until(lambda: run.saved() > 10)
        nodes.down.add("node1")
        os.kill(run.rank(1), signal.SIGKILL)

    assert (
        run("steps=150", "once=kill:2:7,kill:2:8", nodes=nodes, min_nodes=2, meanwhile=lose, probe_every_s=60)
        == 0
    )
    assert "supervisor: node2 is left out from now on: 2 faults in a row were on it" in run.said
    assert "node2 is tried again: the others are too few" in run.said
    assert re.findall(r"(\d) ranks on", run.said) == ["3", "3", "2", "2"]
    assert run.said.count("node0 (1), node2 (1)") == 1, run.said


def test_faults_with_a_newer_checkpoint_between_them_leave_no_node_out(run: Run) -> None:
    assert run("steps=16", "once=kill:2:7,kill:2:12", nodes=ManyNodes(3)) == 0
    assert run.said.count("3 ranks on 3 nodes") == 3, run.said


def test_a_node_is_lost_and_another_is_waited_for(run: Run) -> None:
    nodes = ManyNodes(2)
    nodes.down.add("node1")

    def mend() -> None:
        run.until(
            lambda: "1 nodes answer and min_nodes is 2; node1: no route to it; waiting for" in run.hear()
        )
        nodes.down.clear()

    assert run("steps=6", nodes=nodes, min_nodes=2, meanwhile=mend) == 0, run.said
    assert "world 2 from 0" in run.said


@pytest.mark.parametrize("fits", ["0", "9"])
def test_a_number_of_ranks_that_cannot_be(run: Run, fits: str, tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text(f"print({fits})")
    with pytest.raises(RuntimeError, match=f"said that {fits} ranks fit, and there is room for 2"):
        run("steps=5", fit=[str(tmp_path / "fit.py")])


def test_what_fits_cannot_be_found_any_more_while_ranks_run(run: Run, tmp_path: Path) -> None:
    """A node comes back; the run that goes well is left alone."""
    (tmp_path / "fit.py").write_text(
        "import sys\nif sys.argv[2] == '1':\n    print(1)\nelse:\n    sys.exit('no disk')"
    )
    nodes = ManyNodes(2)
    nodes.down.add("node1")

    def back() -> None:
        run.until(run.saved)
        nodes.down.clear()
        run.until(lambda: "did not say how many ranks fit: no disk" in run.hear())

    assert run("steps=100", "pause=0.02", nodes=nodes, fit=[str(tmp_path / "fit.py")], meanwhile=back) == 0, (
        run.said
    )
    assert run.said.count("world 1 from 0") == 1
