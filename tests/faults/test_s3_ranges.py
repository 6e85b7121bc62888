"""Ranges of S3 objects through obstore: what it reads, and what it leaves to s3fs."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.storage import objects, s3_ranges, store, uri
from tests.s3 import KEYS, S3

DATA = bytes(range(256)) * 64


@pytest.fixture
def x(s3: S3) -> str:
    at = store.join(s3.uri, "a", "x")
    store.write_bytes(at, DATA)
    return at


def by_s3fs(monkeypatch: pytest.MonkeyPatch, at: str) -> list[str]:
    """The paths that s3fs reads from now on."""
    fs, _ = uri.resolve(at)
    read, cat = list[str](), fs.cat_file

    def spy(path: str, **options: Any) -> bytes:
        read.append(path)
        return bytes(cat(path, **options))

    monkeypatch.setattr(fs, "cat_file", spy)
    return read


def test_ranges_are_exact_and_do_not_go_through_botocore(
    s3: S3, x: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = by_s3fs(monkeypatch, x)
    assert store.read_bytes(x, 1, 2) == DATA[1:2]
    assert store.read_bytes(x, 4096, len(DATA)) == DATA[4096:]
    assert not read, "both began behind the first byte"
    assert store.read_bytes(x, 0, 100) == DATA[:100] and len(read) == 1
    size = len(DATA)
    for start, end, got in ((size - 10, size + 10, 10), (size + 10, size + 20, 0)):
        said = f"cannot read {x}: got {got} of {end - start} bytes, for the file ends at {size}$"
        with pytest.raises(store.StoreError, match=said):
            store.read_bytes(x, start, end)


@pytest.mark.parametrize("name", ["a b", "a%20b", "x#1", "é", "a*[1]", "a//b", "./c", "d/../e", "f/"])
def test_names_are_exact(s3: S3, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key=name, Body=name.encode() + DATA)
    read = by_s3fs(monkeypatch, s3.uri)
    expected = (name.encode() + DATA)[1:50]
    if not name.endswith("/") and ".." not in name:  # s3fs itself has other names for these
        assert store.read_bytes(f"{s3.uri}/{name}", 1, 50) == expected
        assert bool(read) == (name in ("a//b", "./c"))


def test_credentials_of_a_profile(s3: S3, x: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Botocore finds them, wherever they are."""
    keys = {name: os.environ[name] for name in KEYS}
    lines = [f"{name.lower()} = {value}" for name, value in keys.items()]
    (tmp_path / "credentials").write_text("\n".join(["[lab]", *lines, ""]))
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    read = by_s3fs(monkeypatch, x)
    assert store.read_bytes(x, 5, 10) == DATA[5:10] and not read


def test_credentials_that_end_are_asked_for_again() -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)

    async def frozen() -> Any:
        return SimpleNamespace(access_key="a", secret_key="b", token="c")

    fs, _ = uri.resolve("https://127.0.0.1/x")  # any that has a loop
    found = s3_ranges._Credentials(fs, SimpleNamespace(get_frozen_credentials=frozen, _expiry_time=ends))()
    assert found == {"access_key_id": "a", "secret_access_key": "b", "token": "c", "expires_at": ends}


def client(endpoint: str = "https://s3.eu-central-1.amazonaws.com", **settings: Any) -> Any:
    """A filesystem with a client of botocore, as far as it is looked at."""
    credentials = settings.pop("credentials", object())
    verify = settings.pop("verify", True)
    config = {"s3": None, "proxies": None, "signature_version": "s3v4"} | settings
    return SimpleNamespace(
        s3=SimpleNamespace(
            meta=SimpleNamespace(config=SimpleNamespace(**config), endpoint_url=endpoint),
            _endpoint=SimpleNamespace(http_session=SimpleNamespace(_verify=verify)),
            _request_signer=SimpleNamespace(_credentials=credentials),
        )
    )


@pytest.mark.parametrize(
    ("fs", "bucket", "why"),
    [
        (client(), "b-1.x", ""),
        (client(signature_version=object(), credentials=None), "bucket", ""),  # botocore's UNSIGNED
        (client(s3={"addressing_style": "virtual"}), "bucket", ""),
        (client("https://s3.lab.org", s3={"addressing_style": "path"}), "bucket", ""),
        (
            client("https://s3.lab.org", s3={"addressing_style": "virtual"}),
            "bucket",
            "a host for each bucket",
        ),
        (client(), "arn:aws:s3:eu-west-1:1:accesspoint/x", "an access point"),
        (client(), "b--use1-az4--x-s3", "a directory bucket"),
        (client(proxies={"https": "http://proxy"}), "bucket", "there is a proxy"),
        (client(verify=False), "bucket", "certificates are not checked"),
        (client(s3={"use_accelerate_endpoint": True}), "bucket", "accelerated"),
        (client(use_fips_endpoint=True), "bucket", "a special one"),
        (client(signature_version="s3"), "bucket", "signed by s3"),
        (client(credentials=None), "bucket", "no credentials"),
    ],
)
def test_what_is_left_to_s3fs(fs: Any, bucket: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    said = s3_ranges.why_not(fs, bucket)
    assert why in said and bool(said) == bool(why)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert s3_ranges.why_not(client(), "bucket") == "there is a proxy"


@pytest.mark.parametrize(
    "fault", [objects.RefusedError(301, "PermanentRedirect", "x"), objects.UntrustedError()]
)
def test_a_bucket_that_obstore_is_sent_away_from(
    s3: S3, x: str, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    import obstore

    asked: list[str] = []

    def elsewhere(there: Any, key: str, **_: int) -> None:
        asked.append(key)
        raise fault

    read = by_s3fs(monkeypatch, x)
    monkeypatch.setattr(obstore, "get_range", elsewhere)
    assert store.read_bytes(x, 5, 10) == DATA[5:10] == store.read_bytes(x, 5, 10)
    assert len(asked) == 1 and len(read) == 2, "botocore knows the way, and is asked at once from now on"
    uri.resolve(x)[0].__dict__.pop("dna_ranges")  # the filesystem is shared with other tests


def test_a_forked_process_reads_through_s3fs(s3: S3, x: str) -> None:
    """As ranks of the tests are; obstore's threads do not live on in it."""
    assert store.read_bytes(x, 5, 10) == DATA[5:10] and objects.works_here()
    child = os.fork()
    if not child:
        good = not objects.works_here() and store.read_bytes(x, 5, 10) == DATA[5:10]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
