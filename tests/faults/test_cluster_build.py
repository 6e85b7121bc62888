"""The build as a Ray job on a cluster of two nodes, one of which is killed in the middle."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.storage import store
from data_prep.config import DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.verify import verify
from tests.bench.prep import write_genome
from tests.s3 import S3

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(happened: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def node(*arguments: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --block` with one CPU, which ends with the block."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [
                RAY,
                "start",
                "--block",
                "--num-cpus=1",
                "--disable-usage-stats",
                "--node-ip-address=127.0.0.1",
                f"--dashboard-agent-listen-port={free_port()}",
                *arguments,
            ],
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The node and all its processes at once, as a machine that loses its power."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("local_ray")
def test_a_job_on_two_nodes_of_which_one_dies(s3: S3, tmp_path: Path) -> None:
    write_genome(tmp_path / "g.fa", 6_000_000)
    values = {
        "references": [{"name": "g", "uri": str(tmp_path / "g.fa")}],
        "output": str(tmp_path / "alone"),
        "block_bp": 65536,
        "shard_bp": 262144,
        "split": {"val": ["chr3"], "leakage": "off"},
    }
    undisturbed = build(DataConfig.model_validate(values)).manifest
    config = tmp_path / "c.yaml"
    config.write_text(
        f"references: [{{name: g, uri: {tmp_path}/g.fa}}]\noutput: {s3.uri}/o\nblock_bp: 65536\n"
        "shard_bp: 262144\nsplit: {val: [chr3], leakage: 'off'}\n"
    )

    head, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": folder,
        "DNA_CACHE": str(tmp_path / "cache"),
    }
    environment.pop("PYTHONPATH", None)  # the job's own working folder is what it imports from
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(
            node(
                "--head",
                f"--port={head}",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
                f"--ray-client-server-port={free_port()}",
                environment=environment,
                log=tmp_path / "head.log",
            )
        )
        wait_for(lambda: answers(head) and answers(dashboard), "the head")
        second = stack.enter_context(
            node(f"--address=127.0.0.1:{head}", environment=environment, log=tmp_path / "second.log")
        )
        # Shards are sent by both nodes until the 6th and 7th get no answer: then each node is in the middle
        # of one.
        hanging = s3.fault("timeout", "PUT", r"\.tar", skip=5, times=2, seconds=60)
        wait_for(lambda: "Ray runtime started" in (tmp_path / "second.log").read_text(), "the second node")
        command = [
            RAY,
            "job",
            "submit",
            "--address",
            f"http://127.0.0.1:{dashboard}",
            "--working-dir",
            str(ROOT),
            "--",
            "python",
            "-c",
            # A line at every report, and not one a minute.
            "import sys; from cluster.process import progress; progress.LINE_S = 0.0; "
            "from data_prep.__main__ import main; sys.exit(main())",
            "build",
            "--config",
            str(config),
        ]
        log = tmp_path / "job.log"

        def submitted() -> bool:
            """Once the dashboard has an agent to run jobs, which it gets some seconds after it answers."""
            with open(log, "w") as out:
                jobs.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            wait_for(
                lambda: "submitted successfully" in log.read_text() or jobs[-1].poll() is not None, "the job"
            )
            return jobs[-1].poll() is None

        jobs: list[subprocess.Popen[bytes]] = []
        try:
            wait_for(submitted, "an agent")
            wait_for(
                lambda: hanging.met >= 7 or jobs[-1].poll() is not None, "both nodes to send", seconds=90
            )
            kill(second)
            s3.proxy.clear()
            jobs[-1].wait(timeout=90)
        finally:
            for job in jobs:
                job.kill()
                job.wait()
    said = log.read_text()
    assert jobs[-1].returncode == 0, said
    lines = re.findall(r"write: ([\d,]+) of ([\d,]+) bp, \d+\.\d [kM]bp/s, (\d\d:\d\d) left", said)
    assert len(lines) >= 3 and lines[-1][0] == lines[-1][1], "how far it is, how fast, and the time left"
    assert "trying again: " in said, "the killed node's shard was never lost"
    bp = sum(undisturbed.bp(split) for split in ("train", "val"))
    assert f"{s3.uri}/o: {bp:,} bp" in said
    assert store.read_bytes(f"{s3.uri}/o/manifest.json") == undisturbed.to_bytes()
    assert verify(f"{s3.uri}/o") == []
