"""The supervisor over hosts of network namespaces, with a program that plays the training: links cut and
slowed."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns import Hosts, hosts
from tests.unit.test_supervise import Supervisor, supervise  # noqa: F401 - a fixture

pytestmark = pytest.mark.faults


@pytest.fixture
def net() -> Iterator[Hosts]:
    with hosts(2) as made:
        yield made


@pytest.fixture
def run(
    net: Hosts,
    tmp_path: Path,
    supervise: Callable[..., Supervisor],  # noqa: F811
) -> Callable[..., Supervisor]:
    """Starts a supervisor over both hosts, one rank on each, which runs until it is told to stop."""

    def start(*cluster: str) -> Supervisor:
        (tmp_path / "hosts").write_text("".join(f"{name} slots=1\n" for name in net.names))
        return supervise(
            "steps=100000",
            "pause=0.02",
            config="hosts",
            cluster=(
                f"launch.hostfile={tmp_path}/hosts",
                "launch.remote=ip netns exec {host}",
                "launch.ranks_per_node=null",
                *cluster,
            ),
        )

    return start


def steps(folder: Path) -> int:
    """Of the newest checkpoint."""
    path = folder / "run/checkpoint"
    return int(path.read_text()) if path.exists() else 0


def end(run: Supervisor) -> None:
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75, run.said
    assert "told to stop; the state is saved" in run.said
    assert run.left() == []


def test_a_host_that_is_cut_off_for_good_is_left_out_and_taken_back(
    net: Hosts, run: Callable[..., Supervisor], tmp_path: Path
) -> None:
    first, second = net.names
    job = run("hang_timeout_s=2")
    job.until(lambda: steps(tmp_path) >= 5)
    assert f"2 ranks on 2 nodes: {first} (1), {second} (1)" in job.said
    net.cut(second)
    job.until(lambda: re.search("world 1 from [1-9]", job.said))
    assert re.search(
        rf"supervisor: no rank has moved for [2-9] s: {second}: it does not reach {first}:\d+: .*; "
        r"restarting in 0\.05 s from the checkpoint of step \d+",
        job.said,
    ), job.said
    assert re.search(rf"1 ranks on 1 nodes: {first} \(1\); left out: {second}: it does not reach", job.said)
    alone = steps(tmp_path)
    job.until(lambda: steps(tmp_path) > alone + 5)
    net.mend(second)
    job.until(lambda: job.said.count("world 2 from") == 2)
    assert f"{second} can be used again: saving, then restarting with more ranks" in job.said
    assert job.said.count("restarting in") == 1, "taking a host back is no fault"
    end(job)


def test_the_first_host_is_cut_off(net: Hosts, run: Callable[..., Supervisor], tmp_path: Path) -> None:
    """Where the ranks meet is then another."""
    job = run("hang_timeout_s=2")
    job.until(lambda: steps(tmp_path) >= 5)
    net.cut(net.names[0])
    job.until(lambda: re.search("world 1 from [1-9]", job.said))
    end(job)


def test_a_host_that_is_cut_off_for_5_seconds_or_slow_is_no_fault(
    net: Hosts, run: Callable[..., Supervisor], tmp_path: Path
) -> None:
    job = run("hang_timeout_s=20")
    job.until(lambda: steps(tmp_path) >= 5)
    net.cut(net.names[1])
    time.sleep(5)
    net.mend(net.names[1])
    before = steps(tmp_path)
    job.until(lambda: steps(tmp_path) > before + 5)
    net.slow(net.names[1], "8kbit")  # a byte at a time passes, and many steps a second do not
    before = steps(tmp_path)
    job.until(lambda: steps(tmp_path) > before + 5)
    net.slow(net.names[1], None)
    end(job)
    assert job.said.count("world 2 from") == 1
    assert "restarting" not in job.said


def test_too_few_hosts_are_left(net: Hosts, run: Callable[..., Supervisor], tmp_path: Path) -> None:
    job = run("hang_timeout_s=2", "min_nodes=2", "wait_for_nodes_s=1")
    job.until(lambda: steps(tmp_path) >= 5)
    net.cut(net.names[1])
    assert job.wait() == 1
    assert re.search(
        rf"error: 1 nodes answer and min_nodes is 2; {net.names[1]}: it does not reach .*; waited 1 s",
        job.said,
    ), job.said
    assert job.left() == []
