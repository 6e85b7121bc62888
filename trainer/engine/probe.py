"""Random values by which a misplaced master is found: cheap to make, any part of a parameter by itself.

A parameter is cut into rows of 2^16 entries. A row is one table of random bytes, from a place on that depends
on the parameter's name and the row's number, with all bytes changed by one more and scaled by a power of two.
A value is an integer of 8 bits times a power of two: exact in bf16, so that no rounding hides a wrong entry.
"""

import zlib
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from trainer.core import random

_ROW = 1 << 16
_SCALES = 16


def probe(name: str, *, first: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[length]: the entries from ``first`` on of the flattened parameter ``name``, the same on all ranks."""
    values = torch.empty(length, dtype=dtype, device=device)
    for at, row in _rows(name, first, length, device):
        values[at : at + len(row)] = row
    return values


def wrong_entries(found: Tensor, name: str, *, first: int) -> int:
    """How many entries of ``found`` [n] fp32 are not those of the probe ``name`` from ``first`` on."""
    wrong = torch.zeros((), dtype=torch.int64, device=found.device)
    for at, row in _rows(name, first, len(found), found.device):
        wrong += (found[at : at + len(row)] != row).sum()
    return int(wrong)


def _rows(name: str, first: int, length: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(place, fp32 values) of the parts of these entries that lie in one row each."""
    table = _table(device)
    name_key = int(random.fold(zlib.crc32(name.encode()), 0))
    number, inside = divmod(first, _ROW)
    at = 0
    while at < length:
        count = min(length - at, _ROW - inside)
        key = int(random.fold(name_key, number))
        start, flip, scale = key % _ROW, key >> 16 & 127, key >> 32 & _SCALES - 1
        part = table[start + inside : start + inside + count] ^ flip
        yield at, part.float().mul_(2.0**scale)
        at, number, inside = at + count, number + 1, 0


@cache
def _table(device: torch.device) -> Tensor:
    """int8 [2 · _ROW], the second half equal to the first, so that a row from any place on is one slice."""
    key = random.fold(zlib.crc32(b"probe"), torch.zeros(1, dtype=torch.int64))
    half = random.words(key, "probe", _ROW // 8)[0].view(torch.int8)
    return torch.cat([half, half]).to(device)
