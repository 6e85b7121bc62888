"""cluster.storage.store against stand-ins of Google's and Azure's stores that fail: what is tried again, what
is said, what is left behind."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster.storage import lock, objects, remote, store, uri
from tests import clouds
from tests.s3 import Proxy

DATA = bytes(range(256)) * 4096  # 1 MiB
KINDS = {"gs": clouds.Google, "az": clouds.Azure}
REASONS = {
    "503": r"Please reduce your request rate\. \(SlowDown\)|Service Unavailable \(503\)",
    "denied": r"Access Denied\. \(AccessDenied\)|Forbidden \(403\)",
    "reset": r'(Could not connect to the endpoint URL:|Connection was closed before .*) "http://127.*"',
    "timeout": r'Read timeout on endpoint URL: "http://127.*"',
    "cut": r"got fewer than 1000 bytes",
    "short": r"got 500 of 1000 bytes",
}
OPERATIONS = {
    "read": ("read", "GET", "/a/x", lambda at: store.read_bytes(at, 1000, 2000), DATA[1000:2000]),
    "chunks": ("read", "GET", "/a/x", lambda at: b"".join(store.chunks(at)), DATA),
    "exists": ("look up", "HEAD", "/a/x", store.exists, True),
    "list": ("list", "GET", "prefix", lambda at: store.sizes(at.removesuffix("/x")), {"x": len(DATA)}),
    "write": ("write", "PUT", "/a/x", lambda at: store.write_bytes(at, DATA[:1000]), None),
}


@dataclass(frozen=True)
class There:
    """A stand-in with the object ``x``, which holds DATA."""

    kind: str
    cloud: clouds.Cloud
    proxy: Proxy

    @property
    def x(self) -> str:
        return f"{self.kind}://b/a/x"


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0.05")
    with clouds.running(KINDS[request.param]) as (cloud, proxy):
        for name, value in clouds.environment(request.param, proxy.url).items():
            monkeypatch.setenv(name, value)
        cloud.keep("a/x", DATA)
        yield There(request.param, cloud, proxy)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["503", "reset"])
def test_what_passes_is_tried_again_and_what_does_not_is_given_up(
    there: There, kind: str, operation: str
) -> None:
    word, method, key, call, result = OPERATIONS[operation]
    there.proxy.fault(kind=kind, method=method, key=key, times=2)
    assert call(there.x) == result
    there.proxy.clear()
    there.proxy.fault(kind=kind, method=method, key=key)
    with pytest.raises(store.TransientError) as caught:
        call(there.x)
    named = there.x.removesuffix("/x") if operation == "list" else there.x
    said = f"cannot {word} {named}: ({REASONS[kind]}); gave up after 5 tries over \\d+\\.\\d s"
    assert re.fullmatch(said, str(caught.value))
    assert there.proxy.count(method, key) == 5, "obstore tries nothing again itself"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_cannot_pass_is_said_at_once(there: There, operation: str) -> None:
    word, method, key, call, _ = OPERATIONS[operation]
    there.proxy.fault(kind="denied", method=method, key=key)
    with pytest.raises(store.StoreError) as caught:
        call(there.x)
    assert re.fullmatch(f"cannot {word} {there.kind}://b/a(/x)?: ({REASONS['denied']})", str(caught.value))
    assert there.proxy.count(method, key) == 1 and not isinstance(caught.value, store.TransientError)


@pytest.mark.parametrize("kind", ["timeout", "cut", "short"])
def test_a_body_that_does_not_come_or_ends_early(
    there: There, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("DNA_STORE_TIMEOUT_SECONDS", "0.3")
    there.proxy.fault(kind=kind, key="/a/x", times=1)
    assert store.read_bytes(there.x, 1000, 2000) == DATA[1000:2000]
    there.proxy.fault(kind=kind, key="/a/x")
    with pytest.raises(store.TransientError, match=f"cannot read {there.x}: ({REASONS[kind]}); gave up"):
        store.read_bytes(there.x, 1000, 2000)


def test_a_slow_store_is_waited_for(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNA_STORE_TIMEOUT_SECONDS", "0.3")
    there.proxy.fault(kind="slow", key="/a/x", rate=2 << 20)
    assert store.read_bytes(there.x, 0, len(DATA)) == DATA
    assert there.proxy.count("GET", "/a/x") == 1


def test_an_upload_that_is_cut_leaves_the_old_object(there: There) -> None:
    there.proxy.fault(kind="cut", method="PUT", key="/a/x", times=2)
    store.write_bytes(there.x, DATA[:5000])
    assert there.cloud.objects["a/x"][0] == DATA[:5000]
    there.proxy.fault(kind="cut", method="PUT", key="/a/x")
    with pytest.raises(store.TransientError, match=f"cannot write {there.x}: .*; gave up after 5 tries"):
        store.write_bytes(there.x, DATA)
    assert there.cloud.objects["a/x"][0] == DATA[:5000]


def test_an_upload_in_parts(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has its own tries, and a failed upload leaves neither an object nor the parts that can be
    deleted: Azure drops blocks of its own accord after a week."""
    monkeypatch.setattr(remote, "PART", 1 << 18)
    part = "partNumber=2" if there.kind == "gs" else "comp=block&"
    there.proxy.fault(kind="503", method="PUT", key=part, times=2)
    store.write_bytes(f"{there.kind}://b/large", DATA)
    assert there.cloud.objects["large"][0] == DATA and not there.cloud.uploads
    there.proxy.clear()
    there.proxy.fault(kind="503", method="PUT", key=part)
    with pytest.raises(
        store.TransientError, match=r"cannot write .*/again: .*(503|SlowDown).*; gave up after 5"
    ):
        store.write_bytes(f"{there.kind}://b/again", DATA)
    assert "again" not in there.cloud.objects
    assert there.kind == "az" or not there.cloud.uploads
    assert there.proxy.count("PUT", part) in range(5, 11), "5 tries of each of two parts at most"


def test_a_lease_is_held_by_one(there: There) -> None:
    folder = f"{there.kind}://b/run"
    with lock.hold(folder, ttl_s=6.0) as held:
        held.check()
        with pytest.raises(lock.LockedError, match=f"{folder} is in use by process {os.getpid()} on "):
            lock.hold(folder, ttl_s=6.0).__enter__()
    assert "run/run.lock" not in there.cloud.objects
    tags = [store.swap(f"{there.kind}://b/t", b"1", None)]
    assert tags[0] and store.swap(f"{there.kind}://b/t", b"2", None) is None, "something is there"
    made: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.swap(f"{there.kind}://b/t", b"3", tags[0])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(tag is not None for tag in made) == 1, "of eight that read the same state one may write"


def test_names_are_exact_and_pages_are_all_read(there: There) -> None:
    names = ["a b", "a%20b", "x#1", "é", "a*[1]", "a?b", "a+b", "a&b=c"]
    for name in names:
        store.write_bytes(f"{there.kind}://b/n/{name}", name.encode())
    assert store.sizes(f"{there.kind}://b/n") == {name: len(name.encode()) for name in sorted(names)}
    assert all(store.read_bytes(f"{there.kind}://b/n/{name}") == name.encode() for name in names)
    assert store.identity(f"{there.kind}://b/n/") == store.identity(f"{there.kind}://b/n")
    with pytest.raises(
        store.StoreError, match=r"cannot read .*//b/n//x: Could not parse path.*empty path seg"
    ):
        store.read_bytes(f"{there.kind}://b/n//x")
    there.cloud.keep("n/folder/", b"")
    there.cloud.keep("n/folder/y", b"1")
    assert "folder" not in store.sizes(f"{there.kind}://b/n"), "an empty object that stands for a folder"
    with pytest.raises(store.StoreError, match="//b/n: the store kept some of it"):  # obstore cannot name it
        store.remove(f"{there.kind}://b/n")
    assert there.cloud.objects.keys() == {"a/x", "n/folder/"}
    with pytest.raises(store.StoreError, match=r"cannot remove b.*: it is a whole bucket; name a prefix"):
        store.remove(f"{there.kind}://b")


def test_a_forked_process_is_told(there: There) -> None:
    """The library's threads do not live on in it, and it would wait for ever."""
    assert store.exists(there.x)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            store.exists(there.x)
        except store.StoreError as fault:
            os.write(writing, str(fault).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with open(reading, "rb") as pipe:
        assert pipe.read().decode() == (
            "this process was forked from one that had used the store; start it as a program of its own"
        )


def test_accounts_and_credentials_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    with pytest.raises(store.StoreError, match=r"az://c/x: it names no account; set AZURE_STORAGE_ACCOUNT_N"):
        store.exists("az://c/x")
    named = {
        "abfs://c@acct.dfs.core.windows.net/x/",
        "az://c@acct/x",
        "abfss://c@acct.blob.core.windows.net/x",
    }
    assert {store.identity(each) for each in named} == {"az://c@acct/x"}
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acct")
    assert store.identity("abfs://c/x") == "az://c@acct/x"
    assert store.identity("az://c@acct.dfs.core.chinacloudapi.cn/x") == (
        "az://c@acct.blob.core.chinacloudapi.cn/x"
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")
    with pytest.raises(store.StoreError, match=r"cannot look up gs://b/x: .*/no/such/file.json"):
        store.exists("gs://b/x")


def test_what_obstore_says_of_certificates_and_tokens() -> None:
    """Both need servers that no test has: the texts are those that the library gave."""
    text = (
        "Generic GCS error: HTTP error: error sending request\n\nDebug source:\n{InvalidCertificate(Unknown"
    )
    fault = objects._translated(Exception(text), "https://s", 0)
    assert str(fault) == "the certificate of https://s is not one that this machine trusts"
    token = (
        "Generic GCS error: Error performing token request: "
        "Error performing GET http://169.254.169.254/x?key=SECRET in 1ms"
    )
    fault = objects._translated(
        Exception(f"{token} - Server returned non-2xx status code: 403 Forbidden: "), "s", 0
    )
    assert str(fault) == "no credentials for s: its tokens were refused with Forbidden (403)"
    fault = objects._translated(Exception(f"{token} - HTTP error\n\nDebug source:\nkind: Timeout"), "s", 0)
    assert str(fault) == "Could not reach the server of tokens for s" and isinstance(fault, ConnectionError)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1/missing")
    uri._filesystem.cache_clear()
    with pytest.raises(store.StoreError) as caught:
        store.exists("gs://b/x")
    assert str(caught.value) == (
        "cannot use gs://b/x: the library obstore is missing; install dna-distill[data], which has it"
    )
