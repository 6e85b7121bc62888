"""One attempt to run the ranks on given nodes: start, watch, stop; and how it ended."""

import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.launch import blame
from cluster.launch.blame import Blame
from cluster.launch.config import ClusterConfig
from cluster.launch.members import Member
from cluster.launch.nodes import NodeLost
from cluster.launch.protocol import RankState, Start
from cluster.process.evidence import END
from cluster.process.exits import EXIT_OK, EXIT_PREEMPTED, EXIT_USAGE, error_in

_PAUSE_S = 0.05
_HERE_S = 5.0  # between signs of life to the agents
_SILENCE_S = 60.0  # without any, an agent on another host ends its ranks
_ASLEEP_S = 1.0  # a longer pause means that the supervisor was stopped (Ctrl-Z), not that agents are silent
_KILLED_S = 30.0  # for the kernel to end ranks that were killed
_SHOW_S, _QUIET_S = 10.0, 2.0  # for ranks to show what they are doing: in all, and without a new line
_ENDS = {EXIT_OK, EXIT_PREEMPTED}  # the exit codes of ranks that had no fault
Stop = Literal["", "save", "now"]  # whether ranks go on, save and end, or end without saving


@dataclass(frozen=True)
class Outcome:
    """``kind``: all ranks ended well; the config is wrong; all saved and stopped; or a fault, with its
    ``cause`` and the name of the ``node`` to blame. ``saved``: the step of the newest checkpoint that a rank
    reported."""

    kind: Literal["done", "usage", "stopped", "fault"]
    cause: str = ""
    node: str | None = None
    saved: int = 0


class Attempt:
    """The ranks on ``members``, to which their ranks are assigned."""

    def __init__(self, config: ClusterConfig, members: Sequence[Member], say: Callable[[str], None]) -> None:
        self._config, self._members, self._say = config, list(members), say
        self._ranks = [rank for member in members for rank in member.ranks]
        self._codes: dict[int, int] = {}  # of ranks that have ended, in that order
        self._states: dict[int, RankState] = {}
        self._words: dict[int, str] = {}  # of each rank its last error, or else its last line
        self._printed: set[str] = set()  # errors; what several ranks say is printed once
        self._evidence: dict[int, list[str]] | None = None  # the lines of ranks that show what they are doing
        self._stopping = False  # whether the ranks have been told to save and end
        self._incomplete = False  # whether a rank has failed: no checkpoint can be finished without it
        self._deadline: float | None = None  # after which the ranks that still run are killed
        self._killed: set[int] = set()  # ranks that we have ended
        self._blame: Blame | None = None  # found while the ranks ran
        self._checked = self._signed = 0.0  # when the agents were last listened to, and sent a sign of life

    def run(self, command: Sequence[str], env: dict[str, str], stop: Callable[[], Stop]) -> Outcome:
        """Start the ranks and stay until all have ended; ``stop`` is asked all the time."""
        self._start(command, env)
        while len(self._codes) < len(self._ranks):
            self._listen()
            wish = stop()
            self._pass_on_wish(wish)
            self._limit_survivors()
            self._check_progress()
            self._enforce_deadline(wish)
            time.sleep(_PAUSE_S)
        return self._outcome()

    def _start(self, command: Sequence[str], env: dict[str, str]) -> None:
        head = self._members[0]
        local = self._config.launch.kind == "local"  # such an agent sees the end of the supervisor at once
        for member in self._members:
            start = Start(
                command=list(command),
                env=env,
                first=member.first,
                local=member.local,
                world=len(self._ranks),
                address=head.place.address,
                port=head.port,
                silence=None if local else _SILENCE_S,
            )
            self._order(member, "start", **asdict(start))
        self._checked = self._signed = time.monotonic()
        for member in self._members:  # it had nothing to send until now, however long the start took
            member.heard = self._checked

    def _listen(self) -> None:
        """Take the agents' events, and let them know that the supervisor is alive."""
        now = time.monotonic()
        if now - self._checked > _ASLEEP_S:
            for member in self._members:
                member.heard += now - self._checked
        self._checked = now
        if now - self._signed > _HERE_S:
            self._signed = now
            for member in self._members:
                self._order(member, "here")
        for member in self._members:
            self._take_events(member)

    def _pass_on_wish(self, wish: Stop) -> None:
        if wish and not self._stopping:
            self._stopping = True
            self._limit(self._config.grace_s)
            for member in self._members:
                self._order(member, "signal", number=int(signal.SIGTERM))
        if wish == "now":
            self._deadline = 0.0

    def _limit_survivors(self) -> None:
        """Once a rank has ended other than well, the others have a limited time."""
        codes = set(self._codes.values())
        if codes - {EXIT_OK}:
            self._limit(self._config.grace_s)
        if codes - _ENDS and not self._incomplete and not self._may_agree():
            self._incomplete = True
            self._limit(self._config.survivor_s)

    def _check_progress(self) -> None:
        running = self._running()
        if self._deadline is None and blame.is_hanging(running, self._config):
            self._blame = blame.blame_hang(running, self._members)
            self._show_evidence(blame.rank_behind(running))
            self._deadline = 0.0

    def _enforce_deadline(self, wish: Stop) -> None:
        if self._deadline is None or time.monotonic() <= self._deadline:
            return
        left = set(self._ranks) - set(self._codes)
        if left and self._stopping and wish != "now" and not self._incomplete:  # they have not saved in time
            self._show_evidence(min(left))
        self._kill()

    def _limit(self, seconds: float) -> None:
        """The ranks have ``seconds`` from now, or less if their deadline is earlier."""
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _order(self, member: Member, do: str, **more: Any) -> None:
        try:
            if member.lost is None:
                member.order(do, **more)
        except NodeLost as lost:
            self._lose(member, str(lost))

    def _take_events(self, member: Member) -> None:
        if member.lost is not None:
            return
        try:
            events = member.events()
        except NodeLost as lost:
            self._lose(member, str(lost))
            return
        for event in events:
            if event["event"] == "line":
                self._take_line(event["rank"], event["text"])
            elif event["event"] == "states":
                self._states |= {int(rank): RankState(**state) for rank, state in event["states"].items()}
            elif event["event"] == "exited":
                self._codes[event["rank"]] = event["code"]
            elif event["event"] == "fault":
                self._lose(member, f"{member.place.name}: {event['text']}")
        silent = time.monotonic() - member.heard
        if silent > self._config.hang_timeout_s:
            self._lose(member, f"{member.place.name}: its agent has been silent for {silent:.0f} s")

    def _lose(self, member: Member, why: str) -> None:
        """The node is gone, and its ranks with it: an agent never leaves one behind."""
        member.lost = why
        self._blame = self._blame or Blame(why, member.place.name)
        for rank in member.ranks:
            self._codes.setdefault(rank, -int(signal.SIGKILL))
            self._killed.add(rank)

    def _take_line(self, rank: int, text: str) -> None:
        """Print a line of a rank, but an error that several ranks have only once."""
        if self._evidence is not None:
            self._evidence[rank].append(text)
            return
        error = error_in(text)
        if error is not None or error_in(self._words.get(rank, "")) is None:
            self._words[rank] = text
        if error is not None:
            # Ranks that lose the same peer name different addresses and steps.
            same = "lost peers" if blame.has_lost_peers(text) else text
            if same in self._printed:
                return
            self._printed.add(same)
        _print(text if rank == 0 else f"[rank {rank}] {text}")

    def _running(self) -> dict[int, RankState]:
        return {rank: state for rank, state in self._states.items() if rank not in self._codes}

    def _may_agree(self) -> bool:
        """Whether ranks have ended with a wrong config, and others are still starting and may say the
        same."""
        ended = set(self._codes.values()) - _ENDS
        starting = any(
            self._states.get(rank, RankState()).collectives == 0
            for rank in self._ranks
            if rank not in self._codes
        )
        return ended == {EXIT_USAGE} and starting

    def _show_evidence(self, first: int) -> None:
        """Print the stacks and last collectives of the ranks that run, ``first`` first, and equal ones
        once."""
        running = self._running()
        shown = self._collect_evidence(running)
        alike: dict[str, list[int]] = {}
        for rank in sorted(running, key=lambda rank: (rank != first, rank)):
            # Addresses and ages differ from rank to rank.
            text = re.sub(r"0x[0-9a-f]+|\d+ s$", "", "\n".join(shown[rank]), flags=re.MULTILINE)
            alike.setdefault(text, []).append(rank)
        for ranks in alike.values():
            lines = shown[ranks[0]] or ["nothing: the process, or its interpreter, is stopped"]
            self._say(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}, before being killed:")
            _print("\n".join(f"[rank {ranks[0]}] {line}" for line in lines))

    def _collect_evidence(self, running: dict[int, RankState]) -> dict[int, list[str]]:
        """What each rank prints when it is asked."""
        # A rank answers once it has begun a step or a collective, and not while it is stopped.
        expected = [
            rank for rank, state in running.items() if (state.collectives or state.step) and not state.stopped
        ]
        self._evidence = {rank: [] for rank in self._ranks}
        for member in self._members:
            self._order(member, "show")
        begin = newest = time.monotonic()
        count = 0
        while time.monotonic() - begin < _SHOW_S and time.monotonic() - newest < _QUIET_S:
            for member in self._members:
                self._take_events(member)
            if count != (count := sum(map(len, self._evidence.values()))):
                newest = time.monotonic()
            if all(END in self._evidence[rank] for rank in expected):
                break
            time.sleep(_PAUSE_S)
        shown, self._evidence = self._evidence, None
        return {rank: [line for line in lines if line != END] for rank, lines in shown.items()}

    def _kill(self) -> None:
        running = set(self._ranks) - set(self._codes)
        for member in self._members:
            self._order(member, "kill")
        deadline = time.monotonic() + _KILLED_S
        while len(self._codes) < len(self._ranks) and time.monotonic() < deadline:
            for member in self._members:
                self._take_events(member)
            time.sleep(_PAUSE_S)
        for member in self._members:
            if set(member.ranks) - set(self._codes):
                self._lose(member, f"{member.place.name}: its ranks do not end")
        self._killed |= running

    def _outcome(self) -> Outcome:
        saved = max((state.saved for state in self._states.values()), default=0)
        steps = {rank: self._states.get(rank, RankState()).step for rank in self._ranks}
        if self._stopping:  # a rank that had not begun ends by SIGTERM, and has nothing to save
            for rank, code in self._codes.items():
                if code == -signal.SIGTERM and not steps[rank]:
                    self._codes[rank] = EXIT_PREEMPTED
        codes = set(self._codes.values())
        if codes == {EXIT_OK}:
            return Outcome("done", saved=saved)
        if blame.is_usage(self._codes, self._words):
            return Outcome("usage", saved=saved)
        if codes <= _ENDS:
            return Outcome("stopped", saved=saved)
        own = [rank for rank, code in self._codes.items() if rank not in self._killed and code not in _ENDS]
        if self._stopping and not own and not self._blame:
            return Outcome("fault", f"{len(self._killed)} ranks had to be killed", saved=saved)
        first = self._blame or blame.blame_first(own, self._codes, self._words, steps, self._members)
        return Outcome("fault", first.cause, first.node, saved)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
