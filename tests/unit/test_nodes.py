"""cluster.launch.nodes: hostfiles, addresses, and what comes over the way to an agent, whole or not."""

import threading
import time
from pathlib import Path

import pytest

from cluster.launch import nodes
from cluster.launch.hostfile import read_hostfile
from cluster.launch.members import Member, close_all, reach
from cluster.launch.nodes import HostNodes, LocalNodes, NodeLost, Place
from configs import ConfigError


class Said:
    """A link that gives what it was made with, one list for each call."""

    def __init__(self, *lines: list[str]) -> None:
        self.lines, self.sent, self.closed = list(lines), list[str](), threading.Event()

    def send(self, line: str) -> None:
        self.sent.append(line)

    def receive(self) -> list[str]:
        return self.lines.pop(0) if self.lines else []

    def close(self) -> None:
        self.closed.set()


PLACE = Place("b", "10.0.0.2", 1)


def test_what_is_no_event_is_passed_over() -> None:
    """Shells greet on stdout; a link that is cut ends within a line."""
    lines = ["Welcome to b!", "", "7", '["event"]', '{"event": "ready", "port": 5}', '{"event": "be']
    member = Member(PLACE, Said(lines))
    assert member.events() == [{"event": "ready", "port": 5}]


def test_events_wait_while_another_is_awaited() -> None:
    member = Member(PLACE, Said(['{"event": "a"}'], ['{"event": "b"}', '{"event": "c"}', '{"event": "d"}']))
    assert member.await_event("c", 5) == {"event": "c"}
    assert [event["event"] for event in member.events()] == ["a", "b", "d"]


def test_an_agent_that_does_not_answer_is_lost_and_what_it_said_is_kept() -> None:
    member = Member(PLACE, Said(['{"event": "line"}']))
    with pytest.raises(NodeLost, match=r"^b: its agent has not answered for 0\.2 s$"):
        member.await_event("ready", 0.2)
    assert member.events() == [{"event": "line"}]


def test_waiting_ends_when_it_is_called_off() -> None:
    begin = time.monotonic()
    with pytest.raises(NodeLost):
        Member(PLACE, Said()).await_event("ready", 60, lambda: time.monotonic() > begin + 0.2)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("fault", "refused", "listens", "told"),
    [
        ("null", "false", True, None),
        ('"x"', "false", False, "b: x"),
        ('"x"', "true", True, "b: x"),  # its agent holds the port: another answers in its place
        (
            '"x"',
            "true",
            False,
            None,
        ),  # the host answers, and the ranks' port is not open: the network is whole
    ],
)
def test_whether_a_node_reaches_the_first(fault: str, refused: str, listens: bool, told: str | None) -> None:
    link = Said([f'{{"event": "reach", "fault": {fault}, "refused": {refused}}}'])
    head = Member(Place("a", "10.0.0.1", 1), Said(), port=7)
    assert reach(Member(PLACE, link), head, listens=listens) == told
    assert link.sent == ['{"do": "reach", "address": "10.0.0.1", "port": 7}']


def test_links_are_closed_side_by_side() -> None:
    """One that is dead is waited for; all of them one after the other would take minutes."""
    meeting = threading.Barrier(5, timeout=30)

    class Slow(Said):
        def close(self) -> None:
            meeting.wait()
            super().close()

    links = [Slow() for _ in range(5)]
    close_all(Member(PLACE, link) for link in links)
    assert all(link.closed.is_set() for link in links)
    close_all([])


@pytest.mark.parametrize(
    "line", ["-oProxyCommand=evil slots=2", "slots=8", "a slots=0", "a slots=", "a slots=2 b"]
)
def test_a_line_of_a_hostfile_that_is_wrong_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"fine slots=8\n{line}\n")
    with pytest.raises(ConfigError) as fault:
        read_hostfile(str(path))
    assert str(fault.value) == f"launch.hostfile: {path}, line 2: {line!r} must be NAME slots=RANKS"


def test_this_host_has_the_address_by_which_it_reaches_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own name is 127.0.1.1 in many an /etc/hosts, where no other host would find the ranks."""
    known = {"self": "127.0.1.1", "other": "192.0.2.7"}
    monkeypatch.setattr(nodes, "_address", known.__getitem__)
    monkeypatch.setattr(nodes, "_own_address", lambda away: f"the address towards {away}")
    path = tmp_path / "hosts"
    path.write_text("self\nother slots=2\n")
    assert HostNodes(str(path), "ssh {host}").places() == [
        Place("self", "the address towards 192.0.2.7", 1),
        Place("other", "192.0.2.7", 2),
    ]
    path.write_text("self\n")
    assert HostNodes(str(path), "ssh {host}").places() == [Place("self", "127.0.1.1", 1)]


def test_the_own_address() -> None:
    assert nodes._own_address("127.0.0.1") == "127.0.0.1"


def test_an_agent_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE", 0.3)
    local = LocalNodes(
        1, agent=("-c", "import os, signal, time; print(os.getpid(), flush=True); time.sleep(600)")
    )
    link = local.connect(local.places()[0])
    while not (lines := link.receive()):
        time.sleep(0.01)
    link.close()
    link.close()
    assert not Path(f"/proc/{int(lines[0])}").exists()


def test_all_lines_of_an_agent_come_before_its_loss() -> None:
    local = LocalNodes(
        1, agent=("-c", "import sys; print('one'); print('two'); sys.exit('no room on the disk')")
    )
    link, lines = local.connect(local.places()[0]), list[str]()
    with pytest.raises(NodeLost, match=r"^localhost: its agent ended \(1\): no room on the disk$"):  # noqa: PT012
        while True:
            lines += link.receive()
            time.sleep(0.01)
    assert lines == ["one", "two"]
    with pytest.raises(NodeLost, match="localhost: its agent ended"):  # noqa: PT012
        while True:  # what goes into a pipe that nobody reads is refused at once
            link.send("late")
    link.close()


def test_where_an_agent_starts(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("b\n")
    hosts = HostNodes(
        str(tmp_path / "hosts"),
        "env X={host}",
        directory=str(tmp_path),
        agent=("-c", "import os; print(os.getcwd(), os.environ['X'])"),
    )
    link = hosts.connect(hosts.places()[0])
    while not (lines := link.receive()):
        time.sleep(0.01)
    assert lines == [f"{tmp_path.resolve()} b"]
    link.close()
