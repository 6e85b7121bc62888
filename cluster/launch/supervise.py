"""``python -m cluster train``: runs the training command on all nodes, and starts it anew from its last
checkpoint.

    python -m cluster train --config configs/cluster/local.yaml [key=value ...] -- --config
    configs/train/demo.yaml ...

What stands behind -- goes to the training command. SIGTERM, SIGHUP (exit code 75) and Ctrl-C (130) make the
ranks save and end.
"""

import argparse
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import configs
from cluster.launch.attempt import READY_S, Attempt, Outcome, Stop, muster
from cluster.launch.config import ClusterConfig, Launch
from cluster.launch.nodes import HostNodes, LocalNodes, Member, NodeLost, Nodes, Place, close_all, reach
from cluster.launch.ray_nodes import RayNodes
from cluster.process import console, exits, terminal
from cluster.process.command import exit_code
from cluster.process.signals import stop_signals
from configs import ConfigError

_MOST_PAUSE_S = 60.0
_TWICE = 2  # faults on end that are put down to one node, after which it is left out


class Supervisor:
    """Attempts, one after the other, until the run is done or cannot go on."""

    def __init__(self, config: ClusterConfig, arguments: Sequence[str], nodes: Nodes) -> None:
        self._config, self._arguments, self._nodes = config, list(arguments), nodes
        self._env = config.launch.env | {"DNA_RUN_TOKEN": secrets.token_hex(16)}  # the same for all attempts
        self._code = 0  # to end with, once told to
        self._now = False
        self._grow = False
        self._fitting: dict[int, int] = {}
        self._distrusted: set[str] = set()

    def run(self) -> int:
        """The exit code. ConfigError, RuntimeError: it cannot go on."""
        old = {number: signal.signal(number, self._hear) for number in stop_signals()}
        try:
            return self._attempts()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self._nodes.close()

    def _hear(self, number: int, _: object) -> None:
        self._now = self._code == exits.EXIT_INTERRUPTED and number == signal.SIGINT
        self._code = exits.EXIT_INTERRUPTED if number == signal.SIGINT else exits.EXIT_PREEMPTED
        if number == signal.SIGHUP:
            terminal.silence_lost()

    def _attempts(self) -> int:
        faults, newest, blamed = 0, 0, ""
        while True:
            members, world = self._gather()
            if self._code:
                close_all(members)
                return self._told("nothing was running")
            outcome = self._attempt(members, world)
            if outcome.kind == "done":
                return exits.EXIT_OK
            if outcome.kind == "usage":
                return exits.EXIT_USAGE
            lost = ": what came after the last checkpoint is lost"
            if self._code:
                return self._told(outcome.cause + lost if outcome.cause else "the state is saved")
            progress = outcome.saved > newest
            newest = max(newest, outcome.saved)
            if outcome.kind == "stopped" and (self._grow or progress):
                _say("the ranks have saved and ended; starting anew")
                continue
            cause = (
                outcome.cause
                or "the ranks were told to stop, not by the supervisor, and had nothing new to save"
            )
            faults, blamed = (1, "") if progress else (faults + 1, blamed)
            if faults >= self._config.max_faults:
                since = f"that of step {newest}" if newest else "any from before"
                raise RuntimeError(
                    f"{faults} faults on end without a newer checkpoint than {since}; the last: {cause}"
                )
            if outcome.node and outcome.node == blamed and len(self._trusted()) > self._config.min_nodes:
                self._distrusted.add(outcome.node)
                _say(f"{outcome.node} is left out from now on: {_TWICE} faults on end were its")
            blamed = "" if outcome.node == blamed else outcome.node or ""
            pause = min(_MOST_PAUSE_S, self._config.restart_pause_s * 2 ** min(faults - 1, 16))
            since = f"the checkpoint of step {newest}" if newest else "what was saved before, if anything was"
            _say(f"{cause}; starting anew in {pause:g} s, from {since}")
            self._sleep(pause)

    def _gather(self) -> tuple[list[Member], int]:
        """Nodes with their ranks, and the number of ranks. RuntimeError if there are too few nodes for too
        long."""
        deadline, told = time.monotonic() + self._config.wait_for_nodes_s, False
        while True:
            members, left_out = muster(self._nodes, self._trusted(), stop=lambda: self._code)
            if self._code:
                return members, 0
            if len(members) >= self._config.min_nodes:
                break
            close_all(members)
            if self._distrusted:
                _say(f"{', '.join(sorted(self._distrusted))} is tried again: the others are too few")
                self._distrusted.clear()
                continue
            why = f"{len(members)} nodes answer and min_nodes is {self._config.min_nodes}" + "".join(
                f"; {fault}" for fault in left_out
            )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{why}; waited {self._config.wait_for_nodes_s:g} s")
            if not told:
                _say(f"{why}; waiting for up to {self._config.wait_for_nodes_s:g} s")
                told = True
            self._sleep(min(self._config.probe_every_s, 5.0))
        try:
            world = self._fit(sum(member.place.slots for member in members))
        except BaseException:
            close_all(members)
            raise
        used, first = [], 0
        for member in members:
            member.first, member.local = first, min(member.place.slots, world - first)
            first += member.local
            if member.local:
                used.append(member)
        close_all(member for member in members if not member.local)
        names = ", ".join(f"{member.place.name} ({member.local})" for member in used)
        _say(
            f"{world} ranks on {len(used)} nodes: {names}"
            + "".join(f"; left out: {fault}" for fault in left_out)
        )
        return used, world

    def _attempt(self, members: list[Member], world: int) -> Outcome:
        over = threading.Event()
        looking = threading.Thread(target=self._look_for_more, args=(members, world, over), daemon=True)
        self._grow = False
        looking.start()
        try:
            command = [*self._config.program, *self._arguments]
            return Attempt(self._config, members, _say).run(command, self._env, self._wish)
        finally:
            over.set()
            close_all(members)
            looking.join()

    def _wish(self) -> Stop:
        return "now" if self._now else "save" if self._code or self._grow else ""

    def _look_for_more(self, members: list[Member], world: int, over: threading.Event) -> None:
        """Have the ranks save and start anew, once nodes that were left out have answered for long enough."""
        since: dict[str, float] = {}
        used = {member.place.name for member in members}
        have = sum(member.place.slots for member in members)
        while not over.wait(self._config.probe_every_s):
            back = [place for place in self._trusted() if place.name not in used]
            for place in back:
                if self._answers(place, members[0], over):
                    since.setdefault(place.name, time.monotonic())
                else:
                    since.pop(place.name, None)
            steady = [
                place
                for place in back
                if time.monotonic() - since.get(place.name, time.monotonic()) >= self._config.rejoin_after_s
                and place.name in since
            ]
            if (
                steady
                and not over.is_set()
                and self._room(have + sum(place.slots for place in steady)) > world
            ):
                _say(
                    f"{', '.join(place.name for place in steady)} can be used again: saving, to start anew "
                    f"with more"
                )
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

    def _room(self, at_most: int) -> int:
        """As ``_fit``, while ranks run: what cannot be found out now is no reason to stop them."""
        try:
            return self._fit(at_most)
        except (ConfigError, RuntimeError, OSError) as fault:
            _say(f"not grown: {fault}")
            return 0

    def _fit(self, at_most: int) -> int:
        """The largest number of ranks that the training config allows. ConfigError as the command has it."""
        if at_most not in self._fitting:
            command = [sys.executable, *self._config.fit, "--at-most", str(at_most), *self._arguments]
            launch = self._config.launch  # its directory is on the nodes, which other hosts share or do not
            found = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                cwd=launch.directory if launch.kind == "local" else None,
                start_new_session=True,
            )
            words = found.stderr.strip().removeprefix("error: ")
            if found.returncode == exits.EXIT_USAGE:
                raise ConfigError(words)
            if found.returncode or not found.stdout.strip().isdigit():
                words = words or found.stdout.strip() or f"it ended with code {found.returncode}"
                raise RuntimeError(f"{' '.join(self._config.fit)} did not say how many ranks fit: {words}")
            if not 1 <= int(found.stdout) <= at_most:
                raise RuntimeError(
                    f"{' '.join(self._config.fit)} said that {int(found.stdout)} ranks fit, and there "
                    f"is room for {at_most}"
                )
            self._fitting[at_most] = int(found.stdout)
        return self._fitting[at_most]

    def _told(self, how: str) -> int:
        what = "told to stop" if self._code == exits.EXIT_PREEMPTED else "interrupted"
        _say(f"{what}; {how}; the same command goes on")
        return self._code

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._code:
            time.sleep(0.05)


def open_nodes(launch: Launch) -> Nodes:
    """The nodes that a config names. ConfigError, RuntimeError if they cannot be."""
    if launch.kind == "ray":
        return RayNodes(launch.address, launch.ranks_per_node, directory=launch.directory)
    if launch.kind == "hostfile":
        assert launch.hostfile, "the config has one"
        return HostNodes(
            launch.hostfile, launch.remote, directory=launch.directory, slots=launch.ranks_per_node
        )
    return LocalNodes(launch.ranks_per_node, directory=launch.directory)


def main(arguments: list[str]) -> int:
    own, dashes, rest = (
        (arguments, [], [])
        if "--" not in arguments
        else (arguments[: arguments.index("--")], ["--"], arguments[arguments.index("--") + 1 :])
    )
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
        if not dashes:
            raise ConfigError(
                "the training command's arguments are missing: -- --config configs/train/NAME.yaml ..."
            )
        config = configs.load(ClusterConfig, args.config, args.overrides)
        nodes = open_nodes(config.launch)
        # A Ray cluster may grow; what a file lists, and this machine, do not.
        if config.launch.kind != "ray" and (there := len(nodes.places())) < config.min_nodes:
            where = config.launch.hostfile or "this machine alone"
            raise ConfigError(f"min_nodes: {config.min_nodes} is more than the {there} of {where}")
        return Supervisor(config, rest, nodes).run()

    with console.unblocked():
        return exit_code(
            run, debug=args.debug, resumable=True, interrupted="nothing was running; the same command goes on"
        )


def _say(text: str) -> None:
    print(f"supervisor: {configs.redact(text)}", file=sys.stderr, flush=True)
