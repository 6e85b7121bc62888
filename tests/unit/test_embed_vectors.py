"""Windows as vectors: every pooling, layer and strand against the naive forward of a sequence alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import alphabet
from tests.examples.tiny_conv import TinyConv, TinyConvConfig
from tests.registered import tiny_network
from trainer.inference.embed.vectors import (
    Pooling,
    Reading,
    Strands,
    Vectors,
    WindowBatch,
    over_strands,
    read_windows,
)
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network

POOLINGS: tuple[Pooling, ...] = ("mean", "max", "summary", "letters")
STRANDS: tuple[Strands, ...] = ("both", "forward", "separate")


def sequences(lengths: list[int], *, seed: int = 3) -> list[alphabet.Codes]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 5, n).astype(np.uint8) for n in lengths]


def batch(codes: list[alphabet.Codes], keep: list[tuple[int, int]] | None = None) -> WindowBatch:
    encoded = EncodedSequences.from_codes(codes)
    if keep is None:
        return WindowBatch.whole(encoded)
    return WindowBatch(encoded, *(torch.tensor(each) for each in zip(*keep, strict=True)))


def naive(
    network: Network, codes: alphabet.Codes, keep: tuple[int, int], reading: Reading
) -> list[np.ndarray]:
    """Of each strand what is read of one window, by its own forward."""
    found = []
    for strand in range(reading.strands_read):
        row = alphabet.reverse_complement(codes) if strand else codes
        options = {} if reading.layer is None else {"layer": reading.layer}
        with torch.no_grad():
            hidden = network.backbone(torch.from_numpy(row.copy())[None], **options)
        letters_LD = hidden.letters_BLD[0].numpy()
        letters_LD = (letters_LD[::-1] if strand else letters_LD)[slice(*keep)]
        found.append(
            {
                "mean": letters_LD.mean(0, keepdims=True),
                "max": letters_LD.max(0, keepdims=True),
                "summary": hidden.summary_BPD.reshape(1, -1).numpy(),
                "letters": letters_LD,
            }[reading.pooling]
        )
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("strands", STRANDS)
@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_vectors_are_the_naive_ones(pooling: Pooling, strands: Strands, layer: int | None) -> None:
    network, codes = tiny_network(), sequences([33, 7, 60, 1, 33])
    keep = [(0, 33), (2, 5), (20, 60), (0, 1), (3, 30)]
    reading = Reading(pooling, layer, strands)
    found = over_strands(read_windows(network, batch(codes, keep), reading), strands)
    wanted = []
    for row, kept in zip(codes, keep, strict=True):
        of_strands = naive(network, row, kept, reading)
        wanted.append(
            sum(of_strands) / len(of_strands) if strands == "both" else np.concatenate(of_strands, 1)
        )
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-5)
    assert found.dtype == np.float32
    assert found.shape[1] == reading.size(network.backbone) * (1 + (strands == "separate"))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_window_has_the_same_bits_in_any_batch_and_order(data: st.DataObject) -> None:
    network = tiny_network()
    lengths = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=20))
    codes, rng = sequences(lengths), np.random.default_rng(data.draw(st.integers(0, 99)))
    keep = [(start, int(rng.integers(start + 1, n + 1))) for n in lengths for start in [int(rng.integers(n))]]
    reading = Reading(data.draw(st.sampled_from(POOLINGS)), None, data.draw(st.sampled_from(STRANDS)))
    together = rows_of(read_windows(network, batch(codes, keep), reading), keep, reading)
    order = rng.permutation(len(codes)).tolist()
    shuffled_keep = [keep[i] for i in order]
    torch.set_num_threads(2)
    shuffled = rows_of(
        read_windows(network, batch([codes[i] for i in order], shuffled_keep), reading),
        shuffled_keep,
        reading,
    )
    torch.set_num_threads(1)
    for place, number in enumerate(order):
        assert shuffled[place].tobytes() == together[number].tobytes(), "any order, any number of threads"
    one = data.draw(st.integers(0, len(codes) - 1))
    alone = read_windows(network, batch([codes[one]], [keep[one]]), reading)
    assert alone.tobytes() == together[one].tobytes(), "alone"


def rows_of(vectors: Vectors, keep: list[tuple[int, int]], reading: Reading) -> list[Vectors]:
    """What belongs to each window."""
    counts = [end - start if reading.pooling == "letters" else 1 for start, end in keep]
    return np.split(vectors, np.cumsum(counts)[:-1])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_other_strand_has_the_same_vectors(pooling: Pooling) -> None:
    """Of the averaged strands the same bits; of separate ones the two swapped; letters in the order of
    each."""
    network, (codes,) = tiny_network(), sequences([45])
    other = alphabet.reverse_complement(codes)
    by_strands: dict[Strands, list[Vectors]] = {
        strands: [
            over_strands(read_windows(network, batch([row]), Reading(pooling, None, strands)), strands)
            for row in (codes, other)
        ]
        for strands in ("both", "separate")
    }
    given, reverse = by_strands["both"]
    assert given.tobytes() == (reverse[::-1] if pooling == "letters" else reverse).tobytes()
    given, reverse = by_strands["separate"]
    half = given.shape[1] // 2
    reverse = np.roll(reverse[::-1] if pooling == "letters" else reverse, half, axis=1)
    assert given.tobytes() == reverse.tobytes()


def test_a_layer_that_is_not_there_is_refused() -> None:
    network = tiny_network()
    Reading(layer=2).check(network.backbone)
    for layer in (3, -1):
        with pytest.raises(ValueError, match=rf"layer {layer} is not there: the model has 2 layers; give 0"):
            Reading(layer=layer).check(network.backbone)
    from_outside = TinyConv(TinyConvConfig())
    Reading().check(from_outside)
    with pytest.raises(ValueError, match="layer 1: the model tiny-conv does not stop after a layer; leave"):
        Reading(layer=1).check(from_outside)
    vectors = read_windows(Network(from_outside, heads={}).eval(), batch(sequences([9])), Reading())
    assert vectors.shape == (1, 2, 12), "it need not know of layers"


def test_a_window_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network()

    def full(*args: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(network.backbone, "forward", full)
    with pytest.raises(MemoryError, match="1 sequence at once, the longest of 9,000 letters"):
        read_windows(network, batch(sequences([9000])), Reading())
