"""A real training run under ``python -m cluster train``, its processes by kind, and what befell it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from cluster.process import heartbeat
from cluster.process.heartbeat import HeartbeatRecord
from tests import signals
from trainer.models import pretrained

ROOT = Path(__file__).parents[2]
MARK = "DNA_TEST_MARK"  # in the environment of all that a run starts
TRAIN = [
    "model.hidden_size=20",
    "model.dilations=[1, 4]",
    "data.length=48",
    "loss.patch.prototypes=32",
    "train.precision=fp32",
    "val.windows=24",
    "val.every=100000",
    "track.registered_model=null",
    "track.every=1000",
    "track.report_every=0",
]
CLUSTER = ["launch.ranks_per_node=2", "survivor_s=3", "grace_s=60", "restart_pause_s=0.2"]


class Supervised:
    """One run.dir, and the supervisor that runs it; use it as a context, so that nothing of it is left."""

    def __init__(
        self,
        folder: Path,
        name: str,
        data: str,
        *train: str,
        cluster: Sequence[str] = (),
        config: str = "local",
        run_dir: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.run_dir = run_dir or str(folder / name)
        self.mark, self._env, self._folder = uuid.uuid4().hex, env or {}, folder
        self._command = [
            sys.executable,
            "-m",
            "cluster",
            "train",
            "--config",
            f"configs/cluster/{config}.yaml",
            *CLUSTER,
            *cluster,
            "--",
            "--config",
            "configs/train/demo.yaml",
            *TRAIN,
            f"data.uri={data}",
            f"run.dir={self.run_dir}",
            f"run.name={name}",
            f"track.uri=sqlite:///{folder}/mlflow.db",
            *train,
        ]
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []

    def start(self) -> "Supervised":
        environment = {
            **os.environ,
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": "5000",
            **self._env,
        }
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=signals.hear,
        )
        threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True).start()
        return self

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self._lines.append(line)

    @property
    def said(self) -> str:
        return "".join(self._lines)

    @property
    def supervisor(self) -> int:
        assert self._process
        return self._process.pid

    def ended(self) -> bool:
        assert self._process
        return self._process.poll() is not None

    def wait(self, timeout_s: float = 120) -> int:
        """The supervisor's exit code."""
        assert self._process
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended in {timeout_s} s:\n{self.said}") from None
        time.sleep(0.2)  # for its last words
        return code

    def signal(self, number: int) -> None:
        os.kill(self.supervisor, number)

    def processes(self) -> dict[int, dict[str, str]]:
        """pid -> environment of all that this run has started and that is not a zombie."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    text = (entry / "environ").read_text(errors="replace")
                    command = (entry / "cmdline").read_text(errors="replace")
                except OSError:
                    continue
                if f"{MARK}={self.mark}" in text.split("\0"):
                    environment = dict(part.split("=", 1) for part in text.split("\0") if "=" in part)
                    found[int(entry.name)] = environment | {"command": command.replace("\0", " ")}
        return found

    def ranks(self) -> dict[int, int]:
        """rank -> pid."""
        return {
            int(env["RANK"]): pid
            for pid, env in self.processes().items()
            if "RANK" in env and "trainer/main.py" in env["command"]
        }

    def heartbeats(self) -> dict[int, HeartbeatRecord]:
        """rank -> what it is doing."""
        return {
            int(env["RANK"]): heartbeat.read(env[heartbeat.ENV])
            for env in self.processes().values()
            if heartbeat.ENV in env and "trainer/main.py" in env["command"]
        }

    def agents(self) -> list[int]:
        return [pid for pid, env in self.processes().items() if "cluster.launch.agent" in env["command"]]

    def step(self) -> int:
        """Of the newest checkpoint."""
        try:
            return int(json.loads(Path(self.run_dir, "checkpoints/latest.json").read_text())["step"])
        except (OSError, ValueError):
            return 0

    def until(self, condition: Callable[[], object], timeout_s: float = 90) -> float:
        """Seconds until ``condition`` holds."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < timeout_s, f"not so in {timeout_s} s:\n{self.said}"
            assert not self.ended() or condition(), f"ended before:\n{self.said}"
            time.sleep(0.02)
        return time.monotonic() - start

    def weights(self) -> bytes:
        return Path(self.run_dir, pretrained.WEIGHTS).read_bytes()

    def goes_on(self, before: Container[int], timeout_s: float = 120) -> float:
        """Seconds until ranks other than those of the pids ``before`` have done a step."""
        firsts: dict[int, int] = {}

        def stepped() -> bool:
            for pid, env in self.processes().items():
                if pid not in before and heartbeat.ENV in env and "trainer/main.py" in env["command"]:
                    step = heartbeat.read(env[heartbeat.ENV]).step
                    if step > firsts.setdefault(pid, step or 1 << 60):
                        return True
                    if step and firsts[pid] == 1 << 60:
                        firsts[pid] = step
            return False

        return self.until(stepped, timeout_s)

    def lost_steps(self) -> list[int]:
        """By restart: steps between where a rank was and the checkpoint that the run went on from."""
        found = re.findall(r"supervisor: .*(?:\(step |: step )(\d+)", self.said)
        steps = [int(step) for step in found]
        resumed = [int(step) for step in re.findall(r"going on after step (\d+)", self.said)]
        return [max(0, at - 1 - back) for at, back in zip(steps, resumed, strict=False)]

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self._process:
            self._process.wait()
