# SPDX-License-Identifier: Apache-2.0
"""What config.json says of every DNA encoder, for transformers."""

from typing import Any

from transformers import PretrainedConfig

A, C, G, T, N, MASK, CLS, PAD = range(8)
TOKENS = 8
BASES = 4


class DnaConfig(PretrainedConfig):
    """The base of the configurations. Keys that it does not know are kept, so that they are saved again."""

    def __init__(
        self, *, hidden_size: int, num_hidden_layers: int, vocab_size: int = TOKENS, **others: Any
    ) -> None:
        """``hidden_size``: numbers of each letter's state. ValueError: another vocabulary than that of the
        tokenizer."""
        if vocab_size != TOKENS:
            raise ValueError(f"vocab_size is {vocab_size}; the tokenizer has {TOKENS} tokens")
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.vocab_size, self.pad_token_id = vocab_size, others.pop("pad_token_id", PAD)
        others.setdefault("tie_word_embeddings", False)
        super().__init__(**others)
