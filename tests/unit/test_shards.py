"""data_prep.shards: what is written comes back, and damage is found."""

import json
from dataclasses import replace

import pytest

from data_prep.shards import SPLITS, Block, BlockHeader, FormatError, Manifest, Shard, Source

BLOCK = Block(512, 99, "a", "c/1", 10, 40)
SOURCE = Source("a", "00", {"c/1": 50}, 2, {"contigs": None}, 1.5)
MANIFEST = Manifest(
    1,
    (SOURCE,),
    1024,
    4096,
    0.5,
    {"val": ["c/1"]},
    0,
    {"train": (Shard("train-000000.tar", 1, "ff", (BLOCK, BLOCK)),), "val": (), "test": ()},
)


def test_manifest_round_trip() -> None:
    again = Manifest.from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.to_bytes() == MANIFEST.to_bytes()
    assert [again.bp(split) for split in SPLITS] == [60, 0, 0]
    assert again.blocks("train")[1] == (again.shards["train"][0], BLOCK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("seed"), "damaged dataset manifest"),
        (lambda t: t.update(extra=1), "damaged dataset manifest"),
        (lambda t: t["shards"].pop("val"), "damaged dataset manifest: 'val'"),
        (
            lambda t: t["shards"]["train"][0]["blocks"][0].pop("end"),
            "damaged dataset manifest: Block has keys",
        ),
        (lambda t: t.update(format_version=3), "format version 3, this code reads 1 and 2"),
        (lambda t: t.pop("format_version"), "not a dataset manifest: .format_version. is missing"),
    ],
)
def test_damaged_manifests(change, message: str) -> None:  # type: ignore[no-untyped-def]
    tree = json.loads(MANIFEST.to_bytes())
    change(tree)
    with pytest.raises(FormatError, match=message):
        Manifest.from_bytes(json.dumps(tree).encode())
    with pytest.raises(FormatError, match="not a dataset manifest"):
        Manifest.from_bytes(b"\x00")


def test_header_bytes_do_not_depend_on_anything_else() -> None:
    header = BlockHeader(1, "a", "c", 0, 5)
    assert header.to_bytes() == b'{"assembly":"a","contig":"c","end":5,"format_version":1,"start":0}'
    assert replace(header, end=6).to_bytes() != header.to_bytes()
