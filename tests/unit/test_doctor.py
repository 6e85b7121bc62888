"""The doctor: what it finds when all is well, and what it says to do when it is not."""

import json
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import doctor, store
from cluster.doctor import Finding
from tests.s3 import S3

ROOT = Path(__file__).parents[2]


class Server(BaseHTTPRequestHandler):
    ahead_s, status = 0.0, 200

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        self.send_header("Date", formatdate(time.time() + self.ahead_s, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def one(findings: Iterator[Finding], state: str) -> Finding:
    (found,) = [finding for finding in findings if finding.state == state]
    assert bool(found.advice) == (state != "ok")
    return found


def test_the_whole_command_here() -> None:
    done = subprocess.run([sys.executable, "-m", "cluster", "doctor", "--ranks", "2", "--json"], cwd=ROOT, text=True,
                          capture_output=True, timeout=110, check=False)  # fmt: skip
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"torch", "cores", "memory", "open files", "2 ranks, all_reduce", "2 ranks, all_gather", "store", "MLflow",
            "disk, cache"} <= {finding["what"] for finding in findings}, done.stderr
    assert done.returncode == int(any(finding["state"] == "FAILED" for finding in findings))
    rate = next(finding["found"] for finding in findings if finding["what"] == "2 ranks, all_reduce")
    assert float(rate.split("bytes, ")[1].split(" GB/s")[0]) > 0


def test_another_version_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("torch==1.0\npydantic==0.1\n")
    monkeypatch.setattr(doctor, "_PACKAGES", ("pydantic", "no-such-package"))
    found = list(doctor.versions(tmp_path / "constraints.txt"))
    assert one(iter(found), "warning").found.endswith("pinned is 0.1")
    assert one(iter(found), "FAILED").advice == "pip install --constraint constraints.txt no-such-package"


def test_a_driver_that_fails_and_a_container_that_takes_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **more: Any) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(doctor.subprocess, "run", fail)
    monkeypatch.setattr(doctor, "_cgroup_cores", lambda: 0.5)
    found = list(doctor.devices())
    assert "exit status 9" in one(iter(found), "FAILED").found
    assert "of which the container may use 0.5" in one(iter(found), "warning").found


def test_little_memory_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("memory", "total available")
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory(8 << 30, 1 << 29))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 256))
    found = {finding.what: finding for finding in doctor.memory()}
    assert (found["memory"].state, found["open files"].state) == ("warning", "warning")
    assert "0.5 available" in found["memory"].found
    assert found["open files"].advice == "ulimit -n 65536"


@pytest.mark.parametrize(("free", "state"), [(1 << 29, "FAILED"), (5 << 30, "warning"), (50 << 30, "ok")])
def test_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, free))
    found = one(doctor.disks({"cache": tmp_path / "not" / "there"}), state)
    assert ("16 bytes a parameter" in found.advice) == (state != "ok")


def test_ranks_that_fail_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    assert one(doctor.ranks(2), "FAILED").found == "rank 0: without a word"


def test_a_store_that_works_and_ones_that_do_not(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write" in one(doctor.store_round_trip(s3.uri), "ok").found
    assert s3.objects() == {}
    s3.fault("denied", "PUT")
    denied = one(doctor.store_round_trip(s3.uri), "FAILED")
    assert (denied.what, "the right to PutObject" in denied.advice) == ("store, write", True)
    monkeypatch.setattr(store, "read_bytes", lambda _: b"other")
    assert one(doctor.store_round_trip(str(tmp_path)), "FAILED").found.endswith("gives back other than was written")


@pytest.mark.parametrize(("ahead_s", "status", "state", "words"), [
    (0, 200, "ok", "0 s "), (0, 403, "ok", "0 s "), (60, 200, "warning", "60 s behind http://127.0.0.1"),
    (-3600, 200, "FAILED", " s ahead of http"),
])  # fmt: skip
def test_clocks(
    server: str, monkeypatch: pytest.MonkeyPatch, ahead_s: float, status: int, state: str, words: str
) -> None:
    monkeypatch.setattr(Server, "ahead_s", ahead_s)
    monkeypatch.setattr(Server, "status", status)
    found = one(doctor.clock("store", server), state)
    assert words.strip() in found.found or state == "ok"
    assert one(doctor.clock("store", None), "ok").found == "not asked: it is on this machine"
    assert "does not say" in one(doctor.clock("store", "http://127.0.0.1:9"), "warning").found


def test_trackers(server: str, tmp_path: Path) -> None:
    assert "answers in" in one(doctor.tracker(server), "ok").found
    away = one(doctor.tracker("http://bob:secret@127.0.0.1:9"), "FAILED")
    assert "secret" not in away.found
    assert "start the server" in away.advice
    assert one(doctor.tracker(f"sqlite:///{tmp_path}/new.db"), "ok").found == f"{tmp_path}/new.db"
    (tmp_path / "bad.db").write_text("not a database, and long enough for it to be read" * 30)
    assert "not a database" in one(doctor.tracker(f"sqlite:///{tmp_path}/bad.db"), "FAILED").found
    assert "none given" in one(doctor.tracker(None), "ok").found
    assert "is not looked at" in one(doctor.tracker("databricks"), "ok").found


def test_the_table_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("a", "ok", "1"), Finding("b", "FAILED", "2", "mend it")]
    assert doctor._tell(iter(found), as_json=False) == 1
    said = capsys.readouterr().out
    assert "FAILED   b " in said
    assert "→ mend it" in said
    assert doctor._tell(iter(found[:1]), as_json=True) == 0
    with pytest.raises(SystemExit, match="2"):
        doctor.main(["--ranks", "0"])
