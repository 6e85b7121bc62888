"""One attempt to run the ranks on given nodes: start, watch, stop; and why it ended, in a sentence."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.config import ClusterConfig
from cluster.nodes import Link, NodeLost, Nodes, Place
from cluster.process import EXIT_OK, EXIT_PREEMPTED, EXIT_USAGE, LOST_PEERS

READY_S = 60.0  # for an agent to start
_REACH_S = 10.0
_PAUSE_S = 0.05
_KILLED_S = 30.0  # for the kernel to end what was killed
Stop = Literal["", "save", "now"]  # whether ranks are to go on, to save and end, or to end


@dataclass
class Member:
    """A node with its agent; ``first``, ``local``: its ranks, once there is a world."""

    place: Place
    link: Link
    port: int = 0
    first: int = 0
    local: int = 0
    heard: float = field(default_factory=time.monotonic)
    lost: str | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # events that came while another was waited for

    def events(self) -> list[dict[str, Any]]:
        """What its agent has told since the last call. NodeLost once it is gone."""
        kept, self.kept = self.kept, []
        if kept:
            return kept
        found = [json.loads(line) for line in self.link.receive()]
        if found:
            self.heard = time.monotonic()
        return found

    def order(self, do: str, **more: Any) -> None:
        self.link.send(json.dumps({"do": do, **more}))

    def await_event(self, name: str, seconds: float) -> dict[str, Any]:
        """The next event called ``name``; others are kept for ``events``. NodeLost if it does not come."""
        deadline = time.monotonic() + seconds
        others: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            found = self.events()
            for place, event in enumerate(found):
                if event["event"] == name:
                    self.kept = [*others, *found[:place], *found[place + 1 :]]
                    return event
            others += found
            time.sleep(_PAUSE_S)
        self.kept += others
        raise NodeLost(f"{self.place.name}: its agent has not answered for {seconds:g} s")


def muster(nodes: Nodes, places: Sequence[Place]) -> tuple[list[Member], list[str]]:
    """(nodes whose agents answer and that reach the first of them, why each other is left out)."""

    def connect(place: Place) -> Member | str:
        try:
            member = Member(place, nodes.connect(place))
        except NodeLost as lost:
            return str(lost)
        try:
            member.port = member.await_event("ready", READY_S)["port"]
        except NodeLost as lost:
            member.link.close()
            return str(lost)
        return member

    with ThreadPoolExecutor(max(1, len(places))) as pool:
        answers = list(pool.map(connect, places))
    members, left_out = [one for one in answers if isinstance(one, Member)], [o for o in answers if isinstance(o, str)]
    # The ranks meet at the first node: one that is cut off itself would leave out all the others.
    best: tuple[list[Member], list[str]] = ([], [])
    for head in members:
        others = [member for member in members if member is not head]
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            faults = list(pool.map(lambda member, head=head: reach(member, head), others))
        found = [head, *(member for member, fault in zip(others, faults, strict=True) if fault is None)]
        if len(found) > len(best[0]):
            best = found, [fault for fault in faults if fault]
        if len(found) == len(members):
            break
    for member in members:
        if member not in best[0]:
            member.link.close()
    return best[0], left_out + best[1]


def reach(member: Member, head: Member, port: int | None = None) -> str | None:
    """Why ``member`` cannot be used together with ``head``: it does not reach its port, or does not answer."""
    try:
        member.order("reach", address=head.place.address, port=port or head.port)
        fault = member.await_event("reach", _REACH_S)["fault"]
    except NodeLost as lost:
        return str(lost)
    return f"{member.place.name}: {fault}" if fault else None


@dataclass(frozen=True)
class Outcome:
    """``kind``: all ranks ended well; the config is wrong; all saved and stopped; or a fault, with its ``cause`` and
    the name of the ``node`` that it is put down to. ``saved``: step of the newest checkpoint that a rank told of."""

    kind: Literal["done", "usage", "stopped", "fault"]
    cause: str = ""
    node: str | None = None
    saved: int = 0


class Attempt:
    """``world`` ranks of ``command`` on ``members``, which have been given their ranks."""

    def __init__(self, config: ClusterConfig, members: Sequence[Member], say: Callable[[str], None]) -> None:
        self._config, self._members, self._say = config, list(members), say
        self._of = {rank: member for member in members for rank in range(member.first, member.first + member.local)}
        self._codes: dict[int, int] = {}  # in the order in which they ended
        self._beats: dict[int, dict[str, Any]] = {}
        self._words: dict[int, str] = {}  # of each rank, its last error or else its last line
        self._said: set[str] = set()
        self._deadline: float | None = None
        self._killed: set[int] = set()  # ranks that we have ended
        self._cause: tuple[str, str | None] | None = None  # found by us, while they ran

    def run(self, command: Sequence[str], env: dict[str, str], stop: Callable[[], Stop]) -> Outcome:
        """Start the ranks and stay until all have ended; ``stop`` is asked all the time."""
        head, world, told = self._members[0], len(self._of), False
        for member in self._members:
            self._tell(member, "start", command=list(command), env=env, first=member.first, local=member.local,
                       world=world, address=head.place.address, port=head.port)  # fmt: skip
        while len(self._codes) < world:
            for member in self._members:
                self._hear(member)
            wish = stop()
            if wish and not told:
                told = True
                self._deadline = time.monotonic() + self._config.grace_s
                for member in self._members:
                    self._tell(member, "signal", number=int(signal.SIGTERM))
            if wish == "now":
                self._deadline = 0.0
            if self._deadline is None and any(code != EXIT_OK for code in self._codes.values()):
                patient = all(code in (EXIT_OK, EXIT_PREEMPTED) for code in self._codes.values())
                self._deadline = time.monotonic() + (self._config.grace_s if patient else self._config.survivor_s)
            if self._deadline is None and (hang := self._hang()):
                self._cause, self._deadline = hang, 0.0
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._kill()
            time.sleep(_PAUSE_S)
        return self._outcome(told)

    def _tell(self, member: Member, do: str, **more: Any) -> None:
        try:
            if member.lost is None:
                member.order(do, **more)
        except NodeLost as lost:
            self._lose(member, str(lost))

    def _hear(self, member: Member) -> None:
        if member.lost is not None:
            return
        try:
            events = member.events()
        except NodeLost as lost:
            self._lose(member, str(lost))
            return
        for event in events:
            if event["event"] == "line":
                self._pass_on(event["rank"], event["text"])
            elif event["event"] == "beats":
                self._beats |= {int(rank): beat for rank, beat in event["beats"].items()}
            elif event["event"] == "exited":
                self._codes[event["rank"]] = event["code"]
            elif event["event"] == "fault":
                self._lose(member, f"{member.place.name}: {event['text']}")
        silent = time.monotonic() - member.heard
        if silent > self._config.hang_timeout_s:
            self._lose(member, f"{member.place.name}: its agent has been silent for {silent:.0f} s")

    def _lose(self, member: Member, why: str) -> None:
        """Its ranks have ended with it: the agent never leaves one behind."""
        member.lost = why
        self._cause = self._cause or (why, member.place.name)
        for rank in range(member.first, member.first + member.local):
            self._codes.setdefault(rank, -int(signal.SIGKILL))
            self._killed.add(rank)

    def _pass_on(self, rank: int, text: str) -> None:
        """A line of a rank; what several ranks say of one fault is told once."""
        if text.startswith("error:") or not self._words.get(rank, "").startswith("error:"):
            self._words[rank] = text
        if text.startswith("error:"):
            if text in self._said:
                return
            self._said.add(text)
        print(text if rank == 0 else f"[rank {rank}] {text}", file=sys.stderr, flush=True)

    def _hang(self) -> tuple[str, str | None] | None:
        """(what hangs and how, its node), once a rank has not moved for too long."""
        config = self._config
        still = {rank: beat for rank, beat in self._beats.items() if rank not in self._codes and
                 beat["still_s"] > (config.hang_timeout_s if beat["step"] else config.start_timeout_s)}  # fmt: skip
        if not still:
            return None
        running = {rank: beat for rank, beat in self._beats.items() if rank not in self._codes}
        behind = min(running, key=lambda rank: (not running[rank]["stopped"], running[rank]["collectives"],
                                                running[rank]["inside"], rank))  # fmt: skip
        beat, node = running[behind], self._of[behind].place.name
        alike = {(other["collectives"], other["inside"], other["stopped"]) for other in running.values()}
        cut = self._cut_off() if len(self._members) > 1 and len(alike) == 1 else []
        if cut:
            return f"no rank has moved for {beat['still_s']:.0f} s: {'; '.join(fault for fault, _ in cut)}", cut[0][1]
        where = f"{'inside' if beat['inside'] else 'after'} {beat['label'] or 'nothing'}"
        waiting = Counter(other["label"] for rank, other in running.items() if rank != behind and other["inside"])
        how = "is stopped (SIGSTOP)" if beat["stopped"] else "hangs"
        what = (f"rank {behind} on {node} {how}: step {beat['step']}, {where} (collective {beat['collectives']}), no "
                f"move for {beat['still_s']:.0f} s")  # fmt: skip
        for label, count in waiting.most_common(1):
            what += f"; {count} of {len(running)} ranks wait in {label}"
        return what, node

    def _cut_off(self) -> list[tuple[str, str]]:
        """(fault, name) of the nodes that the first one is out of reach for."""
        head, *others = self._members
        with ThreadPoolExecutor(len(others)) as pool:
            faults = list(pool.map(lambda member: reach(member, head), others))
        return [(fault, member.place.name) for fault, member in zip(faults, others, strict=True) if fault]

    def _kill(self) -> None:
        running = set(self._of) - set(self._codes)
        for member in self._members:
            self._tell(member, "kill")
        deadline = time.monotonic() + _KILLED_S
        while len(self._codes) < len(self._of) and time.monotonic() < deadline:
            for member in self._members:
                self._hear(member)
            time.sleep(_PAUSE_S)
        for member in self._members:
            if set(range(member.first, member.first + member.local)) - set(self._codes):
                self._lose(member, f"{member.place.name}: its ranks do not end")
        self._killed |= running

    def _outcome(self, told: bool) -> Outcome:
        saved = max((beat["saved"] for beat in self._beats.values()), default=0)
        codes = set(self._codes.values())
        if codes == {EXIT_OK}:
            return Outcome("done", saved=saved)
        if EXIT_USAGE in codes:
            return Outcome("usage", saved=saved)
        lost = len(self._killed & set(self._of))
        if told:
            cause = f"{lost} ranks had to be killed: what came after the last checkpoint is lost" if lost else ""
            return Outcome("stopped", cause, saved=saved)
        if codes <= {EXIT_OK, EXIT_PREEMPTED}:
            return Outcome("stopped", saved=saved)
        cause, node = self._cause or self._first_fault()
        return Outcome("fault", cause, node, saved)

    def _first_fault(self) -> tuple[str, str | None]:
        """What the rank that ended first for a reason of its own says, and its node."""
        own = [rank for rank, code in self._codes.items()
               if rank not in self._killed and code not in (EXIT_OK, EXIT_PREEMPTED)]  # fmt: skip
        if not own:
            first = next(iter(self._codes))
            name = self._of[first].place.name
            return f"rank {first} on {name} ended by itself, and others had to be killed", name
        by_signal = [rank for rank in own if self._codes[rank] < 0]
        alone = [rank for rank in own if not self._words.get(rank, "").startswith(f"error: {LOST_PEERS}")]
        rank = (by_signal or alone or own)[0]
        code, step, name = self._codes[rank], self._beats.get(rank, {}).get("step", 0), self._of[rank].place.name
        if code < 0:
            why = f"was killed by signal {-code}" + ", by hand or for want of memory" * (-code == signal.SIGKILL)
        else:
            why = f"ended with code {code}: {self._words.get(rank, 'without a word').removeprefix('error: ')}"
        return f"rank {rank} on {name} {why} (step {step})", name
