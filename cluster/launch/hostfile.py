"""A hostfile: the hosts, and how many ranks each takes. Nothing in it is ignored silently."""

import ipaddress
import re
from pathlib import Path

from configs import ConfigError
from configs.values import decode

# ASCII only: other digits and letters look the same and name other hosts.
_LINE = re.compile(r"(?P<name>[^ \t]+)([ \t]+slots=(?P<slots>[0-9]{1,6}))?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # not an option of the remote command
_COMMENT = re.compile(r"(^|[ \t])#.*")


def read_hostfile(path: str) -> dict[str, int]:
    """Host -> ranks, in the order of the file: DeepSpeed's format, ``NAME slots=RANKS`` (1 without it).

    # begins a comment, at the start of a line or after a blank.

    Raises:
        ConfigError: the file cannot be read; or each line that is wrong, also a host that is there twice.
    """
    try:
        text = decode(Path(path).read_bytes())
    except OSError as fault:
        raise ConfigError(f"launch.hostfile: cannot read {path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"launch.hostfile: cannot read {path}: {fault}") from fault
    hosts: dict[str, int] = {}
    known: set[str] = set()
    faults = []
    # Not str.splitlines, which ends lines at more characters: the rest of a comment would become a host.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        entry = _COMMENT.sub("", line).strip(" \t")
        if not entry:
            continue
        where, found = f"{path}, line {number}", _LINE.fullmatch(entry)
        if not found or not _is_host(found["name"]) or int(found["slots"] or 1) == 0:
            faults.append(f"{where}: {entry!r} must be NAME slots=RANKS{_advice(entry)}")
            continue
        name = found["name"].lower().rstrip(".")  # as the names of hosts are compared
        if name in known:
            faults.append(f"{where}: {found['name']} is there already")
            continue
        known.add(name)
        hosts[found["name"]] = int(found["slots"] or 1)
    if not hosts and not faults:
        faults.append(f"{path} lists no host")
    if faults:
        raise ConfigError("launch.hostfile: " + "\n  ".join(faults))
    return hosts


def _is_host(name: str) -> bool:
    try:
        return bool(_NAME.fullmatch(name) or ipaddress.IPv6Address(name))
    except ValueError:
        return False


def _advice(entry: str) -> str:
    """What to do about a host in another program's format."""
    name = re.split(r"[ \t]", entry)[0]  # str.split() finds no word in a lone form feed
    if "@" in name:
        return "; a host's user belongs in launch.remote (ssh -l USER ... {host}) or in ~/.ssh/config"
    if found := re.fullmatch(r"\[?([\w.:-]+?)]?:(\d+)", name):
        host, ranks = found.groups()
        return (
            f"; write {host} slots={ranks} for {ranks} ranks; a port belongs in launch.remote (ssh -p PORT)"
        )
    return ""
