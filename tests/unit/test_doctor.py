"""The doctor: what it finds when all is well, and what it says to do when it is not."""

import contextlib
import importlib.util
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.doctor import checks, exchange, machine, services, stores
from cluster.doctor.finding import Finding
from cluster.process import host
from cluster.storage import store
from tests import clouds
from tests.hub import TOKEN, Hub
from tests.s3 import S3

ROOT = Path(__file__).parents[2]
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
MEMORY, USAGE = namedtuple("MEMORY", "total available"), namedtuple("USAGE", "total used free")


class Server(BaseHTTPRequestHandler):
    """Answers as the test has it; ``asked`` are the headers of the last request."""

    ahead_s, status, body, more, asked = 0.0, 200, b"OK", dict[str, str](), dict[str, str]()

    def do_GET(self) -> None:
        Server.asked = dict(self.headers)
        self.send_response_only(self.status)
        for name, value in {"Date": formatdate(time.time() + self.ahead_s, usegmt=True), **self.more}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_HEAD(self) -> None:
        self.body = b""
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """A function that puts this process into control groups: lines of /proc/self/cgroup, and files below the
    mount."""
    monkeypatch.setattr(host, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "fs")

    def make(lines: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text)

    return make


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes a script of the shell stand for Python, and so for the ranks."""

    def make(script: str) -> None:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(exchange.sys, "executable", str(tmp_path / "python"))

    return make


def one(findings: Iterator[Finding], state: str) -> Finding:
    (found,) = [finding for finding in findings if finding.state == state]
    assert bool(found.advice) == (state != "ok")
    return found


def test_the_whole_command_here() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "doctor", "--ranks", "2", "--json"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=200,
        check=False,
        env=environment,
    )
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert {
        "torch",
        "cores",
        "memory",
        "open files",
        "2 ranks, all_reduce",
        "2 ranks, all_gather",
        "store",
        "MLflow",
        "disk, cache",
    } <= {finding["what"] for finding in findings}, done.stdout + done.stderr
    assert done.returncode == int(any(finding["state"] == "FAILED" for finding in findings))
    for what in ("2 ranks, all_reduce", "2 ranks, all_gather"):
        said = next(finding["found"] for finding in findings if finding["what"] == what)
        found = re.fullmatch(
            r"(\d+) µs for 8 bytes, ([\d.]+) GB/s bus bandwidth for 64 MiB \((gloo|nccl)\)", said
        )
        assert found, said
        assert float(found[1]) > 0
        assert float(found[2]) > 0


def test_importing_it_is_light() -> None:
    script = "import sys, cluster.doctor.checks; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout == "set()\n"


def test_another_version_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("torch==1.0\npydantic==0.1\n")
    monkeypatch.setattr(machine, "_PACKAGES", ("pydantic", "no-such-package"))
    found = list(machine.versions(tmp_path / "constraints.txt"))
    assert one(iter(found), "warning").found.endswith("pinned is 0.1")
    assert one(iter(found), "FAILED").advice == "pip install --constraint constraints.txt no-such-package"


@pytest.mark.parametrize(
    ("answer", "state", "found"),
    [
        ((0, "0, H100, 81559 MiB, 580.1\n", ""), "ok", "0, H100, 81559 MiB, 580.1"),
        (
            (9, "it couldn't communicate with the driver\n", ""),
            "FAILED",
            "nvidia-smi ended with 9: it couldn't communicate with the driver",
        ),
        ((6, "", ""), "FAILED", "nvidia-smi ended with 6: no output"),
        (FileNotFoundError(), "ok", "none here: training uses the CPU"),
        (
            subprocess.TimeoutExpired("nvidia-smi", 30),
            "FAILED",
            "nvidia-smi: Command 'nvidia-smi' timed out after 30 seconds",
        ),
    ],
)
def test_gpus(
    monkeypatch: pytest.MonkeyPatch,
    cgroups: Any,
    answer: tuple[int, str, str] | Exception,
    state: str,
    found: str,
) -> None:
    def run(*_: Any, **more: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess("nvidia-smi", *answer)

    monkeypatch.setattr(machine.subprocess, "run", run)
    cgroups("", {})
    gpu = next(machine.gpus())
    assert (gpu.state, gpu.found) == (state, found)
    assert bool(gpu.advice) == (state == "FAILED")


V2 = "0::/pod/own\n"
V1 = "4:memory:/pod/own\n2:cpu,cpuacct:/pod\n1:name=systemd:/\n"
STAT = "cache 5\ninactive_file 0\n"


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        (V2, {"pod/cpu.max": "50000 100000\n", "pod/own/cpu.max": "max 100000\n"}),
        (
            V1,
            {
                "cpu/pod/cpu.cfs_quota_us": "50000\n",
                "cpu/pod/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_a_container_that_takes_cores(cgroups: Any, lines: str, files: dict[str, str]) -> None:
    cgroups(lines, files)
    few = one(machine.cores(), "warning")
    assert few.found.endswith(", of which the container may use 0.5")
    assert few.advice.startswith("set OMP_NUM_THREADS=1")
    cgroups(
        lines, {name: text.replace("50000", "max" if lines == V2 else "-1") for name, text in files.items()}
    )
    assert "container" not in next(machine.cores()).found


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        (
            V2,
            {
                "pod/memory.max": f"{4 << 30}\n",
                "pod/memory.current": f"{3 << 30}\n",
                "pod/memory.stat": f"inactive_file {1 << 29}\n",
                "pod/own/memory.max": "max\n",
                "pod/own/memory.current": "1\n",
                "pod/own/memory.stat": STAT,
            },
        ),
        (
            V1,
            {
                "memory/pod/own/memory.limit_in_bytes": f"{4 << 30}\n",
                "memory/pod/own/memory.usage_in_bytes": f"{3 << 30}\n",
                "memory/pod/own/memory.stat": f"inactive_file 7\ntotal_inactive_file {1 << 29}\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "1\n",
                "memory/memory.stat": STAT,
            },
        ),
    ],
)
def test_a_container_that_takes_memory(
    monkeypatch: pytest.MonkeyPatch, cgroups: Any, lines: str, files: dict[str, str]
) -> None:
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: MEMORY(64 << 30, 32 << 30))
    cgroups(lines, files)
    found = next(machine.memory())
    assert found.state == "warning"
    assert found.found == "4.0 of the machine's 64.0 GiB, 1.5 free"
    assert "give the container more" in found.advice


def memory_checks() -> list[Finding]:
    return [*machine.memory(), *machine.open_files(), *machine.shared_memory()]


def test_little_memory_small_shared_memory_and_few_files(
    monkeypatch: pytest.MonkeyPatch, cgroups: Any
) -> None:
    cgroups("", {})
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: MEMORY(8 << 30, 1 << 29))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: USAGE(64 << 20, 0, 0))
    found = {finding.what: finding for finding in memory_checks()}
    assert {finding.state for finding in found.values()} == {"warning"}
    assert found["memory"].found == "8.0 of the machine's 8.0 GiB, 0.5 free"
    assert "--shm-size=8g" in found["/dev/shm"].advice
    assert found["open files"].advice == "ulimit -n 65536"
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: MEMORY(8 << 30, 4 << 30))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (machine.resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: USAGE(1 << 30, 0, 0))
    assert {(finding.state, finding.advice) for finding in memory_checks()} == {("ok", "")}


@pytest.mark.parametrize(("free", "state"), [(1 << 29, "FAILED"), (5 << 30, "warning"), (50 << 30, "ok")])
def test_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: USAGE(0, 0, free))
    found = one(machine.disks({"cache": tmp_path / "not" / "there"}), state)
    assert ("16 bytes a parameter" in found.advice) == (state != "ok")


FIGURES = {
    "ranks": 2,
    "backend": "gloo",
    "all_reduce_us": 10.2,
    "all_gather_us": 20,
    "all_reduce_gb_s": 1.234,
    "all_gather_gb_s": 2,
}


def test_ranks_that_fail_say_why(python: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    python(
        "echo noise; echo 'error: rank 1: no http://bob:secret@host' >&2; echo 'error: rank 0: alone'; exit 1"
    )
    failed = one(exchange.ranks(2), "FAILED")
    assert (failed.what, failed.found) == ("2 ranks", "rank 1: no http://***@host")
    assert "GLOO_SOCKET_IFNAME" in failed.advice
    python("echo 'ModuleNotFoundError: No module named torch'; exit 1")
    assert one(exchange.ranks(2), "FAILED").found == "ModuleNotFoundError: No module named torch"
    python("exit 1")
    assert one(exchange.ranks(2), "FAILED").found == "no output"
    python("exec sleep 60")
    monkeypatch.setattr(exchange, "_RANKS_S", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        list(exchange.ranks(2))


def test_ranks_of_this_machine_and_of_a_launcher(
    python: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python(f"echo $* > {tmp_path}/words; echo '{json.dumps(FIGURES)}'")
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(exchange.Path, "glob", lambda *_: iter(()))
    found = list(exchange.ranks())
    assert (tmp_path / "words").read_text() == "-m cluster.doctor.bandwidth --ranks 2\n"
    assert [(finding.what, finding.state) for finding in found] == [
        ("2 ranks, all_reduce", "ok"),
        ("2 ranks, all_gather", "ok"),
    ]
    assert found[0].found == "10 µs for 8 bytes, 1.23 GB/s bus bandwidth for 64 MiB (gloo)"
    monkeypatch.setattr(exchange.Path, "glob", lambda *_: iter([Path("/dev/nvidia0"), Path("/dev/nvidia1")]))
    assert {(finding.state, finding.advice.partition(",")[0]) for finding in exchange.ranks()} == {
        ("warning", "torch sees no GPU: install its CUDA build")
    }
    for name in LAUNCHED:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert [finding.what for finding in exchange.ranks()] == ["16 ranks, all_reduce", "16 ranks, all_gather"]
    assert (tmp_path / "words").read_text() == "-m cluster.doctor.bandwidth\n"
    python("exit 0")
    assert one(exchange.ranks(), "ok").found == "rank 1 took part; rank 0 has the figures"


def test_kinds_of_stores_and_what_is_missing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = stores.kinds()
    assert found == Finding("stores", "ok", "s3://, gs://, az://, https://, hf://")
    missing = {"huggingface_hub"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    assert list(stores.kinds()) == [
        Finding(
            "stores",
            "ok",
            "s3://, gs://, az://, https://",
            "for hf://: pip install 'dna-distill[stores]'",
        )
    ]
    missing |= {"obstore", "s3fs"}
    (found,) = stores.kinds()
    assert (found.state, found.found) == ("warning", "https://")
    assert found.advice == (
        "for s3://, gs://, az://, hf://: pip install 'dna-distill[data]' or pip install 'dna-distill[stores]'"
    )


def test_how_ranges_of_a_bucket_are_read(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(stores.ranges(f"{s3.uri}/x")) == [Finding("store, ranges", "ok", "by obstore")]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    (found,) = stores.ranges(f"{s3.uri}/x")
    assert found.found == "by s3fs, since there is a proxy: more CPU for each block"
    assert list(stores.ranges("/data")) == []


def test_a_store_that_works(s3: S3, tmp_path: Path) -> None:
    words = (
        r": write \d+ ms, read \d+ ms, list \d+ ms, remove \d+ ms for 8 MiB, which is \d+ MB/s and \d+ MB/s"
    )
    for uri in (s3.uri, str(tmp_path)):
        assert re.fullmatch(re.escape(uri) + words, one(services.store_round_trip(uri), "ok").found)
    assert s3.objects() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "key", "steps", "right"),
    [
        ("PUT", "", ["write"], "s3:PutObject and s3:GetObject, which"),
        ("GET", "/object", ["read"], "s3:GetObject"),
        ("GET", "list-type", ["list", "remove"], "s3:ListBucket"),
        ("DELETE", "/object", ["remove"], "s3:DeleteObject and s3:ListBucket; then remove s3://"),
    ],
)
def test_a_right_that_is_missing(s3: S3, method: str, key: str, steps: list[str], right: str) -> None:
    s3.fault("denied", method, key)
    found = list(services.store_round_trip(s3.uri))
    assert [(finding.what, finding.state) for finding in found] == [
        (f"store, {step}", "FAILED") for step in steps
    ]
    assert found[0].advice.startswith(f"give the right to {steps[0]}: {right}")
    assert "denied" in found[0].found.lower()
    assert bool(s3.objects()) == ("remove" in steps)  # it cleans up where it may


@pytest.mark.parametrize(
    "code",
    [
        "SignatureDoesNotMatch",
        "InvalidAccessKeyId",
        "ExpiredToken",
        "RequestTimeTooSkewed",
    ],
)
def test_keys_that_are_wrong_are_no_missing_right(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(uri: str, _: bytes) -> None:
        raise store.StoreError(f"cannot write {uri}: Forbidden ({code})")

    monkeypatch.setattr(store, "write_bytes", refuse)
    found = one(services.store_round_trip("memory://x"), "FAILED")
    assert found.what == "store, write" and found.advice.endswith("and the AWS_, GOOGLE_ or AZURE_ variables")


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("s3://b/x", "the AWS_ variables"),
        ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://b/x", "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"),
    ],
)
def test_without_credentials_the_advice_names_their_variables(
    monkeypatch: pytest.MonkeyPatch, uri: str, advice: str
) -> None:
    def refuse(*_: Any) -> None:
        raise store.StoreError(
            f"cannot write {uri}: no credentials for the store: its tokens were refused with Forbidden (403)"
        )

    monkeypatch.setattr(store, "write_bytes", refuse)
    found = one(services.store_round_trip(uri), "FAILED")
    assert found.what == "store, write" and found.advice.endswith(f"the network and {advice}")


def test_a_store_that_is_only_read_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with clouds.running(Hub) as (cloud, proxy):
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        cloud.keep("d/x", b"1")
        for name, words in (("", "1 file listed"), ("/d", "1 file listed"), ("/d/x", "it is there")):
            listed, written = services.store_round_trip(f"hf://datasets/dna/shards{name}")
            assert re.fullmatch(rf"hf://datasets/dna/shards{name}: {words}, in \d+ ms", listed.found)
            assert written == Finding("store, write", "ok", "not tried: hf:// is only read here")
            assert checks.report(iter([listed, written]), as_json=False) == 0
        nothing = one(services.store_round_trip("hf://datasets/dna/shards/no"), "FAILED")
        assert nothing.found == "there is nothing at hf://datasets/dna/shards/no"
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        refused = one(services.store_round_trip("hf://datasets/dna/shards"), "FAILED")
    assert refused.what == "store, read" and refused.found.endswith("Unauthorized (401)")
    assert refused.advice == "check the address, the network and HF_TOKEN"


def test_stores_that_do_not_work(
    s3: S3, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = one(services.store_round_trip("s3://no-such-bucket-of-ours/x"), "FAILED")
    assert "no-such-bucket-of-ours" in missing.found
    assert missing.advice.startswith("check the address, the bucket's name")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in one(services.store_round_trip(f"{tmp_path}/file/x"), "FAILED").found
    web = one(services.store_round_trip(f"http://bob:secret@{server[7:]}/data?token=hidden"), "warning")
    assert "takes no files" in web.found
    assert not re.search("secret|hidden", web.found)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_bytes", lambda _: b"other")
        other = one(services.store_round_trip(str(tmp_path / "new")), "FAILED")
    assert (other.what, other.found) == ("store, read", f"{tmp_path}/new does not give back what was written")
    assert list((tmp_path / "new").iterdir()) == []

    def refuse(*_: Any) -> None:
        raise store.StoreError("cannot write: Permission denied")

    monkeypatch.setattr(store, "write_bytes", refuse)  # root may write everywhere
    refused = one(services.store_round_trip(str(tmp_path / "new")), "FAILED")
    assert refused.advice == f"give the right to write: the rights of this user in {tmp_path}/new"


@pytest.mark.parametrize(
    ("ahead_s", "status", "more", "state", "words"),
    [
        (0, 200, {}, "ok", r"\d s (ahead of|behind) http://127.0.0.1"),
        (0, 403, {}, "ok", r"\d s "),
        (0, 302, {"Location": "http://127.0.0.1:9/"}, "ok", r"\d s "),
        (-3600, 200, {"Age": "3600"}, "ok", r"\d s "),
        (60, 200, {}, "warning", r"(59|60|61) s behind http"),
        # The header has whole seconds and the answer takes time: 3,600 s, one less, or a few more.
        (-3600, 200, {}, "FAILED", r"(3599|36\d\d) s ahead of http"),
        (0, 200, {"Date": "soon"}, "warning", r'http\S+ does not say: Invalid date value or format "soon"'),
    ],
)
def test_clocks(
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: float,
    status: int,
    more: dict[str, str],
    state: str,
    words: str,
) -> None:
    for name, value in {"ahead_s": ahead_s, "status": status, "more": more}.items():
        monkeypatch.setattr(Server, name, value)
    found = one(services.clock("store", server), state)
    assert found.what == "clock, store"
    assert re.match(words, found.found)


def test_clocks_that_are_not_there() -> None:
    assert one(services.clock("store", None), "ok").found == "not asked: it is on this machine"
    found = one(services.clock("store", "http://bob:secret@127.0.0.1:9/x?token=hidden"), "warning").found
    assert found == "http://***@127.0.0.1:9/x?... does not say: [Errno 111] Connection refused"


def test_mlflow_servers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, date = services.tracker(f"http://bob:secret@{server[7:]}/")
    assert date.found.endswith(f" http://***@{server[7:]}/")
    assert re.fullmatch(r"http://\*\*\*@127\S+ answers in \d+ ms", answer.found)
    assert "Authorization" not in Server.asked
    assert [finding.what for finding in services.tracker(server)] == ["MLflow", "clock, MLflow"]
    for status, body, state in (
        (200, b"<html>", "FAILED"),
        (401, b"", "warning"),
        (500, b"", "FAILED"),
        (301, b"", "FAILED"),
    ):
        monkeypatch.setattr(Server, "status", status)
        monkeypatch.setattr(Server, "body", body)
        odd = next(services.tracker(server))
        assert (odd.state, odd.found.split(", ")[1]) == (state, f"but not as MLflow does ({status})")
        assert "MLFLOW_TRACKING_USERNAME" in odd.advice
    away = one(services.tracker("http://bob:secret@127.0.0.1:9"), "FAILED")
    assert away.found == "http://***@127.0.0.1:9: [Errno 111] Connection refused"
    assert "start the server" in away.advice


def test_a_server_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            link, _ = listening.accept()
            with link:
                link.recv(1 << 16)
                link.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        found = one(services.tracker(f"http://127.0.0.1:{listening.getsockname()[1]}"), "FAILED").found
        assert found.endswith("no answer of a web server (BadStatusLine)")
        thread.join()
    bad = one(services.tracker("http://bob:secret@host:port/"), "FAILED").found
    assert "secret" not in bad


def test_mlflow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(services.tracker(f"sqlite:///{tmp_path}/new.db"), "ok").found == f"{tmp_path}/new.db"
    assert not (tmp_path / "new.db").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as database:
        database.execute("create table runs (id)")
    assert one(services.tracker(f"sqlite:///{tmp_path}/old.db"), "ok").found == f"{tmp_path}/old.db"
    (tmp_path / "bad.db").write_text("not a database, and long enough for it to be read" * 30)
    assert "not a database" in one(services.tracker(f"sqlite:///{tmp_path}/bad.db"), "FAILED").found
    away = one(services.tracker(f"sqlite:///{tmp_path}/no/such.db"), "FAILED")
    assert away.found == f"{tmp_path}/no cannot be written"
    assert away.advice == "give another file, or the right to write there"
    monkeypatch.setattr(services.os, "access", lambda path, _: path == tmp_path)
    assert (
        one(services.tracker(f"sqlite:///{tmp_path}/old.db"), "FAILED").found
        == f"{tmp_path}/old.db cannot be written"
    )
    assert "none given" in one(services.tracker(None), "ok").found
    other = one(services.tracker("postgresql://bob:secret@host/db"), "ok")
    assert other.found == "postgresql://***@host/db is not checked: only http(s) and sqlite are"


def test_the_table_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("a", "ok", "1"), Finding("b", "FAILED", "2", "repair it")]
    assert checks.report(iter(found), as_json=False) == 1
    said = capsys.readouterr().out
    assert "FAILED   b " in said
    assert "→ repair it" in said
    assert checks.report(iter(found[:1]), as_json=True) == 0
    with pytest.raises(SystemExit, match="2"):
        checks.main(["--ranks", "0"])


def test_which_checks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """All, also after one that cannot be made; the store's own clock; and on the other ranks of a node the
    exchange."""
    made: list[tuple[Any, ...]] = []
    checks_of = {
        machine: ("versions", "gpus", "cores", "memory", "open_files", "shared_memory", "disks"),
        exchange: ("ranks",),
        services: ("store_round_trip", "clock", "tracker"),
    }
    for module, name in ((module, name) for module, names in checks_of.items() for name in names):

        def check(*given: Any, name: str = name) -> Iterator[Finding]:
            made.append((name, *given))
            if name == "memory":
                raise OSError("http://bob:secret@host is not there")
            if name == "ranks" and given:
                raise subprocess.TimeoutExpired("python", 150)
            yield Finding(name, "ok", "")

        monkeypatch.setattr(module, name, check)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    request = checks.Request(store="s3://bucket/x")
    assert [
        (finding.what, finding.found) for finding in checks.examine(request) if finding.state == "FAILED"
    ] == [
        ("memory", "cannot be checked: http://***@host is not there"),
        ("ranks", "cannot be checked: Command 'python' timed out after 150 seconds"),
    ]
    assert [name for name, *_ in made][-4:] == ["ranks", "store_round_trip", "clock", "tracker"]
    assert ("clock", "store", "http://minio:9000") in made
    assert ("store_round_trip", "s3://bucket/x") in made
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [finding.what for finding in checks.examine(request)] == ["ranks"]


BANDWIDTH = """
import os, signal, sys, time
from cluster.doctor import bandwidth
for name, mistake in {"killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
                      "broken": lambda: int("no number"), "hangs": lambda: time.sleep(60)}.items():
    def join(world, mistake=mistake):
        if world.rank == 1:
            mistake()
        time.sleep(60)
    bandwidth.join = join
    bandwidth._LIMIT_S = 0.3 if name == "hangs" else 60
    print(name, bandwidth.main(["--ranks", "2"]), file=sys.stderr, flush=True)
    try:
        os.waitpid(-1, os.WNOHANG)
        print("a rank is left")
    except ChildProcessError:
        pass
bandwidth.main(["--store", "x", "--at-most", "7"])
"""


def test_ranks_that_are_killed_break_or_hang_and_what_the_supervisor_asks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BANDWIDTH], cwd=ROOT, text=True, capture_output=True, timeout=200, check=True
    )
    assert done.stderr.splitlines() == [
        "error: rank 1 was killed by SIGKILL",
        "killed 1",
        "error: rank 1: invalid literal for int() with base 10: 'no number'",
        "broken 1",
        "error: no end in 0.3 s of rank 0, 1",
        "hangs 1",
    ]
    assert done.stdout == "7\n"
