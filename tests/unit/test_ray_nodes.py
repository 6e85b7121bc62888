"""cluster.launch.ray_nodes: an agent on a node of a local Ray, its lines, and each way in which it is
lost."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.launch import ray_nodes
from cluster.launch.nodes import Link, NodeLost, Place
from cluster.launch.ray_nodes import RayNodes
from cluster.tasks import ray_session
from configs import ConfigError

pytestmark = pytest.mark.usefixtures("local_ray")

TOY = """
import json, os, subprocess, sys
rank = subprocess.Popen(["sleep", "600"], start_new_session=True)  # as ranks are
print(json.dumps({"agent": os.getpid(), "rank": rank.pid}), flush=True)
for line in sys.stdin:
    order, _, rest = line.strip().partition(" ")
    if order == "fail":
        rank.kill()
        print("last words", flush=True)
        sys.exit("no more memory")
    if order == "vanish":
        rank.kill()
        os.kill(os.getpid(), 9)
    print(os.environ.get(rest) if order == "env" else line.strip(), flush=True)
rank.kill()
"""


@pytest.fixture
def toy(tmp_path: Path) -> str:
    """An agent that says its pid and that of a rank, echoes what it is told, and ends the rank when its input
    ends."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return str(path)


@pytest.fixture
def make() -> Iterator[Callable[..., RayNodes]]:
    """RayNodes that are closed at the end, so that the next test has the CPUs."""
    made: list[RayNodes] = []

    def make(**values: object) -> RayNodes:
        made.append(RayNodes(**values))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()


def receive(link: Link, count: int) -> list[str]:
    lines: list[str] = []
    deadline = time.monotonic() + 30
    while len(lines) < count:
        assert time.monotonic() < deadline, f"only {lines}"
        lines += link.receive()
        time.sleep(0.01)
    return lines


def lost(link: Link) -> str:
    """The sentence with which the link is lost."""
    deadline = time.monotonic() + 30
    with pytest.raises(NodeLost) as fault:  # noqa: PT012
        while time.monotonic() < deadline:
            assert link.receive() == []
            time.sleep(0.01)
    return str(fault.value)


def running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def await_end(*pids: int) -> None:
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, f"{left} are left"
        time.sleep(0.02)


def started(link: Link) -> tuple[int, int]:
    pids = json.loads(receive(link, 1)[0])
    return pids["agent"], pids["rank"]


def launcher_of(agent: int) -> int:
    """Ray's worker that runs the agent, with a shell between them."""
    return psutil.Process(agent).parents()[1].pid


def test_places_are_the_nodes_that_are_large_enough(make: Callable[..., RayNodes]) -> None:
    (place,) = make().places()
    assert place.slots == 1
    assert place.address.count(".") == 3
    assert [(found.name, found.slots) for found in make(ranks_per_node=2).places()] == [(place.name, 2)]
    assert make(ranks_per_node=3).places() == []


def shown(
    nodes: RayNodes, patch: pytest.MonkeyPatch, *there: tuple[str, str, int, int]
) -> list[tuple[str, int]]:
    """Name and slots of the places when the cluster has nodes of this id, host, and numbers of CPUs and
    GPUs."""
    patch.setattr(
        ray_nodes.ray,
        "nodes",
        lambda: [
            {
                "Alive": True,
                "NodeID": name * 8,
                "NodeManagerHostname": host,
                "NodeManagerAddress": "10.0.0.1",
                "NodeManagerPort": 1,
                "Resources": {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {}),
            }
            for name, host, cpus, gpus in there
        ],
    )
    return [(place.name, place.slots) for place in nodes.places()]


def test_a_rank_per_gpu_and_no_cpus_once_a_gpu_was_seen(
    make: Callable[..., RayNodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, four = make(), make(ranks_per_node=4)
    with monkeypatch.context() as patch:
        assert shown(nodes, patch, ("a", "head", 0, 0), ("c", "n1", 16, 0)) == [("n1", 1)]
        there = [("a", "head", 16, 0), ("b", "n2", 16, 8), ("c", "n1", 16, 2)]
        assert shown(nodes, patch, *there) == [("n1", 2), ("n2", 8)]
        assert shown(four, patch, *there) == [("n2", 4)]
        assert shown(nodes, patch, ("a", "head", 16, 0)) == [], "a run on GPUs goes on on CPUs"


def test_nodes_of_one_host_have_names_that_stay(
    make: Callable[..., RayNodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make()
    with monkeypatch.context() as patch:
        assert shown(nodes, patch, ("a", "n1", 1, 0)) == [("n1", 1)]
        assert shown(nodes, patch, ("d", "n1", 1, 0)) == [("n1", 1)], "the same host, started anew"
        both = [("n1", 1), ("n1/bbbbbbbb", 1)]
        assert shown(nodes, patch, ("b", "n1", 1, 0), ("d", "n1", 1, 0)) == both
        assert shown(nodes, patch, ("b", "n1", 1, 0)) == both[1:]


def test_lines_go_to_and_fro_in_order_and_close_ends_all(make: Callable[..., RayNodes], toy: str) -> None:
    nodes = make(agent=[toy])
    (place,) = nodes.places()
    link = nodes.connect(place)
    pids = started(link)
    said = [json.dumps({"line": number}) for number in range(50)]
    for line in said:
        link.send(line)
    assert receive(link, len(said)) == said
    link.close()
    link.close()
    await_end(*pids)
    for use in (link.receive, lambda: link.send("late")):
        with pytest.raises(NodeLost, match=f"the link to {place.name} is closed"):
            use()
    again = nodes.connect(place)  # the node is free for the next attempt, in the group that it kept
    pids = started(again)
    nodes.close()
    await_end(*pids)


def test_the_environment_is_the_workers_and_no_argument_holds_a_secret(
    make: Callable[..., RayNodes], toy: str
) -> None:
    nodes = make(agent=[toy])
    link = nodes.connect(nodes.places()[0])
    agent, _ = started(link)
    link.send("env AWS_SECRET_ACCESS_KEY")  # local_ray has it
    (secret,) = receive(link, 1)
    assert secret != "None"
    family = [psutil.Process(agent), *psutil.Process(agent).parents()[:2]]
    assert not any(secret in part for member in family for part in member.cmdline())


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("fail", "exit code 1 (no more memory)"),
        ("vanish", "signal 9"),
    ],
)
def test_an_agent_that_ends_is_lost_after_its_last_line(
    make: Callable[..., RayNodes], toy: str, order: str, sentence: str
) -> None:
    nodes = make(agent=[toy])
    (place,) = nodes.places()
    link = nodes.connect(place)
    started(link)
    link.send(order)
    if order == "fail":
        assert receive(link, 1) == ["last words"]
    assert lost(link).startswith(f"the agent on {place.name} ended: {sentence}")


def test_an_agent_that_cannot_be_imported_says_so(make: Callable[..., RayNodes]) -> None:
    nodes = make(agent=["-m", "cluster.no_such_agent"])
    assert "No module named cluster.no_such_agent" in lost(nodes.connect(nodes.places()[0]))


def test_an_agent_starts_in_the_directory_that_is_named(
    make: Callable[..., RayNodes], tmp_path: Path
) -> None:
    nodes = make(agent=["-c", "import os; print(os.getcwd())"], directory=str(tmp_path))
    assert receive(nodes.connect(nodes.places()[0]), 1) == [str(tmp_path.resolve())]
    nodes.close()
    nodes = make(directory=f"{tmp_path}/none")
    (place,) = nodes.places()
    with pytest.raises(
        NodeLost, match=f"{place.name} did not start its agent: FileNotFoundError: .*{tmp_path}/none"
    ):
        nodes.connect(place)


def test_the_agent_of_the_supervisor_is_ready_and_ends_with_its_link(make: Callable[..., RayNodes]) -> None:
    nodes = make()
    link = nodes.connect(nodes.places()[0])
    ready = json.loads(receive(link, 1)[0])
    assert ready["event"] == "ready"
    held = f"127.0.0.1:{ready['port']}"  # the port that it keeps for the ranks
    assert ray_session.listens(held)
    link.close()
    assert not ray_session.listens(held)


def test_a_launcher_that_is_killed_takes_agent_and_ranks_with_it(
    make: Callable[..., RayNodes], toy: str
) -> None:
    """Ray kills the children of its workers, but not theirs: the agent must live long enough to end its
    rank."""
    nodes = make(agent=[toy])
    (place,) = nodes.places()
    link = nodes.connect(place)
    pids = started(link)
    os.kill(launcher_of(pids[0]), signal.SIGKILL)
    sentence = lost(link)
    assert sentence.startswith(f"{place.name} was lost: ActorDiedError: The actor died unexpectedly")
    assert len(sentence) < 200
    await_end(*pids)


def test_a_launcher_that_ends_by_ray_leaves_its_agent_time(make: Callable[..., RayNodes], toy: str) -> None:
    nodes = make(agent=[toy])
    link = nodes.connect(nodes.places()[0])
    pids = started(link)
    link.kill()  # type: ignore[attr-defined]  # as Ray does when the driver is gone
    lost(link)
    await_end(*pids)


def test_a_launcher_that_is_silent_is_lost(make: Callable[..., RayNodes], toy: str) -> None:
    nodes = make(agent=[toy], answer_seconds=0.8)
    (place,) = nodes.places()
    link = nodes.connect(place)
    pids = started(link)
    time.sleep(1)  # a supervisor that is busy meanwhile is no reason
    assert link.receive() == []
    worker = launcher_of(pids[0])
    os.kill(worker, signal.SIGSTOP)
    try:
        assert lost(link) == f"{place.name} has not answered for 1 s"
    finally:
        os.kill(worker, signal.SIGCONT)
    await_end(*pids)


def test_a_node_whose_resources_are_taken_is_lost(make: Callable[..., RayNodes], toy: str) -> None:
    holder = make(ranks_per_node=2, agent=[toy])
    link = holder.connect(holder.places()[0])
    started(link)
    link.close()  # the group stays for the next attempt
    other = make(agent=[toy], start_seconds=0.3)
    (place,) = other.places()
    with pytest.raises(
        NodeLost, match=f"{place.name} did not give 1 CPU within 0.3 s: another job holds them"
    ):
        other.connect(place)


def test_an_agent_that_is_not_started_in_time_is_lost(
    make: Callable[..., RayNodes], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make(agent=[toy], start_seconds=0)
    (place,) = nodes.places()
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "_CHECK_S", 0)
        with pytest.raises(NodeLost, match=f"{place.name} did not (start its agent|give 1 CPU) within 0 s"):
            nodes.connect(place)
    nodes = make(agent=[toy])
    nodes.places()
    started(nodes.connect(place))  # what was half started is in nobody's way


def test_a_node_that_leaves_while_it_is_waited_for_is_lost(
    make: Callable[..., RayNodes], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = make(agent=[toy])
    (place,) = nodes.places()
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "_CHECK_S", 0)
        patch.setattr(ray_nodes.ray, "nodes", list)
        with pytest.raises(NodeLost, match=f"{place.name} has left the Ray cluster"):
            nodes.connect(place)


def test_a_place_is_not_known_before_it_was_named(make: Callable[..., RayNodes]) -> None:
    with pytest.raises(NodeLost, match="elsewhere is no node of this Ray cluster"):
        make().connect(Place("elsewhere", "10.0.0.1", 1))


def test_without_a_cluster_the_sentence_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes.ray, "is_initialized", lambda: False)
    with pytest.raises(
        ConfigError, match=r"no Ray cluster is named: set RAY_ADDRESS \(ray job submit does\)"
    ):
        RayNodes()


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes.ray, "is_initialized", lambda: False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"cannot join the Ray cluster at {address}: .*refused$"):
            RayNodes(address)
