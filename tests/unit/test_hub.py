"""hf://: datasets on the Hugging Face Hub are read by range, and never written."""

from collections.abc import Iterator

import pytest

from cluster.storage import store
from tests import clouds
from tests.clouds import Cloud
from tests.hub import TOKEN, Hub
from tests.s3 import Proxy

DATA = bytes(range(256)) * 64
ROOT = "hf://datasets/dna/shards"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cloud, Proxy]]:
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0.05")
    with clouds.running(Hub) as (cloud, proxy):
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, data in (("d/train.tar", DATA), ("d/manifest.json", b"{}"), ("d/e/f", b"1"), ("g", b"")):
            cloud.keep(name, data)
        yield cloud, proxy


def test_files_are_read_and_listed(hub: tuple[Cloud, Proxy]) -> None:
    cloud, proxy = hub
    large = f"{ROOT}/d/train.tar"  # it comes from another address, without the token
    assert store.read_bytes(large, 1000, 2000) == DATA[1000:2000]
    assert store.read_bytes(large) == DATA == b"".join(store.chunks(large, 5000))
    assert store.read_bytes(f"{ROOT}@main/d/manifest.json") == b"{}" and store.read_bytes(f"{ROOT}/g") == b""
    with store.open_read(large) as file:
        assert file.seek(16) == 16 and file.read(4) == DATA[16:20]
    assert store.sizes(f"{ROOT}/d") == {"train.tar": len(DATA), "manifest.json": 2, "e/f": 1}
    assert store.list_files(ROOT) == ["d/e/f", "d/manifest.json", "d/train.tar", "g"]
    assert store.exists(large) and store.exists(f"{ROOT}/d") and store.exists(ROOT)
    assert not store.exists(f"{ROOT}/no") and store.sizes(f"{ROOT}/no") == {}
    before = store.version(large)
    cloud.keep("d/train.tar", DATA[::-1])
    assert store.version(large) != before
    assert proxy.count("GET", "/resolve/main/") >= 5


def test_faults_are_sentences(hub: tuple[Cloud, Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    _, proxy = hub
    large = f"{ROOT}/d/train.tar"
    proxy.fault(kind="503", key="/resolve/", times=2)
    proxy.fault(kind="reset", method="POST", key="/paths-info/", times=1)
    assert store.read_bytes(large) == DATA
    for method, key, call, word in (
        ("GET", "/resolve/", lambda: store.read_bytes(large, 5, 10), "read"),
        ("GET", "/tree/", lambda: store.sizes(large), "list"),
        ("POST", "/paths-info/", lambda: store.version(large), "look up"),
    ):
        proxy.clear()
        proxy.fault(kind="503", method=method, key=key)
        with pytest.raises(store.TransientError) as caught:
            call()
        said = str(caught.value).partition("; gave up after 5 tries")[0]
        assert said == f"cannot {word} {large}: Service Unavailable (503)"
        assert proxy.count(method, key) == 5, "the library tries nothing again itself"
    proxy.clear()
    with pytest.raises(store.StoreError, match=f"cannot read {ROOT}/no: no such file or bucket"):
        store.read_bytes(f"{ROOT}/no")
    with pytest.raises(store.StoreError, match="cannot list hf://datasets/dna/none: no such file or bucket"):
        store.sizes("hf://datasets/dna/none")
    monkeypatch.setenv("HF_TOKEN", "hf_anothersecret")
    with pytest.raises(store.StoreError, match=r"cannot look up .*: Unauthorized \(401\)$") as caught:
        store.version(large)
    assert "secret" not in str(caught.value).lower()


def test_what_is_no_file_of_a_dataset(hub: tuple[Cloud, Proxy]) -> None:
    with pytest.raises(
        store.StoreError, match=r"cannot use hf://datasets: .*write hf://datasets/OWNER/NAME/F"
    ):
        store.exists("hf://datasets")


def test_nothing_is_written(hub: tuple[Cloud, Proxy]) -> None:
    cloud, proxy = hub
    before = dict(cloud.objects)
    for call in (
        lambda: store.write_bytes(f"{ROOT}/x", b"1"),
        lambda: store.remove(f"{ROOT}/g"),
        lambda: store.swap(f"{ROOT}/x", b"1", None),
    ):
        with pytest.raises(
            store.StoreError, match=r"cannot write .*: the Hugging Face Hub is only read here; wr"
        ):
            call()
    assert cloud.objects == before and proxy.count() == 0
