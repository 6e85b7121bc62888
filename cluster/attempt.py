"""One attempt to run the ranks on given nodes: start, watch, stop; and why it ended, in a sentence."""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from cluster.config import ClusterConfig
from cluster.nodes import Member, NodeLost, Nodes, Place, close_all, reach
from cluster.process import EXIT_OK, EXIT_PREEMPTED, EXIT_USAGE, LOST_PEERS

READY_S = 60.0  # for an agent to start
_PAUSE_S = 0.05
_HERE_S = 5.0  # between words to the agents, so that they know of us
_FORSAKEN_S = 60.0  # without a word of us, an agent on another host ends its ranks
_ASLEEP_S = 1.0  # after which we, and not an agent, were silent: Ctrl-Z, for one
_KILLED_S = 30.0  # for the kernel to end what was killed
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
    members, left_out = [one for one in answers if isinstance(one, Member)], [o for o in answers if isinstance(o, str)]
    # The ranks meet at the first node: one that is cut off itself would leave out all the others.
    best: tuple[list[Member], list[str]] = ([], [])
    for head in members:
        others = [member for member in members if member is not head]
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            faults = list(pool.map(lambda member, head=head: reach(member, head, listens=True, stop=stop), others))
        found = [head, *(member for member, fault in zip(others, faults, strict=True) if fault is None)]
        if len(found) > len(best[0]):
            best = found, [fault for fault in faults if fault]
        if len(found) == len(members):
            break
    close_all(member for member in members if member not in best[0])
    return best[0], left_out + best[1]


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
        silence = None if self._config.launch.kind == "local" else _FORSAKEN_S  # a local agent sees our end at once
        for member in self._members:
            self._tell(member, "start", command=list(command), env=env, first=member.first, local=member.local,
                       world=world, address=head.place.address, port=head.port, silence=silence)  # fmt: skip
        alone, looked, here = False, time.monotonic(), time.monotonic()
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
            if not alone and not set(self._codes.values()) <= _ENDS:
                alone = True  # a rank is missing: no checkpoint can be finished any more
                self._limit(self._config.survivor_s)
            if self._deadline is None and (hang := self._hang()):
                self._cause, self._deadline = hang, 0.0
            if self._deadline is not None and time.monotonic() > self._deadline:
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
        if text.startswith("error:") or not self._words.get(rank, "").startswith("error:"):
            self._words[rank] = text
        if text.startswith("error:"):
            if text in self._said:
                return
            self._said.add(text)
        print(text if rank == 0 else f"[rank {rank}] {text}", file=sys.stderr, flush=True)

    def _hang(self) -> tuple[str, str | None] | None:
        """(what hangs and how, its node), once a rank is stopped, or none has moved, for too long.

        As long as one moves, the others may be waiting for it.
        """
        limits = self._config.start_timeout_s, self._config.hang_timeout_s
        running = {rank: beat for rank, beat in self._beats.items() if rank not in self._codes}
        still = {rank for rank, beat in running.items() if beat["still_s"] > limits[beat["step"] > 0]}
        if not still or (len(still) < len(running) and not any(running[rank]["stopped"] for rank in still)):
            return None
        behind = min(running, key=lambda rank: (not running[rank]["stopped"], running[rank]["collectives"],
                                                running[rank]["inside"], rank))  # fmt: skip
        beat, node = running[behind], self._of[behind].place.name
        alike = {(other["collectives"], other["inside"], other["label"]) for other in running.values()}
        if len(self._members) > 1 and not beat["stopped"] and (cut := self._cut_off()):
            return f"no rank has moved for {beat['still_s']:.0f} s: {'; '.join(cut.values())}", self._cut_node(cut)
        if len(running) > 1 and len(alike) == 1 and beat["inside"] and not beat["stopped"]:
            return (f"all {len(running)} ranks wait in {beat['label']} (collective {beat['collectives']}): step "
                    f"{beat['step']}, no move for {beat['still_s']:.0f} s"), None  # fmt: skip
        where = f"{'inside' if beat['inside'] else 'after'} {beat['label'] or 'nothing'}"
        waiting = Counter(other["label"] for rank, other in running.items() if rank != behind and other["inside"])
        how = "is stopped (SIGSTOP)" if beat["stopped"] else "hangs"
        what = (f"rank {behind} on {node} {how}: step {beat['step']}, {where} (collective {beat['collectives']}), no "
                f"move for {beat['still_s']:.0f} s")  # fmt: skip
        for label, count in waiting.most_common(1):
            what += f"; {count} of {len(running)} ranks wait in {label}"
        return what, node

    def _cut_off(self) -> dict[str, str]:
        """Nodes that do not reach the first one, and why."""
        head, *others = self._members
        with ThreadPoolExecutor(len(others)) as pool:
            faults = list(pool.map(lambda member: reach(member, head, listens=False), others))
        return {member.place.name: fault for fault, member in zip(faults, others, strict=True) if fault}

    def _cut_node(self, cut: Container[str]) -> str:
        """The node to put it down to: the first one, where several others do not reach it, and none does."""
        head, *others = (member.place.name for member in self._members)
        return head if len(others) > 1 and all(name in cut for name in others) else next(n for n in others if n in cut)

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
            self._codes |= {rank: EXIT_PREEMPTED for rank, code in self._codes.items()
                            if code == -signal.SIGTERM and not self._step(rank)}  # fmt: skip
        codes = set(self._codes.values())
        if codes == {EXIT_OK}:
            return Outcome("done", saved=saved)
        if EXIT_USAGE in codes:
            self._tell_of_quiet_usage()
            return Outcome("usage", saved=saved)
        if codes <= _ENDS:
            return Outcome("stopped", saved=saved)
        own = [rank for rank, code in self._codes.items() if rank not in self._killed and code not in _ENDS]
        if told and not own and not self._cause:
            return Outcome("fault", f"{len(self._killed)} ranks had to be killed", saved=saved)
        cause, node = self._cause or self._first_fault(own)
        return Outcome("fault", cause, node, saved)

    def _tell_of_quiet_usage(self) -> None:
        """Ranks leave it to rank 0 to say what is wrong with the config; where that one finds nothing, nobody does."""
        rank = next(rank for rank, code in self._codes.items() if code == EXIT_USAGE)
        if self._codes[0] != EXIT_USAGE and not self._words.get(rank, "").startswith("error:"):
            self._say(f"rank {rank} on {self._of[rank].place.name} ended with code {EXIT_USAGE}, without a word: its "
                      "config or its files are not those of rank 0")  # fmt: skip

    def _step(self, rank: int) -> int:
        return int(self._beats.get(rank, {}).get("step", 0))

    def _first_fault(self, own: Sequence[int]) -> tuple[str, str | None]:
        """What the rank that ended first for a reason of its own says, and its node; ``own``: those that may be it."""
        if not own:
            first = next(iter(self._codes))
            name = self._of[first].place.name
            return f"rank {first} on {name} ended by itself, and others had to be killed", name
        # Not those that lost the others; some libraries end a process for that, by SIGABRT.
        alone = [rank for rank in own if self._codes[rank] != -signal.SIGABRT
                 and not self._words.get(rank, "").startswith(f"error: {LOST_PEERS}")]  # fmt: skip
        by_signal = [rank for rank in alone if self._codes[rank] < 0]
        rank = (by_signal or alone or own)[0]
        code, step, name = self._codes[rank], self._step(rank), self._of[rank].place.name
        if code < 0:
            why = f"was killed by signal {-code}" + ", by hand or for want of memory" * (-code == signal.SIGKILL)
        else:
            why = f"ended with code {code}: {self._words.get(rank, 'without a word').removeprefix('error: ')}"
        return f"rank {rank} on {name} {why} (step {step})", name
