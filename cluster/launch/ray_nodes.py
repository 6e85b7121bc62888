"""The nodes of a Ray cluster for the supervisor: an actor on each runs the node's agent, without ssh or a
port.

Each node has a placement group of its own, with one bundle that Ray's node id pins to it and that holds all
resources of its ranks. One group over all nodes (STRICT_SPREAD) would be ready only while every node is, and
Ray would move the bundle of a dead node to another one. With a group for each node, the run can go on with
the nodes that remain. A group stays as long as its node, so that nobody else takes the GPUs between two
attempts. The actor is new for each attempt.
"""

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.launch.nodes import AGENT, Link, NodeLost, Place
from cluster.launch.ray_launcher import PATIENCE_S, Launcher
from cluster.process.exits import brief
from cluster.tasks import ray_session
from configs import ConfigError

_POLL_S = 2.0  # the most that a launcher waits for a line before it returns none
_CHECK_S = 1.0  # between checks that a node which is awaited is still there


class RayNodes:
    """Nodes of the Ray cluster at ``address``, else of RAY_ADDRESS, else of the session this process is in.

    A node has room for ``ranks_per_node`` ranks (default: one for each of its GPUs) and takes part if it has
    as many GPUs. As long as no node with a GPU has been seen, ranks take CPUs instead, and the default is 1.
    ``agent``: the arguments of Python, which runs in ``directory`` (default: the folder of Ray's workers)
    with the environment of the workers. Secrets are in that environment and in no argument. A node may take
    ``start_seconds`` to give its resources and start the agent, and be silent for ``answer_seconds``.

    Raises:
        ConfigError: no cluster is named.
        RuntimeError: the cluster does not answer.
    """

    def __init__(
        self,
        address: str | None = None,
        ranks_per_node: int | None = None,
        *,
        directory: str | None = None,
        agent: Sequence[str] = AGENT,
        start_seconds: float = 60,
        answer_seconds: float = 30,
    ) -> None:
        if not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()):
            raise ConfigError(
                "no Ray cluster is named: set RAY_ADDRESS (ray job submit does), or the config's address"
            )
        self._ranks_per_node, self._agent, self._directory = ranks_per_node, list(agent), directory
        self._start_seconds, self._answer_seconds = start_seconds, answer_seconds
        self._kind = "CPU"  # the resource of a rank; GPU once a node with one is seen
        self._ids: dict[str, str] = {}  # name -> Ray's id of the node that has the name, or had it last
        self._groups: dict[str, PlacementGroup] = {}  # by Ray's id of the node
        self._links: list[_RayLink] = []
        self._joined = contextlib.ExitStack()
        self._joined.enter_context(ray_session.join(address))

    def places(self) -> list[Place]:
        """Nodes that are alive and large enough, sorted by name."""
        self._links = [link for link in self._links if link.doubtful or not link.stopping]
        alive = self._alive()
        if any(node["Resources"].get("GPU") for node in alive):
            self._kind = "GPU"
        by_id, found = {node["NodeID"]: node for node in alive}, []
        for node in alive:
            room = int(node["Resources"].get(self._kind, 0))
            slots = self._ranks_per_node or (room if self._kind == "GPU" else 1)
            if 1 <= slots <= room:
                found.append(Place(self._name(node, by_id), node["NodeManagerAddress"], slots))
        for dead in self._groups.keys() - by_id.keys():
            with contextlib.suppress(RayError):
                remove_placement_group(self._groups.pop(dead))
        return sorted(found, key=lambda place: place.name)

    def _name(self, node: dict[str, Any], alive: Collection[str]) -> str:
        """The node's host, with a part of its id if another live node has that name. A node keeps its
        name."""
        host, mine = node["NodeManagerHostname"], node["NodeID"]
        other = f"{host}/{mine[:8]}" if self._ids.get(host) in alive else host
        name = next((name for name, holder in self._ids.items() if holder == mine), other)
        self._ids[name] = mine
        return name

    def _alive(self) -> list[dict[str, Any]]:
        """Ray's live nodes. Ray takes 10 s or more to notice a dead one, so nodes with a lost launcher are
        probed."""
        doubtful = {link.node for link in self._links if link.doubtful}
        return [
            node
            for node in ray.nodes()
            if node["Alive"]
            and (
                node["NodeID"] not in doubtful
                or ray_session.listens(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", seconds=2)
            )
        ]

    def connect(self, place: Place) -> Link:
        """A new agent on ``place``. Thread-safe: many nodes may be connected at once.

        Raises:
            NodeLost: its resources are taken, or it does not start the agent.
        """
        name, node = place.name, self._ids.get(place.name)
        if node is None:
            raise NodeLost(f"{name} is no node of this Ray cluster")
        deadline = time.monotonic() + self._start_seconds
        link: _RayLink | None = None
        within = f"within {self._start_seconds:g} s"
        try:
            group = self._group(node, place.slots)
            while not group.wait(timeout_seconds=_CHECK_S):
                what = f"{place.slots} {self._kind}{'s' * (place.slots > 1)}"
                self._check(place, node, deadline, f"did not give {what} {within}: another job holds them")
            launcher: Any = ray.remote(**self._options(group, place.slots))(Launcher)
            link = _RayLink(name, node, launcher.remote(self._agent, self._directory), self._answer_seconds)
            started = link.start()
            while not ray.wait([started], timeout=_CHECK_S)[0]:
                self._check(place, node, deadline, f"did not start its agent {within}")
            ray.get(started)
        except (RayError, NodeLost) as fault:
            if link:
                link.kill()
            if isinstance(fault, RayError):
                raise NodeLost(f"{name} did not start its agent: {_reason(fault)}") from fault
            raise
        self._links.append(link)
        return link

    def _options(self, group: PlacementGroup, slots: int) -> dict[str, Any]:
        gpus = self._kind == "GPU"
        return {
            "num_cpus": 0 if gpus else slots,
            "num_gpus": slots if gpus else 0,
            "max_restarts": 0,
            "concurrency_groups": {"read": 1, "write": 1},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        }

    def _check(self, place: Place, node: str, deadline: float, late: str) -> None:
        if node not in {other["NodeID"] for other in self._alive()}:
            raise NodeLost(f"{place.name} has left the Ray cluster")
        if time.monotonic() > deadline:
            raise NodeLost(f"{place.name} {late}")

    def close(self) -> None:
        """End the agents, give the resources back, and leave the cluster. May be called twice."""
        for link in self._links:
            link.end()
        for link in self._links:
            link.close()
        with contextlib.suppress(RayError):
            for group in self._groups.values():
                remove_placement_group(group)
        self._links, self._groups = [], {}
        self._joined.close()

    def _group(self, node: str, slots: int) -> PlacementGroup:
        if node not in self._groups:
            self._groups[node] = placement_group(
                [{self._kind: slots}],
                strategy="STRICT_PACK",
                bundle_label_selector=[{"ray.io/node-id": node}],
            )
        return self._groups[node]


class _RayLink:
    """The connection to one launcher."""

    def __init__(self, name: str, node: str, actor: Any, answer_seconds: float) -> None:
        self.node = node  # Ray's id of it
        self.doubtful = False  # whether the launcher, and not only its agent, was lost
        self._name, self._actor, self._answer_seconds = name, actor, answer_seconds
        self._poll: Any = None  # the pending answer, requested at self._since
        self._since = 0.0
        self._lost = ""  # why the agent is gone
        self.stopping: Any = None

    def start(self) -> Any:
        """Start the agent; the answer to wait for."""
        return self._actor.start.remote()

    def send(self, line: str) -> None:
        if self._lost:
            raise NodeLost(self._lost)
        self._actor.write.remote(line)  # receive() reports it if the line does not arrive

    def receive(self) -> list[str]:
        if self._lost:
            raise NodeLost(self._lost)
        if self._poll is None:
            self._ask()
        if not ray.wait([self._poll], timeout=0)[0]:
            if (silent := time.monotonic() - self._since) > self._answer_seconds:
                self.doubtful = True
                self.kill()
                raise self._lose(f"{self._name} has not answered for {silent:.0f} s")
            return []
        try:
            lines, ended = ray.get(self._poll)
        except RayError as fault:
            self.doubtful = True
            raise self._lose(f"{self._name} was lost: {_reason(fault)}") from fault
        if not ended:
            self._ask()
        elif not lines:
            raise self._lose(f"the agent on {self._name} ended: {ended}")
        else:
            self._lost = f"the agent on {self._name} ended: {ended}"
        return lines

    def end(self) -> None:
        """Close without waiting."""
        if self.stopping is None:
            self.stopping = self._actor.stop.remote()
            self._lost = self._lost or f"the link to {self._name} is closed"

    def close(self) -> None:
        self.end()
        if not self.doubtful:  # otherwise nothing answers
            with contextlib.suppress(RayError):
                ray.get(self.stopping, timeout=2 * PATIENCE_S)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._actor)

    def _ask(self) -> None:
        self._since, self._poll = (
            time.monotonic(),
            self._actor.read.remote(min(_POLL_S, self._answer_seconds / 4)),
        )

    def _lose(self, why: str) -> NodeLost:
        self._lost = why
        return NodeLost(why)


def _reason(fault: RayError) -> str:
    """The first sentence of Ray's message, which may have pages."""
    cause = fault.cause if isinstance(fault, RayTaskError) else fault
    if isinstance(cause, ActorUnavailableError):  # its message has connections and ids only
        return "Ray does not reach its worker there any more"
    return f"{type(cause).__name__}: {brief(' '.join(str(cause).split()).partition('. ')[0])}"
