"""cluster.storage.store against an S3 service and web servers that fail: what is retried, what is said, what
is left behind."""

import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import remote, store
from tests.s3 import S3

DATA = bytes(range(256)) * 4096  # 1 MiB
REASONS = {
    "503": r"Please reduce your request rate\. \(SlowDown\)|Service Unavailable \(503\)",
    "500": r"We encountered an internal error\. Please try again\. \(InternalError\)|Internal Server Error "
    r"\(500\)",
    "full": r"The quota of the bucket is exceeded\. \(QuotaExceeded\)",
    "507": r"Storage backend has reached its minimum free drive threshold\. \(XMinioStorageFull\)",
    "denied": r"Access Denied\. \(AccessDenied\)|Forbidden \(403\)",
    "timeout": r"Read timeout on endpoint URL: .*",
    "reset": r"Could not connect to the endpoint URL: .*|Connection was closed before .*",
    "lost": r"Could not connect to the endpoint URL: .*|Connection was closed before .*",
    "cut": r"got fewer than \d+ bytes|Could not connect to the endpoint URL: .*|Connection was closed "
    r"before .*",
    "short": r"got 500 of 1000 bytes",
}
# operation: its word in messages, its request, and what it returns when all is well, on an object DATA at
# a/x.
OPERATIONS: dict[str, tuple[str, str, str, Callable[[str], Any], Any]] = {
    "read": ("read", "GET", "/a/x", lambda uri: store.read_bytes(uri, 0, 1000), DATA[:1000]),
    "range": ("read", "GET", "/a/x", lambda uri: store.read_bytes(uri, 1000, 2000), DATA[1000:2000]),
    "file": ("read", "GET", "/a/x", lambda uri: store.open_read(uri).read(), DATA),
    "chunks": ("read", "GET", "/a/x", lambda uri: b"".join(store.chunks(uri)), DATA),
    "exists": ("look up", "HEAD", "/a/x", store.exists, True),
    "version": ("look up", "HEAD", "/a/x", lambda uri: len(store.version(uri)) > 32, True),
    "list": ("list", "GET", "list-type", lambda uri: store.sizes(uri.removesuffix("/x")), {"x": len(DATA)}),
    "write": ("write", "PUT", "/a/x", lambda uri: store.write_bytes(uri, DATA[:1000]), None),
    "remove": ("remove", "DELETE", "/a/x", store.remove, None),
}


@pytest.fixture
def x(s3: S3) -> str:
    """The URI of DATA in the bucket of ``s3``; nothing counted yet."""
    uri = store.join(s3.uri, "a", "x")
    store.write_bytes(uri, DATA)
    s3.proxy.clear()
    return uri


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files; in the end it is empty, whatever the test did."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["503", "500", "reset"])
def test_what_passes_is_tried_again(s3: S3, x: str, kind: str, operation: str) -> None:
    _, method, key, call, result = OPERATIONS[operation]
    s3.fault(kind, method, key, times=2)
    assert call(x) == result
    assert s3.proxy.count(method, key) >= 3
    assert s3.objects() == {"write": {"a/x": 1000}, "remove": {}}.get(operation, {"a/x": len(DATA)})


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["503", "reset"])
def test_what_does_not_pass_is_given_up(s3: S3, x: str, kind: str, operation: str) -> None:
    word, method, key, call, _ = OPERATIONS[operation]
    s3.fault(kind, method, key)
    named = f"{s3.uri}/a" if operation == "list" else x
    with pytest.raises(store.TransientError) as caught:
        call(x)
    assert re.fullmatch(
        f"cannot {word} {named}: ({REASONS[kind]}); gave up after 5 tries over \\d+\\.\\d s",
        str(caught.value),
    )
    # Below, aiohttp sends once more what it lost on a connection that had been in use.
    assert 5 <= s3.proxy.count(method, key) <= (5 if kind == "503" else 10)
    assert s3.objects() == {"a/x": len(DATA)}, "the old object stays"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_cannot_pass_is_said_at_once(s3: S3, x: str, operation: str) -> None:
    word, method, key, call, _ = OPERATIONS[operation]
    for kind in ("denied", "full", "507") if operation == "write" else ("denied",):
        s3.proxy.clear()
        s3.fault(kind, method, key)
        with pytest.raises(store.StoreError) as caught:
            call(x)
        assert re.fullmatch(f"cannot {word} {s3.uri}/a(/x)?: ({REASONS[kind]})", str(caught.value))
        assert not isinstance(caught.value, store.TransientError)
        assert s3.proxy.count(method, key) == 1
        assert s3.objects() == {"a/x": len(DATA)}


@pytest.mark.parametrize("operation", ["read", "range", "list", "exists", "write"])
def test_a_store_that_does_not_answer(
    s3: S3, x: str, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    word, method, key, call, _ = OPERATIONS[operation]
    monkeypatch.setenv("DNA_STORE_TIMEOUT_SECONDS", "0.1")
    s3.fault("timeout", method, key)
    with pytest.raises(
        store.TransientError, match=f"cannot {word} .*: {REASONS['timeout']}; gave up after 5 tries"
    ):
        call(x)
    assert s3.proxy.count(method, key) == 5
    assert s3.objects() == {"a/x": len(DATA)}


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_a_body_cut_short(s3: S3, x: str, kind: str) -> None:
    s3.fault(kind, "GET", "/a/x", times=2)
    assert store.read_bytes(x, 0, 1000) == DATA[:1000]
    s3.proxy.clear()
    s3.fault(kind, "GET", "/a/x")
    with pytest.raises(
        store.TransientError, match=f"cannot read {x}: ({REASONS[kind]}); gave up after 5 tries"
    ):
        store.read_bytes(x, 0, 1000)
    s3.proxy.clear()
    s3.fault(kind, "GET", "list-type", times=1)
    assert store.list_files(s3.uri) == ["a/x"], "half a listing is no listing"


@pytest.mark.parametrize("kind", ["cut", "lost"])
def test_an_upload_cut_short_or_not_acknowledged(s3: S3, x: str, kind: str) -> None:
    s3.fault(kind, "PUT", "/a/y", times=1)
    store.write_bytes(f"{s3.uri}/a/y", DATA)
    assert s3.objects() == {"a/x": len(DATA), "a/y": len(DATA)}
    s3.proxy.clear()
    s3.fault(kind, "PUT", "/a/z")
    with pytest.raises(
        store.TransientError, match=f"cannot write .*/a/z: ({REASONS[kind]}); gave up after 5 tries"
    ):
        store.write_bytes(f"{s3.uri}/a/z", DATA)
    assert s3.objects().get("a/z", len(DATA)) == len(DATA), "nothing, or all of it"
    assert kind == "lost" or "a/z" not in s3.objects()


def test_a_flipped_bit_is_seen_in_whole_objects_only(s3: S3, x: str) -> None:
    s3.fault("flip", "GET", "/a/x")
    there = store.read_bytes(
        x, 0, 1000
    )  # a range has no checksum at S3: the digests of a manifest are for this
    assert sum((one ^ other).bit_count() for one, other in zip(there, DATA[:1000], strict=True)) == 1
    if "ChecksumCRC32" in s3.client.head_object(Bucket=s3.bucket, Key="a/x", ChecksumMode="ENABLED"):
        with pytest.raises(
            store.TransientError, match=f"{x}: Expected checksum .* did not match .*after 5 tries"
        ):
            store.read_bytes(x)


def test_a_slow_store_is_waited_for(s3: S3, x: str) -> None:
    s3.fault("slow", "GET", "/a/x", rate=4 << 20)
    assert b"".join(store.chunks(x)) == DATA
    assert s3.proxy.count("GET", "/a/x") == 1


def test_faults_in_the_middle_of_chunks(s3: S3, x: str) -> None:
    for kind in ("503", "cut", "short", "reset"):
        s3.fault(kind, "GET", "/a/x", skip=3, times=1)
    assert [len(piece) for piece in store.chunks(x, 100_000)] == [100_000] * 10 + [48_576]
    s3.proxy.clear()
    s3.fault("503", "GET", "/a/x", skip=3)
    pieces = store.chunks(x, 100_000)
    assert b"".join(next(pieces) for _ in range(3)) == DATA[:300_000]
    with pytest.raises(store.TransientError, match=f"cannot read {x}: .*SlowDown.*; gave up after 5 tries"):
        next(pieces)


def test_chunks_that_are_not_wanted_to_the_end(s3: S3, x: str) -> None:
    pieces = store.chunks(x, 1000)
    assert next(pieces) == DATA[:1000]
    pieces.close()
    assert s3.proxy.count("GET", "/a/x") <= 2, "one is read ahead, no more"


@pytest.mark.parametrize("after", [DATA[::-1], DATA[:5000]])
def test_an_object_that_changes_under_chunks(s3: S3, x: str, after: bytes) -> None:
    pieces = store.chunks(x, 100_000)
    next(pieces)
    store.write_bytes(x, after)
    with pytest.raises(store.StoreError, match=f"cannot read {x}: it changed while it was read") as caught:
        list(pieces)
    assert not isinstance(caught.value, store.TransientError)


def test_an_object_that_goes_under_chunks(s3: S3, x: str) -> None:
    pieces = store.chunks(x, 100_000)
    next(pieces)
    store.remove(x)
    with pytest.raises(store.StoreError, match=f"cannot read {x}: no such file or bucket"):
        list(pieces)


def test_what_is_not_there(s3: S3, x: str) -> None:
    assert not store.exists(f"{s3.uri}/no") and not store.exists("s3://dna-no-such-bucket/a")
    assert store.exists(f"{s3.uri}/a") and store.exists(s3.uri)
    assert store.sizes(f"{s3.uri}/no") == {} == store.sizes(x)
    s3.proxy.clear()
    for call in (store.read_bytes, store.version, store.open_read, lambda uri: list(store.chunks(uri))):
        with pytest.raises(store.StoreError, match=r"/no: no such file or bucket$"):
            call(f"{s3.uri}/no")
    for call in (store.sizes, store.read_bytes, lambda uri: store.write_bytes(uri, b"")):
        with pytest.raises(
            store.StoreError, match=r"cannot .* s3://dna-no-such-bucket/a: no such file or bucket$"
        ):
            call("s3://dna-no-such-bucket/a")
    with pytest.raises(
        store.StoreError, match=r'cannot list s3://Bad_Bucket!/x: .*Invalid bucket name "Bad_Bucket!"'
    ):
        store.sizes("s3://Bad_Bucket!/x")
    with pytest.raises(store.StoreError, match=f"cannot look up {s3.uri}/a: Is a directory"):
        store.version(f"{s3.uri}/a")
    with pytest.raises(store.StoreError, match=f"{x}: got 1 of 2 bytes, for the file ends at {len(DATA)}$"):
        store.read_bytes(x, len(DATA) - 1, len(DATA) + 1)


def test_listings_and_versions_are_never_stale(s3: S3, x: str) -> None:
    before = store.version(x)
    assert store.sizes(s3.uri) == {"a/x": len(DATA)}
    s3.client.put_object(Bucket=s3.bucket, Key="a/x", Body=b"behind our back")
    s3.client.put_object(Bucket=s3.bucket, Key="b", Body=b"")
    assert store.sizes(s3.uri) == {"a/x": 15, "b": 0}
    assert store.version(x) != before
    assert store.read_bytes(x) == b"behind our back" == b"".join(store.chunks(x))
    assert store.read_bytes(f"{s3.uri}/b") == b"" and list(store.chunks(f"{s3.uri}/b")) == []


def test_the_endpoint_may_change(s3: S3, x: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(
        store.TransientError, match=f"cannot read {x}: Could not connect .*:{port}.*after 5 tries"
    ):
        store.read_bytes(x)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.proxy.url)
    assert store.read_bytes(x) == DATA


@pytest.mark.parametrize(
    ("kind", "method", "key", "times"),
    [
        ("503", "POST", "uploads", 1),
        ("503", "PUT", "partNumber=2", 2),
        ("cut", "PUT", "partNumber=2", 2),
        ("lost", "PUT", "partNumber=2", 1),
        ("503", "POST", "uploadId", 1),
        ("lost", "POST", "uploadId", 1),
    ],
)
def test_an_upload_in_parts_ends_well(
    s3: S3, x: str, monkeypatch: pytest.MonkeyPatch, kind: str, method: str, key: str, times: int
) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)  # as small as S3 takes them
    s3.fault(kind, method, key, times=times)
    store.write_bytes(x, DATA * 11)
    assert s3.proxy.count("PUT", "partNumber=3") >= 1, "it went in parts"
    assert s3.objects() == {"a/x": 11 * len(DATA)} and s3.leftovers() == []
    assert b"".join(store.chunks(x)) == DATA * 11


@pytest.mark.parametrize(
    ("kind", "tries"), [("503", "; gave up after 5 tries.*"), ("denied", ""), ("full", "")]
)
def test_an_upload_in_parts_that_fails_leaves_nothing(
    s3: S3, x: str, monkeypatch: pytest.MonkeyPatch, kind: str, tries: str
) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)
    s3.fault(kind, "PUT", "partNumber=2")
    s3.fault("503", "DELETE", "uploadId", times=1)  # even if giving up fails at first
    with pytest.raises(store.StoreError, match=f"cannot write {x}: ({REASONS[kind]}){tries}$"):
        store.write_bytes(x, DATA * 11)
    assert s3.objects() == {"a/x": len(DATA)} and s3.leftovers() == []


class _Web(ThreadingHTTPServer):
    """One file, at any path but /none, on a server with the manners it is given."""

    daemon_threads = True

    def __init__(self, data: bytes, **manners: Any) -> None:
        super().__init__(("127.0.0.1", 0), _WebHandler)
        self.data, self.manners, self.requests = data, manners, list[str]()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}/x.fa"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], ConnectionError
        ):  # who asks for one byte does not wait for the others
            super().handle_error(request, client_address)


class _WebHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Web

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_error(403)  # as for a URL that is signed for GET

    def do_GET(self) -> None:
        manners, data, asked = self.server.manners, self.server.data, self.headers.get("Range")
        self.server.requests.append(asked or "all")
        failing = manners.get("status") and len(self.server.requests) in manners.get("when", range(1000))
        if self.path.startswith("/none") or failing:
            self.send_error(manners.get("status", 404))
            return
        status, start, end = 200, 0, len(data)
        if asked and manners.get("ranges", True):
            first, last = asked.removeprefix("bytes=").split("-")
            status, start, end = 206, int(first), min(len(data), int(last) + 1)
        if start >= end and status == 206:
            status, start, end = 416, 0, 0
        body = data[start:end]
        self.send_response(status)
        for name, value in manners.get("headers", {}).items():
            self.send_header(name, value)
        if status != 200:
            self.send_header("Content-Range", f"bytes {f'{start}-{end - 1}' if body else '*'}/{len(data)}")
        if manners.get("length", True):
            self.send_header("Content-Length", str(len(body)))
        self.close_connection = True
        self.end_headers()
        cut = asked != "bytes=0-0" and len(self.server.requests) in manners.get("cut", ())
        self.wfile.write(body[: len(body) // 2] if cut else body)


@contextmanager
def web(data: bytes = DATA, **manners: Any) -> Iterator[_Web]:
    with _Web(data, **manners) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0.05")


@pytest.mark.parametrize(
    "manners",
    [{}, {"ranges": False}, {"ranges": False, "length": False}, {"headers": {"Content-Encoding": "gzip"}}],
    ids=str,
)
def test_web_servers_of_all_kinds(manners: dict[str, Any]) -> None:
    with web(**manners) as server:
        assert store.exists(server.uri) and not store.exists(server.uri.replace("x.fa", "none"))
        assert b"".join(store.chunks(server.uri, 300_000)) == DATA
        assert max(map(len, store.chunks(server.uri, 300_000))) <= 300_000
        assert store.read_bytes(server.uri) == DATA
        assert store.read_bytes(server.uri, 1000, 1005) == DATA[1000:1005]
        with store.open_read(server.uri) as file:
            assert file.read(10) == DATA[:10]
            file.seek(-5, 2)
            assert file.read() == DATA[-5:]
        with pytest.raises(store.StoreError, match=r"/none: no such file or bucket$"):
            store.read_bytes(server.uri.replace("x.fa", "none"))


def test_an_empty_file_on_the_web() -> None:
    for ranges in (True, False):
        with web(b"", ranges=ranges) as server:
            assert store.read_bytes(server.uri) == b"" and list(store.chunks(server.uri)) == []


def test_versions_on_the_web() -> None:
    with web(b"abc", headers={"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}) as server:
        first = store.version(server.uri)
        assert store.version(server.uri) == first
        server.manners = {"headers": {"ETag": '"2"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}}
        second = store.version(server.uri)
        server.manners = {"headers": {"Last-Modified": "Mon, 01 Jan 2024 00:00:01 GMT"}}
        third = store.version(server.uri)
        server.manners = {}
        assert store.version(server.uri) == "3"
        assert len({first, second, third, "3"}) == 4
        server.manners = {"length": False, "ranges": False}
        assert store.version(server.uri) == ""


def test_a_web_server_that_is_busy_is_not_one_without_the_file() -> None:
    for call in (
        store.exists,
        store.version,
        store.read_bytes,
        store.open_read,
        lambda uri: list(store.chunks(uri)),
    ):
        with (
            web(status=503) as server,
            pytest.raises(
                store.TransientError,
                match=rf"cannot .* {server.uri}: Service Unavailable \(503\); gave up after 5 tries",
            ),
        ):
            call(server.uri)
        assert server.requests and len(server.requests) == 5
        with (
            web(status=403) as server,
            pytest.raises(store.StoreError, match=rf"cannot .* {server.uri}: Forbidden \(403\)$"),
        ):
            call(server.uri)
        assert len(server.requests) == 1
    with web(status=503, when=(1, 2, 4)) as server:
        assert b"".join(store.chunks(server.uri, 300_000)) == DATA


def test_a_web_server_that_cuts_bodies() -> None:
    with web(cut=(2, 4)) as server:  # the first request asks what there is
        assert b"".join(store.chunks(server.uri, 300_000)) == DATA
    with (
        web(cut=range(1000)) as server,
        pytest.raises(
            store.TransientError,
            match=rf"cannot read {server.uri}: got \d+ of 1000 bytes; gave up after 5 tries",
        ),
    ):
        store.read_bytes(server.uri, 0, 1000)
    for call in (lambda uri: list(store.chunks(uri)), store.open_read):
        with (
            web(ranges=False, cut=range(1000)) as server,
            pytest.raises(
                store.TransientError,
                match=rf"{server.uri}: got \d+ of 1048576 bytes; gave up after 1 try over .* s",
            ),
        ):
            call(server.uri)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_file_that_changes(ranges: bool) -> None:
    with web(DATA, ranges=ranges, headers={"ETag": '"1"'}) as server:
        pieces = store.chunks(server.uri, 300_000)
        next(pieces)
        server.data, server.manners["headers"] = DATA[::-1], {"ETag": '"2"'}
        with pytest.raises(store.StoreError, match=f"cannot read {server.uri}: it changed while it was read"):
            list(pieces)


def test_a_web_server_has_no_listing() -> None:
    with (
        web() as server,
        pytest.raises(store.StoreError, match=f"cannot list {server.uri}: a web server has no list"),
    ):
        store.list_files(server.uri)


def test_secrets_stay_out_of_messages() -> None:
    for status in (503, 403, 404):
        with web(status=status) as server:
            secret = server.uri.replace("//", "//me:pass@") + "?X-Amz-Signature=abc&token=def"
            for call in (
                store.exists,
                store.version,
                store.read_bytes,
                store.open_read,
                store.sizes,
                store.local_path,
                lambda uri: list(store.chunks(uri)),
            ):
                if call is store.exists and status == 404:
                    continue
                with pytest.raises((store.StoreError, ValueError)) as caught:
                    call(secret)
                shown = server.uri.replace("//", "//***@") + "?..."
                assert shown in str(caught.value)
                assert not re.search("pass@|me:|abc|def|Signature", str(caught.value))
