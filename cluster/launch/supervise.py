"""``python -m cluster train``: runs the training command on all nodes, and restarts it from its last
checkpoint after a fault.

    python -m cluster train --config configs/cluster/local.yaml [key=value ...] -- --config
    configs/train/demo.yaml ...

What follows -- goes to the training command. SIGTERM, SIGHUP (exit code 75) and Ctrl-C (130) make the ranks
save and end.
"""

import argparse
import secrets
import signal
import sys
import threading
import time
from collections.abc import Sequence

import configs
from cluster.launch.attempt import Attempt, Outcome, Stop
from cluster.launch.config import ClusterConfig, Launch
from cluster.launch.members import READY_S, Member, close_all, connect_all, reach
from cluster.launch.nodes import HostNodes, LocalNodes, NodeLost, Nodes, Place
from cluster.launch.ray_nodes import RayNodes
from cluster.launch.world_size import WorldSizes
from cluster.process import console, terminal
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED, EXIT_USAGE
from cluster.process.signals import stop_signals
from configs import ConfigError

_MOST_PAUSE_S = 60.0
_TWICE = 2  # faults in a row with one node to blame, after which it is left out


class Supervisor:
    """Attempts, one after the other, until the run is done or cannot go on."""

    def __init__(self, config: ClusterConfig, arguments: Sequence[str], nodes: Nodes) -> None:
        self._config, self._arguments, self._nodes = config, list(arguments), nodes
        self._env = config.launch.env | {"DNA_RUN_TOKEN": secrets.token_hex(16)}  # the same for all attempts
        self._world_sizes = WorldSizes(config, arguments)
        self._code = 0  # the exit code after a signal
        self._at_once = False  # after a second Ctrl-C: the ranks are not to save
        self._grow = False  # whether the ranks are to save and restart on more nodes
        self._distrusted: set[str] = set()  # names of nodes that are left out

    def run(self) -> int:
        """The exit code. ConfigError, RuntimeError: it cannot go on."""
        old = {number: signal.signal(number, self._handle_signal) for number in stop_signals()}
        try:
            return self._attempts()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self._nodes.close()

    def _handle_signal(self, number: int, _: object) -> None:
        self._at_once = self._code == EXIT_INTERRUPTED and number == signal.SIGINT
        self._code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
        if number == signal.SIGHUP:
            terminal.silence_lost()

    def _attempts(self) -> int:
        faults, newest, blamed = 0, 0, ""
        while True:
            members, world = self._gather_nodes()
            if self._code:
                close_all(members)
                return self._stopped("nothing was running")
            outcome = self._attempt(members, world)
            if outcome.kind == "done":
                return EXIT_OK
            if outcome.kind == "usage":
                return EXIT_USAGE
            if self._code:
                lost = f"{outcome.cause}: what came after the last checkpoint is lost"
                return self._stopped(lost if outcome.cause else "the state is saved")
            progress = outcome.saved > newest
            newest = max(newest, outcome.saved)
            if outcome.kind == "stopped" and (self._grow or progress):
                _say("the ranks have saved and ended; restarting")
                continue
            cause = (
                outcome.cause
                or "the ranks were told to stop, not by the supervisor, and had nothing new to save"
            )
            faults, blamed = (1, "") if progress else (faults + 1, blamed)
            if faults >= self._config.max_faults:
                since = f"that of step {newest}" if newest else "any from before"
                raise RuntimeError(
                    f"{faults} faults in a row without a newer checkpoint than {since}; the last: {cause}"
                )
            blamed = self._distrust(outcome.node or "", blamed)
            pause = min(_MOST_PAUSE_S, self._config.restart_pause_s * 2 ** min(faults - 1, 16))
            since = f"the checkpoint of step {newest}" if newest else "what was saved before, if anything was"
            _say(f"{cause}; restarting in {pause:g} s from {since}")
            self._sleep(pause)

    def _distrust(self, node: str, before: str) -> str:
        """Leave out ``node`` if it is to blame as it was ``before``; returns the node to compare the next
        with."""
        if node and node == before and len(self._trusted()) > self._config.min_nodes:
            self._distrusted.add(node)
            _say(f"{node} is left out from now on: {_TWICE} faults in a row were on it")
        return "" if node == before else node

    def _gather_nodes(self) -> tuple[list[Member], int]:
        """(nodes with their ranks assigned, the number of ranks). RuntimeError if there are too few nodes for
        too long."""
        members, left_out = self._wait_for_nodes()
        if self._code:
            return members, 0
        try:
            world = self._world_sizes.largest(sum(member.place.slots for member in members))
        except BaseException:
            close_all(members)
            raise
        first = 0
        for member in members:
            member.first, member.local = first, min(member.place.slots, world - first)
            first += member.local
        used = [member for member in members if member.local]
        close_all(member for member in members if not member.local)
        names = ", ".join(f"{member.place.name} ({member.local})" for member in used)
        faults = "".join(f"; left out: {fault}" for fault in left_out)
        _say(f"{world} ranks on {len(used)} nodes: {names}{faults}")
        return used, world

    def _wait_for_nodes(self) -> tuple[list[Member], list[str]]:
        """(enough nodes, or any number after a signal; why each of the others is left out)."""
        seconds, said = self._config.wait_for_nodes_s, False
        deadline = time.monotonic() + seconds
        while True:
            members, left_out = connect_all(self._nodes, self._trusted(), stop=lambda: self._code)
            if self._code or len(members) >= self._config.min_nodes:
                return members, left_out
            close_all(members)
            if self._distrusted:
                _say(f"{', '.join(sorted(self._distrusted))} is tried again: the others are too few")
                self._distrusted.clear()
                continue
            why = f"{len(members)} nodes answer and min_nodes is {self._config.min_nodes}"
            why += "".join(f"; {fault}" for fault in left_out)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{why}; waited {seconds:g} s")
            if not said:
                _say(f"{why}; waiting for up to {seconds:g} s")
                said = True
            self._sleep(min(self._config.probe_every_s, 5.0))

    def _attempt(self, members: list[Member], world: int) -> Outcome:
        over = threading.Event()
        watcher = threading.Thread(target=self._watch_for_nodes, args=(members, world, over), daemon=True)
        self._grow = False
        watcher.start()
        try:
            command = [*self._config.program, *self._arguments]
            return Attempt(self._config, members, _say).run(command, self._env, self._wish)
        finally:
            over.set()
            close_all(members)
            watcher.join()

    def _wish(self) -> Stop:
        return "now" if self._at_once else "save" if self._code or self._grow else ""

    def _watch_for_nodes(self, members: list[Member], world: int, over: threading.Event) -> None:
        """Set ``_grow`` once nodes that were left out have answered for long enough and more ranks fit on
        them."""
        since: dict[str, float] = {}  # name -> when the node began to answer without a break
        used = {member.place.name for member in members}
        have = sum(member.place.slots for member in members)
        while not over.wait(self._config.probe_every_s):
            others = [place for place in self._trusted() if place.name not in used]
            for place in others:
                if self._answers(place, members[0], over):
                    since.setdefault(place.name, time.monotonic())
                else:
                    since.pop(place.name, None)
            latest = time.monotonic() - self._config.rejoin_after_s
            steady = [place for place in others if since.get(place.name, latest + 1) <= latest]
            room = have + sum(place.slots for place in steady)
            if steady and not over.is_set() and self._fitting(room) > world:
                names = ", ".join(place.name for place in steady)
                _say(f"{names} can be used again: saving, then restarting with more ranks")
                self._grow = True
                return

    def _answers(self, place: Place, head: Member, over: threading.Event) -> bool:
        try:
            member = Member(place, self._nodes.connect(place))
        except NodeLost:
            return False
        try:
            member.await_event("ready", READY_S, over.is_set)
            return reach(member, head, listens=False, stop=over.is_set) is None
        except NodeLost:
            return False
        finally:
            member.link.close()

    def _trusted(self) -> list[Place]:
        return [place for place in self._nodes.places() if place.name not in self._distrusted]

    def _fitting(self, room: int) -> int:
        """The largest number of ranks in ``room`` places; 0 if that cannot be found out now, which is no
        reason to stop the ranks that run."""
        try:
            return self._world_sizes.largest(room)
        except (ConfigError, RuntimeError, OSError) as fault:
            _say(f"not grown: {fault}")
            return 0

    def _stopped(self, how: str) -> int:
        what = "told to stop" if self._code == EXIT_PREEMPTED else "interrupted"
        _say(f"{what}; {how}; the same command goes on")
        return self._code

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._code:
            time.sleep(0.05)


def open_nodes(launch: Launch) -> Nodes:
    """The nodes that a config names. ConfigError, RuntimeError if they cannot be used."""
    if launch.kind == "ray":
        return RayNodes(launch.address, launch.ranks_per_node, directory=launch.directory)
    if launch.kind == "hostfile":
        assert launch.hostfile, "the config requires it"
        return HostNodes(
            launch.hostfile, launch.remote, directory=launch.directory, slots=launch.ranks_per_node
        )
    return LocalNodes(launch.ranks_per_node, directory=launch.directory)


def main(arguments: list[str]) -> int:
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    own, training = arguments[:dashes], arguments[dashes + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m cluster train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file, see configs/cluster/")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of this config, dotted keys"
    )
    args = parser.parse_args(own)

    def run() -> int:
        if dashes == len(arguments):
            raise ConfigError(
                "the training command's arguments are missing: -- --config configs/train/NAME.yaml ..."
            )
        config = configs.load(ClusterConfig, args.config, args.overrides)
        nodes = open_nodes(config.launch)
        # A Ray cluster may grow; the hosts of a file, and this machine, do not.
        if config.launch.kind != "ray" and (there := len(nodes.places())) < config.min_nodes:
            where = config.launch.hostfile or "this machine alone"
            raise ConfigError(f"min_nodes: {config.min_nodes} is more than the {there} of {where}")
        return Supervisor(config, training, nodes).run()

    with console.unblocked():
        return exit_code(
            run, debug=args.debug, resumable=True, interrupted="nothing was running; the same command goes on"
        )


def _say(text: str) -> None:
    print(f"supervisor: {configs.redact(text)}", file=sys.stderr, flush=True)
