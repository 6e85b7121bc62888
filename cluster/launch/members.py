"""Nodes with a running agent: their events, who reaches whom, and all of them connected at once."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.launch.nodes import Link, NodeLost, Nodes, Place

READY_S = 60.0  # for an agent to start
_REACH_S = 10.0
_PAUSE_S = 0.05


@dataclass
class Member:
    """A node with its agent. ``first``, ``local``: the number of its first rank, and of its ranks, once they
    are assigned. ``heard``: when the agent last sent anything. ``lost``: why the agent is gone."""

    place: Place
    link: Link
    port: int = 0
    first: int = 0
    local: int = 0
    heard: float = field(default_factory=time.monotonic)
    lost: str | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # events that came while another was awaited

    @property
    def ranks(self) -> range:
        return range(self.first, self.first + self.local)

    def events(self) -> list[dict[str, Any]]:
        """What its agent has sent since the last call. NodeLost once it is gone."""
        kept, self.kept = self.kept, []
        if kept:
            return kept
        lines = self.link.receive()
        if lines:
            self.heard = time.monotonic()
        found = []
        for line in lines:  # a remote shell may print lines of its own, and a link may break within a line
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if isinstance(event, dict) and "event" in event]

    def order(self, do: str, **more: Any) -> None:
        self.link.send(json.dumps({"do": do, **more}))

    def await_event(self, name: str, seconds: float, stop: Callable[[], object] = bool) -> dict[str, Any]:
        """The next event called ``name``; others are kept for ``events``. NodeLost if it does not come."""
        deadline = time.monotonic() + seconds
        others: list[dict[str, Any]] = []
        while time.monotonic() < deadline and not stop():
            found = self.events()
            for index, event in enumerate(found):
                if event["event"] == name:
                    self.kept = [*others, *found[:index], *found[index + 1 :]]
                    return event
            others += found
            time.sleep(_PAUSE_S)
        self.kept += others
        raise NodeLost(f"{self.place.name}: its agent has not answered for {seconds:g} s")


def reach(member: Member, head: Member, *, listens: bool, stop: Callable[[], object] = bool) -> str | None:
    """Why ``member`` cannot work together with ``head``: it does not reach its port, or does not answer.

    If nothing ``listens`` at that port, a refused connection proves that the network works.
    """
    try:
        member.order("reach", address=head.place.address, port=head.port)
        answer = member.await_event("reach", _REACH_S, stop)
    except NodeLost as lost:
        return str(lost)
    reached = answer["fault"] is None or (answer["refused"] and not listens)
    return None if reached else f"{member.place.name}: {answer['fault']}"


def close_all(members: Iterable[Member]) -> None:
    """End their agents, all at once, and wait for each."""
    links = [member.link for member in members]
    with ThreadPoolExecutor(max(1, len(links))) as pool:
        list(pool.map(lambda link: link.close(), links))


def connect_all(
    nodes: Nodes, places: Sequence[Place], *, stop: Callable[[], object] = bool
) -> tuple[list[Member], list[str]]:
    """(the nodes that can work together, the first as their head; why each of the others is left out)."""
    with ThreadPoolExecutor(max(1, len(places))) as pool:
        answers = list(pool.map(lambda place: _connect(nodes, place, stop), places))
    members = [answer for answer in answers if isinstance(answer, Member)]
    silent = [answer for answer in answers if isinstance(answer, str)]
    # The ranks meet at the head. If the first node is cut off, it would leave out all the others: then the
    # node that most others reach is the head.
    best: tuple[list[Member], list[str]] = ([], [])
    for head in members:
        group, faults = _reached_by(head, members, stop)
        if len(group) > len(best[0]):
            best = group, faults
        if len(group) == len(members):
            break
    close_all(member for member in members if member not in best[0])
    return best[0], silent + best[1]


def _connect(nodes: Nodes, place: Place, stop: Callable[[], object]) -> Member | str:
    """The node with its agent, or why there is none."""
    try:
        member = Member(place, nodes.connect(place))
    except NodeLost as lost:
        return str(lost)
    try:
        member.port = member.await_event("ready", READY_S, stop)["port"]
    except NodeLost as lost:
        member.link.close()
        return str(lost)
    return member


def _reached_by(
    head: Member, members: Sequence[Member], stop: Callable[[], object]
) -> tuple[list[Member], list[str]]:
    """(``head`` and the nodes that reach it, why each of the others does not)."""
    others = [member for member in members if member is not head]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        faults = list(pool.map(lambda member: reach(member, head, listens=True, stop=stop), others))
    group = [head, *(member for member, fault in zip(others, faults, strict=True) if fault is None)]
    return group, [fault for fault in faults if fault]
