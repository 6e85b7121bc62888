"""Claims of units: one driver computes each, whatever the order of what they do, by our own clock alone."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage.lease import Lease
from trainer.tracking.shared_run import RunState
from trainer.workers.claims import Claims, Owner, Standing

LEASE_S = 30.0
UNITS = ("a", "b")


class Memory:
    """A shared run in memory: a param is set once."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}

    def read(self, run_id: str) -> RunState:
        return RunState(dict(self.params), dict(self.tags), "FINISHED", active=True)

    def settle(self, run_id: str, key: str, value: str) -> str:
        return self.params.setdefault(key, value)

    def tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def driver(memory: Memory, clock: Clock) -> Claims:
    return Claims(memory, "ledger", Owner(LEASE_S, clock))  # type: ignore[arg-type]


def test_of_two_drivers_one_gets_a_unit_and_the_other_sees_it() -> None:
    memory, clock = Memory(), Clock()
    first, second = driver(memory, clock), driver(memory, clock)
    assert first.standing("a") is Standing.FREE is second.standing("a")
    assert first.take("a") is Standing.OURS
    assert second.take("a") is Standing.THEIRS, "it learns so from the refusal"
    assert second.take("b") is Standing.OURS
    first.finish("a")
    second.refresh()
    assert second.standing("a") is Standing.DONE


def test_a_driver_that_gives_no_sign_for_the_lease_is_gone_by_the_watchers_clock() -> None:
    memory, clock = Memory(), Clock()
    silent = driver(memory, clock)
    assert silent.take("a") is Standing.OURS
    clock.now = 1000.0  # whatever time has passed: a new driver has watched for none of it
    watcher = driver(memory, clock)
    assert watcher.take("a") is Standing.THEIRS
    clock.now += LEASE_S - 1
    watcher.refresh()
    assert watcher.take("a") is Standing.THEIRS
    silent.beat()
    clock.now += 2
    watcher.refresh()
    assert watcher.take("a") is Standing.THEIRS, "it has beaten meanwhile"
    clock.now += LEASE_S
    watcher.refresh()
    assert watcher.take("a") is Standing.OURS
    silent.refresh()
    assert silent.standing("a") is Standing.THEIRS, "who was silent learns that another has taken it over"
    assert memory.params.keys() == {"claim.a.1", "claim.a.2"}


def test_what_a_driver_leaves_is_free_at_once() -> None:
    memory, clock = Memory(), Clock()
    leaving, watcher = driver(memory, clock), driver(memory, clock)
    leaving.take("a")
    leaving.leave()
    watcher.refresh()
    assert watcher.take("a") is Standing.OURS


def test_a_driver_of_this_machine_whose_process_has_ended_is_gone_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, clock = Memory(), Clock()
    dead = driver(memory, clock)
    dead.take("a")
    (key,) = memory.tags
    lease = Lease(**json.loads(memory.tags[key]))
    memory.tags[key] = json.dumps(dataclasses.asdict(dataclasses.replace(lease, started="0")))
    assert driver(memory, clock).take("a") is Standing.OURS, "another process has its pid by now"


def test_a_unit_that_failed_is_not_tried_by_those_that_run_but_by_the_next_that_starts() -> None:
    memory, clock = Memory(), Clock()
    first, beside = driver(memory, clock), driver(memory, clock)
    first.take("a")
    first.fail("a", "fine-tuning diverged")
    beside.refresh()
    assert (beside.take("a"), beside.reason("a")) == (Standing.FAILED, "fine-tuning diverged")
    assert first.standing("a") is Standing.FAILED
    assert driver(memory, clock).take("a") is Standing.OURS


def test_a_result_that_was_deleted_is_computed_again() -> None:
    memory, clock = Memory(), Clock()
    memory.params["done.a"] = "deleted"
    claims = driver(memory, clock)
    assert claims.take("a") is Standing.DONE
    claims.void("a")
    assert claims.take("a") is Standing.OURS


def test_a_tag_that_is_none_of_ours_is_a_driver_that_may_live() -> None:
    memory, clock = Memory(), Clock()
    memory.tags["driver.x"], memory.params["claim.a.1"] = "of a later version", "x"
    claims = driver(memory, clock)
    assert claims.take("a") is Standing.THEIRS
    clock.now += LEASE_S
    claims.refresh()
    assert claims.take("a") is Standing.OURS


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["refresh", "take", "finish", "leave"]),
        st.sampled_from(UNITS),
        st.floats(0, LEASE_S / 3),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_whatever_the_order_no_two_living_drivers_compute_the_same_unit(
    actions: list[tuple[int, str, str, float]],
) -> None:
    memory, clock = Memory(), Clock()
    claims = [driver(memory, clock) for _ in range(3)]
    at_work: list[dict[str, bool]] = [{} for _ in claims]
    finished: dict[str, int] = dict.fromkeys(UNITS, 0)
    for who, action, unit, seconds in actions:
        clock.now += seconds
        for each in claims:
            each.beat()
        ours, jobs = claims[who], at_work[who]
        if action == "refresh":
            ours.refresh()
        elif action == "take" and ours.take(unit) is Standing.OURS:
            jobs[unit] = True
        elif action == "finish" and jobs.pop(unit, False):
            ours.finish(unit)
            finished[unit] += 1
        elif action == "leave":
            ours.leave()
            jobs.clear()
            claims[who] = driver(memory, clock)
        for name in UNITS:
            assert sum(name in jobs for jobs in at_work) <= 1
            assert finished[name] <= 1
            if finished[name]:
                assert not any(name in jobs for jobs in at_work)
