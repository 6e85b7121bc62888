"""Which rank or node is to blame when ranks hang or have ended, in a sentence."""

import signal
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.launch.config import ClusterConfig
from cluster.launch.nodes import Member, reach
from cluster.process.exits import EXIT_USAGE, LOST_PEERS

Beats = Mapping[int, Mapping[str, Any]]  # rank -> what its agent has told of it


def still(running: Beats, config: ClusterConfig) -> bool:
    """Whether a rank is stopped, or none has moved, for too long. As long as one moves, the others may wait
    for it.

    The first step of a process has as long as its start: it compiles, and fetches the first blocks. So have
    calls that show nothing until they end.
    """
    limits = config.start_timeout_s, config.hang_timeout_s
    late = {
        rank
        for rank, beat in running.items()
        if beat["still_s"] > limits[beat["steps"] > 1 and not beat["slow"]]
    }
    return bool(late) and (len(late) == len(running) or any(running[rank]["stopped"] for rank in late))


def hanging(running: Beats, members: Sequence[Member]) -> tuple[str, str | None, int]:
    """(what hangs and how, the node it is put down to, the rank to look at first); ``running`` are
    ``still``."""
    of = node_of(members)
    behind = min(
        running,
        key=lambda rank: (
            not running[rank]["stopped"],
            running[rank]["collectives"],
            running[rank]["inside"],
            rank,
        ),
    )
    beat, node = running[behind], of[behind]
    alike = {(other["collectives"], other["inside"], other["label"]) for other in running.values()}
    where = f"{'inside' if beat['inside'] else 'after'} {beat['label'] or 'nothing'}"
    issued = f", last issued {beat['issued']}" if beat["issued"] not in ("", beat["label"]) else ""
    if len(members) > 1 and not beat["stopped"] and (cut := _cut_off(members)):
        what = f"no rank has moved for {beat['still_s']:.0f} s: {'; '.join(cut.values())}"
        return what, _cut_node(members, cut), behind
    # Where a GPU is at it, the host is elsewhere than in the collective that hangs: after it, on all ranks.
    if len(running) > 1 and len(alike) == 1 and beat["label"] and not beat["stopped"]:
        how = f"wait in {beat['label']}" if beat["inside"] else f"hang {where}"
        return (
            (
                f"all {len(running)} ranks {how} (collective {beat['collectives']}{issued}): step "
                f"{beat['step']}, no "
                f"move for {beat['still_s']:.0f} s"
            ),
            None,
            behind,
        )
    waiting = Counter(other["label"] for rank, other in running.items() if rank != behind and other["inside"])
    how = "is stopped (SIGSTOP)" if beat["stopped"] else "hangs"
    what = (
        f"rank {behind} on {node} {how}: step {beat['step']}, {where} (collective "
        f"{beat['collectives']}{issued}), "
        f"no move for {beat['still_s']:.0f} s"
    )
    for label, count in waiting.most_common(1):
        what += f"; {count} of {len(running)} ranks wait in {label}"
    return what, node, behind


def first_fault(
    own: Sequence[int],
    codes: Mapping[int, int],
    words: Mapping[int, str],
    steps: Mapping[int, int],
    members: Sequence[Member],
) -> tuple[str, str | None]:
    """What the rank that ended first for a reason of its own says, and its node.

    ``codes``: in the order in which they ended. ``own``: those that may be it. ``words``: their last errors
    or lines.
    """
    of = node_of(members)
    if not own:
        first = next(iter(codes))
        return f"rank {first} on {of[first]} ended by itself, and others had to be killed", of[first]
    # Not those that lost the others; some libraries end a process for that, by SIGABRT.
    alone = [
        rank
        for rank in own
        if codes[rank] != -signal.SIGABRT and not words.get(rank, "").startswith(f"error: {LOST_PEERS}")
    ]
    by_signal = [rank for rank in alone if codes[rank] < 0]
    said = [
        rank for rank in alone if is_error(words.get(rank, ""))
    ]  # others leave it to these to say what it is
    rank = (by_signal or said or alone or own)[0]
    code, word = codes[rank], words.get(rank, "without a word").removeprefix("error: ")
    if code < 0:
        why = f"was killed by signal {-code}" + ", by hand or for want of memory" * (-code == signal.SIGKILL)
    elif (
        code == EXIT_USAGE
    ):  # not all ranks say so: then it is no fault of the command, but of what this node has
        why = f"ended with code {code}, its config, files or code are not those of the others: {word}"
    else:
        why = f"ended with code {code}: {word}"
    return f"rank {rank} on {of[rank]} {why} (step {steps.get(rank, 0)})", of[rank]


def is_usage(codes: Mapping[int, int], words: Mapping[int, str]) -> bool:
    """Whether the command or its config is wrong: all ranks say so, or one does in our own words.

    One rank's code alone says nothing: Python has the same for a file that is missing on a node.
    """
    return set(codes.values()) == {EXIT_USAGE} or any(
        code == EXIT_USAGE and is_error(words.get(rank, "")) for rank, code in codes.items()
    )


def is_error(text: str) -> bool:
    """Whether a line is the sentence with which our commands end."""
    return text.startswith("error: ")


def node_of(members: Sequence[Member]) -> dict[int, str]:
    """rank -> the name of its node."""
    return {
        rank: member.place.name
        for member in members
        for rank in range(member.first, member.first + member.local)
    }


def _cut_off(members: Sequence[Member]) -> dict[str, str]:
    """Nodes that do not reach the first one, and why."""
    head, *others = members
    with ThreadPoolExecutor(len(others)) as pool:
        faults = list(pool.map(lambda member: reach(member, head, listens=False), others))
    return {member.place.name: fault for fault, member in zip(faults, others, strict=True) if fault}


def _cut_node(members: Sequence[Member], cut: Container[str]) -> str:
    """The node to put it down to: the first one, where several others do not reach it, and none does."""
    head, *others = (member.place.name for member in members)
    return (
        head
        if len(others) > 1 and all(name in cut for name in others)
        else next(n for n in others if n in cut)
    )
