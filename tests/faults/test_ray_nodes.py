"""The nodes of a Ray cluster for the supervisor, with 2 GPUs each as Ray has it: one node dies, then the
driver."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.faults.test_cluster_build import ROOT, answers, free_port, kill, node, wait_for
from tests.unit.test_ray_nodes import TOY, running

DRIVER = """
import json, sys, time
from cluster.launch.nodes import NodeLost
from cluster.launch.ray_nodes import RayNodes

def tell(**values): print(json.dumps(values), flush=True)

def receive(link):
    while not (lines := link.receive()):
        time.sleep(0.02)
    return lines[0]

nodes = RayNodes(agent=sys.argv[1:])
while len(places := nodes.places()) < 2:
    time.sleep(0.1)
links = {place.name: nodes.connect(place) for place in places}
assert [place.slots for place in places] == [2, 2], places
tell(up={name: json.loads(receive(link)) for name, link in links.items()})
while len(links) == 2:
    for name, link in list(links.items()):
        try:
            link.receive()
        except NodeLost as fault:
            link.close()
            del links[name]
            tell(lost=name, why=str(fault))
    time.sleep(0.02)
(name, link), = links.items()
link.send("env CUDA_VISIBLE_DEVICES")
tell(left=name, said=receive(link))
while len(places := nodes.places()) > 1:
    time.sleep(0.1)
tell(places=[place.name for place in places])
time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_one_node_dies_then_the_driver(tmp_path: Path) -> None:
    head = free_port()
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": folder,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a" * 64,
    }
    toy, log = tmp_path / "toy.py", tmp_path / "driver.log"
    toy.write_text(TOY)

    def heard() -> dict[str, object]:
        """All that the driver has told so far."""
        told: dict[str, object] = {}
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                told |= json.loads(line)
        return told

    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(
            node(
                "--head",
                f"--port={head}",
                "--include-dashboard=false",
                f"--ray-client-server-port={free_port()}",
                "--num-gpus=2",
                environment=environment,
                log=tmp_path / "head.log",
            )
        )
        wait_for(lambda: answers(head), "the head")
        second = stack.enter_context(
            node(
                f"--address=127.0.0.1:{head}",
                "--num-gpus=2",
                environment=environment,
                log=tmp_path / "second.log",
            )
        )
        with open(log, "w") as out:
            driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(toy)],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env=environment | {"RAY_ADDRESS": f"127.0.0.1:{head}"},
            )
        stack.callback(driver.wait)
        stack.callback(driver.kill)

        stranger = subprocess.run(  # meanwhile: whoever has another token is told so
            [sys.executable, "-c", "from cluster.tasks import ray_session\nwith ray_session.join(): pass"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env=environment
            | {
                "RAY_ADDRESS": f"127.0.0.1:{head}",
                "RAY_AUTH_TOKEN": "b" * 64,
                "RAY_NUM_REDIS_GET_RETRIES": "1",
            },
        )
        assert f"cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:{head}: " in stranger.stderr
        assert (
            "do RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) hold the cluster's token?"
            in stranger.stderr
        )

        def awaited(key: str) -> object:
            wait_for(lambda: key in heard() or driver.poll() is not None, f"{key}; so far: {log.read_text()}")
            assert driver.poll() is None, log.read_text()
            return heard()[key]

        up = awaited("up")
        assert isinstance(up, dict) and len(up) == 2
        on_second = {member.pid for member in psutil.Process(second.pid).children(recursive=True)}
        (dying,) = (name for name, pids in up.items() if pids["agent"] in on_second)
        (staying,) = up.keys() - {dying}
        kill(second)
        assert awaited("lost") == dying
        assert str(awaited("why")).startswith(f"{dying} was lost: ")
        assert awaited("left") == staying
        assert awaited("said") == "0,1", "its ranks do not see the GPUs that Ray gave them"
        assert awaited("places") == [staying]
        assert all(running(pid) for pid in up[staying].values())

        driver.kill()
        wait_for(lambda: not any(running(pid) for pid in up[staying].values()), "agent and rank to end")
