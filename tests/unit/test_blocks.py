"""data_prep.blocks: what is packed comes back, and damage is found."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.blocks import PackedBlock, pack, unpack
from data_prep.levels import MAX_LEVEL
from data_prep.shards import FormatError

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
        (lambda p: p[:4] + struct.pack("<H", 9) + p[6:], "format version 9, this code reads 1 and 2"),
        (lambda p: p[:-1], "bytes, its head says"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 1]), "does not match its crc32"),
    ],
)
def test_damaged_payloads(change, message: str) -> None:  # type: ignore[no-untyped-def]
    codes = np.arange(9, dtype=np.uint8) % 5
    with pytest.raises(FormatError, match=message):
        unpack(change(pack(codes, codes > 2)))


weighted = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, MAX_LEVEL)), max_size=200)


@settings(max_examples=100, deadline=None)
@given(weighted, st.sampled_from([1, 5, 15]), st.data())
def test_weights_come_back_and_change_no_letter(
    letters: list[tuple[int, bool, int]], step: int, data: st.DataObject
) -> None:
    """``step``: between the levels that are in use, of 16, 4 or 2."""
    codes = np.array([code for code, _, _ in letters], np.uint8)
    soft = np.array([flag for _, flag, _ in letters], np.bool_)
    levels = np.array([level // step * step for _, _, level in letters], np.uint8)
    block = PackedBlock(pack(codes, soft, levels))
    assert block.has_weights
    assert (block.codes(0, len(codes)).tolist(), block.soft_mask(0, len(codes)).tolist()) == (
        codes.tolist(),
        soft.tolist(),
    )
    start = data.draw(st.integers(0, len(codes)))
    end = data.draw(st.integers(start, len(codes)))
    found = block.weights(start, end)
    assert found is not None
    assert (found.dtype, found.tolist()) == (np.uint8, levels[start:end].tolist())


def test_a_block_without_weights_is_what_it_was() -> None:
    codes = np.arange(9, dtype=np.uint8) % 5
    plain, weighted = pack(codes, codes > 2), pack(codes, codes > 2, codes)
    assert struct.unpack_from("<H", plain, 4) == (1,)
    assert struct.unpack_from("<H", weighted, 4) == (2,)
    block = PackedBlock(plain)
    assert not block.has_weights
    assert block.weights(0, 9) is None
    letters = slice(24, len(plain))
    assert weighted[letters] == plain[letters], "the letters stand where they stood"


def test_every_single_flipped_bit_of_weights_is_noticed() -> None:
    codes = np.array([0, 1, 4, 4, 2, 3, 1], np.uint8)
    payload = pack(codes, codes > 1, codes)
    for bit in range(8 * 24, 8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="does not match its crc32"):
            PackedBlock(bytes(damaged))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (b"", "levels of 0 bits a letter, not 1, 2 or 4"),
        (b"\x03abc", "levels of 3 bits a letter, not 1, 2 or 4"),
        (b"\x04\xff\xff", r"levels that cannot be inflated \("),
        (b"\x04" + zlib.compress(bytes(4), wbits=-15), "levels of another number of letters than 9"),
        (b"\x04" + zlib.compress(bytes(6), wbits=-15), "levels of another number of letters than 9"),
        (b"\x04" + zlib.compress(bytes(5), wbits=-15)[:-1], "levels of another number of letters than 9"),
        (b"\x04" + zlib.compress(bytes(5), wbits=-15) + b"x", "levels of another number of letters than 9"),
    ],
)
def test_levels_that_another_program_wrote(section: bytes, message: str) -> None:
    codes = np.zeros(9, np.uint8)
    body = pack(codes, codes > 1)[24:] + section
    payload = struct.pack("<4sHHIIII", b"DNAB", 2, 0, 9, 0, 0, zlib.crc32(body)) + body
    with pytest.raises(FormatError, match=f"block payload has {message}"):
        PackedBlock(payload).weights(0, 9)
