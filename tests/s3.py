"""An S3 service for tests, and a proxy in front of it that injects faults and counts requests.

The service is moto's server in a process of its own, or the one that DNA_TEST_S3 names (its endpoint URL,
with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY beside it). The proxy leaves the Host header, which is
signed, as it was.
"""

import functools
import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import boto3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}
REGION = "us-east-1"
_STEP = 1 << 16
# What a service says: status, code and message.
_ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "full": (403, "QuotaExceeded", "The quota of the bucket is exceeded."),
    "507": (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
    "denied": (403, "AccessDenied", "Access Denied."),
}
_KINDS = {*_ANSWERS, "timeout", "cut", "short", "reset", "lost", "slow", "flip"}


@dataclass
class Fault:
    """What the proxy does to the next ``times`` requests (None: all) that match, after letting ``skip`` of
    them pass.

    503, 500, full, 507, denied   the service's own words, with nothing done
    timeout   taken, and not answered for ``seconds`` (or until the proxy is cleared); then closed
    reset     closed by RST, with nothing done;  lost: the same, but after the service has done it
    cut       half of the body, then closed: of the answer, or of what a PUT or POST sends
    short     half of the answer's body under a Content-Length that agrees
    flip      one bit in the middle of the answer's body is another
    slow      ``rate`` bytes per second
    """

    method: str
    key: re.Pattern[str]
    kind: str
    times: int | None
    skip: int
    seconds: float
    rate: int
    met: int = field(default=0)


class Proxy(ThreadingHTTPServer):
    """On a free port of loopback, to ``target``. Rules and counts belong to one test at a time: ``clear``
    them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._lock, self._faults = threading.Lock(), list[Fault]()
        self._seen, self.cleared = list[tuple[str, str]](), threading.Event()

    @functools.cached_property
    def client(self) -> Any:
        """boto3's, past the proxy; one for all tests, since making it takes longer than most of them."""
        keys = {
            name: os.environ[name] if os.environ.get("DNA_TEST_S3") else value for name, value in KEYS.items()
        }
        return boto3.client(
            "s3",
            endpoint_url=self.target.geturl(),
            region_name=REGION,
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )

    def fault(
        self,
        *,
        kind: str,
        method: str = "GET",
        key: str = "",
        times: int | None = None,
        skip: int = 0,
        seconds: float = 60,
        rate: int = 1 << 20,
    ) -> Fault:
        """A new rule; ``key`` is searched for in the request's path and query, unquoted:
        /bucket/key?list-type=2."""
        assert kind in _KINDS, f"{kind} is none of {sorted(_KINDS)}"
        rule = Fault(method, re.compile(key), kind, times, skip, seconds, rate)
        with self._lock:
            self._faults.append(rule)
        return rule

    def count(self, method: str = "", key: str = "") -> int:
        """Requests since the last ``clear``."""
        with self._lock:
            return sum(method in ("", seen) and bool(re.search(key, target)) for seen, target in self._seen)

    def clear(self) -> None:
        """No rules, no counts; those that wait are let go."""
        with self._lock:
            self._faults.clear()
            self._seen.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def meet(self, method: str, target: str) -> tuple[Fault | None, threading.Event]:
        with self._lock:
            self._seen.append((method, target))
            for rule in self._faults:
                if rule.method == method and rule.key.search(target):
                    rule.met += 1
                    if rule.skip < rule.met and (rule.times is None or rule.met <= rule.skip + rule.times):
                        return rule, self.cleared
            return None, self.cleared

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], ConnectionError
        ):  # clients go away: that is what the tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True
    _service: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        target = unquote(self.path)
        rule, cleared = self.server.meet(self.command, target)
        kind = rule.kind if rule else ""
        if rule and kind == "timeout":
            cleared.wait(rule.seconds)
            self.close_connection = True
        elif kind == "reset":
            self._reset()
        elif kind == "cut" and self.command in ("PUT", "POST"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._reset()
        elif kind in _ANSWERS:
            for _ in self._sent():
                pass
            self._say(*_ANSWERS[kind])
        else:
            self._forward(rule)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    def finish(self) -> None:
        if self._service:
            self._service.close()
        super().finish()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _say(self, status: int, code: str, message: str) -> None:
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            "<RequestId>0</RequestId></Error>"
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _sent(self) -> Iterator[bytes]:
        """What the client sends as its body, as it stands on the wire."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while True:
                head = self.rfile.readline()
                size = int(head.split(b";")[0], 16)
                yield head + self.rfile.read(size) + self.rfile.readline()
                if not size:
                    return
        left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, _STEP))):
            left -= len(piece)
            yield piece

    def _forward(self, rule: Fault | None) -> None:
        kind = rule.kind if rule else ""
        if self._service is None:
            target = self.server.target
            kind_of = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
            self._service = kind_of(target.hostname or "", target.port)
        self._service.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):  # neither is signed, and both are ours to settle
                self._service.putheader(name, value)
        self._service.endheaders()
        for piece in self._sent():
            self._service.send(piece)
        answer = self._service.getresponse()
        if kind == "lost":
            answer.read()
            self._reset()
            return
        length = answer.headers.get("Content-Length")
        if length is None:  # small answers in chunks
            whole = answer.read()
            self._head(answer, len(whole))
            self.wfile.write(whole)
            return
        total = 0 if self.command == "HEAD" else int(length)
        kept = total // 2 if kind in ("cut", "short") else total
        self._head(answer, kept if kind == "short" else int(length))
        self._body(answer, rule, kept)
        answer.read()
        if kind == "cut":
            self.close_connection = True

    def _head(self, answer: http.client.HTTPResponse, length: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _body(self, answer: http.client.HTTPResponse, rule: Fault | None, total: int) -> None:
        done, step = 0, _STEP if not rule or rule.kind != "slow" else max(1, rule.rate // 20)
        while done < total and (piece := answer.read(min(step, total - done))):
            if rule and rule.kind == "flip" and done <= total // 2 < done + len(piece):
                at = total // 2 - done
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            if rule and rule.kind == "slow":
                time.sleep(len(piece) / rule.rate)
            self.wfile.write(piece)
            done += len(piece)


@dataclass(frozen=True)
class S3:
    """A bucket of its own, whose requests go through ``proxy``; ``client`` (boto3) goes past it."""

    uri: str
    bucket: str
    proxy: Proxy
    client: Any

    def fault(self, kind: str, method: str = "GET", key: str = "", **how: Any) -> Fault:
        return self.proxy.fault(kind=kind, method=method, key=key, **how)

    def objects(self) -> dict[str, int]:
        """Every object and its bytes, asked of the service itself."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}

    def leftovers(self) -> list[str]:
        """Keys of uploads that were begun and neither completed nor aborted."""
        return [
            each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        ]


@contextmanager
def service() -> Iterator[str]:
    """The endpoint URL of the real service that DNA_TEST_S3 names, else of a moto that ends with the
    block."""
    if named := os.environ.get("DNA_TEST_S3"):
        yield named.rstrip("/")
        return
    with subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | KEYS
    ) as process:
        assert process.stdin and process.stdout
        try:
            port = process.stdout.readline().decode().strip()
            assert port, f"moto's server ended with {process.wait()}; its words are above"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()  # it ends at the end of its input, so also when the tests are killed
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # a process that a test forked holds the other end of the pipe
                process.kill()


@contextmanager
def proxy() -> Iterator[Proxy]:
    """A service and the proxy in front of it."""
    with service() as endpoint, Proxy(endpoint) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.clear()
            server.shutdown()


@contextmanager
def bucket(server: Proxy) -> Iterator[S3]:
    """A new bucket, emptied and removed with the block."""
    name, client = f"dna-{uuid.uuid4().hex[:12]}", server.client
    client.create_bucket(Bucket=name)
    made = S3(f"s3://{name}", name, server, client)
    try:
        yield made
    finally:
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
            client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        for key in made.objects():
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)


def environment(server: Proxy) -> dict[str, str]:
    """What a process needs to reach the service through ``server``, and nothing of the user's own
    accounts."""
    keys = {} if os.environ.get("DNA_TEST_S3") else KEYS
    return {
        **keys,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _moto(until: BinaryIO) -> None:
    """moto's S3 on a free port, which it prints, until the end of ``until``."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            if type == "error":
                super().log(type, message, *args)

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    until.read()


if __name__ == "__main__":
    _moto(sys.stdin.buffer)
