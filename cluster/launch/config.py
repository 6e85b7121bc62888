"""The supervisor's config: every key of ``configs/cluster/*.yaml`` that ``python -m cluster train`` reads."""

import shlex
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cluster.process import paths
from configs import Section

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 {host}"


class Launch(Section):
    """How nodes are found, and how an agent is started on each.

    ``kind``: this machine, the hosts of ``hostfile`` (lines of ``NAME slots=RANKS``), or a Ray cluster at
    ``address`` (default: RAY_ADDRESS). ``remote``: the command that runs another one on {host}.
    ``ranks_per_node``: default the slots of the hostfile, or one for each GPU, or 1. ``directory``: the
    repository on the nodes, default the current folder. ``env``: for the ranks; no secrets, since configs are
    logged.
    """

    kind: Literal["local", "hostfile", "ray"] = "local"
    hostfile: str | None = None
    remote: str = _SSH
    address: str | None = None
    ranks_per_node: Positive | None = None
    directory: str | None = None
    env: dict[str, str] = {}

    @field_validator("hostfile")
    @classmethod
    def _expanded(cls, hostfile: str | None) -> str | None:
        return hostfile and paths.expand(hostfile)

    @field_validator("remote")
    @classmethod
    def _names_the_host(cls, remote: str) -> str:
        try:
            words = shlex.split(remote)
        except ValueError as fault:
            raise ValueError(f"cannot be split into words: {fault}") from fault
        if not any("{host}" in word for word in words):
            raise ValueError("must name {host}, such as ssh {host}")
        return remote

    @model_validator(mode="after")
    def _complete(self) -> "Launch":
        if self.kind == "hostfile" and not self.hostfile:
            raise ValueError(
                "hostfile: missing; give the file that lists the hosts, a line of NAME slots=RANKS each"
            )
        return self


class ClusterConfig(Section):
    """``program`` is run by Python on every rank with the command line's arguments; ``fit`` with them and
    ``--at-most N`` prints the largest number of ranks up to N that they allow.

    After a fault the run restarts, ``restart_pause_s`` later (doubled with each fault in a row), on the nodes
    that answer. It waits ``wait_for_nodes_s`` for ``min_nodes`` of them. It ends after ``max_faults`` in a
    row without a newer checkpoint. When a rank has failed, the others have ``survivor_s`` to end; when the
    run is told to stop, all ranks have ``grace_s`` to save. If no rank makes progress for ``hang_timeout_s``
    (``start_timeout_s`` until the end of the first step), they hang. Nodes that are left out are tried every
    ``probe_every_s``, and used again once they have answered for ``rejoin_after_s``.
    """

    launch: Launch = Launch()
    program: tuple[str, ...] = ("trainer/main.py",)
    fit: tuple[str, ...] = ("-m", "trainer.run.world_size")
    min_nodes: Positive = 1
    max_faults: Positive = 5
    restart_pause_s: Seconds = 1.0
    survivor_s: Seconds = 5.0
    grace_s: Seconds = 120.0
    hang_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    wait_for_nodes_s: Seconds = 600.0
    probe_every_s: Annotated[float, Field(gt=0)] = 30.0
    rejoin_after_s: Seconds = 60.0
