"""data_prep.alphabet: letters and codes, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.alphabet import CLS, COMPLEMENT, MASK, PAD, SIZE, N, decode, encode, reverse_complement

letters = st.lists(st.sampled_from(b"ACGTNacgtn")).map(bytes)


def test_every_letter() -> None:
    codes, soft, ambiguous = encode(b"ACGTUNacgtunRYSWKMBDHVryswkmbdhv")
    assert codes.tolist() == [0, 1, 2, 3, 3, 4] * 2 + [N] * 20
    assert soft.tolist() == [False] * 6 + [True] * 6 + [False] * 10 + [True] * 10
    assert ambiguous == 20, "N itself is no ambiguity letter"


@settings(deadline=None)
@given(letters)
def test_round_trip(text: bytes) -> None:
    codes, soft, ambiguous = encode(text)
    assert codes.dtype == np.uint8
    assert decode(codes, soft) == text
    assert decode(codes) == text.upper()
    assert ambiguous == 0


@pytest.mark.parametrize("byte", sorted(set(range(256)) - set(b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv")))
def test_other_bytes_are_refused_with_their_place(byte: int) -> None:
    with pytest.raises(ValueError, match="at position 102 is no nucleotide letter") as fault:
        encode(b"AC" + bytes([byte]), origin=100)
    assert repr(bytes([byte])) in str(fault.value)


@pytest.mark.parametrize("code", [MASK, CLS, PAD, SIZE])
def test_only_letters_are_decoded(code: int) -> None:
    with pytest.raises(ValueError, match=f"code {code} is no letter"):
        decode(np.array([0, code], np.uint8))


@settings(deadline=None)
@given(letters)
def test_reverse_complement_is_a_true_involution(text: bytes) -> None:
    codes = encode(text)[0]
    table = bytes.maketrans(b"ACGTN", b"TGCAN")
    assert decode(reverse_complement(codes)) == text.upper().translate(table)[::-1]
    assert (reverse_complement(reverse_complement(codes)) == codes).all()


def test_complement_keeps_special_codes_and_pairs_the_bases() -> None:
    assert COMPLEMENT[[N, MASK, CLS, PAD]].tolist() == [N, MASK, CLS, PAD]
    assert COMPLEMENT[:4].tolist() == [3 - base for base in range(4)]
