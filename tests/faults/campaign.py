"""``make faults``: one fault after the other into a real supervised run, then 30 kills at random moments into
one run.

Each row of the table: what befell the run, steps that were lost (run again, or not yet saved), seconds until
the next step was done, and whether the final teacher has the bits of the run that nothing befell. Written to
TABLE.md beside.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import s3 as s3_service
from tests.datasets import markov_sequence, write_dataset
from tests.faults.supervised import Supervised
from tests.netns import hosts
from trainer.data.dataset import Dataset

STEPS, EVERY = 200, 20
KILLS, KILL_STEPS, KILL_WITHIN_S = 30, 1600, 14.0
TABLE = Path(__file__).with_name("TABLE.md")


@dataclass(frozen=True)
class Row:
    fault: str
    lost: str
    seconds: str
    equal: str


class Campaign:
    """Runs in one folder, compared with the one that nothing befell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        contigs = {"train": [markov_sequence(400_000, seed=1)], "val": [markov_sequence(3_000, seed=2)]}
        self.data = write_dataset(folder / "data", contigs)
        with self.run("quiet") as quiet:
            assert quiet.start().wait() == 0, quiet.said
            self.wanted = quiet.weights()

    def run(self, name: str, *train: str, steps: int = STEPS, **more: object) -> Supervised:
        return Supervised(
            self.folder,
            name,
            self.data,
            f"train.steps={steps}",
            f"train.schedule_steps={steps}",
            f"checkpoint.every={EVERY}",
            *train,
            **more,
        )  # type: ignore[arg-type]

    def row(
        self, fault: str, run: Supervised, seconds: float | None, at: int, *, wanted: bytes | None = None
    ) -> Row:
        """``at``: the step that ran when it happened."""
        back = [
            int(line.split("step ")[1].split(",")[0])
            for line in run.said.splitlines()
            if "going on after" in line
        ]
        lost = str(max(0, at - 1 - back[0])) if back else "0"
        equal = "yes" if run.weights() == (wanted or self.wanted) else "NO"
        return Row(fault, lost, "–" if seconds is None else f"{seconds:.1f}", equal)


def step_of(run: Supervised) -> int:
    return max((beat.step for beat in run.heartbeats().values()), default=0)


def rank_killed(campaign: Campaign) -> Iterator[Row]:
    for rank in (0, 1):
        with campaign.run(f"kill{rank}") as run:
            run.start().until(lambda: run.step() >= 3 * EVERY)
            before, at = set(run.processes()), step_of(run)
            os.kill(run.ranks()[rank], signal.SIGKILL)
            seconds = run.goes_on(before)
            assert run.wait() == 0, run.said
            yield campaign.row(f"kill −9 of rank {rank}", run, seconds, at)


def agent_killed(campaign: Campaign) -> Iterator[Row]:
    with campaign.run("agent") as run:
        run.start().until(lambda: run.step() >= 3 * EVERY)
        before, at = set(run.processes()), step_of(run)
        os.kill(run.agents()[0], signal.SIGKILL)
        seconds = run.goes_on(before)
        assert run.wait() == 0, run.said
        yield campaign.row("kill −9 of a node's agent", run, seconds, at)


def supervisor_killed(campaign: Campaign) -> Iterator[Row]:
    for name, number in (
        ("kill −9 of the supervisor, started again", signal.SIGKILL),
        ("SIGTERM to the supervisor, started again", signal.SIGTERM),
    ):
        with campaign.run(number.name) as run:
            run.start().until(lambda: run.step() >= 3 * EVERY)
            before, at = set(run.processes()), step_of(run)
            run.signal(number)
            assert run.wait() == (75 if number == signal.SIGTERM else -9), run.said
            run.start()
            seconds = run.goes_on(before)
            assert run.wait() == 0, run.said
            yield campaign.row(name, run, seconds, at)


def rank_stopped(campaign: Campaign) -> Iterator[Row]:
    with campaign.run("stopped", cluster=["hang_timeout_s=5"]) as run:
        run.start().until(lambda: run.step() >= 3 * EVERY)
        before, at = set(run.processes()), step_of(run)
        os.kill(run.ranks()[1], signal.SIGSTOP)
        seconds = run.goes_on(before)
        assert run.wait() == 0, run.said
        assert "rank 1 on localhost is stopped (SIGSTOP)" in run.said, run.said
        yield campaign.row("SIGSTOP of a rank, hang_timeout_s 5", run, seconds, at)


def disk_full(campaign: Campaign) -> Iterator[Row]:
    disk = campaign.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        with campaign.run("full", "checkpoint.max_failed=100", run_dir=str(disk / "run")) as run:
            run.start().until(lambda: run.step() >= 2 * EVERY)
            at = step_of(run)
            with open(disk / "filler", "wb") as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"\0" * 65536)
                    filler.flush()
            run.until(lambda: "is not saved" in run.said)
            (disk / "filler").unlink()
            assert run.wait() == 0, run.said
            yield campaign.row("disk full at a checkpoint, room again later", run, None, at)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def damaged(campaign: Campaign) -> Iterator[Row]:
    def truncate(newest: Path) -> None:
        file = newest / "rank-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def flip(newest: Path) -> None:
        file = newest / "rank-00000-of-00002.safetensors"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    def no_manifest(newest: Path) -> None:
        (newest / "manifest.json").unlink()

    damages: dict[str, Callable[[Path], None]] = {
        "newest checkpoint truncated": truncate,
        "a bit of it flipped": flip,
        "its manifest missing": no_manifest,
    }
    for name, damage in damages.items():
        with campaign.run(damage.__name__) as run:
            run.start().until(lambda: run.step() >= 4 * EVERY)
            at = step_of(run)
            run.signal(signal.SIGKILL)
            run.wait()
            damage(sorted(Path(run.run_dir, "checkpoints").glob("step-*"))[-1])
            before = set(run.processes())
            run.start()
            seconds = run.goes_on(before)
            assert run.wait() == 0, run.said
            assert "warning: passed over the checkpoint" in run.said
            yield campaign.row(f"{name}, and the supervisor killed", run, seconds, at)


def store_away(campaign: Campaign) -> Iterator[Row]:
    with s3_service.proxy() as proxy, s3_service.bucket(proxy) as bucket:
        environment = s3_service.environment(proxy) | {"DNA_STORE_RETRY_SECONDS": "1"}
        for kind, name in (
            ("503", "S3 answers 503 for 5 s"),
            ("timeout", "S3 does not answer, 3 times"),
            ("slow", "S3 is slow"),
        ):
            with campaign.run(
                f"s3-{kind}",
                run_dir=f"{bucket.uri}/{kind}",
                env=environment | {"DNA_STORE_TIMEOUT_SECONDS": "3"},
            ) as run:
                run.start().until(lambda: step_of(run) >= 2 * EVERY)
                at = step_of(run)
                more = {"slow": {"rate": 200_000}, "timeout": {"seconds": 5.0, "times": 3}}.get(kind, {})
                rule = bucket.fault(kind, "PUT", "checkpoints", **more)
                time.sleep(5)
                proxy.clear()
                assert rule is not None
                assert run.wait() == 0, run.said
                data = bucket.client.get_object(Bucket=bucket.bucket, Key=f"{kind}/model.safetensors")[
                    "Body"
                ].read()
                yield Row(name, "0" if at else "?", "–", "yes" if data == campaign.wanted else "NO")


def shard_corrupt(campaign: Campaign) -> Iterator[Row]:
    copy = campaign.folder / "copy"
    subprocess.run(["cp", "-r", campaign.data, str(copy)], check=True)
    shard = copy / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    whole = bytes(data)
    for _, block in Dataset(str(copy), "train").blocks:
        data[block.offset + 100] ^= 1
    with Supervised(
        campaign.folder,
        "shard",
        str(copy),
        f"train.steps={STEPS}",
        f"checkpoint.every={EVERY}",
        f"train.schedule_steps={STEPS}",
        cluster=["max_faults=2"],
    ) as run:
        run.start().until(lambda: run.step() >= 2 * EVERY)
        at = step_of(run)
        shard.write_bytes(data)
        assert run.wait() == 1, run.said
        assert "2 faults in a row without a newer checkpoint" in run.said and "crc32" in run.said, run.said
        shard.write_bytes(whole)
        before = set(run.processes())
        run.start()
        seconds = run.goes_on(before)
        assert run.wait() == 0, run.said
        yield campaign.row(
            "shard corrupt in mid-epoch: stops, names it; mended, started again", run, seconds, at
        )


def second_supervisor(campaign: Campaign) -> Iterator[Row]:
    endless = {"steps": 100_000}
    with (
        campaign.run("both", **endless) as run,
        campaign.run("both", cluster=["max_faults=1"], **endless) as second,
    ):
        run.start().until(lambda: run.step() >= EVERY)
        assert second.start().wait() == 1, second.said
        assert "is in use by process" in second.said, second.said
        at = run.step()
        run.until(lambda: run.step() > at)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75, run.said
        yield Row("a second supervisor on the same run.dir: refused, the first goes on", "0", "–", "–")


def network(campaign: Campaign) -> Iterator[Row]:
    with hosts(2) as net:
        (campaign.folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in net.names))
        cluster = [
            f"launch.hostfile={campaign.folder}/hostfile",
            "launch.remote=ip netns exec {host}",
            "launch.ranks_per_node=1",
            "hang_timeout_s=15",
            "probe_every_s=1",
            "rejoin_after_s=2",
        ]
        # A rank alone on its host has both cores, and sums in another order than two that share them.
        with campaign.run("far", cluster=cluster, config="hosts") as quiet:
            assert quiet.start().wait() == 0, quiet.said
            wanted = quiet.weights()
        with campaign.run("cut5", cluster=cluster, config="hosts") as run:
            run.start().until(lambda: run.step() >= 2 * EVERY)
            at = step_of(run)
            net.cut(net.names[1])
            start = time.monotonic()
            time.sleep(5)
            net.mend(net.names[1])
            run.until(lambda: step_of(run) > at + 1)
            seconds = time.monotonic() - start
            assert run.wait() == 0, run.said
            yield campaign.row("a node's network cut for 5 s", run, seconds, 0, wanted=wanted)
        with campaign.run("slow", cluster=cluster, config="hosts") as run:
            run.start().until(lambda: run.step() >= 2 * EVERY)
            net.slow(net.names[1], "20mbit")
            assert run.wait() == 0, run.said
            net.slow(net.names[1], None)
            yield campaign.row("a node whose network is slow (20 Mbit/s)", run, None, 0, wanted=wanted)
        with campaign.run("cut", cluster=[*cluster, "hang_timeout_s=5"], config="hosts", steps=800) as run:
            run.start().until(lambda: run.step() >= 2 * EVERY)
            before, at = set(run.processes()), step_of(run)
            net.cut(net.names[1])
            seconds = run.goes_on(before)
            net.mend(net.names[1])
            run.until(lambda: "can be used again" in run.said)
            assert run.wait() == 0, run.said
            back = int(run.said.split("going on after step ")[1].split(",")[0])
            yield Row(
                "a node's network cut for good: on with one rank; then taken back",
                str(max(0, at - 1 - back)),
                f"{seconds:.1f}",
                "not the same bits: other world sizes",
            )


def random_kills(campaign: Campaign) -> Iterator[Row]:
    """30 SIGKILLs of a random rank at random moments, start-up, saving and all."""
    with campaign.run("long", steps=KILL_STEPS) as quiet:
        assert quiet.start().wait() == 0, quiet.said
        wanted = quiet.weights()
    draw, kills, start = random.Random(20261125), 0, time.monotonic()
    hasty = ["max_faults=1000", "survivor_s=2", "restart_pause_s=0"]
    with campaign.run("random", steps=KILL_STEPS, cluster=hasty) as run:
        run.start()
        while kills < KILLS and not run.ended():
            run.until(lambda: len(run.ranks()) == 2 or run.ended())
            moment, rank = draw.uniform(0, KILL_WITHIN_S), draw.choice([0, 1])
            pids = run.ranks()
            deadline = time.monotonic() + moment
            while time.monotonic() < deadline and not run.ended():
                time.sleep(0.02)
            if rank in pids and not run.ended():
                try:
                    os.kill(pids[rank], signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    continue
                run.until(lambda pids=pids: not set(run.ranks().values()) & set(pids.values()) or run.ended())
        assert run.wait(300) == 0, run.said
        assert kills == KILLS, f"it ended after {kills} kills"
        equal = "yes" if run.weights() == wanted else "NO"
        yield Row(
            f"{kills} kills −9 of a random rank at random moments, {KILL_STEPS} steps",
            "–",
            f"{time.monotonic() - start:.0f} in all",
            equal,
        )


PARTS = {
    part.__name__: part
    for part in (
        rank_killed,
        agent_killed,
        supervisor_killed,
        rank_stopped,
        disk_full,
        damaged,
        store_away,
        shard_corrupt,
        second_supervisor,
        network,
        random_kills,
    )
}


def main(wanted: list[str]) -> int:
    start, rows, failed = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="dna-faults-") as folder:
        campaign = Campaign(Path(folder))
        for name in wanted or PARTS:
            try:
                for row in PARTS[name](campaign):
                    print(
                        f"{row.fault:<75} lost {row.lost:>4}  {row.seconds:>10} s  equal: {row.equal}",
                        flush=True,
                    )
                    rows.append(row)
                    failed += row.equal == "NO"
            except AssertionError as fault:
                print(f"{name} FAILED: {fault}", flush=True)
                rows.append(Row(f"{name}: FAILED", "", "", ""))
                failed += 1
    lines = (
        {line.split("|")[1].strip(): line for line in TABLE.read_text().splitlines() if line.startswith("| ")}
        if wanted and TABLE.exists()
        else {}
    )
    lines |= {row.fault: f"| {row.fault} | {row.lost} | {row.seconds} | {row.equal} |" for row in rows}
    lines.pop("fault", None)
    took = "some by themselves" if wanted else f"{time.monotonic() - start:.0f} s in all"
    TABLE.write_text(
        f"""# Faults into a real run

`make faults`: 2 ranks on one machine of 2 cores, {STEPS} steps, checkpoint.every {EVERY}; {took}.
Steps lost: of those that were done, how many were run again; where the newest checkpoint was damaged, up to
one interval more. Seconds: until ranks that were started anew have done a step.

| fault | steps lost | seconds to the next step | final teacher equal |
|---|---|---|---|
"""
        + "\n".join(lines.values())
        + "\n"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
