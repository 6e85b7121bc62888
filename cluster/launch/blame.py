"""Which rank or node is to blame when ranks hang or have ended, in one sentence."""

import signal
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.launch.config import ClusterConfig
from cluster.launch.members import Member, reach
from cluster.launch.protocol import States
from cluster.process.exits import EXIT_USAGE, LOST_PEERS, error_in


@dataclass(frozen=True)
class Blame:
    """``cause``: what happened, in a sentence. ``node``: the name of the node to blame, None for none."""

    cause: str
    node: str | None = None


def is_hanging(running: States, config: ClusterConfig) -> bool:
    """Whether a rank is stopped, or all ranks show no progress, for too long. As long as one rank makes
    progress, the others may be waiting for it.

    The first step of a process may take as long as its start: it compiles, and fetches the first blocks. The
    same holds for calls that show no progress until they end.
    """
    late = {
        rank
        for rank, state in running.items()
        if state.still_s
        > (config.hang_timeout_s if state.steps > 1 and not state.slow else config.start_timeout_s)
    }
    return bool(late) and (len(late) == len(running) or any(running[rank].stopped for rank in late))


def rank_behind(running: States) -> int:
    """The rank that the others most likely wait for: a stopped one, or the one with the fewest
    collectives."""
    return min(
        running,
        key=lambda rank: (
            not running[rank].stopped,
            running[rank].collectives,
            running[rank].inside,
            rank,
        ),
    )


def blame_hang(running: States, members: Sequence[Member]) -> Blame:
    """Why ``running`` ranks hang."""
    behind = rank_behind(running)
    state, node = running[behind], node_of(members)[behind]
    still = f"no move for {state.still_s:.0f} s"
    if len(members) > 1 and not state.stopped and (cut := _cut_off(members)):
        cause = f"no rank has moved for {state.still_s:.0f} s: {'; '.join(cut.values())}"
        return Blame(cause, _cut_node(members, cut))
    places = {(other.collectives, other.inside, other.label) for other in running.values()}
    # With GPUs the host may be past the collective that hangs, on all ranks alike.
    if len(running) > 1 and len(places) == 1 and state.label and not state.stopped:
        how = "wait" if state.inside else "hang"
        return Blame(f"all {len(running)} ranks {how}: {state.describe()}, {still}")
    how = "is stopped (SIGSTOP)" if state.stopped else "hangs"
    cause = f"rank {behind} on {node} {how}: {state.describe()}, {still}"
    waiting = Counter(other.label for rank, other in running.items() if rank != behind and other.inside)
    for label, count in waiting.most_common(1):
        cause += f"; {count} of {len(running)} ranks wait in {label}"
    return Blame(cause, node)


def blame_first(
    own: Sequence[int],
    codes: Mapping[int, int],
    words: Mapping[int, str],
    steps: Mapping[int, int],
    members: Sequence[Member],
) -> Blame:
    """The rank that ended first for a reason of its own, and what it printed.

    ``own``: ranks that were not killed by the supervisor and did not end well. ``codes``: exit codes, in the
    order in which ranks ended. ``words``: the last error of each rank, or else its last line.
    """
    node = node_of(members)
    if not own:
        first = next(iter(codes))
        return Blame(f"rank {first} on {node[first]} ended early, and the others were killed", node[first])
    # Not the ranks that ended because others did. Some libraries end them with SIGABRT.
    candidates = [
        rank for rank in own if codes[rank] != -signal.SIGABRT and not has_lost_peers(words.get(rank, ""))
    ]
    by_signal = [rank for rank in candidates if codes[rank] < 0]
    with_error = [rank for rank in candidates if error_in(words.get(rank, "")) is not None]
    rank = (by_signal or with_error or candidates or own)[0]
    code, word = codes[rank], words.get(rank, "no output")
    word = error_in(word) or word
    if code < 0:
        why = f"was killed by signal {-code}" + " (out of memory, or by hand)" * (-code == signal.SIGKILL)
    elif code == EXIT_USAGE:  # not all ranks say so: then it is this node, not the command
        why = f"ended with code {code}, its config, files or code differ from those of the others: {word}"
    else:
        why = f"ended with code {code}: {word}"
    return Blame(f"rank {rank} on {node[rank]} {why} (step {steps.get(rank, 0)})", node[rank])


def is_usage(codes: Mapping[int, int], words: Mapping[int, str]) -> bool:
    """Whether the command or its config is wrong: all ranks end with that code, or one of them with our
    error.

    The code of one rank alone proves nothing: Python ends with the same code if a file is missing on a node.
    """
    return set(codes.values()) == {EXIT_USAGE} or any(
        code == EXIT_USAGE and error_in(words.get(rank, "")) is not None for rank, code in codes.items()
    )


def has_lost_peers(line: str) -> bool:
    """Whether a rank says in ``line`` that it ended because others did."""
    return (error_in(line) or "").startswith(LOST_PEERS)


def node_of(members: Sequence[Member]) -> dict[int, str]:
    """rank -> the name of its node."""
    return {rank: member.place.name for member in members for rank in member.ranks}


def _cut_off(members: Sequence[Member]) -> dict[str, str]:
    """Nodes that do not reach the first one, and why."""
    head, *others = members
    with ThreadPoolExecutor(len(others)) as pool:
        faults = list(pool.map(lambda member: reach(member, head, listens=False), others))
    return {member.place.name: fault for fault, member in zip(faults, others, strict=True) if fault}


def _cut_node(members: Sequence[Member], cut: Container[str]) -> str:
    """The node to blame: the first one, if there are several others and none of them reaches it."""
    head, *others = (member.place.name for member in members)
    all_cut = len(others) > 1 and all(name in cut for name in others)
    return head if all_cut else next(name for name in others if name in cut)
