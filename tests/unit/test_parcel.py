"""Nested tensors in one buffer: they come out as they were, at one copy."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.counting import Count
from trainer.core.parcel import Parcel, map_tensors

CPU = torch.device("cpu")


class Pair(NamedTuple):
    one: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class Nested:
    name: str
    parts: list[Any]
    by_name: dict[str, Any]
    numbers: tuple[Any, ...] = ()
    more: "Nested | None" = field(default=None)


def content() -> Nested:
    shared = torch.arange(5, dtype=torch.uint8)
    inner = Nested("inner", [torch.tensor(2.5, dtype=torch.float64)], {"none": None})
    return Nested(
        "outer",
        [Pair(torch.randn(3, 4)[:, 1:3], None), shared, torch.zeros(0, 7)],
        {"flags": torch.tensor([True, False, True]), "again": shared, "wide": torch.ones(2, 1).expand(2, 3)},
        (7, torch.tensor([1 << 40, -1])),
        inner,
    )


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


def test_what_comes_out_is_what_was_put_in() -> None:
    given = content()
    there = Parcel.of(given).to(CPU)
    assert type(there) is Nested and type(there.parts[0]) is Pair
    assert (there.name, there.numbers[0], there.by_name.keys()) == ("outer", 7, given.by_name.keys())
    assert there.parts[0].other is None and there.more.by_name == {"none": None}
    before, after = tensors_of(given), tensors_of(there)
    assert len(before) == len(after) == 8
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_all_tensors_are_views_of_one_buffer_and_a_shared_one_is_shared() -> None:
    parcel = Parcel.of(content())
    there = parcel.to(CPU)
    (storage,) = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(there) if tensor.numel()}
    assert storage == parcel.buffer.untyped_storage().data_ptr()
    assert there.parts[1] is there.by_name["again"]
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors_of(there) if tensor.numel())


def test_unpacking_computes_nothing() -> None:
    parcel = Parcel.of(content())
    with Count() as count:
        parcel.to(CPU)
    assert (count.total, dict(count.reads)) == (0, {})


def test_tensors_of_another_device_are_a_fault() -> None:
    with pytest.raises(AssertionError, match="a tensor on meta is to be packed on the CPU"):
        Parcel.of([torch.zeros(2, device="meta")])
