"""Checkpoints as files: written as safetensors reads them, damage named, and which folders go and which
stay."""

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.process.heartbeat import heartbeat
from cluster.storage import store
from tests.s3 import S3
from trainer.run.checkpoint import files, manifests
from trainer.run.checkpoint.manifests import DamagedError, File, Manifest, StoredCheckpoint

BYTES = {
    torch.float32: 4,
    torch.float64: 8,
    torch.int64: 8,
    torch.bfloat16: 2,
    torch.uint8: 1,
    torch.int32: 4,
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter("__metadata__".__ne__)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits, so also NaNs with a payload, -0.0 and numbers below the normal ones."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    entries = 1
    for size in shape:
        entries *= size
    if draw(st.integers(0, 6)) == 6:
        return (
            torch.tensor(draw(st.lists(st.booleans(), min_size=entries, max_size=entries))).bool().view(shape)
        )
    dtype = draw(st.sampled_from(sorted(BYTES, key=str)))
    data = draw(st.binary(min_size=entries * BYTES[dtype], max_size=entries * BYTES[dtype]))
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def written(named: Mapping[str, Tensor]) -> tuple[bytes, File]:
    file = io.BytesIO()
    known = files.write(file, named)
    return file.getvalue(), known


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    flat = tensor.contiguous().reshape(-1)
    return tensor.dtype, tensor.shape, flat.view(torch.uint8).tolist() if flat.numel() else []


NANS = bytearray(struct.pack("<3I", 0x7FC0_1234, 0xFF80_0001, 0x8000_0000))  # quiet, signalling; and -0.0
ODD = {
    "nan": torch.frombuffer(NANS, dtype=torch.float32),
    "": torch.tensor(-0.0),
    "empty": torch.empty(0, 3),
    'ß/"\\\n\0': torch.tensor([True, False, True]),
}


@given(st.dictionaries(NAMES, tensors(), max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back_bit_for_bit(named: dict[str, Tensor]) -> None:
    named |= ODD
    data, known = written(named)
    assert (known.size, known.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    known.check("f", data)
    assert {name: bits(t) for name, t in files.read("f", data).items()} == {
        name: bits(t) for name, t in named.items()
    }
    assert int.from_bytes(data[:8], "little") % 8 == 0, "the tensors are aligned"
    assert written(dict(reversed(named.items())))[0] == data, "the bytes depend on the tensors alone"


def test_each_piece_of_a_large_tensor_is_progress_and_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk does not take the whole of a checkpoint in silence, which would look like a hang."""
    synced: list[int] = []
    monkeypatch.setattr(files, "_PIECE", 1000)
    monkeypatch.setattr(files.os, "fdatasync", lambda handle: synced.append(os.fstat(handle).st_size))
    before, tensors = heartbeat.read().moves, {"a": torch.arange(900.0), "b": torch.arange(10.0)}
    with open(tmp_path / "x", "wb") as file:
        written = files.write(file, tensors, lasting=True)
    assert heartbeat.read().moves == before + 2 + 4 + 1  # length, header, 3,600 bytes, 40 bytes
    assert len(synced) == 3
    assert synced[2] - synced[0] == 2000
    read = files.read("x", (tmp_path / "x").read_bytes())
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert written.size == (tmp_path / "x").stat().st_size


def test_a_file_of_nothing() -> None:
    data, known = written({})
    assert files.read("f", data) == {} and known.size == len(data)


def test_damage_anywhere_is_found() -> None:
    """Every byte with each of its bits flipped, cut after every byte, and longer than it was."""
    data, known = written({"master/a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)})
    damaged = [
        data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in range(8)
    ]
    for each in damaged:
        with pytest.raises(DamagedError, match=r"^rank-x has another sha256 than when it was written$"):
            known.check("rank-x", each)
    for size in range(len(data)):
        with pytest.raises(DamagedError, match=rf"^rank-x has {size} bytes instead of {len(data)}$"):
            known.check("rank-x", data[:size])
    with pytest.raises(DamagedError, match=rf"^rank-x has {len(data) + 1} bytes instead of {len(data)}$"):
        known.check("rank-x", data + b"\0")


def test_what_is_no_safetensors_file_is_named() -> None:
    """Also where its hash is right: a cut anywhere is found, and a flip in the header gives no other
    exception."""
    data, _ = written({"master/a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)})
    header = 8 + int.from_bytes(data[:8], "little")
    for each in [data[:size] for size in range(len(data))] + [b"\xff" * 40, data + b"\0"]:
        with pytest.raises(DamagedError, match=r"^rank-x is no safetensors file: \S"):
            files.read("rank-x", each)
    refused = 0
    for at in range(header):
        for bit in range(8):
            try:
                files.read("rank-x", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            except DamagedError as fault:
                refused += str(fault).startswith("rank-x is no safetensors file: ")
    assert refused > header * 4


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
FILE = st.builds(
    File,
    size=st.integers(0, 1 << 50),
    sha256=DIGEST,
    fragments=st.dictionaries(
        st.text(max_size=8), st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=3
    ),
)
MANIFESTS = st.builds(
    Manifest,
    format_version=st.just(manifests.FORMAT_VERSION),
    step=st.integers(0, 1 << 40),
    applied=st.integers(0, 1 << 40),
    world=st.integers(1, 4),
    config=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    datasets=st.dictionaries(st.text(max_size=5), DIGEST, max_size=2),
    wiring=DIGEST,
    position=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    guard=st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3),
    skipped=st.integers(0, 9),
    skipped_losses=st.dictionaries(
        st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2
    ),
    files=st.dictionaries(st.text(max_size=8), FILE, max_size=3),
)


@given(MANIFESTS, st.data())
@settings(max_examples=60, deadline=None)
def test_a_manifest_comes_back_and_any_other_character_is_noticed(
    manifest: Manifest, data: st.DataObject
) -> None:
    text = manifest.to_bytes()
    assert Manifest.from_bytes(text) == manifest
    at = data.draw(st.integers(0, len(text) - 1))
    flipped = text[:at] + bytes([text[at] ^ 1 << data.draw(st.integers(0, 7))]) + text[at + 1 :]
    with contextlib.suppress(DamagedError):  # 1e5 and 1E5, \u00e9 and \u00E9 are a bit apart and the same
        assert Manifest.from_bytes(flipped) == manifest
    with pytest.raises(DamagedError, match=r"^manifest\.json cannot be read \(\w+: "):
        Manifest.from_bytes(text[: min(at, len(text) - 2)])  # without the end of its last line it is whole


def manifest(step: int, written: Mapping[str, bytes], *, world: int = 1) -> Manifest:
    return Manifest(
        step=step,
        applied=step,
        world=world,
        config={"train": {"steps": 9}},
        datasets={},
        wiring="w" * 64,
        position={"step": step},
        guard={},
        files={
            name: File(size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in written.items()
        },
    )


def test_every_flipped_bit_of_a_manifest_is_found() -> None:
    text = manifest(12, {"a": b"1"}).to_bytes()
    for at in range(len(text)):
        for bit in range(8):
            with pytest.raises(DamagedError, match=r"^manifest\.json "):
                Manifest.from_bytes(text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :])


def resealed(**changes: Any) -> bytes:
    """A manifest that is another, with the sha256 that fits it; None takes a key away."""
    content = json.loads(manifest(1, {}).to_bytes()) | changes
    content = {key: value for key, value in content.items() if value is not None and key != "sha256"}
    return json.dumps({"sha256": manifests._digest(content), **content}).encode()


def test_a_manifest_of_another_version_says_what_to_run() -> None:
    with pytest.raises(
        ValueError,
        match=r"^it has format version 2 and this code reads 1; go on with the version of "
        r"this package that wrote it$",
    ) as caught:
        Manifest.from_bytes(resealed(format_version=2))
    assert not isinstance(caught.value, DamagedError)
    with pytest.raises(ValueError, match="it has format version None and this code reads 1"):
        Manifest.from_bytes(resealed(format_version=None))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (resealed(step=None), r"manifest\.json differs from its version in 1 fields"),
        (resealed(step=None, files=None, more=1), r"manifest\.json differs from its version in 3 fields"),
        (b"", r"manifest\.json cannot be read \(JSONDecodeError: "),
        (b"[1]", r"manifest\.json cannot be read \(TypeError: "),
        (b"7", r"manifest\.json cannot be read \(AttributeError: "),
        (b"{}", r"manifest\.json cannot be read \(KeyError: 'sha256'\)"),
        (b'"\xff"', r"manifest\.json cannot be read \(UnicodeDecodeError: "),
        (b'{"sha256": 1}', r"manifest\.json has another sha256 than when it was written"),
    ],
)
def test_what_is_no_manifest_is_damage(data: bytes, sentence: str) -> None:
    with pytest.raises(DamagedError, match=f"^{sentence}"):
        Manifest.from_bytes(data)


@pytest.fixture(params=["local", "s3"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    s3: S3 = request.getfixturevalue("s3")
    return f"{s3.uri}/run"


WRITTEN = {manifests.rank_file(0, 1): b"12345", manifests.SHARED: b"123"}


def put(
    run_dir: str, step: int, *, but: Sequence[str] = (), as_step: int | None = None, stage: bool = False
) -> str:
    """A checkpoint ``but`` for some of its files; its folder."""
    uri = (
        manifests.stage(run_dir, step)
        if stage
        else manifests.place(run_dir, step if as_step is None else as_step)
    )
    for name, data in {**WRITTEN, manifests.MANIFEST: manifest(step, WRITTEN).to_bytes()}.items():
        if name not in but:
            store.write_bytes(store.join(uri, name), data)
    return uri


def test_checkpoints_are_found_newest_first_and_whole_or_not(run_dir: str) -> None:
    assert manifests.find(run_dir) == []
    for step in (7, 100_000_000, 12):
        put(run_dir, step)
    half = put(run_dir, 9, but=[manifests.MANIFEST])
    for name in (
        "step-7/x",
        "step-0000000x/x",
        "stepp-00000007/x",
        "x/step-00000003/x",
        ".step-00000004.partial/x",
        "step-00000002",
    ):
        store.write_bytes(store.join(manifests.folder(run_dir), name), b"1")
    found = manifests.find(run_dir)
    assert [one.step for one in found] == [100_000_000, 12, 9, 7]
    assert [one.uri for one in found] == [manifests.place(run_dir, one.step) for one in found]
    assert found[1].sizes == {name: len(data) for name, data in WRITTEN.items()} | {
        manifests.MANIFEST: len(manifest(12, WRITTEN).to_bytes())
    }
    assert found[1].manifest() == manifest(12, WRITTEN)
    assert found[2].uri == half
    with pytest.raises(DamagedError, match=r"^it was not finished: it has no manifest$"):
        found[2].manifest()


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """The folder of a local checkpoint of step 3."""
    return Path(put(str(tmp_path), 3))


def test_files_that_are_not_as_the_manifest_says_are_named(one: Path) -> None:
    def refused(sentence: str) -> None:
        (found,) = manifests.find(str(one.parents[1]))
        with pytest.raises(DamagedError, match=f"^{sentence}$"):
            found.manifest()

    rank, whole = one / manifests.rank_file(0, 1), (one / manifests.MANIFEST).read_bytes()
    rank.write_bytes(b"1234")
    refused(f"{rank.name} has 4 bytes instead of 5")
    rank.unlink()
    refused(f"{rank.name} is missing")
    rank.write_bytes(b"12345")
    for known, world, name in ((WRITTEN, 2, "rank-00000-of-00002"), ({rank.name: b"12345"}, 1, "shared")):
        (one / manifests.MANIFEST).write_bytes(manifest(3, known, world=world).to_bytes())
        refused(rf"manifest.json does not name {name}.safetensors")
    (one / manifests.MANIFEST).write_bytes(manifest(4, WRITTEN).to_bytes())
    refused("its manifest is that of step 4")
    (one / manifests.MANIFEST).write_bytes(whole[:-9])
    refused(r"manifest.json cannot be read \(JSONDecodeError: .*\)")
    (one / manifests.MANIFEST).write_bytes(whole)
    assert manifests.find(str(one.parents[1]))[0].manifest() == manifest(3, WRITTEN)


def test_another_version_is_said_with_the_folder(one: Path) -> None:
    (one / manifests.MANIFEST).write_bytes(resealed(format_version=7))
    with pytest.raises(
        ValueError, match=rf"^{one}: it has format version 7 and this code reads 1; go on with"
    ):
        manifests.find(str(one.parents[1]))[0].manifest()


@pytest.mark.parametrize(
    ("pointer", "words"),
    [
        (b'{"step": 12}', "that of step 12"),
        (b'{"step": 3}', "that of step 9"),
        (b"{", "that of step 9"),
        (b"[]", "that of step 9"),
        (b'{"step": Infinity}', "that of step 9"),
        (b'{"stepp": 1}', "that of step 9"),
    ],
)
def test_what_was_published(tmp_path: Path, pointer: bytes, words: str) -> None:
    run_dir = str(tmp_path)
    assert manifests.published(run_dir, []) is None
    (tmp_path / manifests.FOLDER).mkdir()
    (tmp_path / manifests.FOLDER / manifests.POINTER).write_bytes(pointer)
    alone = manifests.published(run_dir, [])
    assert alone == (words if pointer in (b'{"step": 12}', b'{"step": 3}') else "one").replace("9", "3")
    put(run_dir, 9)
    assert manifests.published(run_dir, manifests.find(run_dir)) == words


def test_an_unfinished_upload_was_never_published_and_a_renamed_folder_was(run_dir: str) -> None:
    put(run_dir, 9, but=[manifests.MANIFEST])
    local = store.is_local(run_dir)
    assert manifests.published(run_dir, manifests.find(run_dir)) == ("that of step 9" if local else None)
    put(run_dir, 8)
    assert manifests.published(run_dir, manifests.find(run_dir)) == f"that of step {9 if local else 8}"


def left(run_dir: str, **how: int) -> list[int]:
    return sorted(int(uri[-8:]) for uri in manifests.leftovers(run_dir, **how))


def test_which_checkpoints_go_and_which_stay(run_dir: str) -> None:
    for step in range(2, 13, 2):
        put(run_dir, step)
    for (step, last, every), gone in {
        (12, 2, 0): [2, 4, 6, 8],
        (12, 1, 0): [2, 4, 6, 8, 10],
        (12, 9, 0): [],
        (12, 1, 4): [2, 6, 10],
        (12, 1, 6): [2, 4, 8, 10],
        (12, 3, 6): [2, 4],
        (8, 2, 0): [2, 4],
        (8, 1, 6): [2, 4],
        (1, 1, 0): [],  # what is newer stays
    }.items():
        assert left(run_dir, step=step, keep_last=last, keep_every=every) == gone, (step, last, every)
    put(run_dir, 5, but=[manifests.MANIFEST])
    put(run_dir, 11, but=[manifests.MANIFEST])
    put(run_dir, 20, but=[manifests.MANIFEST])
    assert left(run_dir, step=12, keep_last=2, keep_every=1) == [5, 11], (
        "never finished, older than the newest"
    )


def test_a_damaged_checkpoint_takes_no_place_among_those_that_are_kept(run_dir: str) -> None:
    """Else a run that passed over step 4 would be left with step 6 alone."""
    for step in (2, 3, 4, 6):
        put(run_dir, step)
    store.write_bytes(store.join(manifests.place(run_dir, 4), manifests.SHARED), b"12")
    assert left(run_dir, step=6, keep_last=2, keep_every=0) == [2]
    assert left(run_dir, step=6, keep_last=1, keep_every=0) == [2, 3, 4]


def test_what_is_removed_takes_nothing_else_with_it(run_dir: str) -> None:
    for step in (10_000_000, 100_000_000, 1_000_000_000):
        put(run_dir, step)
    store.remove(manifests.place(run_dir, 10_000_000))
    assert [one.step for one in manifests.find(run_dir)] == [1_000_000_000, 100_000_000]


def test_what_was_being_written_to_a_local_disk(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    assert manifests.partials(run_dir) == []
    uris = [put(run_dir, step, stage=True, but=[manifests.MANIFEST]) for step in (3, 12)]
    (tmp_path / manifests.FOLDER / ".step-00000004.partial").mkdir()
    put(run_dir, 7)
    assert manifests.partials(run_dir) == sorted(
        [*uris, f"{manifests.folder(run_dir)}/.step-00000004.partial"]
    )
    assert [one.step for one in manifests.find(run_dir)] == [7]
    assert (
        manifests.stage("s3://b/run", 3)
        == manifests.place("s3://b/run", 3)
        == "s3://b/run/checkpoints/step-00000003"
    )


def test_secrets_of_uris_are_not_kept() -> None:
    kept = manifests.redact_keys({"https://me:word@host/d?sig=x": "1", "/d": "2"})
    assert kept == {"https://***@host/d?...": "1", "/d": "2"}


def test_a_store_that_is_away_is_no_damage(s3: S3) -> None:
    put(f"{s3.uri}/run", 3)
    found = manifests.find(f"{s3.uri}/run")
    s3.fault("503", "GET", "manifest.json")
    s3.fault("503", "HEAD", "manifest.json")
    with pytest.raises(
        store.TransientError, match=r"cannot read .*/step-00000003/manifest.json: .*; gave up after 5"
    ):
        found[0].manifest()
    s3.proxy.clear()
    s3.fault("503", "GET", "list-type")
    with pytest.raises(store.TransientError, match=r"cannot list .*/checkpoints"):
        manifests.find(f"{s3.uri}/run")


def test_a_manifest_that_goes_while_it_is_looked_at(one: Path) -> None:
    found = StoredCheckpoint(3, str(one), manifests.find(str(one.parents[1]))[0].sizes)
    (one / manifests.MANIFEST).unlink()
    with pytest.raises(store.StoreError, match=rf"cannot read {one}/manifest.json: no such file or bucket"):
        found.manifest()
