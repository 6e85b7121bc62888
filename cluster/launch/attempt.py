"""One attempt to run the ranks on given nodes: start, watch, stop; and how it ended."""

import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from cluster.launch import blame
from cluster.launch.config import ClusterConfig
from cluster.launch.nodes import Member, NodeLost, Nodes, Place, close_all, reach
from cluster.process.evidence import END
from cluster.process.exits import EXIT_OK, EXIT_PREEMPTED, EXIT_USAGE, LOST_PEERS

READY_S = 60.0  # for an agent to start
_PAUSE_S = 0.05
_HERE_S = 5.0  # between words to the agents, so that they know of us
_FORSAKEN_S = 60.0  # without a word of us, an agent on another host ends its ranks
_ASLEEP_S = 1.0  # after which we, and not an agent, were silent: Ctrl-Z, for one
_KILLED_S = 30.0  # for the kernel to end what was killed
_SHOW_S, _QUIET_S = 10.0, 2.0  # for ranks to show what they do: in all, and without a word
_ENDS = {EXIT_OK, EXIT_PREEMPTED}  # of ranks to which nothing happened
Stop = Literal["", "save", "now"]  # whether ranks are to go on, to save and end, or to end


def muster(
    nodes: Nodes, places: Sequence[Place], *, stop: Callable[[], object] = bool
) -> tuple[list[Member], list[str]]:
    """(nodes whose agents answer and that reach the first of them, why each other is left out)."""

    def connect(place: Place) -> Member | str:
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

    with ThreadPoolExecutor(max(1, len(places))) as pool:
        answers = list(pool.map(connect, places))
    members, left_out = (
        [one for one in answers if isinstance(one, Member)],
        [o for o in answers if isinstance(o, str)],
    )
    # The ranks meet at the first node: one that is cut off itself would leave out all the others.
    best: tuple[list[Member], list[str]] = ([], [])
    for head in members:
        others = [member for member in members if member is not head]
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            faults = list(
                pool.map(lambda member, head=head: reach(member, head, listens=True, stop=stop), others)
            )
        found = [head, *(member for member, fault in zip(others, faults, strict=True) if fault is None)]
        if len(found) > len(best[0]):
            best = found, [fault for fault in faults if fault]
        if len(found) == len(members):
            break
    close_all(member for member in members if member not in best[0])
    return best[0], left_out + best[1]


@dataclass(frozen=True)
class Outcome:
    """``kind``: all ranks ended well; the config is wrong; all saved and stopped; or a fault, with its
    ``cause`` and the name of the ``node`` that it is put down to. ``saved``: step of the newest checkpoint
    that a rank told of."""

    kind: Literal["done", "usage", "stopped", "fault"]
    cause: str = ""
    node: str | None = None
    saved: int = 0


class Attempt:
    """``world`` ranks of ``command`` on ``members``, which have been given their ranks."""

    def __init__(self, config: ClusterConfig, members: Sequence[Member], say: Callable[[str], None]) -> None:
        self._config, self._members, self._say = config, list(members), say
        self._of = {
            rank: member for member in members for rank in range(member.first, member.first + member.local)
        }
        self._codes: dict[int, int] = {}  # in the order in which they ended
        self._beats: dict[int, dict[str, Any]] = {}
        self._words: dict[int, str] = {}  # of each rank, its last error or else its last line
        self._said: set[str] = set()
        self._deadline: float | None = None
        self._killed: set[int] = set()  # ranks that we have ended
        self._cause: tuple[str, str | None] | None = None  # found by us, while they ran
        self._shown: dict[int, list[str]] | None = None  # while ranks show what they do: the lines of each

    def run(self, command: Sequence[str], env: dict[str, str], stop: Callable[[], Stop]) -> Outcome:
        """Start the ranks and stay until all have ended; ``stop`` is asked all the time."""
        head, world, told = self._members[0], len(self._of), False
        silence = (
            None if self._config.launch.kind == "local" else _FORSAKEN_S
        )  # a local agent sees our end at once
        for member in self._members:
            self._tell(
                member,
                "start",
                command=list(command),
                env=env,
                first=member.first,
                local=member.local,
                world=world,
                address=head.place.address,
                port=head.port,
                silence=silence,
            )
        alone, looked, here = False, time.monotonic(), time.monotonic()
        for (
            member
        ) in self._members:  # until now it had nothing to tell, however long the number of ranks took
            member.heard = looked
        while len(self._codes) < world:
            now = time.monotonic()
            if now - looked > _ASLEEP_S:
                for member in self._members:
                    member.heard += now - looked
            looked = now
            if now - here > _HERE_S:
                here = now
                for member in self._members:
                    self._tell(member, "here")
            for member in self._members:
                self._hear(member)
            wish = stop()
            if wish and not told:
                told = True
                self._limit(self._config.grace_s)
                for member in self._members:
                    self._tell(member, "signal", number=int(signal.SIGTERM))
            if wish == "now":
                self._deadline = 0.0
            if any(code != EXIT_OK for code in self._codes.values()):
                self._limit(self._config.grace_s)
            if not alone and not set(self._codes.values()) <= _ENDS and not self._may_agree():
                alone = True  # a rank is missing: no checkpoint can be finished any more
                self._limit(self._config.survivor_s)
            if self._deadline is None and blame.still(running := self._running(), self._config):
                cause, node, behind = blame.hanging(running, self._members)
                self._cause = cause, node
                self._show(behind)
                self._deadline = 0.0
            if self._deadline is not None and time.monotonic() > self._deadline:
                left = set(self._of) - set(self._codes)
                if left and told and wish != "now" and not alone:  # they have not saved in time
                    self._show(min(left))
                self._kill()
            time.sleep(_PAUSE_S)
        return self._outcome(told)

    def _limit(self, seconds: float) -> None:
        """The ranks get so long, or what is left of the time that they had."""
        if self._deadline is None or self._deadline > time.monotonic() + seconds:
            self._deadline = time.monotonic() + seconds

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
        if self._shown is not None:
            self._shown[rank].append(text)
            return
        if blame.is_error(text) or not blame.is_error(self._words.get(rank, "")):
            self._words[rank] = text
        if blame.is_error(text):
            # Of those that lose the same peer, each has another address and step.
            once = LOST_PEERS if text.startswith(f"error: {LOST_PEERS}") else text
            if once in self._said:
                return
            self._said.add(once)
        print(text if rank == 0 else f"[rank {rank}] {text}", file=sys.stderr, flush=True)

    def _running(self) -> blame.Beats:
        return {rank: beat for rank, beat in self._beats.items() if rank not in self._codes}

    def _may_agree(self) -> bool:
        """Whether those that have ended call the config wrong, and others have not come so far as to say it,
        too."""
        ended = set(self._codes.values()) - _ENDS
        starting = [
            rank
            for rank in self._of
            if rank not in self._codes and not self._beats.get(rank, {}).get("collectives")
        ]
        return ended == {EXIT_USAGE} and bool(starting)

    def _show(self, first: int) -> None:
        """Have the ranks that run show their stacks and last collectives, ``first`` first; alike ones
        once."""
        running = self._running()
        asked = [rank for rank, beat in running.items() if beat["collectives"] or beat["step"]]
        self._shown = {rank: [] for rank in self._of}
        for member in self._members:
            self._tell(member, "show")
        begin = news = time.monotonic()
        count = 0
        while time.monotonic() - begin < _SHOW_S and time.monotonic() - news < _QUIET_S:
            for member in self._members:
                self._hear(member)
            if count != (count := sum(map(len, self._shown.values()))):
                news = time.monotonic()
            if all(END in self._shown[rank] for rank in asked if not running[rank]["stopped"]):
                break
            time.sleep(_PAUSE_S)
        shown, self._shown, alike = self._shown, None, dict[str, list[int]]()
        for rank in sorted(running, key=lambda rank: (rank != first, rank)):
            text = "\n".join(line for line in shown[rank] if line != END)
            alike.setdefault(re.sub(r"0x[0-9a-f]+|\d+ s$", "", text, flags=re.MULTILINE), []).append(rank)
        for ranks in alike.values():
            names = ", ".join(map(str, ranks))
            lines = [line for line in shown[ranks[0]] if line != END]
            if not lines:
                lines = ["nothing: it is stopped, or the interpreter is"]
            self._say(f"rank{'s' * (len(ranks) > 1)} {names}, before being killed:")
            print("\n".join(f"[rank {ranks[0]}] {line}" for line in lines), file=sys.stderr, flush=True)

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
        if told:  # one that has not begun yet does not hear SIGTERM, and has nothing to save
            self._codes |= {
                rank: EXIT_PREEMPTED
                for rank, code in self._codes.items()
                if code == -signal.SIGTERM and not self._step(rank)
            }
        codes = set(self._codes.values())
        if codes == {EXIT_OK}:
            return Outcome("done", saved=saved)
        if blame.is_usage(self._codes, self._words):
            return Outcome("usage", saved=saved)
        if codes <= _ENDS:
            return Outcome("stopped", saved=saved)
        own = [rank for rank, code in self._codes.items() if rank not in self._killed and code not in _ENDS]
        if told and not own and not self._cause:
            return Outcome("fault", f"{len(self._killed)} ranks had to be killed", saved=saved)
        steps = {rank: self._step(rank) for rank in self._of}
        cause, node = self._cause or blame.first_fault(own, self._codes, self._words, steps, self._members)
        return Outcome("fault", cause, node, saved)

    def _step(self, rank: int) -> int:
        return int(self._beats.get(rank, {}).get("step", 0))
