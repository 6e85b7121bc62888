"""Hosts on one machine: network namespaces on a bridge, whose links can be cut, slowed and mended.

A host's name is its address, so that ``ip netns exec {host}`` runs a command on it and others reach it by its
name.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Hosts:
    """``names``: addresses of the hosts; ``bridge``: the switch between them."""

    names: list[str]
    bridge: str

    def cut(self, name: str) -> None:
        """Nothing reaches the host any more, nor gets out of it; packets are lost without a word."""
        _ip("link", "set", self.link(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self.link(name), "up")

    def slow(self, name: str, rate: str | None) -> None:
        """What goes to the host passes at ``rate``, such as 2mbit; None ends it."""
        link = self.link(name)
        if rate:
            _run(
                "tc",
                "qdisc",
                "add",
                "dev",
                link,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "32kbit",
                "latency",
                "400ms",
            )
        else:
            _run("tc", "qdisc", "del", "dev", link, "root")

    def link(self, name: str) -> str:
        """The switch's end of the host's cable."""
        return f"{self.bridge}p{self.names.index(name)}"


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """``count`` hosts; the test is skipped where this user may make none."""
    if not shutil.which("ip"):
        pytest.skip("no `ip` here: Debian's iproute2 has it")
    number = os.getpid() % 200 + 1
    bridge = f"dna{os.getpid() % 10_000}"
    made = Hosts([f"10.213.{number}.{host + 1}" for host in range(count)], bridge)
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as fault:
            pytest.skip(f"this user may make no network: {fault.stderr.strip()}")
        _ip("link", "set", bridge, "up")
        _ip("addr", "add", f"10.213.{number}.254/24", "dev", bridge)
        for place, name in enumerate(made.names):
            outer, inner = f"{bridge}p{place}", f"{bridge}n{place}"
            _ip("netns", "add", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", name)
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{name}/24", "dev", inner)
            _ip("-n", name, "link", "set", inner, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for (
            name
        ) in made.names:  # the link first: a namespace lives on while a socket in it has something to send
            _ip("link", "del", made.link(name), check=False)
            _ip("netns", "del", name, check=False)
        _ip("link", "del", bridge, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    _run("ip", *arguments, check=check)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True)
