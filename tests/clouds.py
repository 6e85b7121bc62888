"""Stand-ins for Google Cloud Storage and Azure Blob Storage: as much of each as obstore asks for, in memory,
behind the proxy of tests/s3.py, which injects faults and counts requests. tests/hub.py has one more.

Google speaks the XML API, whose objects have generations. Azure commits blocks.
"""

import base64
import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.s3 import Proxy

ACCOUNT, KEY = "dnaacct", base64.b64encode(b"secret of the account").decode()
_DATE = "Fri, 27 Nov 2026 12:00:00 GMT"


class Cloud(ThreadingHTTPServer):
    """Objects of the bucket ``b`` by name, as (content, generation); ``uploads``: those not complete yet."""

    daemon_threads = True

    def __init__(self, handler: "type[Answers]") -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.generations = itertools.count(1)
        self.lock = threading.Lock()

    def keep(self, name: str, data: bytes) -> int:
        generation = next(self.generations)
        self.objects[name] = (data, generation)
        return generation


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Cloud

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _serve(self) -> None:
        split = urlsplit(self.path)
        self.query = {
            name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()
        }
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.answer(unquote(split.path))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        self.say(status, text.encode(), Content_Type="application/xml")

    def send(self, data: bytes, **headers: str) -> None:
        """All of ``data``, or the range that was asked for."""
        wanted = self.headers.get("Range") or self.headers.get("x-ms-range")
        if self.command == "HEAD":
            self.say(200, Content_Length=str(len(data)), **headers)
        elif wanted is None:
            self.say(200, data, **headers)
        else:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1)
            if start >= len(data):
                self.refuse(416, "InvalidRange", "The range cannot be satisfied.")
                return
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            self.say(206, data[start : end + 1], **headers)

    def page(self, prefix: str) -> list[tuple[str, bytes]]:
        return [
            (name, data) for name, (data, _) in sorted(self.server.objects.items()) if name.startswith(prefix)
        ]


class Google(Answers):
    """The bucket ``b`` by the XML API."""

    def answer(self, path: str) -> None:
        bucket, _, name = path.removeprefix("/").partition("/")
        objects = self.server.objects
        there, generation = objects.get(name, (b"", 0))
        condition = self.headers.get("x-goog-if-generation-match")
        state = {"ETag": f'"{generation}"', "x_goog_generation": str(generation), "Last_Modified": _DATE}
        if bucket != "b":
            self.refuse(404, "NoSuchBucket", "The specified bucket does not exist.")
        elif condition is not None and int(condition) != generation:
            self.refuse(412, "PreconditionFailed", "A precondition failed.")
        elif self.command == "POST" and "uploads" in self.query:
            upload = f"u{next(self.server.generations)}"
            self.server.uploads[upload] = {}
            self.say(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
        elif "uploadId" in self.query:
            self._upload(name, self.query["uploadId"])
        elif self.command == "PUT":
            made = self.server.keep(name, self.body)
            self.say(200, ETag=f'"{made}"', x_goog_generation=str(made))
        elif self.command == "GET" and not name:
            self._list()
        elif not generation:
            self.refuse(404, "NoSuchKey", "The specified key does not exist.")
        elif self.command == "DELETE":
            del objects[name]
            self.say(204)
        else:
            self.send(there, **state)

    def _upload(self, name: str, upload: str) -> None:
        parts = self.server.uploads[upload]
        if self.command == "DELETE":
            del self.server.uploads[upload]
            self.say(204)
        elif self.command == "PUT":
            parts[f"{int(self.query['partNumber']):06d}"] = self.body
            self.say(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')
        else:
            made = self.server.keep(name, b"".join(parts[number] for number in sorted(parts)))
            del self.server.uploads[upload]
            self.say(
                200,
                f'<CompleteMultipartUploadResult><ETag>"{made}"</ETag></CompleteMultipartUploadResult>'.encode(),
                x_goog_generation=str(made),
            )

    def _list(self) -> None:
        """Two objects a page, so that there are several."""
        prefix, after = self.query.get("prefix", ""), self.query.get("continuation-token", "")
        left = [(name, data) for name, data in self.page(prefix) if name > after]
        text = "".join(
            f'<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size><ETag>"{self.server.objects[name][1]}"</ETag>'
            "<LastModified>2026-11-27T12:00:00.000Z</LastModified></Contents>"
            for name, data in left[:2]
        )
        more = f"<NextContinuationToken>{escape(left[1][0])}</NextContinuationToken>" if len(left) > 2 else ""
        self.say(
            200,
            f"<ListBucketResult>{text}{more}<IsTruncated>{str(bool(more)).lower()}</IsTruncated></ListBucketResult>".encode(),
        )


class Azure(Answers):
    """The container ``b`` of the account, by the Blob REST API. Requests must be signed."""

    def answer(self, path: str) -> None:
        container, _, name = path.removeprefix("/").removeprefix(f"{ACCOUNT}/").partition("/")
        there, generation = self.server.objects.get(name, (b"", 0))
        tag = f'"0x{generation:X}"'
        state = {
            "ETag": tag,
            "Last_Modified": _DATE,
            "x_ms_blob_type": "BlockBlob",
            "x_ms_version": "2023-11-03",
        }
        if not self.headers.get("Authorization", "").startswith(f"SharedKey {ACCOUNT}:"):
            self.refuse(
                403, "AuthenticationFailed", "Server failed to authenticate the request.\nRequestId:1"
            )
        elif container != "b":
            self.refuse(404, "ContainerNotFound", "The specified container does not exist.\nRequestId:1")
        elif self.query.get("comp") == "list":
            self._list()
        elif self.query.get("comp") == "batch":
            self._batch()
        elif self.command == "PUT" and self.query.get("comp") == "block":
            self.server.uploads.setdefault(name, {})[self.query["blockid"]] = self.body
            self.say(201)
        elif self.command == "PUT" and self.headers.get("If-None-Match") == "*" and generation:
            self.refuse(409, "BlobAlreadyExists", "The specified blob already exists.")
        elif self.command == "PUT" and self.headers.get("If-Match", tag) != tag:
            self.refuse(412, "ConditionNotMet", "The condition specified is not met.")
        elif self.command == "PUT":
            data = self.body
            if self.query.get("comp") == "blocklist":
                blocks = self.server.uploads.pop(name)
                named = [part.split("<")[0] for part in self.body.decode().split(">") if "</" in part]
                data = b"".join(blocks[block] for block in named if block in blocks)
            made = self.server.keep(name, data)
            self.say(201, ETag=f'"0x{made:X}"', Last_Modified=_DATE)
        elif not generation:
            self.refuse(404, "BlobNotFound", "The specified blob does not exist.\nRequestId:1")
        elif self.command == "DELETE":
            del self.server.objects[name]
            self.say(202)
        else:
            self.send(there, **state)

    def _list(self) -> None:
        prefix, after = self.query.get("prefix", ""), self.query.get("marker", "")
        left = [(name, data) for name, data in self.page(prefix) if name > after]
        text = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{len(data)}</Content-Length>"
            f"<Last-Modified>{_DATE}</Last-Modified><Etag>0x{self.server.objects[name][1]:X}</Etag>"
            "<Content-Type>x</Content-Type></Properties></Blob>"
            for name, data in left[:2]
        )
        marker = escape(left[1][0]) if len(left) > 2 else ""
        self.say(
            200,
            f"<EnumerationResults><Blobs>{text}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>".encode(),
        )

    def _batch(self) -> None:
        """Deletions, which have one request for several."""
        gone = [
            line.split(b" ")[1].decode() for line in self.body.splitlines() if line.startswith(b"DELETE ")
        ]
        answers = []
        for number, url in enumerate(gone):
            name = unquote(urlsplit(url).path).partition("/b/")[2]
            status = "202 Accepted" if self.server.objects.pop(name, None) else "404 BlobNotFound"
            answers.append(
                f"--part\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status}\r\nx-ms-version: 2023-11-03\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--part--\r\n"
        self.say(202, text.encode(), Content_Type="multipart/mixed; boundary=part")


@contextmanager
def running(handler: type[Answers]) -> Iterator[tuple[Cloud, Proxy]]:
    """A stand-in, and the proxy in front of it."""
    with Cloud(handler) as cloud, Proxy(cloud.url) as proxy:
        for server in (cloud, proxy):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield cloud, proxy
        finally:
            proxy.clear()
            proxy.shutdown()
            cloud.shutdown()


def environment(kind: str, url: str) -> dict[str, str]:
    """What reaches the stand-in at ``url`` by the scheme ``kind``."""
    return {
        "gs": {"STORAGE_EMULATOR_HOST": url},
        "az": {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{url}/{ACCOUNT}",
        },
    }[kind]
