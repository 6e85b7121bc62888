"""data_prep.shards: what is packed comes back, and damage is found."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.blocks import pack, unpack
from data_prep.shards import SPLITS, Block, BlockHeader, FormatError, Manifest, Shard, Source

runs = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 90_000)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(runs)
def test_round_trip_of_runs_longer_than_16_bits(parts: list[tuple[int, bool, int]]) -> None:
    lengths = [length for _, _, length in parts]
    codes = np.repeat(np.array([code for code, _, _ in parts], np.uint8), lengths)
    soft = np.repeat(np.array([soft for _, soft, _ in parts], np.bool_), lengths)
    back_codes, back_soft = unpack(pack(codes, soft))
    assert back_codes.tobytes() == codes.tobytes()
    assert back_soft.tobytes() == soft.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=200))
def test_round_trip_of_any_bases(bases: list[tuple[int, bool]]) -> None:
    codes = np.array([code for code, _ in bases], np.uint8)
    soft = np.array([flag for _, flag in bases], np.bool_)
    back_codes, back_soft = unpack(pack(codes, soft))
    assert (back_codes.tolist(), back_soft.tolist()) == (codes.tolist(), soft.tolist())


def test_a_plain_block_costs_two_bits_a_base() -> None:
    codes = np.zeros(65536, np.uint8)
    assert len(pack(codes, codes.astype(np.bool_))) == 24 + 65536 // 4


def test_every_single_flipped_bit_is_noticed() -> None:
    codes = np.array([0, 1, 4, 4, 2, 3, 1], np.uint8)
    payload = pack(codes, codes > 1)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        if bit // 8 in (6, 7):
            continue  # two spare bytes that mean nothing
        try:
            back = unpack(bytes(damaged))
        except FormatError:
            continue
        assert [b.tolist() for b in back] == [codes.tolist(), (codes > 1).tolist()], (
            f"bit {bit} changed the bases"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:10], "has 10 bytes, less than its 24-byte head"),
        (lambda p: b"XXXX" + p[4:], "starts with b'XXXX', not b'DNAB'"),
        (lambda p: p[:4] + struct.pack("<H", 9) + p[6:], "format version 9, this code reads 1"),
        (lambda p: p[:-1], "bytes, its head says"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 1]), "does not match its crc32"),
    ],
)
def test_damaged_payloads(change, message: str) -> None:  # type: ignore[no-untyped-def]
    codes = np.arange(9, dtype=np.uint8) % 5
    with pytest.raises(FormatError, match=message):
        unpack(change(pack(codes, codes > 2)))


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
