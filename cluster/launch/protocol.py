"""What the supervisor and the agents send each other: lines of JSON.

Orders, to the agent's stdin: ``start`` (a Start), ``signal`` (number), ``show`` (the ranks print what they
are doing), ``kill``, ``reach`` (address, port), ``here`` (the supervisor is alive).

Events, from its stdout: ``ready`` (host, port), ``reach`` (fault, refused), ``line`` (rank, text), ``exited``
(rank, code), ``states`` (rank -> a RankState), ``fault`` (text).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.process.heartbeat import HeartbeatRecord


@dataclass(frozen=True)
class Start:
    """The ranks that an agent starts.

    ``command``: arguments of Python. ``env``: added to the environment. ``first``, ``local``: the number of
    its first rank, and of its ranks; ``world`` of all. ``address``, ``port``: where the ranks meet.
    ``silence``: after so many seconds without an order the agent ends its ranks and itself; None: never.
    """

    command: list[str]
    env: dict[str, str]
    first: int
    local: int
    world: int
    address: str
    port: int
    silence: float | None = None


@dataclass(frozen=True)
class RankState(HeartbeatRecord):
    """What an agent knows of a rank that runs: its heartbeat, unchanged for ``still_s`` seconds, and whether
    the process is ``stopped`` (SIGSTOP)."""

    still_s: float = 0.0
    stopped: bool = False


States = Mapping[int, RankState]  # by rank
