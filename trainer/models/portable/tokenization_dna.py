# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of DNA encoders for transformers: a letter is a token.

A C G T N [MASK] [CLS] [PAD] are 0 to 7. Lower case counts as upper case, U is T, and the other ambiguity
letters of IUPAC are N. The special tokens have brackets because M, A, S, K, C are letters themselves.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizer

VOCABULARY = ("A", "C", "G", "T", "N", "[MASK]", "[CLS]", "[PAD]")
_CODES = {token: code for code, token in enumerate(VOCABULARY)}
_READ_AS = {letter: letter for letter in "ACGTN"} | {"U": "T"} | dict.fromkeys("RYSWKMBDHV", "N")
_READ_AS |= {letter.lower(): token for letter, token in _READ_AS.items()}
_TABLE = str.maketrans(_READ_AS)
_SPECIAL = re.compile(r"(\[MASK\]|\[CLS\]|\[PAD\])")
_OTHER = re.compile(f"[^{''.join(_READ_AS)}]")


class DnaTokenizer(PreTrainedTokenizer):
    """Text -> input_ids and attention_mask. No special token is added, and padding stands on the right."""

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self, *, mask_token: str = "[MASK]", cls_token: str = "[CLS]", pad_token: str = "[PAD]", **others: Any
    ) -> None:
        others = {"padding_side": "right", "clean_up_tokenization_spaces": False} | others
        super().__init__(mask_token=mask_token, cls_token=cls_token, pad_token=pad_token, **others)

    @property
    def vocab_size(self) -> int:
        return len(VOCABULARY)

    def get_vocab(self) -> dict[str, int]:
        return dict(_CODES)

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """The tokens of ``text``. ValueError: a character that is no nucleotide letter, with its 0-based
        position."""
        tokens, at = [], 0
        for number, piece in enumerate(_SPECIAL.split(text)):
            if number % 2:
                tokens.append(piece)
            else:
                if other := _OTHER.search(piece):
                    raise ValueError(
                        f"character {other[0]!r} at position {at + other.start()} is no nucleotide letter; "
                        "give A, C, G, T, U, N or other IUPAC letters, in either case, or "
                        f"{', '.join(VOCABULARY[5:])}"
                    )
                tokens.extend(piece.translate(_TABLE))
            at += len(piece)
        return tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``token_ids_0`` as they are. ValueError: there is a second sequence."""
        if token_ids_1 is not None:
            raise ValueError("a pair of sequences was given; the encoder reads one sequence at a time")
        return token_ids_0

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """No file: the vocabulary stands in this one."""
        return ()

    def _convert_token_to_id(self, token: str) -> int:
        code = _CODES.get(_READ_AS.get(token, token))
        if code is None:
            raise ValueError(f"{token!r} is no token; the tokens are {', '.join(VOCABULARY)}")
        return code

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(VOCABULARY):
            raise ValueError(f"{index} is no token; tokens are 0 to {len(VOCABULARY) - 1}")
        return VOCABULARY[index]

    def _decode(
        self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:  # without the spaces that releases of transformers put between tokens
        codes = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return "".join(self.convert_ids_to_tokens(codes, skip_special_tokens=skip_special_tokens))
