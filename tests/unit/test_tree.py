"""cluster.storage.tree through cluster.storage.store: what is listed and removed below a folder, whatever its
name looks like."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster.storage import store
from tests.s3 import S3

# Beside each stand neighbours that a pattern, a prefix or an unquoted name would take for it.
NEIGHBOURS = {
    "exp[1]": ["exp1"],
    "exp[!a]": ["expb"],
    "exp*": ["exp", "exp-2", "exp/x"],
    "ex?": ["exp", "exq"],
    "exp": ["exp2"],
    "a b": ["a+b", "a%20b"],
    "a%20b": ["a b"],
    "a+b": ["a b"],
    "a#b": ["a"],
    "ä": ["a"],
    "**": ["x/y"],
    "{a,b}": ["a"],
    "$x": ["x"],
    "a;b": ["a"],
    "a&b=c": ["a"],
    "'\"": ["x"],
    "a::b": ["a"],
    "a:b": ["a"],
}


@pytest.fixture(params=["path", "file", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    prefix = {"path": "", "file": "file://", "memory": "memory://"}
    root = (
        f"{request.getfixturevalue('s3').uri}/sub"
        if request.param == "s3"
        else f"{prefix[request.param]}{tmp_path}/sub"
    )
    yield root
    store.remove(root)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_name_is_taken_literally(base: str, name: str) -> None:
    """As a folder and as a file: written, seen, read and removed, and its neighbours stay."""
    others = {f"{other}/z": b"theirs" for other in NEIGHBOURS[name]}
    for other, data in others.items():
        store.write_bytes(store.join(base, other), data)
    for at, below in ((store.join(base, name), ["f", f"sub/{name}"]), (store.join(base, "in", name), [""])):
        assert not store.exists(at) and store.sizes(at) == {}
        store.remove(at)
        assert store.sizes(base) == dict.fromkeys(sorted(others), 6), "nothing there, nothing goes"
        files = [store.join(at, rest) if rest else at for rest in below]
        for file in files:
            store.write_bytes(file, b"ours")
            assert store.read_bytes(file) == b"ours" == b"".join(store.chunks(file)) and store.exists(file)
            with store.open_read(file) as opened:
                assert opened.read() == b"ours"
        assert store.sizes(at) == {rest: 4 for rest in below if rest}
        assert store.exists(at)
        store.remove(at)
        assert not store.exists(at)
        assert store.sizes(base) == dict.fromkeys(sorted(others), 6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text("ab*?[]{}!^-. %#+äß$&~:", min_size=1, max_size=6).filter(
        lambda name: name not in (".", "..") and not re.search(r"\$\{\w+\}", name)
    )
)  # refused by paths.py
@example("~")
@example("[ab]")
def test_any_name_of_a_folder_is_taken_literally(tmp_path: Path, name: str) -> None:
    others = {"ab/f": 1, "a/f": 1, "b": 1, "a b/f": 1} if name not in ("ab", "a", "b", "a b") else {}
    for prefix in ("", "memory://"):
        base = f"{prefix}{tmp_path}/any"
        for other in others:
            store.write_bytes(store.join(base, other), b"1")
        store.write_bytes(store.join(base, name, "x"), b"22")
        assert store.sizes(base) == dict(sorted((others | {f"{name}/x": 2}).items()))
        store.remove(store.join(base, name))
        assert store.sizes(base) == dict(sorted(others.items()))
        store.remove(base)


def test_more_objects_than_one_call_lists_or_deletes(s3: S3) -> None:
    names = [f"exp/{number:04d} é" for number in range(1003)]
    for name in ["exp2/x", "exp.x", "ex", *names]:
        s3.client.put_object(Bucket=s3.bucket, Key=name, Body=b"1")
    assert list(store.sizes(f"{s3.uri}/exp")) == [name.removeprefix("exp/") for name in names]
    s3.proxy.clear()
    store.remove(f"{s3.uri}/exp/")
    assert sorted(s3.objects()) == ["ex", "exp.x", "exp2/x"]
    assert s3.proxy.count("POST", "delete") == 2


def test_an_object_that_stands_for_a_folder_is_no_file(s3: S3) -> None:
    """Consoles and some tools make them."""
    for key in ("ds/", "ds/sub/", "ds/sub/x", "ds2/"):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"1" if key.endswith("x") else b"")
    assert store.sizes(f"{s3.uri}/ds") == {"sub/x": 1} == store.sizes(f"{s3.uri}/ds/")
    assert store.sizes(f"{s3.uri}/ds2") == {}
    assert store.sizes(s3.uri) == {"ds/sub/x": 1}
    store.remove(f"{s3.uri}/ds")
    assert sorted(s3.objects()) == ["ds2/"], "they go with the folder"


def test_a_whole_bucket_is_not_removed(s3: S3) -> None:
    store.write_bytes(f"{s3.uri}/x", b"1")
    for uri in (s3.uri, f"{s3.uri}/"):
        with pytest.raises(
            store.StoreError, match=rf"cannot remove {s3.bucket}: it is a whole bucket; name a prefix"
        ):
            store.remove(uri)
    assert s3.objects() == {"x": 1}


def test_a_bucket_that_is_not_there(s3: S3) -> None:
    with pytest.raises(store.StoreError, match=f"cannot list {s3.uri}-none/x: no such file or bucket"):
        store.sizes(f"{s3.uri}-none/x")


def test_what_a_bulk_delete_refuses_is_said_or_tried_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3.uri}/exp"
    for name in ("a", "b"):
        store.write_bytes(f"{uri}/{name}", b"1")
    answers = [
        {"Errors": [{"Key": "exp/a", "Code": code, "Message": message}]}
        for code, message in (("InternalError", "try again"), ("AccessDenied", "Access Denied."))
    ]
    fs = type(store.resolve(uri)[0])
    real = fs.call_s3
    monkeypatch.setattr(
        fs,
        "call_s3",
        lambda self, name, *more, **how: (
            answers.pop(0) if name == "delete_objects" else real(self, name, *more, **how)
        ),
    )
    with pytest.raises(store.StoreError, match=rf"cannot remove {uri}: Access Denied. \(AccessDenied\)$"):
        store.remove(uri)
    assert answers == [] and s3.objects() == {"exp/a": 1, "exp/b": 1}


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"1")
    for target in ("real", "nowhere"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        store.remove(str(tmp_path / "link"))
        assert not os.path.lexists(tmp_path / "link")
    assert store.sizes(str(tmp_path)) == {"real/x": 1}
