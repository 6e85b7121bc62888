"""cluster.tasks.places: which node the next task goes to."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.tasks import jobs, places
from cluster.tasks.places import Homes, Nodes, Waiting, free

from ray.autoscaler import sdk  # isort: skip


def play(keys: list[str], slots: Mapping[str, int], homes: Homes) -> list[tuple[str, str]]:
    """(key, node) of each task in the order of their start, where all take equally long."""
    waiting, ended = Waiting(keys, homes), list[tuple[str, str]]()
    while len(ended) < len(keys):
        running: list[tuple[str, str]] = []
        for node in slots:
            while len([1 for _, at in running if at == node]) < slots[node]:
                index = waiting.pop(node, slots)
                if index is None:
                    break
                running.append((keys[index], node))
        assert running, "tasks are left, and no node takes one"
        ended += running
    return ended


def prepared(ended: list[tuple[str, str]]) -> int:
    """How often a node met a key for the first time."""
    return len(set(ended))


def test_each_assembly_stays_on_one_node() -> None:
    keys = [name for name in "abcdef" for _ in range(10)]
    ended = play(keys, {"n1": 2, "n2": 2, "n3": 2}, Homes())
    assert prepared(ended) <= 6 + 3, "one node for each, and at most one more in the last rounds of a node"
    spread = {(key, f"n{number % 3}") for number, key in enumerate(keys)}
    assert len(spread) == 18, "each node would prepare each of them"
    assert Counter(node for _, node in ended) == {"n1": 20, "n2": 20, "n3": 20}


def test_one_large_assembly_uses_all_nodes() -> None:
    ended = play(["large"] * 90 + ["small"] * 2, {"n1": 4, "n2": 4, "n3": 4}, Homes())
    assert {node for key, node in ended if key == "large"} == {"n1", "n2", "n3"}
    assert len({node for key, node in ended if key == "small"}) == 1


def test_the_last_tasks_wait_for_a_node_that_is_prepared() -> None:
    homes = Homes()
    homes.add("a", "n1")
    waiting, slots = Waiting(["a"] * 3, homes), {"n1": 2, "n2": 2}
    assert waiting.pop("n2", slots) == 0, "three are more than n1 runs at once"
    homes = Homes()
    homes.add("a", "n1")
    waiting = Waiting(["a"] * 2, homes)
    assert waiting.pop("n2", slots) is None and waiting.pop("n1", slots) == 0
    assert waiting.pop("n2", {"n2": 2}) == 1, "n1 has left, and nobody is prepared"


def test_nodes_are_remembered_between_runs() -> None:
    homes = Homes()
    first = dict(play(list("abcd"), {"n1": 1, "n2": 1}, homes))
    again = dict(play(list("dcba"), {"n1": 1, "n2": 1}, homes))
    assert first == again


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
    st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), st.integers(1, 3), min_size=1),
)
def test_every_task_runs_once_on_any_cluster(keys: list[str], slots: dict[str, int]) -> None:
    assert sorted(key for key, _ in play(keys, slots, Homes())) == sorted(keys)


def test_slots_of_nodes_that_join_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [
        {"NodeID": "head", "Alive": True, "Resources": {"memory": 1}},
        {"NodeID": "n1", "Alive": True, "Resources": {"CPU": 4.0}},
    ]
    monkeypatch.setattr(places.ray, "nodes", lambda: there)
    assert Nodes(None, 0).slots() == {"n1": 4}, "a head without CPUs runs nothing"
    there.append({"NodeID": "n2", "Alive": True, "Resources": {"CPU": 2.0}})
    assert Nodes(None, 0).slots() == {"n1": 4, "n2": 2} == Nodes(3, 0).slots()
    assert Nodes(12, 0).slots() == {"n1": 8, "n2": 4}, "more workers than CPUs, as was asked for"
    there[1]["Alive"] = False
    assert Nodes(None, 0).slots() == {"n2": 2}
    there[2]["Alive"] = False
    assert Nodes(None, 0).slots() == {}
    assert free({"n1": 3, "n2": 1, "n3": 2}, ["n1", "n2", None]) == ["n1", "n3"]


def test_a_failed_task_may_run_on_any_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_BACKOFF_S", 0.0)
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}} for name in ("n1", "n2")]
    monkeypatch.setattr(places.ray, "nodes", lambda: nodes)
    queue = jobs._Queue(["a", "a", "b"], jobs.Near(lambda task: task), Nodes(None, 5))
    started = [queue.pop(), queue.pop([0])]
    assert started == [(0, "n1"), (2, "n2")] and queue.pop([0, 2]) is None, "both nodes are busy"
    assert queue.put_back(2)
    assert queue.pop([0]) == (2, None)
    assert queue.pop([2]) == (1, "n1")


def test_an_autoscaler_is_asked_for_what_is_left_and_then_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, has = list[int](), {"CPU": 4.0}
    monkeypatch.setattr(jobs, "_REFRESH_S", 0.0)
    monkeypatch.setattr(jobs.ray, "cluster_resources", lambda: has)
    monkeypatch.setattr(sdk, "request_resources", lambda num_cpus: asked.append(num_cpus))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    slots = jobs._Slots(None)
    assert slots.count(wanted=100) == 4 and asked == [], "a local Ray has none"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    slots = jobs._Slots(None)
    assert slots.count(wanted=4) == 4 and asked == [], "there are enough"
    for left in (100, 100, 1 << 20, 3):
        slots.count(wanted=left)
    slots.withdraw()
    slots.withdraw()
    assert asked == [100, 10_000, 3, 0]
    fixed = jobs._Slots(2)
    assert fixed.count(wanted=100) == 2
    fixed.withdraw()
    assert len(asked) == 4, "the user has said how many"
