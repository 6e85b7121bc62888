"""data_prep.block_index and manifests with index files: round trips, what is damaged, and what many cost."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import store
from data_prep.block_index import Block, BlockColumns
from data_prep.column_file import FormatError
from data_prep.manifests import kept_name, open_manifest
from data_prep.shards import MANIFEST, Manifest, Shard, Source, SplitBlocks
from tests.opened import cost_of_opening, write_vertebrates

NAMES = st.sampled_from(["a", "b", "chr 1", "NC_1.2"])
NUMBERS = st.integers(0, 2**31)
BLOCKS = st.lists(
    st.builds(
        lambda offset, size, assembly, contig, start, bp: Block(
            offset, size, assembly, contig, start, start + bp
        ),
        st.integers(0, 2**40),
        NUMBERS,
        NAMES,
        NAMES,
        st.integers(0, 2**40),
        NUMBERS,
    ),
    max_size=8,
)


def manifest_of(parts: Sequence[Sequence[Block]]) -> Manifest:
    shards = tuple(Shard(f"train-{i:06d}.tar", 10, "0" * 64, tuple(blocks)) for i, blocks in enumerate(parts))
    source = Source("a", "0" * 64, {"chr 1": 9}, 0, {}, 1.0)
    return Manifest(1, (source,), 1024, 4096, 0.5, {}, 0, {"train": shards, "val": shards[:1], "test": ()})


@given(blocks=BLOCKS, first=st.integers(0, 8), more=st.integers(0, 8))
def test_columns_are_the_blocks(blocks: list[Block], first: int, more: int) -> None:
    columns = BlockColumns.of(blocks)
    again = BlockColumns.from_bytes(columns.to_bytes())
    assert columns == blocks and again == blocks and [columns[i] for i in range(len(blocks))] == blocks
    assert columns.part(first, first + more) == blocks[first : first + more] == columns[first : first + more]
    parts = [columns.part(0, first), again.part(first, len(blocks))]
    assert BlockColumns.joined(parts) == blocks
    assert [block.bp for block in blocks] == columns.bp_N.tolist()


@given(parts=st.lists(BLOCKS, max_size=5))
def test_a_manifest_with_index_files_is_the_same_manifest(parts: list[list[Block]]) -> None:
    manifest = manifest_of(parts)
    files = manifest.to_files(most_inline=-1)
    assert list(files)[-1] == MANIFEST and json.loads(files[MANIFEST])["format_version"] == 2
    again = Manifest.from_bytes(files[MANIFEST], files.__getitem__)
    assert again.to_bytes() == manifest.to_bytes()
    assert again.to_files(most_inline=-1) == files
    for split in ("train", "val", "test"):
        assert list(again.blocks(split)) == list(manifest.blocks(split))
        assert again.bp(split) == manifest.bp(split) == sum(block.bp for _, block in again.blocks(split))
    everything = manifest.blocks("train")
    assert [everything[i] for i in range(len(everything))] == list(everything) == everything[:]
    if everything:
        assert everything[-1] == everything[len(everything) - 1]


def test_few_blocks_stand_in_the_manifest_itself() -> None:
    manifest = manifest_of([[Block(0, 1, "a", "c", 0, 9)]])
    assert manifest.to_files() == {MANIFEST: manifest.to_bytes()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:40], "does not match its crc32"),
        (lambda data: b"DNAX" + data[4:], "index of blocks starts with b'DNAX', not b'DNAI'"),
        (lambda data: data[:4] + b"\x09" + data[5:], "format version 9, this code reads 1"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its crc32"),
    ],
)
def test_damaged_index(change: object, message: str) -> None:
    data = BlockColumns.of([Block(0, 1, "a", "c", 0, 9)] * 3).to_bytes()
    with pytest.raises(FormatError, match=message):
        BlockColumns.from_bytes(change(data))  # type: ignore[operator]


def test_an_index_that_is_another_or_missing_is_named(tmp_path: Path) -> None:
    blocks = [Block(0, 1, "a", "c", 0, 9), Block(9, 1, "a", "c", 9, 12)]
    files = manifest_of([blocks, blocks]).to_files(most_inline=0)
    with pytest.raises(FormatError, match="its blocks stand in index files beside it"):
        Manifest.from_bytes(files[MANIFEST])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert open_manifest(str(tmp_path)).manifest.blocks("train")[3][1] == blocks[1]
    name = next(name for name in files if name != MANIFEST)
    (tmp_path / name).write_bytes(files[name][:-1])
    with pytest.raises(FormatError, match=rf"manifest\.json: {name} has sha256"):
        open_manifest(str(tmp_path))
    tree = json.loads(files[MANIFEST])
    tree["shards"]["train"][0]["blocks"] = 3
    with pytest.raises(FormatError, match=r"blocks-.*\.idx lists 4 blocks, its shards have 5"):
        Manifest.from_bytes(json.dumps(tree).encode(), files.__getitem__)


def test_a_kept_manifest_is_found_by_its_digest(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with pytest.raises(store.StoreError, match=r"no dataset at .*manifest\.json is missing there"):
        open_manifest(uri)
    old = manifest_of([[Block(0, 1, "a", "c", 0, 9)]])
    (tmp_path / MANIFEST).write_bytes(old.to_bytes())
    digest = open_manifest(uri).digest
    (tmp_path / kept_name(digest)).write_bytes(old.to_bytes())
    (tmp_path / MANIFEST).write_bytes(replace(old, seed=1).to_bytes())
    assert open_manifest(uri).manifest.seed == 1
    found = open_manifest(uri, digest=digest)
    assert (found.manifest.seed, found.digest, found.is_kept) == (0, digest, True)
    assert not open_manifest(uri, digest=open_manifest(uri).digest).is_kept
    with pytest.raises(store.StoreError, match=r"has manifest .* now, not ffffffffffff, and .* is not there"):
        open_manifest(uri, digest="f" * 64)
    (tmp_path / kept_name(digest)).write_bytes(replace(old, seed=2).to_bytes())
    with pytest.raises(FormatError, match=rf"{kept_name(digest)}: it has sha256 .*, not {digest[:12]}"):
        open_manifest(uri, digest=digest)


def test_a_hundred_vertebrates_take_little_memory(tmp_path: Path) -> None:
    manifest = write_vertebrates(tmp_path)
    assert open_manifest(str(tmp_path)).manifest.blocks("train").columns.bp_N.sum() == 307_200 << 18
    again = open_manifest(str(tmp_path)).manifest.blocks("train")
    assert again.columns.to_bytes() == manifest.blocks("train").columns.to_bytes()
    assert [again[i][0].name for i in (0, 255, 256, -1)] == [f"train-{i:06d}.tar" for i in (0, 0, 1, 1199)]
    _, megabytes, blocks = cost_of_opening(tmp_path)
    assert blocks == 307_200 and 1 < megabytes < 100


def test_blocks_of_no_shard() -> None:
    assert not SplitBlocks([]) and list(SplitBlocks([])) == []
