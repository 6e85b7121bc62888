"""Windows of long records against a naive loop: every letter once, where it is farthest from an edge."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.inference.embed.chunks import chunks_of
from trainer.inference.embed.windows import Tiling
from trainer.inference.readers.codes import CodedRows


def naive(letters: int, length: int, overlap: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The windows, and for each letter the number of the one that keeps it."""
    windows = []
    start = 0
    while True:
        windows.append((start, min(start + length, letters)))
        if start + length >= letters:
            break
        start += length - overlap
        if overlap:
            start = min(start, letters - length)
    keeper = []
    for letter in range(letters):
        margins = [min(letter - a, b - 1 - letter) if a <= letter < b else -1 for a, b in windows]
        if overlap:
            keeper.append(int(np.argmax(margins)))
        else:
            keeper.append(next(i for i, (a, b) in enumerate(windows) if a <= letter < b))
    return windows, keeper


@given(st.integers(1, 200), st.integers(1, 40), st.data())
@settings(max_examples=300, deadline=None)
def test_windows_and_what_they_keep(letters: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    tiling = Tiling(length, overlap)
    start_W, end_W, keep_start_W, keep_end_W = tiling.windows(letters)
    windows, keeper = naive(letters, length, overlap)
    assert list(zip(start_W, end_W, strict=True)) == windows
    assert tiling.count(letters) == len(windows)
    kept = np.concatenate(
        [np.full(end - start, i) for i, (start, end) in enumerate(zip(keep_start_W, keep_end_W, strict=True))]
    )
    assert kept.tolist() == keeper, "in order, each once"
    if overlap and letters >= length:
        assert set((end_W - start_W).tolist()) == {length}, "all are full"


def test_without_overlap_records_are_tiled_as_they_were() -> None:
    start_W, end_W, *kept = Tiling(64).windows(150)
    assert (start_W.tolist(), end_W.tolist()) == ([0, 64, 128], [64, 128, 150])
    assert [each.tolist() for each in kept] == [[0, 64, 128], [64, 128, 150]]


def test_chunks_of_letters_repeat_few_bytes_of_the_other_columns() -> None:
    codes = [np.zeros(n, np.uint8) for n in (400, 90, 250)]
    others = pa.table({"note": ["x" * 100, "", "y" * 1000]})
    rows = [CodedRows(codes, others, 0)]
    whole = list(chunks_of(rows, Tiling(10, 0), letters=10_000))
    cut = list(chunks_of(rows, Tiling(10, 0), letters=10_000, repeated=20_000))
    assert [chunk.letters for chunk in whole] == [740]
    assert sum(chunk.letters for chunk in cut) == 740
    for chunk in cut:
        width_Q = np.array([len(note) for note in chunk.others["note"].to_pylist()])
        repeated = int((width_Q[chunk.piece_N] * chunk.windows.kept().numpy()).sum())
        assert repeated <= 20_000 or chunk.letters <= 10, "a window at least"
