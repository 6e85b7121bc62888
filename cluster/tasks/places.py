"""On which node a task starts: near others of its kind, so that not every node prepares everything."""

import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import ray


@dataclass
class Homes:
    """By key of a task, the nodes that have met it; kept from one ``jobs.run`` to the next."""

    nodes: dict[Hashable, set[str]] = field(default_factory=dict)

    def of(self, key: Hashable, among: Mapping[str, int]) -> set[str]:
        """The nodes of ``among`` that have met the key."""
        return self.nodes.get(key, set()) & among.keys()

    def add(self, key: Hashable, node: str) -> None:
        self.nodes.setdefault(key, set()).add(node)


class Waiting:
    """Tasks that have not begun, by index; ``keys``: of each task, what it should be near to.

    A node gets tasks of keys that it has met; then of a key that no node has met, the largest first; then of
    one that has more tasks left than its nodes have slots. The rest wait for the nodes that have met them.
    """

    def __init__(self, keys: Sequence[Hashable], homes: Homes) -> None:
        self._left: dict[Hashable, deque[int]] = {}
        self._homes = homes
        for index, key in enumerate(keys):
            self._left.setdefault(key, deque()).append(index)

    def pop(self, node: str, slots: Mapping[str, int]) -> int | None:
        """The task to start on ``node``, one of ``slots``, the tasks that each node runs at once; None if
        those that are left had better wait for another one."""
        key = self._choose(node, slots)
        if key is None:
            return None
        self._homes.add(key, node)
        return self._take(key)

    def pop_any(self) -> int | None:
        """The first task that is left, where no node is known."""
        return self._take(next(iter(self._left))) if self._left else None

    def _choose(self, node: str, slots: Mapping[str, int]) -> Hashable | None:
        own, strange, spread = [], [], []
        for key, left in self._left.items():
            homes = self._homes.of(key, slots)
            if node in homes:
                own.append(key)
            elif not homes:
                strange.append(key)
            elif len(left) > sum(slots[home] for home in homes):
                spread.append(key)
        for keys in (own, strange, spread):
            if keys:
                return max(keys, key=lambda key: len(self._left[key]))
        return None

    def _take(self, key: Hashable) -> int:
        index = self._left[key].popleft()
        if not self._left[key]:
            del self._left[key]
        return index


class Nodes:
    """The nodes that have CPUs now, and how many tasks each may run at once."""

    def __init__(self, workers: int | None, refresh_s: float) -> None:
        self._workers, self._refresh_s = workers, refresh_s
        self._asked, self._cpus = -refresh_s, dict[str, int]()

    def slots(self) -> dict[str, int]:
        """By node; with ``workers`` more than the CPUs, each node has its share of them."""
        if time.monotonic() - self._asked >= self._refresh_s:
            alive = [node for node in ray.nodes() if node["Alive"]]
            cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in alive}
            self._cpus = {node: count for node, count in cpus.items() if count}
            self._asked = time.monotonic()
        total = sum(self._cpus.values())
        return {
            node: max(cpus, -(-(self._workers or 0) * cpus // total)) for node, cpus in self._cpus.items()
        }


def free(slots: Mapping[str, int], running: Sequence[str | None]) -> list[str]:
    """The nodes that have a slot left, those with the most first."""
    left = {node: count - running.count(node) for node, count in slots.items()}
    return sorted((node for node in left if left[node] > 0), key=lambda node: -left[node])
