"""cluster.launch.agent by itself: what it tells of its ranks, and that none of them is left, however it
ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import signals

ROOT = Path(__file__).parents[2]


class Agent:
    """One agent, what it is told and what it tells."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.temporary = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.launch.agent"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(folder)},
            preexec_fn=signals.hear,
        )
        self.ready = self.event("ready")

    def order(self, do: str, **more: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, program: str, *, local: int = 1, silence: float | None = None) -> None:
        self.order(
            "start",
            command=["-c", program],
            env={},
            first=0,
            local=local,
            world=local,
            address="127.0.0.1",
            port=self.ready["port"],
            silence=silence,
        )

    def event(
        self, name: str, condition: Callable[[dict[str, Any]], object] = lambda _: True
    ) -> dict[str, Any]:
        """The next event of this name for which ``condition`` holds."""
        assert self.process.stdout
        while True:
            line = self.process.stdout.readline()
            assert line, f"the agent ended without {name}"
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name and condition(event):
                return event

    def text(self) -> str:
        """The next line of a rank."""
        return str(self.event("line")["text"])


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "tmp")
    yield made
    made.process.kill()
    made.process.wait()


def await_end(*pids: int) -> None:
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, f"{left} are left"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# A rank with a child, as a loader worker is; both say their pid, and neither hears SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
# One that never stops talking.
FLOOD = """
import os
print(os.getpid(), flush=True)
while True:
    print("x" * 1000, flush=True)
"""


def test_ranks_and_what_they_started_end_with_stdin(agent: Agent) -> None:
    agent.start(FAMILY, local=2)
    pids = [int(pid) for _ in range(2) for pid in agent.text().split()]
    assert len(list(agent.temporary.iterdir())) == 1
    assert agent.process.stdin
    agent.process.stdin.close()
    assert agent.process.wait(30) == 0
    await_end(*pids)
    assert list(agent.temporary.iterdir()) == []


def test_ranks_end_with_an_agent_that_is_killed(agent: Agent) -> None:
    agent.start("import os, time; print(os.getpid(), flush=True); time.sleep(600)", local=2)
    pids = [int(agent.text()) for _ in range(2)]
    agent.process.kill()
    await_end(*pids)


def test_a_rank_that_ends_takes_what_it_started_with_it(agent: Agent) -> None:
    agent.start(FAMILY)
    rank, child = (int(pid) for pid in agent.text().split())
    os.kill(rank, signal.SIGKILL)
    assert agent.event("exited") == {"event": "exited", "rank": 0, "code": -9}
    await_end(child)


@pytest.mark.parametrize("program", [FAMILY, FLOOD])
def test_an_agent_that_hears_nothing_ends_its_ranks_though_stdin_stays_open(
    agent: Agent, program: str
) -> None:
    """As behind a network that is cut: nobody reads what it says either, so that saying it blocks."""
    agent.start(program, silence=0.5)
    pids = [int(pid) for pid in agent.text().split()]
    assert agent.process.wait(30) == 1
    await_end(*pids)
    assert list(agent.temporary.iterdir()) == []


def test_an_agent_that_hears_of_its_supervisor_goes_on(agent: Agent) -> None:
    agent.start("import time; time.sleep(600)", silence=1.0)
    begin = time.monotonic()
    while time.monotonic() - begin < 2.0:
        agent.order("here")
        time.sleep(0.1)
    assert agent.process.poll() is None


def test_output_that_is_held_open_does_not_hide_the_end(agent: Agent) -> None:
    """By a process that has left the rank's group, and so lives on."""
    agent.start(
        "import subprocess; child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "raise SystemExit(3)"
    )
    stray = int(agent.text())
    try:
        assert agent.event("exited")["code"] == 3
    finally:
        os.kill(stray, signal.SIGKILL)


def test_lines_are_whole_and_those_without_an_end_come_in_parts(agent: Agent) -> None:
    agent.start(
        "import sys, time; sys.stdout.write('é' * 30_000 + '\\nnext\\r\\n' + 'y' * 200_000); "
        "sys.stdout.flush(); sys.stdin.read(); time.sleep(600)"
    )
    assert agent.text() == "é" * 30_000
    assert agent.text() == "next"
    assert set(agent.text()) == {"y"}, "a bar that is drawn over and over has no line end, for days"


def test_states_tell_what_ranks_do_and_for_how_long_they_did_not(agent: Agent) -> None:
    agent.start(
        "import os, sys; from cluster.process.heartbeat import heartbeat\n"
        "heartbeat.step(7); heartbeat.saved(5)\n"
        "print(os.getpid(), flush=True)\n"
        "with heartbeat.inside('all_reduce'): os.kill(os.getpid(), 19)"
    )
    rank = int(agent.text())
    beat = agent.event("states", lambda event: event["states"]["0"]["stopped"])["states"]["0"]
    assert {key: beat[key] for key in ("step", "saved", "collectives", "inside", "label")} == {
        "step": 7,
        "saved": 5,
        "collectives": 1,
        "inside": True,
        "label": "all_reduce",
    }
    later = agent.event("states", lambda event: event["states"]["0"]["still_s"] > 0.6)["states"]["0"]
    assert later["step"] == 7
    os.kill(rank, signal.SIGCONT)
    assert agent.event("exited")["code"] == 0


def test_what_a_rank_starts_does_not_touch_its_record(agent: Agent) -> None:
    """A record that is made anew under its map would end the rank with SIGBUS, or say that it hangs."""
    agent.start(
        "import subprocess, sys; from cluster.process.heartbeat import heartbeat; heartbeat.step(7)\n"
        "other = 'from cluster.process.heartbeat import heartbeat; heartbeat.step(1)'\n"
        "subprocess.run([sys.executable, '-c', other], check=True)\n"
        "print('done', flush=True)\n"
        "import time; time.sleep(600)"
    )
    assert agent.text() == "done"
    assert agent.event("states")["states"]["0"]["step"] == 7


def test_the_signals_of_the_supervisor_reach_the_ranks_and_not_the_agent(agent: Agent) -> None:
    agent.start(
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)",
        local=2,
    )
    assert [agent.text(), agent.text()] == ["ready", "ready"]
    for number in signals.STOPS:
        agent.process.send_signal(number)
    agent.order("signal", number=int(signal.SIGTERM))
    assert [agent.event("exited")["code"] for _ in range(2)] == [75, 75]


def test_a_port_is_reached_refused_or_out_of_reach(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        agent.order("reach", address="127.0.0.1", port=port)
        assert agent.event("reach") == {"event": "reach", "fault": None, "refused": False}
    agent.order("reach", address="127.0.0.1", port=port)
    refused = agent.event("reach")
    assert (refused["fault"], refused["refused"]) == (
        f"it does not reach 127.0.0.1:{port}: Connection refused",
        True,
    )
    agent.order("reach", address="no-such-host.invalid", port=port)
    nowhere = agent.event("reach")
    assert nowhere["fault"].startswith(f"it does not reach no-such-host.invalid:{port}: ")
    assert nowhere["refused"] is False


def test_the_port_is_held_until_the_ranks_take_it(agent: Agent) -> None:
    with socket.create_connection(("127.0.0.1", agent.ready["port"]), timeout=10):
        pass
    agent.start(
        "import os, socket; socket.create_server(('', int(os.environ['MASTER_PORT']))); "
        "print(os.environ['MASTER_PORT'], flush=True)"
    )
    assert agent.text() == str(agent.ready["port"])


def test_the_environment_of_a_rank(agent: Agent) -> None:
    agent.start(
        "import os; print(*(os.environ[key] for key in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', "
        "'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'GLOO_SOCKET_IFNAME')), flush=True)",
        local=2,
    )
    assert {agent.text(), agent.text()} == {"0 0 2 2 127.0.0.1 lo", "1 1 2 2 127.0.0.1 lo"}
