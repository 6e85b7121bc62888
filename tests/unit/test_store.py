"""cluster.store: the same contract on every filesystem."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import store


@pytest.fixture(params=["path", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
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


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.absolute("a/b") == f"{tmp_path}/a/b" == store.absolute(f"file://{tmp_path}/a/b")
    assert store.absolute("memory://a") == "memory://a"
    with pytest.raises(ValueError, match="memory://a is not a local path"):
        store.local_path("memory://a")
