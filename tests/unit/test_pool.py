"""cluster.tasks.pool: heavy tasks first, as nodes have room; dead workers replaced; what can never run."""

import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from cluster.tasks.pool import Ended, Needs, Pool

pytestmark = pytest.mark.usefixtures("local_ray")  # of 2 CPUs

BOTH = Needs(2)


def note(path: str, name: str) -> str:
    with open(path, "a") as file:
        file.write(name)
    return name


def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "alive"


def refuse() -> None:
    raise RuntimeError("it diverged")


def sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


def add(a: int, b: int) -> int:
    return a + b


def drain(pool: Pool, count: int) -> dict[Hashable, Ended]:
    found: dict[Hashable, Ended] = {}
    while len(found) < count:
        found |= {ended.key: ended for ended in pool.wait(5)}
    return found


def test_the_lowest_order_begins_first_also_of_those_that_come_later(tmp_path: Path) -> None:
    asked: list[Any] = []

    def may_start(key: Any) -> bool:
        if not asked:
            for name, order in (("c", 9), ("a", 1), ("b", 5)):
                pool.submit(name, note, log, name, needs=BOTH, order=order)
        asked.append(key)
        return bool(key != "b")

    log = str(tmp_path / "log")
    with Pool(may_start) as pool:
        pool.submit("first", note, log, "f", needs=BOTH, order=7)
        found = drain(pool, 3)
        assert (pool.waiting, pool.running) == (0, 0)
    assert Path(log).read_text() == "fac"
    assert asked == ["first", "a", "b", "c"]
    assert {key: ended.result for key, ended in found.items()} == {"first": "f", "a": "a", "c": "c"}


def test_a_dead_worker_is_replaced_and_a_fault_of_its_own_is_told(tmp_path: Path) -> None:
    told: list[tuple[Any, str]] = []
    with Pool(on_retry=lambda *given: told.append(given)) as pool:
        pool.submit("dies", die_once, str(tmp_path / "died"), needs=Needs(), order=0)
        pool.submit("fails", refuse, needs=Needs(), order=0)
        found = drain(pool, 2)
    assert found["dies"].result == "alive"
    assert str(found["fails"].fault) == "it diverged"
    assert [key for key, _ in told] == ["dies"] and "a worker was lost" in told[0][1]


def test_what_no_node_of_this_machine_has_is_refused_at_once_and_the_rest_runs() -> None:
    with Pool() as pool:
        pool.submit("gpu", add, 1, 2, needs=Needs(1, 0.5), order=0)
        pool.submit("cpus", add, 1, 2, needs=Needs(3), order=0)
        pool.submit("fits", add, 1, 2, needs=Needs(), order=1)
        found = drain(pool, 3)
    assert found["fits"].result == 3
    assert str(found["gpu"].fault) == (
        "it needs a node with 1 CPU and 0.5 GPU, and the largest of 1 has 2 CPUs"
    )
    assert str(found["cpus"].fault) == "it needs a node with 3 CPUs, and the largest of 1 has 2 CPUs"


def test_a_cluster_is_given_time_for_a_node_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "here")
    with Pool() as pool:
        pool.submit("gpu", add, 1, 2, needs=Needs(1, 1), order=0)
        assert pool.wait(0.01) == []
        monkeypatch.setattr("cluster.tasks.pool._JOIN_S", 0.0)
        assert drain(pool, 1)["gpu"].fault


def test_what_is_shared_is_given_as_its_value_and_if_may_start_raises_nothing_is_lost() -> None:
    faults = [RuntimeError("MLflow is away")]

    def may_start(_: Any) -> bool:
        if faults:
            raise faults.pop()
        return True

    with Pool(may_start) as pool:
        pool.submit("sum", add, pool.share(3), 4, needs=Needs(), order=0)
        with pytest.raises(RuntimeError, match="away"):
            pool.wait(1)
        assert drain(pool, 1)["sum"].result == 7


def test_at_its_end_what_runs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.tasks.pool._PATIENCE_S", 0.1)
    with Pool() as pool:
        pool.submit("long", sleep, str(tmp_path / "began"), needs=BOTH, order=0)
        until(pool, lambda: (tmp_path / "began").exists())
    with Pool() as pool:
        pool.submit("next", add, 1, 2, needs=BOTH, order=0)
        assert drain(pool, 1)["next"].result == 3, "the CPUs are free again"


def until(pool: Pool, happened: Callable[[], bool]) -> None:
    while not happened():
        assert pool.wait(0.05) == []
