"""trainer.inference.embedding and batching: vectors that do not change with padding, batch or strand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.process.command import exit_code
from data_prep import alphabet
from tests.registered import tiny_network
from trainer.inference import batching
from trainer.inference.embedding import embed, mean_over_strands
from trainer.inference.precision import resolve_precision
from trainer.inference.sequences import EncodedSequences
from trainer.models.chordmixer import ChordMixerConfig
from trainer.models.config import build_backbone
from trainer.models.dilated_conv import DilatedConvConfig
from trainer.models.network import Network

CPU = torch.device("cpu")


def sequences(lengths: list[int]) -> list[alphabet.Codes]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 4, n).astype(np.uint8) for n in lengths]


BACKBONES = {
    "findna": ChordMixerConfig(num_layers=6, num_groups=6, group_channels=12, intermediate_size=96),
    "findna with norms": ChordMixerConfig(
        num_layers=3, num_groups=5, group_channels=8, intermediate_size=64, norm="layer"
    ),
    "dilated-conv": DilatedConvConfig(hidden_size=24),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_no_bit_of_a_vector_depends_on_what_is_read_beside_it(name: str) -> None:
    torch.manual_seed(0)
    network = Network(build_backbone(BACKBONES[name]), heads={}).eval()
    lengths = np.random.default_rng(1).integers(1, 1500, 60).tolist()
    codes = sequences([*lengths, *[101] * 40, 2048, 1024, 1025])
    together = torch.cat(embed(network, EncodedSequences.from_codes(codes)), 1)
    order_N = torch.randperm(len(codes), generator=torch.Generator().manual_seed(2))
    shuffled = torch.cat(embed(network, EncodedSequences.from_codes([codes[i] for i in order_N])), 1)
    torch.testing.assert_close(shuffled, together[order_N], rtol=0, atol=0)
    for i in (0, 17, 60, 75, 99, 100, 101, 102):
        alone = torch.cat(embed(network, EncodedSequences.from_codes([codes[i]])), 1)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=0)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.sampled_from(["cpu", "cuda"]))
@settings(deadline=None)
def test_tiles_hold_every_row_once_and_their_shape_is_that_of_each_row(lengths: list[int], kind: str) -> None:
    device, rows = torch.device(kind), EncodedSequences.from_codes(sequences(lengths))
    tiles = [tile.tolist() for tile in batching.tiles(rows.length_N, device=device)]
    assert sorted(i for tile in tiles for i in tile) == list(range(len(lengths)))
    for tile in tiles:
        shapes = {batching.tile_shape(lengths[i], device=device) for i in tile}
        assert len(shapes) == 1
        ((height, width),) = shapes
        assert len(tile) <= height and max(lengths[i] for i in tile) <= width
        assert height == 1 or height * width <= batching.TILE_BP[kind] < (height + 1) * width
        if kind == "cpu":
            batch = batching.padded_tile(rows, torch.tensor(tile), device=device)
            assert batch.codes_BL.shape == (height, width) and len(batch.length_B) == height


def test_vectors_are_the_naive_ones_and_the_same_for_either_strand() -> None:
    network, (codes,) = tiny_network(), sequences([33])
    other = alphabet.reverse_complement(codes)
    with torch.no_grad():
        hidden = [
            network.backbone(torch.from_numpy(row.copy())[None]).letters_BLD[0] for row in (codes, other)
        ]
    mean, most = embed(network, EncodedSequences.from_codes([codes, other]))
    torch.testing.assert_close(mean[0], (hidden[0].mean(0) + hidden[1].mean(0)) / 2)
    torch.testing.assert_close(most[0], (hidden[0].amax(0) + hidden[1].amax(0)) / 2)
    torch.testing.assert_close(mean[0], mean[1])
    torch.testing.assert_close(most[0], most[1])


def test_a_long_row_pads_no_other() -> None:
    codes = sequences([30, 200_000, 31, 32, 33, 34, 35, 36])
    rows = EncodedSequences.from_codes(codes)
    assert rows.codes_M.nbytes == sum(len(row) for row in codes)
    parts = batching.parts_of_similar_length(rows.length_N)
    assert [part.tolist() for part in parts] == [[1], [7, 6, 5, 4, 3, 2, 0]]
    assert [batching.padded_batch(rows, part, device=CPU).codes_BL.numel() for part in parts] == [
        200_000,
        7 * 36,
    ]
    assert [part.tolist() for part in batching.parts_of_similar_length(rows.length_N[2:])] == [
        [0, 1, 2, 3, 4, 5]
    ], "as it comes, where it may"
    strand_B = torch.tensor([0, 1, 1])
    codes_BL, length_B = batching.padded_batch(rows, torch.tensor([0, 2, 3]), strand_B=strand_B, device=CPU)
    assert length_B is not None and length_B.tolist() == [30, 31, 32]
    for row, (i, strand) in enumerate(zip((0, 2, 3), strand_B.tolist(), strict=True)):
        wanted = alphabet.reverse_complement(codes[i]) if strand else codes[i]
        assert codes_BL[row].tolist() == [*wanted.tolist(), *[alphabet.PAD] * (32 - len(wanted))]


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to"
        ),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_rows_that_do_not_fit_are_named(fault: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def full(codes_BL: torch.Tensor, length_B: torch.Tensor | None) -> torch.Tensor:
        raise fault

    assert (
        exit_code(
            lambda: mean_over_strands(EncodedSequences.from_codes(sequences([9000])), full, device=CPU) and 0
        )
        == 1
    )
    err = capsys.readouterr().err
    assert (
        err
        == "error: out of memory: 1 sequence at once, the longest of 9,000 letters; leave it out or cut it\n"
    )
    with pytest.raises(RuntimeError, match="a bug"), batching.explain_out_of_memory(torch.tensor([1])):
        raise RuntimeError("a bug")


def test_precision() -> None:
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")


def test_strings_are_embedded_as_their_codes() -> None:
    network, codes = tiny_network(), sequences([12, 5, 30])
    strings = [alphabet.decode(row).decode() for row in codes]
    strings[1] = strings[1].lower()
    for ours, wanted in zip(
        embed(network, strings), embed(network, EncodedSequences.from_codes(codes)), strict=True
    ):
        assert torch.equal(ours, wanted)
        assert ours.shape == (3, network.backbone.hidden_size)


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (["ACGT", "AC!T"], r"sequence 2: byte b'!' at position 2 is no nucleotide letter"),
        (["ACGT", ""], "sequence 2 is empty"),
        ([], "there is no sequence"),
        ("ACGT", "give a list of sequences, not one string"),
    ],
)
def test_strings_that_are_no_sequences(strings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(tiny_network(), strings)
