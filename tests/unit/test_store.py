"""cluster.storage.store and cluster.storage.retry: the same contract on every filesystem. What S3 and the web
do is in tests/faults."""

import errno
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import retry, store
from cluster.storage.retry import failure
from configs import redact
from tests import clouds

CLOUDS = {"gs": clouds.Google, "az": clouds.Azure}


@pytest.fixture(params=["path", "file", "memory", "gs", "az"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param in CLOUDS:
        with clouds.running(CLOUDS[request.param]) as (cloud, proxy):
            for name, value in clouds.environment(request.param, proxy.url).items():
                monkeypatch.setenv(name, value)
            yield f"{request.param}://b/sub"
            store.remove(f"{request.param}://b/sub")
            assert not cloud.objects and not cloud.uploads
        return
    prefix = {"path": "", "file": "file://", "memory": "memory://"}[request.param]
    root = f"{prefix}{tmp_path}/sub"
    yield root
    store.remove(root)


def test_write_list_read_remove(base: str) -> None:
    uri = store.join(base, "a", "b.bin")
    assert not store.exists(uri)
    assert store.list_files(base) == []
    store.write_bytes(uri, b"0123456789")
    store.write_bytes(store.join(base, "c.bin"), b"x")
    assert store.list_files(base) == ["a/b.bin", "c.bin"]
    assert store.read_bytes(uri) == b"0123456789"
    assert store.read_bytes(uri, 2, 5) == b"234"
    with store.open_read(uri) as file:
        assert file.read(3) == b"012"
    assert store.basename(uri) == "b.bin"
    store.remove(base)
    store.remove(base)
    assert not store.exists(uri)


def test_publish_is_whole_or_nothing(base: str) -> None:
    uri = store.join(base, "x")
    store.write_bytes(uri, b"old")

    def half() -> None:
        with store.publish(uri) as file:
            file.write(b"new, but")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        half()
    assert store.read_bytes(uri) == b"old"
    assert store.list_files(base) == ["x"], "no temporary file may stay"
    with store.publish(uri) as file:
        file.write(b"later")
        file.seek(0)
        file.write(b"L")
    assert store.read_bytes(uri) == b"Later"


def test_version_changes_with_the_file(base: str) -> None:
    uri = store.join(base, "x")
    store.write_bytes(uri, b"one")
    before = store.version(uri)
    assert before == store.version(uri)
    store.write_bytes(uri, b"longer")
    assert before != store.version(uri)


def test_put_file(base: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"abc")
    store.put_file(tmp_path / "local", store.join(base, "remote"))
    assert store.read_bytes(store.join(base, "remote")) == b"abc"


def test_faults_are_one_sentence_that_names_the_uri(base: str) -> None:
    missing = store.join(base, "missing")
    with pytest.raises(store.StoreError, match=f"cannot read {missing}: no such file or bucket"):
        store.read_bytes(missing)
    with pytest.raises(store.StoreError, match=f"cannot open {missing}: no such file or bucket"):
        store.open_read(missing)
    with pytest.raises(store.StoreError, match="cannot use nope://x: Protocol not known"):
        store.exists("nope://x")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(store.StoreError, match=f"cannot write {tmp_path}/file/x: "):
        store.write_bytes(f"{tmp_path}/file/x", b"")


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    """Results are often linked to a larger disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "old.csv").write_text("old")
    for name in ("old.csv", "new.csv"):
        link = tmp_path / name
        link.symlink_to(disk / name)
        store.write_bytes(str(link), b"new")
        assert link.is_symlink() and (disk / name).read_bytes() == b"new"
    assert sorted(p.name for p in disk.iterdir()) == ["new.csv", "old.csv"], "nothing else is left"


def test_a_device_or_a_pipe_is_written_into_and_stays_what_it_is(tmp_path: Path) -> None:
    """As root, ``--json /dev/null`` would else make a file of /dev/null."""
    null, pipe = tmp_path / "null", tmp_path / "pipe"
    null.symlink_to("/dev/null")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        store.write_bytes(str(null), b"0123")
        store.write_bytes(str(pipe), b"0123")
        assert os.read(reader, 10) == b"0123"
    finally:
        os.close(reader)
    assert null.is_symlink() and null.is_char_device() and pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["null", "pipe"]


def test_standard_output_is_written_into(tmp_path: Path) -> None:
    """Also where the shell has sent it to a file, which must stay the one that is open."""
    code = "from cluster.storage import store; store.write_bytes('/dev/fd/1', b'data\\n'); print('told')"
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True, timeout=60)
    assert (tmp_path / "log").read_text() == "data\ntold\n"


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("a/b") == f"{tmp_path}/a/b" == store.absolute(f"file://{tmp_path}/a/b")
    assert store.absolute("memory://a") == "memory://a"
    with pytest.raises(ValueError, match="memory://a is not a local path"):
        store.local_path("memory://a")


def test_sizes_are_of_every_file_below(base: str) -> None:
    assert store.sizes(base) == {}
    for name, data in (("b", b"12"), ("a/x", b"1"), ("a.b", b""), ("a/y/z", b"123")):
        store.write_bytes(store.join(base, name), data)
    assert store.sizes(base) == {"a.b": 0, "a/x": 1, "a/y/z": 3, "b": 2} == store.sizes(base + "/")
    assert list(store.sizes(base)) == store.list_files(base) == sorted(store.sizes(base))
    assert store.sizes(store.join(base, "a")) == {"x": 1, "y/z": 3}
    assert store.sizes(store.join(base, "b")) == {}, "a file has nothing below it"


def test_a_folder_that_may_not_be_read_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("in"):
            raise PermissionError(errno.EACCES, "no", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(store.StoreError, match=f"cannot list {tmp_path}: Permission denied"):
        store.sizes(str(tmp_path))


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 30])
def test_chunks_are_the_whole_file_in_order(base: str, length: int) -> None:
    data, uri = bytes(range(length)), store.join(base, "x")
    store.write_bytes(uri, data)
    pieces = list(store.chunks(uri, 10))
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [10] * (length // 10) + [length % 10] * (length % 10 > 0)
    assert b"".join(store.chunks(uri)) == data
    with pytest.raises(store.StoreError, match=f"cannot read {uri}2: no such file or bucket"):
        list(store.chunks(uri + "2"))


def test_fewer_bytes_than_asked_for(base: str) -> None:
    uri = store.join(base, "x")
    store.write_bytes(uri, b"0123456789")
    assert store.read_bytes(uri, 8) == b"89" and store.read_bytes(uri, None, 2) == b"01"
    assert store.read_bytes(uri, 10, 10) == b""
    with pytest.raises(
        store.StoreError, match=f"cannot read {uri}: got 5 of 95 bytes, for the file ends at 10$"
    ):
        store.read_bytes(uri, 5, 100)


def test_a_memory_file_that_changes_under_chunks() -> None:
    uri = "memory://changes/x"
    store.write_bytes(uri, b"0123456789")
    pieces = store.chunks(uri, 2)
    assert next(pieces) == b"01"
    store.write_bytes(uri, b"012345678")
    with pytest.raises(
        store.StoreError, match=f"cannot read {uri}: it changed while it was read; read it again"
    ):
        list(pieces)
    store.remove("memory://changes")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "any words")

    store.write_bytes(str(tmp_path / "x"), b"old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(
                store.StoreError, match=f"write {tmp_path}/x: No space left on device$"
            ) as caught:
                store.write_bytes(str(tmp_path / "x"), b"new")
        assert not isinstance(caught.value, store.TransientError)
        assert store.read_bytes(str(tmp_path / "x")) == b"old" and store.list_files(str(tmp_path)) == ["x"]
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", full)
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(
            store.StoreError, match=f"cannot write memory://full/x by way of {tmp_path}: No space left"
        ):
            store.write_bytes("memory://full/x", b"new")
    assert store.list_files(str(tmp_path)) == ["x"] and not store.exists("memory://full/x")


def test_a_store_that_keeps_less_than_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(
        memory, "put_file", lambda fs, local, path: fs.pipe_file(path, Path(local).read_bytes()[:1])
    )
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0")
    with pytest.raises(
        store.TransientError, match=r"memory://less/x: the store has 1 of the 5 bytes sent; gave up"
    ):
        store.write_bytes("memory://less/x", b"12345")
    store.remove("memory://less")


def test_a_store_that_deletes_less_than_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_bytes("memory://kept/x", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "rm_file", lambda fs, path: None)
        with pytest.raises(store.StoreError, match="cannot remove memory://kept: the store kept some of it"):
            store.remove("memory://kept")
    store.remove("memory://kept")


class _Flaky:
    """Fails as it is told, in order; then returns "done"."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)

    def __call__(self) -> str:
        if self.faults:
            raise self.faults.pop(0)
        return "done"


@given(st.floats(0, 1000), st.integers(0, 4))
def test_waits_grow_and_stay_within_their_budget(budget: float, failing: int) -> None:
    waits = list[float]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNA_STORE_RETRY_SECONDS", str(budget))
        patch.setattr(time, "sleep", waits.append)
        assert retry.attempt("s3://b/x", "read", _Flaky(*[ConnectionResetError()] * failing)) == "done"
    assert len(waits) == failing
    for number, wait in enumerate(waits):
        assert budget * 2**number / 30 <= wait <= budget * 2**number / 15 * (1 + 1e-9)


def test_what_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0")
    flaky = _Flaky(*[TimeoutError("slow")] * 9)
    with pytest.raises(
        store.TransientError, match=r"^cannot read s3://b/x: slow; gave up after 5 tries over 0\.\d s$"
    ):
        retry.attempt("s3://b/x", "read", flaky)
    assert len(flaky.faults) == 4
    for final in (
        PermissionError(errno.EACCES, ""),
        FileNotFoundError(),
        OSError("odd"),
        IsADirectoryError(21, ""),
    ):
        flaky = _Flaky(final, final)
        with pytest.raises(store.StoreError, match=r"^cannot read s3://b/x: [^;]*$"):
            retry.attempt("s3://b/x", "read", flaky)
        assert len(flaky.faults) == 1
    ours = store.TransientError("cannot read s3://b/y: slow; gave up after 5 tries over 20 s")
    for untouched in (KeyError("a mistake in the code"), ours):
        flaky = _Flaky(untouched, untouched)
        with pytest.raises(type(untouched)) as caught:
            retry.attempt("s3://b/x", "read", flaky)
        assert caught.value is untouched and len(flaky.faults) == 1


def like(name: str, module: str, base: type[Exception] = Exception, **values: Any) -> Exception:
    """A fault as a library that is not installed here would raise it: of that name and module, with its
    attributes."""
    words = values.pop("words", "")
    fault = type(name, (base,), {"__module__": module})(words)
    for attribute, value in values.items():
        setattr(fault, attribute, value)
    return fault


def gcs(code: int | str, message: str) -> Exception:
    return like(
        "HttpError", "gcsfs.retry", words=f"{message}, {code}", code=code, message=f"{message}, {code}"
    )


def azure(status: int | None, message: str, name: str = "HttpResponseError") -> Exception:
    words = f"{message}\nRequestId:1-2\nTime:2026\nErrorCode:X\nContent: <xml>"
    return like(name, "azure.core.exceptions", words=words, message=words, status_code=status)


@pytest.mark.parametrize(
    ("fault", "reason", "passes"),
    [
        (gcs(503, "Backend Error"), r"Backend Error \(503\)", True),
        (gcs("429", "Slow down"), r"Slow down \(429\)", True),
        (gcs(401, "Invalid Credentials"), r"Invalid Credentials \(401\)", False),
        (gcs(400, ""), r"Bad Request \(400\)", False),
        (
            like(
                "ServiceUnavailable",
                "google.api_core.exceptions",
                code=HTTPStatus.SERVICE_UNAVAILABLE,
                message="busy",
            ),
            r"busy \(503\)",
            True,
        ),
        (
            like("Forbidden", "google.api_core.exceptions", code=HTTPStatus.FORBIDDEN, message="no right"),
            r"no right \(403\)",
            False,
        ),
        (
            like("NotFound", "google.api_core.exceptions", code=404, message="no object"),
            "no such file or bucket",
            False,
        ),
        (like("ChecksumError", "gcsfs.retry", words="checksums differ"), "checksums differ", True),
        (like("RefreshError", "google.auth.exceptions", words="no token", retryable=True), "no token", True),
        (
            like("DefaultCredentialsError", "google.auth.exceptions", words="none", retryable=False),
            "none",
            False,
        ),
        (ValueError("Bad Request: b/o\nInvalid bucket name"), "Bad Request: b/o Invalid bucket name", False),
        (azure(503, "The server is busy."), r"The server is busy. \(503\)", True),
        (azure(500, "Internal error."), r"Internal error. \(500\)", True),
        (azure(403, "This request is not authorized."), r"This request is not authorized. \(403\)", False),
        (
            azure(404, "The specified container does not exist.", "ResourceNotFoundError"),
            "no such file or bucket",
            False,
        ),
        (
            azure(None, "Cannot connect to host", "ServiceRequestError"),
            "Cannot connect to host RequestId.*",
            True,
        ),
        (azure(None, "Connection lost", "ServiceResponseError"), "Connection lost RequestId.*", True),
        (
            like("ProxyError", "requests.exceptions", ConnectionError, words="bad gateway"),
            "bad gateway",
            True,
        ),
    ],
)
def test_faults_of_google_and_azure_are_sentences_and_tried_again_where_they_may_pass(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, reason: str, passes: bool
) -> None:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0")
    flaky = _Flaky(*[fault] * 4)
    if passes:
        assert retry.attempt("gs://b/x", "read", flaky) == "done"
    flaky = _Flaky(*[fault] * 9)
    with pytest.raises(store.StoreError) as caught:
        retry.attempt("gs://b/x", "read", flaky)
    assert re.fullmatch(
        f"cannot read gs://b/x: {reason}" + r"; gave up after 5 tries over 0.0 s" * passes, str(caught.value)
    )
    assert isinstance(caught.value, store.TransientError) == passes
    assert len(flaky.faults) == (4 if passes else 8)


def test_a_fault_inside_one_that_says_only_that_it_failed() -> None:
    def upload() -> None:
        try:
            raise azure(503, "The server is busy.")
        except Exception as fault:
            raise RuntimeError("Failed to upload block!") from fault

    with pytest.raises(
        store.TransientError, match=r"^cannot write az://c/x: The server is busy. \(503\); gave up"
    ):
        retry.attempt("az://c/x", "write", upload, tries=1)
    with pytest.raises(RuntimeError, match="a mistake"):
        retry.attempt("az://c/x", "write", _Flaky(RuntimeError("a mistake")))


def test_local_files_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = _Flaky(*[TimeoutError(errno.ETIMEDOUT, "")] * 3)
    monkeypatch.setattr(os, "walk", lambda *args, **kwargs: flaky())
    with pytest.raises(
        store.StoreError, match=f"cannot list {tmp_path}: Connection timed out; gave up after 1 try"
    ):
        store.sizes(str(tmp_path))
    assert len(flaky.faults) == 2


def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "soon")
    with pytest.raises(ValueError, match="DNA_STORE_RETRY_SECONDS is 'soon'; give a number of seconds"):
        store.exists("memory://x")


def test_errors_travel_between_processes() -> None:
    for kind in (store.StoreError, store.TransientError):
        there = pickle.loads(pickle.dumps(kind("cannot read s3://b/x: why")))
        assert type(there) is kind and str(there) == "cannot read s3://b/x: why"


@given(st.text("abc@:/?&=% ", max_size=30), st.sampled_from(["https", "s3", "gs"]))
def test_no_secret_of_a_url_is_shown(tail: str, scheme: str) -> None:
    shown = redact(f"cannot read {scheme}://me:SECRET@host/x?token=SECRET{tail.replace(' ', '')} and more")
    assert "SECRET" not in shown and shown.startswith(f"cannot read {scheme}://***@host/x?...")
    assert redact("cannot read /data/what?.fa: a@b") == "cannot read /data/what?.fa: a@b"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/me@work/mlflow.db", None),
        ("sqlite:////me@work/mlflow.db", None),
        ("sqlite:///a@b.db", None),
        ("http://host:5000/me@work", None),
        ("s3://bucket/me@work/x", None),
        ("/data/me@work//x@y", None),
        ("https://me:word@host/me@work", "https://***@host/me@work"),
        ("https://token@host/x", "https://***@host/x"),
        ("postgresql://me:wo/r?d@host/db?password=word", "postgresql://***@host/db?..."),
        ("mysql+pymysql://me:wo:rd@host/me@work", "mysql+pymysql://***@host/me@work"),
        ("postgresql://host:5432/db", None),
        ("postgresql://me@host/db", "postgresql://***@host/db"),
        ("abfs://container@account.dfs.core.windows.net/x", None),
        ("abfss://container@account/x?sig=word", "abfss://container@account/x?..."),
    ],
)
def test_an_at_sign_in_a_path_is_left_and_a_password_is_not(uri: str, shown: str | None) -> None:
    assert redact(f"MLflow at {uri} says no") == f"MLflow at {shown or uri} says no"
    assert redact(redact(uri)) == redact(uri)


def test_a_host_that_does_not_resolve_is_said_so() -> None:
    fault = failure(socket.gaierror(-2, "Name or service not known"), "https://host/x", "read")
    assert str(fault) == "cannot read https://host/x: [Errno -2] Name or service not known"


def test_a_file_gets_the_mode_of_the_users_umask_and_no_other_thread_sees_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError(
            "umask and mode belong to the whole process, or to a file that others may see already"
        )

    old = os.umask(0)
    try:
        for mask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0, 0o666)):
            os.umask(mask)
            with monkeypatch.context() as patch:
                for name in ("umask", "chmod", "fchmod"):
                    patch.setattr(os, name, never)
                store.write_bytes(
                    str(tmp_path / "x"), b"1"
                )  # from the second time on in the place of another
                with store.publish(str(tmp_path / "y")) as file:
                    (temporary,) = (path for path in tmp_path.iterdir() if path.name.startswith(".y."))
                    assert temporary.stat().st_mode & 0o777 == mode
                    file.write(b"1")
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    finally:
        os.umask(old)
