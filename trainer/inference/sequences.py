"""Many sequences of any lengths in one array.

Shapes: N sequences, M letters of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_prep import alphabet


@dataclass(frozen=True)
class EncodedSequences:
    """Sequences end to end; sequence i is ``length_N[i]`` codes of ``codes_M`` from ``start_N[i]`` on."""

    codes_M: alphabet.Codes  # uint8
    start_N: Tensor  # int64
    length_N: Tensor  # int64

    @classmethod
    def from_codes(cls, codes: Sequence[alphabet.Codes]) -> "EncodedSequences":
        """The sequences ``codes``, uint8 [n] each; at least one."""
        length_N = torch.tensor([len(each) for each in codes])
        return cls(np.concatenate(codes), length_N.cumsum(0) - length_N, length_N)

    @classmethod
    def from_strings(cls, strings: Sequence[str]) -> "EncodedSequences":
        """The sequences ``strings``: A, C, G, T, N in either case; other IUPAC letters become N.

        Raises:
            ValueError: there is none, or one is empty or has another letter; it gives its number, from 1.
        """
        if isinstance(strings, str):
            raise ValueError("give a list of sequences, not one string")
        if not strings:
            raise ValueError("there is no sequence")
        return cls.from_codes([_encode(string, number) for number, string in enumerate(strings, 1)])

    def __len__(self) -> int:
        return len(self.length_N)

    def codes(self, number: int) -> alphabet.Codes:
        """uint8 [n]: sequence ``number``, from 0."""
        start = int(self.start_N[number])
        return self.codes_M[start : start + int(self.length_N[number])]

    def rows(self, index_N: Tensor) -> "EncodedSequences":
        """The sequences of these numbers, from 0; at least one."""
        return EncodedSequences.from_codes([self.codes(number) for number in index_N.tolist()])


def _encode(string: str, number: int) -> alphabet.Codes:
    try:
        codes = alphabet.encode(string.encode())[0]
    except ValueError as fault:
        raise ValueError(f"sequence {number}: {fault}") from fault
    if not len(codes):
        raise ValueError(f"sequence {number} is empty")
    return codes
