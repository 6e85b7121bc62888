"""The supervisor with the real training: what a fault costs, and that the run ends with the same teacher."""

import os
import signal
from pathlib import Path

import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.faults.supervised import Supervised
from tests.netns import hosts

STEPS, EVERY = 60, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised")
    contigs = {"train": [markov_sequence(60_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
    write_dataset(folder / "data", contigs)
    return folder


def new(folder: Path, name: str, *train: str, **more: object) -> Supervised:
    return Supervised(
        folder,
        name,
        str(folder / "data"),
        f"train.steps={STEPS}",
        f"checkpoint.every={EVERY}",
        *train,
        **more,
    )  # type: ignore[arg-type]


@pytest.mark.faults
def test_a_killed_rank_and_then_a_preempted_machine_end_with_the_teacher_of_a_quiet_run(folder: Path) -> None:
    with new(folder, "quiet") as quiet, new(folder, "hit") as hit:
        assert quiet.start().wait() == 0, quiet.said
        assert quiet.processes() == {}
        hit.start().until(lambda: hit.step() >= 2 * EVERY)
        os.kill(hit.ranks()[1], signal.SIGKILL)
        hit.until(lambda: "going on after step" in hit.said)
        hit.until(lambda: hit.step() >= 4 * EVERY)
        hit.signal(signal.SIGTERM)
        assert hit.wait() == 75, hit.said
        assert "rank 1 on localhost was killed by signal 9" in hit.said
        assert "supervisor: told to stop; the state is saved; the same command goes on" in hit.said
        assert hit.processes() == {}
        assert hit.start().wait() == 0, hit.said
        assert hit.weights() == quiet.weights()
        assert all(lost < EVERY for lost in hit.lost_steps())


@pytest.mark.faults
def test_two_hosts_of_which_one_is_cut_off_and_comes_back(folder: Path) -> None:
    with (
        hosts(2) as net,
        new(
            folder,
            "hosts",
            "train.steps=400",
            config="hosts",
            cluster=[
                f"launch.hostfile={folder}/hostfile",
                "launch.remote=ip netns exec {host}",
                "launch.ranks_per_node=1",
                "hang_timeout_s=4",
                "probe_every_s=0.5",
                "rejoin_after_s=1",
            ],
        ) as run,
    ):
        (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in net.names))
        run.start().until(lambda: run.step() >= 2 * EVERY)
        assert set(run.ranks()) == {0, 1}
        net.cut(net.names[1])
        run.until(lambda: "1 ranks on 1 nodes" in run.said)
        assert f"{net.names[1]}: it does not reach {net.names[0]}:" in run.said
        alone = run.step()
        run.until(lambda: run.step() > alone + EVERY)
        net.mend(net.names[1])
        run.until(
            lambda: f"{net.names[1]} can be used again: saving, then restarting with more ranks" in run.said
        )
        run.until(lambda: len(run.ranks()) == 2)
        assert run.wait() == 0, run.said
        assert run.said.count("going on after step") == 2
