"""cluster.storage.uri: paths, chains, and one identity for one place."""

import zipfile
from pathlib import Path

import pytest

from cluster.storage import store
from configs import ConfigError


def test_one_place_has_one_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = [
        "real/x",
        "./real/x",
        "real/x/",
        "link/x",
        "link/../real//x",
        f"{tmp_path}/real/x",
        "~/link/x/",
        f"file://{tmp_path}/link/x",
        "file:real/x",
    ]
    assert {store.identity(way) for way in ways} == {f"{tmp_path}/real/x"}
    assert {store.identity(way) for way in ("s3://b/x", "s3://b/x/", "s3a://b/x", "s3a://b/x//")} == {
        "s3://b/x"
    }
    assert {store.identity(way) for way in ("memory://b/x", "memory://b/x/", "memory:///b/x")} == {
        "memory://b/x"
    }
    others = [
        "s3://b/x",
        "s3://b/X",
        "s3://b/x2",
        "s3://b2/x",
        "s3://b/x y",
        "s3://b",
        "memory://b/x",
        "/b/x",
        "https://b/x",
        "https://b/x/",
    ]
    assert len({store.identity(other) for other in others}) == len(others)


def test_a_local_path_is_no_pattern_and_no_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a::b", "run #2", "50%", "s3:x", "a?b", "http:", "memory"):
        assert store.is_local(name) and store.local_path(name) == tmp_path / name
        assert store.absolute(name) == f"{tmp_path}/{name}" == store.absolute(f"file://{name}")
    with zipfile.ZipFile("g.zip", "w") as file:
        file.writestr("x.fa", ">x\nACGT\n")
    assert store.read_bytes("zip://x.fa::g.zip".replace("g.zip", f"file://{tmp_path}/g.zip")) == b">x\nACGT\n"


def test_a_dash_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (store.read_bytes, store.absolute, lambda uri: store.write_bytes(uri, b"1")):
        with pytest.raises(
            ConfigError, match=r"^- is no file; standard input and output are /dev/stdin and /dev/std"
        ):
            use("-")
    assert list(tmp_path.iterdir()) == []
    store.write_bytes("./-", b"1")
    assert store.list_files(".") == ["-"]


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri in ("~/x", "file://~/x"):
        assert store.absolute(uri) == f"{tmp_path}/home/x"
    store.write_bytes("~/x", b"1")
    assert (tmp_path / "home" / "x").read_bytes() == b"1" and not (tmp_path / "~").exists()
    with pytest.raises(
        ConfigError, match=r"^~nobody-here/x begins with ~nobody-here, and this machine has no user"
    ):
        store.write_bytes("~nobody-here/x", b"1")
    (tmp_path / "~nobody-here").mkdir()
    assert store.absolute("~nobody-here/x") == f"{tmp_path}/~nobody-here/x", (
        "it is there: it is what is meant"
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("$HOME/x", "HOME"),
        ("/data/$USER/x", "USER"),
        ("runs/${SLURM_JOB_ID}", "SLURM_JOB_ID"),
        ("file://$X/y", "X"),
    ],
)
def test_a_variable_that_no_shell_put_in_is_refused(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError,
        match=rf"holds \$\{{?{name}\}}?, which only a shell replaces; write the path out, "
        rf"or \$\{{oc.env:{name}\}} in a config",
    ):
        store.write_bytes(path, b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_dollar_in_a_name_is_no_variable(tmp_path: Path) -> None:
    for name in ("a$b", "5$", "$", "x$1"):
        store.write_bytes(f"{tmp_path}/{name}", b"1")
    (tmp_path / "$HOME").mkdir()
    store.write_bytes(f"{tmp_path}/$HOME/x", b"1")
    assert store.list_files(str(tmp_path)) == ["$", "$HOME/x", "5$", "a$b", "x$1"]
