"""Local crops: the window's letters at an offset, uniform, the same in any batch, and windows like any
other."""

import dataclasses
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from data_prep import alphabet
from tests.unit.test_views import ALL, letters_by_map, windows
from trainer.core import random
from trainer.data.locus import loci, same_place
from trainer.data.windows import Windows
from trainer.views.crops import crop_starts, local_windows
from trainer.views.masking import mask
from trainer.views.view import PADDED, make_view


def ends(low: int, high: int, source: Windows) -> Windows:
    """The windows with sequence in [low, high) alone, as the reader leaves them where a block ends;
    soft-masked."""
    codes_BS = source.codes_BS.clone()
    codes_BS[:, :low] = codes_BS[:, high:] = alphabet.PAD
    start_B = source.place_B3[:, 1]
    place_B3 = source.place_B3.clone()
    place_B3[:, 2] = start_B + min(source.length, max(0, high - source.flank))
    return dataclasses.replace(
        source,
        codes_BS=codes_BS,
        low_B=torch.full_like(start_B, low),
        place_B3=place_B3,
        high_B=torch.full_like(start_B, high),
        soft_BS=(codes_BS % 2).to(torch.uint8),
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    shape=st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
    flank=st.integers(0, 20),
    edges=st.tuples(st.integers(0, 20), st.integers(0, 100)),
)
def test_a_crop_is_the_window_at_its_offset(
    seed: int, shape: tuple[int, int], flank: int, edges: tuple[int, int]
) -> None:
    length, size = shape
    width = length + 2 * flank
    low = min(
        edges[0], flank
    )  # the reader's windows start at ``flank``; only what lies beyond may be missing
    high = flank + 1 + edges[1] * (width - flank - 1) // 100
    source = ends(low, high, windows(8, length, seed=seed, flank=flank, letters=5))
    crop, start_B = local_windows(source, name="c", length=size), crop_starts(source, name="c", length=size)
    assert source.soft_BS is not None
    assert crop.soft_BS is not None
    assert (crop.length, crop.flank) == (size, flank)
    assert torch.equal(crop.key_B, source.key_B)
    sequence = min(length, high - flank)
    view = make_view(crop, name="c", operations={})
    for row, start in enumerate(start_B.tolist()):
        assert 0 <= start <= max(0, sequence - size)
        assert torch.equal(crop.codes_BS[row], source.codes_BS[row, start : start + size + 2 * flank])
        assert torch.equal(crop.soft_BS[row], source.soft_BS[row, start : start + size + 2 * flank])
        there = [low <= start + x < high for x in range(size + 2 * flank)]
        assert [int(crop.low_B[row]) <= x < int(crop.high_B[row]) for x in range(size + 2 * flank)] == there
        if sequence >= size:  # a full crop: its letters are the window's own, from the offset on
            assert torch.equal(view.codes_BL[row], source.codes_BS[row, flank + start : flank + start + size])
            assert torch.equal(view.source_BL[row] + start, torch.arange(start, start + size).int() + flank)
        block, begin, _ = source.place_B3[row].tolist()
        end = begin + start + min(size, sequence)
        assert crop.place_B3[row].tolist() == [block, begin + start, end]
    assert torch.equal(same_place(loci(crop), loci(source)).diagonal(), torch.ones(8, dtype=torch.bool))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), high=st.integers(61, 320), strand=st.sampled_from([0.0, 0.5]))
def test_views_of_a_crop_read_the_window(seed: int, high: int, strand: float) -> None:
    source = ends(0, high, windows(8, 200, seed=seed, letters=5))
    crop, start_B = local_windows(source, name="c", length=70), crop_starts(source, name="c", length=70)
    view = make_view(crop, name="c", operations=ALL, reverse_complement=strand)
    in_window = dataclasses.replace(
        view, source_BL=torch.where(view.source_BL < 0, view.source_BL, view.source_BL + start_B[:, None])
    )
    expected = letters_by_map(in_window, source)
    assert torch.equal(view.codes_BL[expected >= 0].long(), expected[expected >= 0])
    assert (in_window.source_BL < high).all()
    if high == 320:
        assert not (view.source_BL == PADDED).any()
    masked = mask(view, crop, name="c", rate=0.5, mask_share=1.0, random_share=0.0)
    assert torch.equal(masked.target_BL, masked.codes_BL == alphabet.MASK)


def test_starts_are_uniform_and_fresh_for_every_name_and_sample() -> None:
    source = windows(rows=20_000, length=30, flank=3)
    first, second = (crop_starts(source, name=name, length=21) for name in ("a", "b"))
    assert chisquare(first.bincount(minlength=10).numpy()).pvalue > 0.001
    table = torch.bincount(first * 10 + second, minlength=100).double()
    assert chisquare(table.numpy()).pvalue > 0.001
    short = dataclasses.replace(source, high_B=torch.full_like(source.high_B, 3 + 24))
    assert chisquare(crop_starts(short, name="a", length=21).bincount(minlength=4).numpy()).pvalue > 0.001
    assert (crop_starts(short, name="a", length=30) == 0).all()


def test_a_crop_lies_where_the_sequence_does() -> None:
    source = windows(rows=20_000, length=30, flank=3)
    between = dataclasses.replace(
        source, low_B=torch.full_like(source.low_B, 3 + 8), high_B=source.low_B + 3 + 24
    )
    starts = crop_starts(between, name="a", length=12)
    assert chisquare(starts.bincount(minlength=13).numpy()[8:]).pvalue > 0.001
    assert starts.min() == 8
    assert (crop_starts(between, name="a", length=20) == 8).all()  # from 8 on there are 16
    assert (crop_starts(between, name="a", length=25) == 5).all()  # it must end in the window


def test_a_row_gets_the_same_crop_in_any_batch() -> None:
    source = ends(0, 300, windows(letters=5))
    parts = [source.each(operator.itemgetter(slice(first, first + 7))) for first in range(0, 64, 7)]
    crops = [local_windows(part, name="c", length=50) for part in parts]
    whole = vars(local_windows(source, name="c", length=50))
    for name in ("codes_BS", "low_B", "high_B", "key_B", "place_B3", "soft_BS"):
        assert torch.equal(whole[name], torch.cat([vars(crop)[name] for crop in crops]))
    other = dataclasses.replace(source, key_B=random.fold(source.key_B, 1))
    assert (
        crop_starts(source, name="c", length=50) != crop_starts(other, name="c", length=50)
    ).double().mean() > 0.9


def test_a_row_without_sequence_is_padding() -> None:
    crop = local_windows(ends(0, 0, windows(rows=3)), name="c", length=50)
    assert (make_view(crop, name="c", operations=ALL).codes_BL[:, -1] == alphabet.PAD).all()
    assert (crop.high_B == 0).all()


@pytest.mark.parametrize("length", [0, 201])
def test_a_crop_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(AssertionError, match=f"a crop of {length} bp does not fit windows of 200 bp"):
        local_windows(windows(), name="c", length=length)


def test_windows_that_cannot_be_indexed_are_refused() -> None:
    many = windows(rows=1, length=2048, flank=0).each(
        lambda tensor: tensor.expand(1 << 20, *tensor.shape[1:])
    )
    with pytest.raises(
        AssertionError, match="1048576 windows of 2048 letters need a larger index than int32"
    ):
        local_windows(many, name="c", length=50)
