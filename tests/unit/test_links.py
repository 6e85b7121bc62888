"""Hostfiles with every mistake, how a host is reached, and links to agents that are gone or were never
there."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.launch import nodes
from cluster.launch.hostfile import read_hostfile
from cluster.launch.members import Member, close_all
from cluster.launch.nodes import HostNodes, Link, LocalNodes, NodeLost, Place
from configs import ConfigError

LIMIT_S = 30.0


def written(folder: Path, text: str) -> str:
    (folder / "hosts").write_text(text)
    return str(folder / "hosts")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it was not so in time"
        time.sleep(0.01)


def lost(link: Link) -> str:
    """The sentence with which the link ends."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            link.receive()
        except NodeLost as fault:
            return str(fault)
        time.sleep(0.01)
    raise AssertionError("the link did not end")


def agent(code: str) -> LocalNodes:
    """This machine with another agent."""
    return LocalNodes(1, agent=["-c", code])


def member(code: str, name: str = "localhost") -> Member:
    place = Place(name, "127.0.0.1", 1)
    return Member(place, agent(code).connect(place))


def test_a_hostfile(tmp_path: Path) -> None:
    path = written(
        tmp_path, "# of the cluster\n\nb slots=8\n  a\tslots=2  # the other\n10.0.0.1\nfe80::1 slots=03\n"
    )
    assert list(read_hostfile(path).items()) == [("b", 8), ("a", 2), ("10.0.0.1", 1), ("fe80::1", 3)]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "a\na slots=2\nb slots=x\nc slots=00\n")
    with pytest.raises(ConfigError) as fault:
        read_hostfile(path)
    assert str(fault.value).splitlines() == [
        f"launch.hostfile: {path}, line 2: a is there already",
        f"  {path}, line 3: 'b slots=x' must be NAME slots=RANKS",
        f"  {path}, line 4: 'c slots=00' must be NAME slots=RANKS",
    ]


def test_hostfiles_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch.hostfile: .* lists no host"):
        read_hostfile(written(tmp_path, "# none\n"))
    with pytest.raises(ConfigError, match=r"cannot read .*/none: No such file or directory"):
        read_hostfile(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_hostfile(str(tmp_path))
    (tmp_path / "hosts").write_bytes(b"caf\xe9 slots=2\n")
    with pytest.raises(
        ConfigError,
        match=r"cannot read .*/hosts: not text in UTF-8: line \d+ has byte b'\\xe9'; save it as UTF-8",
    ):
        read_hostfile(str(tmp_path / "hosts"))


def test_how_a_host_is_reached(tmp_path: Path) -> None:
    """The command has {host} in any of its words; the agent starts in the folder that was named."""
    (tmp_path / "there").mkdir()
    reach = tmp_path / "reach"
    reach.write_text('#!/bin/sh\necho "$1" >&2\nshift\nexec "$@"\n')
    reach.chmod(0o755)
    hosts = HostNodes(
        written(tmp_path, "a"),
        f"{reach} 'me@{{host}} -x'",
        directory=str(tmp_path / "there"),
        agent=["-c", "import os; print(os.getcwd()); raise SystemExit(4)"],
    )
    link = hosts.connect(hosts.places()[0])
    found: list[str] = []
    until(lambda: found.extend(link.receive()) or found)
    assert found == [str(tmp_path / "there")]
    assert lost(link) == "a: its agent ended (4): me@a -x"
    link.close()


def test_lines_come_in_order_and_before_the_end() -> None:
    link = agent("print('one'); print('two'); import sys; sys.exit('at last')").connect(
        Place("n", "127.0.0.1", 1)
    )
    found: list[str] = []
    until(lambda: found.extend(link.receive()) or len(found) == 2)
    assert found == ["one", "two"]
    assert lost(link) == "n: its agent ended (1): at last"
    with pytest.raises(NodeLost, match=r"n: its agent ended \(1\): at last"):
        link.send("x")
    link.close()
    link.close()


def test_an_agent_that_is_killed() -> None:
    link = agent("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").connect(
        Place("n", "127.0.0.1", 1)
    )
    assert lost(link) == "n: its agent was killed by SIGSEGV"
    link.close()


def test_an_agent_that_cannot_be_run() -> None:
    missing = HostNodes.__new__(HostNodes)
    missing._remote, missing._directory, missing._agent = "/no/such/command {host}", "/", ["-c", "0"]
    with pytest.raises(NodeLost, match=r"^n: cannot run /no/such/command: No such file or directory$"):
        missing.connect(Place("n", "127.0.0.1", 1))
    with pytest.raises(NodeLost, match=r"^n: cannot run .*python.*: No such file or directory$"):
        LocalNodes(1, directory="/no/such/folder").connect(Place("n", "127.0.0.1", 1))


def test_an_agent_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets time where it may have ranks to end, and hardly any where it has never answered."""
    monkeypatch.setattr(nodes, "_PATIENCE", 2 * LIMIT_S)
    deaf = member("import time; time.sleep(600)")
    start = time.monotonic()
    close_all([deaf])
    assert time.monotonic() - start < LIMIT_S
    assert lost(deaf.link) == "localhost: its agent was killed by SIGKILL"
    monkeypatch.setattr(nodes, "_PATIENCE", 0.2)
    spoke = member('import time; print(\'{"event": "ready"}\', flush=True); time.sleep(600)')
    spoke.await_event("ready", LIMIT_S)
    spoke.link.close()
    assert lost(spoke.link) == "localhost: its agent was killed by SIGKILL"


def test_what_is_no_event_is_passed_over_and_the_rest_kept() -> None:
    one = member(
        'import os\nos.write(1, b\'Welcome \\xff\\n[1]\\n{}\\n{"event": "line", "n": 1}\\n'
        '{"event": "ready"}\\n{"event": "line", "n": 2}\\n\')\ninput()'
    )
    assert one.await_event("ready", LIMIT_S) == {"event": "ready"}
    found: list[dict[str, object]] = []
    until(lambda: found.extend(one.events()) or len(found) == 2)
    assert [event["n"] for event in found] == [1, 2]
    with pytest.raises(NodeLost, match=r"localhost: its agent has not answered for 0.1 s"):
        one.await_event("ready", 0.1)
    with pytest.raises(NodeLost, match=r"localhost: its agent has not answered"):
        one.await_event("ready", LIMIT_S * 10, lambda: True)
    one.link.close()


def test_nothing_of_a_link_is_left_when_this_process_is_killed() -> None:
    """The agent's input ends with it."""
    code = (
        "import os, time\nfrom cluster.launch.nodes import LocalNodes\nnodes = LocalNodes(1)\n"
        "link = nodes.connect(nodes.places()[0])\nprint(link._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
