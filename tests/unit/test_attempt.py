"""cluster.launch.attempt with agents that say what a test has them say: which rank or node is to blame, and
what is lost."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.launch.attempt import Attempt, Outcome
from cluster.launch.config import ClusterConfig
from cluster.launch.members import Member
from cluster.launch.nodes import NodeLost, Place
from cluster.process.evidence import END

STATE = {
    "step": 8,
    "saved": 5,
    "collectives": 20,
    "inside": False,
    "label": "all_reduce",
    "still_s": 0.0,
    "stopped": False,
    "steps": 3,
    "issued": "all_reduce",
    "slow": False,
}


class Scripted:
    """The link of a node: the ranks' events once they are started, and answers to orders."""

    def __init__(
        self,
        *events: dict[str, Any],
        on_signal: tuple[dict[str, Any], ...] = (),
        reach: str | None = None,
        refused: bool = False,
        lost: str | None = None,
        on_show: tuple[dict[str, Any], ...] = (),
    ) -> None:
        self.on_show = on_show
        self.events, self.on_signal, self.reach, self.refused, self.lost = (
            events,
            on_signal,
            reach,
            refused,
            lost,
        )
        self.waiting, self.orders, self.left = list[dict[str, Any]](), list[str](), set[int]()

    def send(self, line: str) -> None:
        order = json.loads(line)
        self.orders.append(order["do"])
        if order["do"] == "start":
            self.left = set(range(order["first"], order["first"] + order["local"]))
            self.waiting += self.events
        elif order["do"] == "signal":
            self.waiting += self.on_signal
        elif order["do"] == "show":
            self.waiting += self.on_show or [
                {"event": "line", "rank": rank, "text": END} for rank in sorted(self.left)
            ]
        elif order["do"] == "reach":
            self.waiting.append({"event": "reach", "fault": self.reach, "refused": self.refused})
        elif order["do"] == "kill":
            self.waiting += [ended(rank, -9) for rank in sorted(self.left)]

    def receive(self) -> list[str]:
        found, self.waiting = self.waiting, []
        self.left -= {event["rank"] for event in found if event["event"] == "exited"}
        if not found and self.lost:
            raise NodeLost(self.lost)
        return [json.dumps(event) for event in found]

    def close(self) -> None:
        pass


def ended(rank: int, code: int) -> dict[str, Any]:
    return {"event": "exited", "rank": rank, "code": code}


def line(rank: int, text: str) -> dict[str, Any]:
    return {"event": "line", "rank": rank, "text": text}


def states(*ranks: int, **values: Any) -> dict[str, Any]:
    return {"event": "states", "states": {str(rank): STATE | values for rank in ranks}}


def attempt(*links: Scripted, local: int = 1, stop: Callable[[], Any] = str, **config: Any) -> Outcome:
    places = [Place("abcd"[number], f"10.0.0.{number + 1}", local) for number in range(len(links))]
    members = [
        Member(place, link, port=7, first=number * local, local=local)
        for number, (place, link) in enumerate(zip(places, links, strict=True))
    ]
    settings = {"survivor_s": 0.1, "grace_s": 60, "hang_timeout_s": 60} | config
    return Attempt(ClusterConfig.model_validate(settings), members, print).run(["program"], {}, stop)


def test_all_is_well() -> None:
    assert attempt(Scripted(states(0, 1), ended(0, 0), ended(1, 0)), local=2) == Outcome("done", saved=5)


def test_an_agent_had_nothing_to_say_while_the_number_of_ranks_was_found() -> None:
    """That may take minutes, where a library is read over the network for the first time."""

    class Slow(Scripted):
        """Its first event comes a moment after the start."""

        looks = 0

        def receive(self) -> list[str]:
            self.looks += 1
            return super().receive() if self.looks > 1 else []

    member = Member(Place("a", "10.0.0.1", 1), Slow(states(0), ended(0, 0)), port=7, first=0, local=1)
    member.heard -= 100
    config = ClusterConfig.model_validate({"hang_timeout_s": 60})
    assert Attempt(config, [member], print).run(["program"], {}, str) == Outcome("done", saved=5)


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        # Who says that it lost the others did not begin it, whatever came first.
        (
            [
                line(0, "error: lost its peers in all_reduce"),
                ended(0, 1),
                line(1, "error: no space left"),
                ended(1, 1),
            ],
            "rank 1 on a ended with code 1: no space left (step 8)",
        ),
        # Neither did who was ended by its library for that.
        (
            [line(0, "NCCL watchdog"), ended(0, -6), line(1, "error: no space left"), ended(1, 1)],
            "rank 1 on a ended with code 1: no space left (step 8)",
        ),
        # Nobody is killed because another fails: this came first.
        (
            [line(0, "error: odd words of a broken connection"), ended(0, 1), ended(1, -9)],
            "rank 1 on a was killed by signal 9 (out of memory, or by hand) (step 8)",
        ),
        # A last word that is no error: of a traceback.
        (
            [line(0, "error: lost its peers"), line(1, "TypeError: unsupported"), ended(1, 1), ended(0, 1)],
            "rank 1 on a ended with code 1: TypeError: unsupported (step 8)",
        ),
        (
            [
                line(0, "error: lost its peers in broadcast"),
                ended(0, 1),
                line(1, "error: lost its peers"),
                ended(1, 1),
            ],
            "rank 0 on a ended with code 1: lost its peers in broadcast (step 8)",
        ),
        ([ended(0, -6), ended(1, -6)], "rank 0 on a was killed by signal 6 (step 8)"),
    ],
)
def test_the_first_that_ended_for_a_reason_of_its_own(events: list[dict[str, Any]], cause: str) -> None:
    assert attempt(Scripted(states(0, 1), *events), local=2) == Outcome("fault", cause, "a", 5)


def test_a_rank_that_is_left_alone_is_not_waited_for_until_the_grace_ends() -> None:
    """Told to stop, rank 1 is killed: rank 0 waits for it, and can save nothing."""
    link = Scripted(states(0, 1), on_signal=(line(1, "error: no space left"), ended(1, 1)))
    begin = time.monotonic()
    outcome = attempt(link, local=2, stop=lambda: "save")
    assert time.monotonic() - begin < 30
    assert outcome == Outcome("fault", "rank 1 on a ended with code 1: no space left (step 8)", "a", 5)


def test_ranks_that_saved_and_one_that_had_to_be_killed() -> None:
    outcome = attempt(
        Scripted(states(0, 1), on_signal=(ended(0, 75),)), local=2, stop=lambda: "save", grace_s=0.2
    )
    assert outcome == Outcome("fault", "1 ranks had to be killed", None, 5)
    outcome = attempt(
        Scripted(states(0, 1), on_signal=(ended(0, 75), ended(1, -9))), local=2, stop=lambda: "save"
    )
    assert outcome.cause == "rank 1 on a was killed by signal 9 (out of memory, or by hand) (step 8)"
    both = (states(0, 1, saved=8), ended(0, 75), ended(1, 75))
    assert attempt(Scripted(on_signal=both), local=2, stop=lambda: "save") == Outcome("stopped", saved=8)


def test_ranks_that_another_told_to_stop_get_the_time_to_save() -> None:
    """One of them has heard it first; the others do what it agreed with them."""
    link = Scripted(states(0, 1), ended(0, 75))

    def stop() -> str:
        if time.monotonic() > begin + 1.0 and 1 in link.left:
            link.waiting.append(ended(1, 75))
        return ""

    begin = time.monotonic()
    assert attempt(link, local=2, stop=stop, survivor_s=0.1) == Outcome("stopped", saved=5)
    assert "kill" not in link.orders


MISSING = "python: can't open file '/x/trainer/main.py': [Errno 2] No such file or directory"


@pytest.mark.parametrize(
    "events",
    [
        (ended(1, 2), ended(0, 2)),  # all ranks, though the others leave it to rank 0 to say why
        (line(0, MISSING), ended(0, 2), line(1, MISSING), ended(1, 2)),
        (line(0, "error: train.lr: missing"), ended(0, 2)),  # in our words; the other had not come so far
        (
            line(1, "error: train.lr: missing"),
            ended(1, 2),
            line(0, "error: lost its peers in broadcast"),
            ended(0, 1),
        ),
    ],
)
def test_a_wrong_config_ends_it(events: tuple[dict[str, Any], ...]) -> None:
    assert attempt(Scripted(*events), local=2, grace_s=0.2) == Outcome("usage")


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ((line(1, MISSING), ended(1, 2)), MISSING),
        ((ended(1, 2),), "no output"),
        (
            (line(0, "error: lost its peers in broadcast"), ended(0, 1), line(1, MISSING), ended(1, 2)),
            MISSING,
        ),
        (
            (line(1, "main.py: error: unrecognized arguments: --new"), ended(1, 2)),
            "main.py: error: unrecognized arguments: --new",
        ),  # of other code on that node
    ],
)
def test_one_rank_alone_does_not_make_the_config_wrong(events: tuple[dict[str, Any], ...], word: str) -> None:
    """Python itself ends with 2 where a file is not there: the node's fault, which may do without it."""
    outcome = attempt(
        Scripted(*(event for event in events if event["rank"] == 0)),
        Scripted(*(event for event in events if event["rank"] == 1)),
        grace_s=0.2,
    )
    assert outcome == Outcome(
        "fault",
        "rank 1 on b ended with code 2, its config, files or code differ from those "
        f"of the others: {word} (step 0)",
        "b",
    )


def test_ranks_that_come_later_have_the_time_to_agree_that_the_config_is_wrong() -> None:
    """Imports take long on one node; rank 0, which alone says what is wrong, is not killed after
    survivor_s."""
    link = Scripted(ended(1, 2))

    def stop() -> str:
        if time.monotonic() > begin + 0.5 and 0 in link.left:
            link.waiting += [line(0, "error: train.lr: missing"), ended(0, 2)]
        return ""

    begin = time.monotonic()
    assert attempt(link, local=2, stop=stop, survivor_s=0.1) == Outcome("usage")
    assert "kill" not in link.orders


@pytest.mark.parametrize(
    ("links", "cause", "node"),
    [
        # Rank 1 is behind: the others are in the next collective already.
        (
            (Scripted(states(0, collectives=21, inside=True, still_s=99)), Scripted(states(1, still_s=98))),
            "rank 1 on b hangs: step 8, after all_reduce (collective 20), no move for 98 s; 1 of 2 ranks "
            "wait in all_reduce",
            "b",
        ),
        (
            (
                Scripted(states(0, collectives=21, inside=True, still_s=99)),
                Scripted(states(1, still_s=98, stopped=True)),
            ),
            "rank 1 on b is stopped (SIGSTOP): step 8, after all_reduce (collective 20), no move for 98 s; "
            "1 of 2 ranks wait "
            "in all_reduce",
            "b",
        ),
        # All wait for all, and no node is out of reach: nobody is blamed.
        (
            (Scripted(states(0, inside=True, still_s=99)), Scripted(states(1, inside=True, still_s=99))),
            "all 2 ranks wait: step 8, inside all_reduce (collective 20), no move for 99 s",
            None,
        ),
        # A node that is cut off, though its rank looks like one that is merely behind.
        (
            (
                Scripted(states(0, collectives=21, inside=True, still_s=99)),
                Scripted(states(1, inside=True, still_s=99), reach="it does not reach 10.0.0.1:7: timed out"),
            ),
            "no rank has moved for 99 s: b: it does not reach 10.0.0.1:7: timed out",
            "b",
        ),
        # The port is not open any more, or not yet: that is not the network.
        (
            (
                Scripted(states(0, collectives=21, inside=True, still_s=99)),
                Scripted(
                    states(1, still_s=98),
                    reach="it does not reach 10.0.0.1:7: Connection refused",
                    refused=True,
                ),
            ),
            "rank 1 on b hangs: step 8, after all_reduce (collective 20), no move for 98 s; 1 of 2 ranks "
            "wait in all_reduce",
            "b",
        ),
        # Several that do not reach the first: it is the first that is cut off.
        (
            (
                Scripted(states(0, inside=True, still_s=99)),
                Scripted(states(1, inside=True, still_s=99), reach="timed out"),
                Scripted(states(2, inside=True, still_s=99), reach="timed out"),
            ),
            "no rank has moved for 99 s: b: timed out; c: timed out",
            "a",
        ),
        (
            (
                Scripted(states(0, inside=True, still_s=99)),
                Scripted(states(1, inside=True, still_s=99)),
                Scripted(states(2, inside=True, still_s=99), reach="timed out"),
            ),
            "no rank has moved for 99 s: c: timed out",
            "c",
        ),
    ],
)
def test_who_hangs(links: tuple[Scripted, ...], cause: str, node: str | None) -> None:
    assert attempt(*links) == Outcome("fault", cause, node, 5)
    assert all("kill" in link.orders for link in links)


def test_before_its_first_step_a_rank_has_more_time() -> None:
    early = states(0, step=0, steps=0, still_s=99)
    assert attempt(Scripted(early, ended(0, 0)), start_timeout_s=100).kind == "done"
    outcome = attempt(Scripted(early), start_timeout_s=98)
    assert outcome.cause.startswith(
        "rank 0 on a hangs: step 0, after all_reduce (collective 20), no move for 99 s"
    )


def test_the_first_step_has_the_time_of_a_start() -> None:
    """It compiles and fetches the first blocks; of a run that goes on it has any number. So has an unseen
    upload."""
    for more in ({"steps": 1}, {"slow": True}):
        long = states(0, step=1001, still_s=99, **more)
        assert attempt(Scripted(long, ended(0, 0)), start_timeout_s=100).kind == "done"
        assert attempt(Scripted(long), start_timeout_s=98).cause.startswith(
            "rank 0 on a hangs: step 1001, after"
        )
    assert attempt(Scripted(states(0, step=1002, steps=2, still_s=99)), start_timeout_s=999).kind == "fault"


def test_ranks_whose_host_is_past_the_collective_that_hangs() -> None:
    """As with nccl: the host waits for the value, not in the collective. Nobody is blamed for what all wait
    for."""
    both = states(0, 1, still_s=99, inside=True, label="backward", issued="all_gather")
    assert attempt(Scripted(both), local=2).cause == (
        "all 2 ranks wait: step 8, inside backward (collective 20, last issued all_gather), no move for 99 s"
    )
    assert attempt(Scripted(states(0, 1, still_s=99)), local=2).cause == (
        "all 2 ranks hang: step 8, after all_reduce (collective 20), no move for 99 s"
    )


def test_before_a_hang_is_ended_the_ranks_show_what_they_do(capfd: pytest.CaptureFixture[str]) -> None:
    """The one to blame first, those that do the same once."""
    stack, under_way = 'File "x.py", line 7 in teach', "all_reduce 21: scheduled, under way for 98 s"
    first = Scripted(
        states(0, 1, collectives=21, inside=True, still_s=99),
        on_show=(
            line(0, "Thread 0x7f01:"),
            line(1, "Thread 0x7f02:"),
            line(0, stack),
            line(1, stack),
            line(0, under_way),
            line(1, under_way.replace("98", "99")),
            line(0, END),
            line(1, END),
        ),
    )
    second = Scripted(
        states(2, 3, still_s=99),
        states(3, still_s=99, stopped=True),
        on_show=(line(2, "in the reader"), line(2, END)),
    )
    outcome = attempt(first, second, local=2)
    assert outcome.cause.startswith("rank 3 on b is stopped (SIGSTOP): step 8")
    assert [link.orders[:3] for link in (first, second)] == [["start", "show", "kill"]] * 2
    out, err = capfd.readouterr()
    assert out.splitlines() == [  # of the supervisor
        "rank 3, before being killed:",
        "ranks 0, 1, before being killed:",
        "rank 2, before being killed:",
    ]
    assert err.splitlines() == [
        "[rank 3] nothing: the process, or its interpreter, is stopped",
        "[rank 0] Thread 0x7f01:",
        f"[rank 0] {stack}",
        f"[rank 0] {under_way}",
        "[rank 2] in the reader",
    ]


def test_ranks_that_have_not_saved_in_time_show_what_they_do() -> None:
    link = Scripted(states(0, 1), on_signal=(ended(0, 75),))
    attempt(link, local=2, stop=lambda: "save", grace_s=0.2)
    assert link.orders == ["start", "signal", "show", "kill"]
    for stop, more in (
        ("now", {}),
        ("save", {"survivor_s": 0.1}),
    ):  # at once, or for want of a rank that is gone
        link = Scripted(states(0, 1), on_signal=(ended(0, 1),) if more else ())
        attempt(link, local=2, stop=lambda stop=stop: stop, **more)
        assert link.orders == ["start", "signal", "kill"]


def test_of_ranks_that_lose_the_same_peer_one_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    """Each has another address in its words; of each the supervisor knows that it is not the one to blame."""
    words = [
        f"error: lost its peers in step 8: Connection closed by peer [127.0.0.1]:{port}" for port in (41, 42)
    ]
    outcome = attempt(
        Scripted(line(0, words[0]), line(2, words[1]), ended(0, 1), ended(2, 1), ended(1, -9)), local=3
    )
    assert outcome.cause == "rank 1 on a was killed by signal 9 (out of memory, or by hand) (step 0)"
    assert capfd.readouterr().err == f"{words[0]}\n"


def test_the_rank_that_says_why_is_heard_before_those_that_leave_it_to_it() -> None:
    link = Scripted(line(0, "step 8: fine"), ended(0, 1), line(1, "error: no space left"), ended(1, 1))
    outcome = attempt(link, local=2)
    assert outcome.cause == "rank 1 on a ended with code 1: no space left (step 0)"


def test_a_node_that_is_lost_takes_its_ranks_with_it() -> None:
    outcome = attempt(Scripted(states(0)), Scripted(states(1), lost="b: its agent was killed by SIGKILL"))
    assert outcome == Outcome("fault", "b: its agent was killed by SIGKILL", "b", 5)


def test_an_agent_that_is_silent_is_lost() -> None:
    talking = Scripted(states(0))

    def stop() -> str:
        talking.waiting.append(states(0))
        return ""

    outcome = attempt(talking, Scripted(states(1)), stop=stop, hang_timeout_s=0.3)
    assert outcome == Outcome("fault", "b: its agent has been silent for 0 s", "b", 5)


def test_a_supervisor_that_was_asleep_does_not_blame_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-Z and fg the lines that came meanwhile are read a moment later."""
    monkeypatch.setattr("cluster.launch.attempt._ASLEEP_S", 0.2)
    link, calls = Scripted(states(0)), []

    def stop() -> str:
        calls.append(1)
        if len(calls) == 3:
            time.sleep(0.5)
        if len(calls) == 6:
            link.waiting.append(ended(0, 0))
        return ""

    assert attempt(link, stop=stop, hang_timeout_s=0.4) == Outcome("done", saved=5)


def test_agents_on_other_hosts_hear_that_the_supervisor_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.launch.attempt._HERE_S", 0.05)
    link = Scripted(states(0))

    def stop() -> str:
        if link.orders.count("here") == 3 and 0 in link.left:
            link.waiting.append(ended(0, 0))
        return ""

    assert attempt(link, stop=stop).kind == "done"


def test_what_several_ranks_say_of_a_fault_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    attempt(
        Scripted(
            line(0, "hello"),
            line(1, "hello"),
            line(0, "error: x"),
            line(1, "error: x"),
            ended(0, 1),
            ended(1, 1),
        ),
        local=2,
    )
    assert capfd.readouterr().err == "hello\n[rank 1] hello\nerror: x\n"
