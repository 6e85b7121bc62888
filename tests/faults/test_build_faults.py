"""A build and what can go wrong under it: it ends with the right bytes, or says what failed and leaves no
manifest.

Every build here is of one generated genome; ``undisturbed`` is what it must come out as.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.storage import store
from data_prep.alphabet import decode
from data_prep.config import DataConfig
from data_prep.dataset import build as build_module
from data_prep.dataset.build import BuildStoppedError, Built, build
from data_prep.dataset.read import load_manifest
from data_prep.dataset.verify import verify
from data_prep.sources.survey import prepare
from tests import signals
from tests.s3 import S3

ROOT = Path(__file__).resolve().parents[2]
BLOCK, SHARD, SHARDS = 1 << 15, 1 << 17, 17
pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    with open(path, "wb") as file:
        for name, bp in (("a", 2_000_000), ("b", 131_072)):
            soft_mask = np.repeat(rng.random(bp // 64 + 1) < 0.4, 64)[:bp]
            letters = decode(rng.integers(0, 4, bp).astype(np.uint8), soft_mask)
            file.write(b">" + name.encode() + b"\n")
            file.writelines(letters[i : i + 80] + b"\n" for i in range(0, bp, 80))
    return path


def values(genome: Path | str, output: Path | str, **changes: Any) -> dict[str, Any]:
    return {
        "references": [{"name": "g", "uri": str(genome)}],
        "output": str(output),
        "block_bp": BLOCK,
        "shard_bp": SHARD,
        "split": {"val": ["b"], "leakage": "off"},
    } | changes


def made(genome: Path | str, output: Path | str, **how: Any) -> Built:
    return build(DataConfig.model_validate(values(genome, output)), **how)


def contents(uri: Path | str) -> dict[str, bytes]:
    return {
        name: store.read_bytes(store.join(str(uri), name))
        for name in store.list_files(str(uri))
        if name != "build.json"
    }


@pytest.fixture(scope="module")
def undisturbed(genome: Path, local_ray: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "o"
    made(genome, output)
    assert len(load_manifest(str(output)).shards["train"]) + 1 == SHARDS
    return contents(output)


def wait_for(happened: Callable[[], Any], *, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")


def killed_in_the_middle(task: Any) -> Any:
    """Two of the shards: SIGKILL for the worker while it writes, once each."""
    path = Path(task.uri)
    marker = path.parents[1] / f"{path.name}.killed"
    if path.name in {"train-000002.tar", "val-000000.tar"} and not marker.exists():
        marker.touch()
        with store.publish(str(path)) as file:
            file.write(b"half a shard")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return _SHARD(task)


_SHARD = build_module._shard


def test_a_killed_worker_costs_nothing(
    genome: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.dataset.build._shard", killed_in_the_middle)
    retries: list[str] = []
    made(genome, tmp_path / "o", on_retry=retries.append)
    assert len(list(tmp_path.glob("*.killed"))) == 2
    assert sorted(line.split(": ")[0] for line in retries) == ["train-000002.tar", "val-000000.tar"]
    assert all("a worker was lost (WorkerCrashedError)" in line for line in retries)
    assert contents(tmp_path / "o") == undisturbed, "what the killed were writing is gone, too"


def test_a_worker_that_always_dies_stops_the_build(
    genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.tasks.jobs._BACKOFF_S", 0.01)
    monkeypatch.setattr("cluster.tasks.jobs._RETRIES", 2)
    monkeypatch.setattr("data_prep.dataset.build._shard", dies)
    with pytest.raises(BuildStoppedError, match=r"a worker was lost .*; 0 of 17 shards are done and stay"):
        made(genome, tmp_path / "o")
    assert not (tmp_path / "o" / "manifest.json").exists()


def dies(task: object) -> None:
    os._exit(1)


@contextlib.contextmanager
def own_build(
    genome: Path, output: Path, cache: Path, *, workers: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """`python -m data_prep build` in a process group of its own, with a Ray of its own, ended with the
    block."""
    config = output.parent / "c.yaml"
    config.write_text(
        f"references: [{{name: g, uri: {genome}}}]\noutput: {output}\nblock_bp: {BLOCK}\n"
        f"shard_bp: {SHARD}\nsplit: {{val: [b], leakage: 'off'}}\nworkers: {workers}\n"
    )
    environment = os.environ | {"DNA_CACHE": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", "build", "--config", str(config)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=signals.hear,
    )
    try:
        yield process
    finally:
        for child in (
            [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        ):
            child.kill()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.faults
def test_a_killed_driver_leaves_no_worker_and_the_next_one_goes_on(
    genome: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "o"
    with own_build(genome, output, tmp_path / "cache") as process:
        wait_for(lambda: output.is_dir() and sum(name.endswith(".tar") for name in os.listdir(output)) >= 3)
        family = psutil.Process(process.pid).children(recursive=True)
        # Ray 2.60 leaves two idle agents of its own behind, which do not touch the output.
        busy = [child for child in family if "Agent" not in "".join(child.cmdline()[:1])]
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(busy, timeout=30)
        assert not alive
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    assert "manifest.json" not in os.listdir(output)
    built = made(genome, output)
    assert built.found_shards >= 3
    assert contents(output) == undisturbed


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults),
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.faults),
    ],
)
def test_a_build_that_is_told_to_stop_says_what_stays(
    genome: Path, tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    output = tmp_path / "o"
    with own_build(genome, output, tmp_path / "cache") as process:
        wait_for(lambda: output.is_dir() and any(name.endswith(".tar") for name in os.listdir(output)))
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    what = "interrupted" if code == 130 else "told to stop"
    assert (process.returncode, said) == (
        code,
        f"error: {what}; finished shards of a build stay, and the same command goes on from them\n",
    )
    assert "manifest.json" not in os.listdir(output)
    assert not [name for name in os.listdir(output) if name.startswith(".")], (
        "a worker's temporary file stayed"
    )


@pytest.mark.faults
def test_a_build_that_is_told_to_stop_while_ray_starts(genome: Path, tmp_path: Path) -> None:
    with own_build(genome, tmp_path / "o", tmp_path / "cache") as process:
        wait_for(
            lambda: [
                child for child in psutil.Process(process.pid).children() if child.name() == "gcs_server"
            ]
        )
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said.endswith(
        "error: told to stop; finished shards of a build stay, and the same command goes on from them\n"
    )


@pytest.mark.parametrize("kind", ["503", "500", "reset", "lost", "cut"])
def test_a_store_that_stumbles_costs_nothing(
    genome: Path, undisturbed: dict[str, bytes], s3: S3, kind: str
) -> None:
    """Each of the first requests for a shard fails; the reference and the listing fail too, once."""
    s3.client.upload_file(str(genome), s3.bucket, "g.fa")
    for key in ("train-000003.tar", "train-00001", "manifest.json"):
        s3.fault(kind, "PUT", key, times=2)
    s3.fault(kind, "GET", "g.fa", times=2)
    s3.fault(kind if kind != "cut" else "reset", "GET", "list-type", times=1)
    made(f"{s3.uri}/g.fa", f"{s3.uri}/o")
    assert contents(f"{s3.uri}/o") == undisturbed
    assert verify(f"{s3.uri}/o") == []
    assert s3.leftovers() == []


def test_a_store_that_does_not_answer_is_asked_again(
    genome: Path, undisturbed: dict[str, bytes], s3: S3
) -> None:
    s3.fault("timeout", "PUT", "train-000003.tar", times=1, seconds=2)
    made(genome, f"{s3.uri}/o")
    assert contents(f"{s3.uri}/o") == undisturbed


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("full", "The quota of the bucket is exceeded"),
        ("507", "minimum free drive threshold"),
        ("denied", "Access Denied"),
    ],
)
def test_a_store_that_says_no_stops_the_build_and_the_next_one_goes_on(
    genome: Path, undisturbed: dict[str, bytes], s3: S3, kind: str, reason: str
) -> None:
    s3.fault(kind, "PUT", "train-00001")
    with pytest.raises(
        BuildStoppedError,
        match=rf"cannot write {s3.uri}/o/train-00001\d.tar: .*{reason}.*; "
        r"\d+ of 17 shards are done and stay, there is no manifest yet",
    ):
        made(genome, f"{s3.uri}/o")
    assert "o/manifest.json" not in s3.objects()
    s3.proxy.clear()
    built = made(genome, f"{s3.uri}/o")
    assert built.found_shards >= 8
    assert s3.proxy.count("PUT", r"\.tar") == SHARDS - built.found_shards, "what is there is not sent again"
    assert contents(f"{s3.uri}/o") == undisturbed


def test_a_store_that_stays_away_stops_the_build(
    genome: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.tasks.jobs._BACKOFF_S", 0.01)
    s3.fault("503", "PUT", "train-000004.tar")
    retries: list[str] = []
    with pytest.raises(
        BuildStoppedError, match=r"cannot write .*train-000004.tar: .*reduce your request.*; gave up"
    ):
        made(genome, f"{s3.uri}/o", on_retry=retries.append)
    assert len(retries) == 4
    assert "o/manifest.json" not in s3.objects()


def test_a_manifest_is_not_written_over_a_lost_shard(genome: Path, s3: S3) -> None:
    """A shard goes while the build is on: the last look at the store notices."""

    def lose(stage: str, done: int, total: int) -> None:
        if done == total:
            s3.client.delete_object(Bucket=s3.bucket, Key="o/train-000000.tar")

    with pytest.raises(
        BuildStoppedError, match=r"train-000000.tar was written by a worker but is not seen from here"
    ):
        made(genome, f"{s3.uri}/o", on_progress=lose)
    assert "o/manifest.json" not in s3.objects()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", r"cannot read .*/g.fa: .*gave up after"),
        ("denied", r"cannot \w+ .*/g.fa: "),
    ],
)
def test_a_source_that_cannot_be_read_leaves_nothing(genome: Path, s3: S3, kind: str, message: str) -> None:
    s3.client.upload_file(str(genome), s3.bucket, "x/g.fa")
    s3.fault(kind, "GET", "x/g.fa")
    with pytest.raises(store.StoreError, match=message):
        made(f"{s3.uri}/x/g.fa", f"{s3.uri}/o")
    assert list(s3.objects()) == ["x/g.fa"]


def test_a_flipped_bit_on_the_way_is_found(genome: Path, s3: S3) -> None:
    """No checksum protects a plain FASTA in transit; the shards are protected, so verify finds a flip
    there."""
    made(genome, f"{s3.uri}/o")
    s3.fault("flip", "GET", "train-000002.tar")
    faults = verify(f"{s3.uri}/o")
    assert faults
    assert all("train-000002.tar" in fault for fault in faults)
    s3.proxy.clear()
    assert verify(f"{s3.uri}/o") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 384 KiB: three shards and a bit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=384k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(genome: Path, undisturbed: dict[str, bytes], small_disk: Path) -> None:
    output = small_disk / "o"
    with pytest.raises(
        BuildStoppedError,
        match=r"cannot write .*/o/train-00\d+.tar: No space left on device; "
        r"\d+ of 17 shards are done and stay",
    ):
        made(genome, output)
    assert "manifest.json" not in os.listdir(output)
    assert not [name for name in os.listdir(output) if name.startswith(".")]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert made(genome, output).found_shards > 0
    assert contents(output) == undisturbed


def test_a_full_cache(
    genome: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "g.fa.gz"
    with open(packed, "wb") as file:
        subprocess.run(["gzip", "-1c", str(genome)], stdout=file, check=True)
    with pytest.raises(
        store.StoreError, match=rf"cannot write {small_disk}/cache/\w+.fa: No space left on device"
    ):
        prepare(str(packed), cache=small_disk / "cache")
    assert not [path for path in (small_disk / "cache").iterdir() if path.suffix != ".lock"]
    shutil.rmtree(small_disk / "cache")
