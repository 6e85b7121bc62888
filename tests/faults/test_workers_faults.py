"""Pretraining that registers versions while two ``cluster finetune --watch`` score them; a worker and a
watcher are killed. And the command as a Ray job on two nodes, one of which dies."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.datasets import markov_sequence, write_dataset
from tests.faults.supervised import Supervised
from tests.faults.test_cluster_build import RAY, ROOT, answers, free_port, kill, node, wait_for
from tests.registered import register, write_task
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.tracking.registry import Registry

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

MODES = ("kmer", "onehot", "probe", "finetune", "scratch")


class Watcher:
    """A ``python -m cluster finetune`` beside the test, with a local Ray of one CPU."""

    def __init__(self, folder: Path, *more: str) -> None:
        self._lines: list[str] = []
        tasks = [str(folder / f"{name}.yaml") for name in ("one", "two")]
        command = ["-m", "cluster", "finetune", "--tasks", *tasks, "--cpus", "1", "--poll-s", "1", *more]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--track-uri", f"sqlite:///{folder}/mlflow.db"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self._family: list[psutil.Process] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._lines.append(line)

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def computing(self) -> list[psutil.Process]:
        """Ray's workers that compute a unit."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for member in self._family:
            with contextlib.suppress(psutil.Error):
                if "ray::unit_outcome" in " ".join(member.cmdline()):
                    found.append(member)
        return found

    def end(self) -> None:
        """With all that it has started."""
        self.computing()
        for member in [*self._family, psutil.Process()][:-1]:
            with contextlib.suppress(psutil.Error):
                member.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def write_tasks(folder: Path) -> None:
    text = write_task(folder).read_text()
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(
            text.replace("name: motif", f"name: {name}") + "workers: {cpus: 1}\n"
        )


def finished(uri: str, model: str) -> Counter[tuple[str, ...]]:
    """How often each (version, task, mode, seed) stands in MLflow as finished; none is left open."""
    runs = Registry(uri).tagged(None, {"finetune": "child", "model.name": model})
    assert {run.info.status for run in runs} <= {"FINISHED"}, [run.info for run in runs]
    return Counter(
        (run.data.tags["model.version"], *(run.data.params[key] for key in ("task", "mode", "seed")))
        for run in runs
    )


def wanted(versions: list[str]) -> set[tuple[str, ...]]:
    return {(version, task, mode, "0") for version in versions for task in ("one", "two") for mode in MODES}


def test_two_watchers_beside_pretraining_of_which_one_and_a_worker_are_killed(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    letters = {"train": [markov_sequence(40_000, seed=1)], "val": [markov_sequence(6000, seed=2)]}
    data = write_dataset(tmp_path / "data", letters)
    uri, model = f"sqlite:///{tmp_path}/mlflow.db", "watched"
    track = [f"track.registered_model={model}", "track.register_every=20", "track.register_keep=0"]
    given = ["train.steps=60", "train.global_batch=12", "train.micro_batch=6", "track.candidate=always"]
    watch = ["--model", f"models:/{model}@candidate", "--watch", "--lease-s", "5"]
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Supervised(tmp_path, "r", data, *track, *given)).start()
        run.until(lambda: bool(versions(uri, model)), 180)
        watchers = [Watcher(tmp_path, *watch) for _ in range(2)]
        for watcher in watchers:
            stack.callback(watcher.end)
        wait_for(lambda: bool(watchers[0].computing()), f"a unit; said {watchers[0].said}", seconds=120)
        os.kill(watchers[0].computing()[0].pid, signal.SIGKILL)
        wait_for(lambda: "trying again: " in watchers[0].said, f"a new try; said {watchers[0].said}")
        wait_for(lambda: bool(watchers[1].computing()), f"a unit; said {watchers[1].said}", seconds=120)
        os.kill(watchers[1].process.pid, signal.SIGKILL)
        assert run.wait(240) == 0, run.said
        numbers = versions(uri, model)
        assert len(numbers) >= 3, "two on the way, one at the end"

        def all_done() -> bool:
            assert watchers[0].process.poll() is None, watchers[0].said
            return all(f"{model} version {number}: all done" in watchers[0].said for number in numbers)

        wait_for(all_done, "all versions", seconds=240)
        watchers[0].process.send_signal(signal.SIGTERM)
        assert watchers[0].process.wait(30) == 75, watchers[0].said
    assert finished(uri, model) == Counter(wanted(numbers))
    registry = Registry(uri)
    steps = [int(registry.version(f"models:/{model}/{number}").tags["step"]) for number in numbers]
    pretraining = registry.version(f"models:/{model}/{numbers[0]}").run_id
    for task in ("one", "two"):
        for mode in MODES:
            curve = registry.history(pretraining, f"downstream/{task}/{mode}_mcc")
            assert list(curve["step"]) == sorted(steps), (task, mode)
    settled = [registry.version(f"models:/{model}/{number}").tags["champion.reason"] for number in numbers]
    assert all(settled)
    champion = registry.champion(model)
    followers = [
        number
        for number, reason in zip(numbers, settled, strict=True)
        if f"version {number}, the first" in reason or f"version {number} follows" in reason
    ]
    assert (str(champion.version) if champion else None) == (followers[-1] if followers else None)


def versions(uri: str, model: str) -> list[str]:
    """The numbers of the versions, oldest first; none before there is an MLflow."""
    try:
        found = Registry(uri).client.search_model_versions(f"name='{model}'")
    except RuntimeError:
        return []
    return [str(number) for number in sorted(int(one.version) for one in found)]


def test_a_ray_job_on_two_nodes_of_which_one_dies(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    register(tmp_path, uri, seed=0, params={"run.dir": "none", "train.steps": "5"})
    head, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": folder,
    }
    environment.pop("PYTHONPATH", None)  # the job's own working folder is what it imports from
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    log, began = tmp_path / "job.log", [str(ROOT)]
    command = ["--model", "models:/toy@candidate", "--track-uri", uri]
    command += ["--tasks", *(str(tmp_path / f"{name}.yaml") for name in ("one", "two")), "finetune.epochs=40"]
    jobs: list[subprocess.Popen[bytes]] = []

    def submitted() -> bool:
        """Once the dashboard has an agent to run jobs, which it gets some seconds after it answers."""
        with open(log, "w") as out:
            address = f"http://127.0.0.1:{dashboard}"
            start = [RAY, "job", "submit", "--address", address, "--working-dir", *began, "--"]
            python = ["python", "-m", "cluster", "finetune", *command]
            jobs.append(subprocess.Popen([*start, *python], env=environment, stdout=out, stderr=out))
        wait_for(lambda: "submitted successfully" in log.read_text() or jobs[-1].poll() is not None, "it")
        return jobs[-1].poll() is None

    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ports = [f"--port={head}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        more: dict[str, Any] = {"environment": environment, "log": tmp_path / "head.log"}
        stack.enter_context(node("--head", *ports, f"--ray-client-server-port={free_port()}", **more))
        wait_for(lambda: answers(head) and answers(dashboard), "the head")
        more["log"] = tmp_path / "second.log"
        second = stack.enter_context(node(f"--address=127.0.0.1:{head}", **more))
        wait_for(lambda: "Ray runtime started" in (tmp_path / "second.log").read_text(), "the second node")
        wait_for(submitted, "an agent")
        stack.callback(jobs[-1].wait)
        stack.callback(jobs[-1].kill)

        def at_work() -> bool:
            assert jobs[-1].poll() is None, log.read_text()
            family = psutil.Process(second.pid).children(recursive=True)
            return any("ray::unit_outcome" in " ".join(member.cmdline()) for member in family)

        wait_for(at_work, "a unit on the second node", seconds=120)
        kill(second)
        jobs[-1].wait(timeout=240)
    said = log.read_text()
    assert jobs[-1].returncode == 0, said
    assert "trying again: version 1: " in said, "the killed node's unit was never lost"
    assert finished(uri, "toy") == Counter(wanted(["1"]))
    assert len(past_results(Registry(uri), "toy", "1")) == 10
