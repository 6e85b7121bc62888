"""The backbone, its wiring, its padding, and the heads."""

import pytest
import torch

from data_prep import alphabet
from trainer import export
from trainer.config import Model
from trainer.heads import EmbeddingHead, Network, PrototypeHead, mean_pool
from trainer.models.chordmixer import ChordMixer

TINY = {"num_layers": 3, "num_groups": 5, "group_channels": 4, "intermediate_size": 16, "num_summary": 3}


def tiny(norm: str = "layer", **changes: int) -> ChordMixer:
    torch.manual_seed(0)
    return ChordMixer(**{**TINY, **changes}, norm=norm)


def naive_mixer(model: ChordMixer, codes_L: torch.Tensor) -> torch.Tensor:
    """One row, position by position: every channel group reads its update from ``shift`` places further on."""
    codes = [alphabet.CLS] * model.num_summary + codes_L.tolist()
    x = [model.input.weight[:, code] + model.input.bias for code in codes]
    for layer in model.layers:
        update = [layer(row) for row in x]
        c = model.group_channels
        x = [
            x[t] + torch.cat([update[(t + s) % len(x)][g * c : (g + 1) * c] for g, s in enumerate(model.shifts)])
            for t in range(len(x))
        ]
    return torch.stack(x)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_mixer_equals_its_naive_loop(norm: str, length: int) -> None:
    model = tiny(norm)
    codes_BL = torch.randint(0, alphabet.SIZE - 1, (2, length), dtype=torch.uint8)
    out_BTD = model(codes_BL)
    for row in range(2):
        torch.testing.assert_close(out_BTD[row], naive_mixer(model, codes_BL[row]), rtol=1e-4, atol=1e-5)


def test_findna_has_the_published_size() -> None:
    """12.65 M: linear 5→308, 40 layers 308→512→308, linear head of 5; ours reads 8 codes and predicts 4."""
    published = (5 * 308 + 308) + 40 * (308 * 512 + 512 + 512 * 308 + 308) + (308 * 5 + 5)
    network = Network(export.build_backbone(Model()), heads={})
    assert abs(export.parameter_count(network) / published - 1) < 1e-4
    assert network.backbone.shifts == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_logits_do_not_change_with_padding_or_with_the_batch(norm: str) -> None:
    network = Network(tiny(norm), heads={"contrastive": EmbeddingHead(20, mlp_size=8, embedding=4)}).eval()
    row_1L = torch.randint(0, 5, (1, 23), dtype=torch.uint8)
    alone = network(row_1L)
    other = torch.randint(0, 5, (1, 60), dtype=torch.uint8)
    padded = torch.cat([torch.nn.functional.pad(row_1L, (0, 37), value=alphabet.PAD), other])
    together = network(padded, length_B=torch.tensor([23, 60]))
    torch.testing.assert_close(together.logits_BLV[:1, :23], alone.logits_BLV, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.pooled_BD[:1], alone.pooled_BD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.embedding_BE[:1], alone.embedding_BE, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.logits_BLV[1:], network(other).logits_BLV, rtol=1e-5, atol=1e-6)


def test_special_tokens_are_four_distinct_inputs() -> None:
    """In the published code MASK, CLS, PAD and unknown letters are the same zero vector."""
    model = tiny("none")
    special = torch.tensor([alphabet.N, alphabet.MASK, alphabet.CLS, alphabet.PAD])
    inputs = model.input.weight[:, special].T
    assert torch.pdist(inputs).min() > 1e-3
    model(torch.zeros(1, 4, dtype=torch.uint8)).sum().backward()
    assert model.input.weight.grad[:, alphabet.CLS].abs().sum() > 0  # CLS is learned


def test_wiring_is_hashed_and_independent_of_length() -> None:
    model = tiny()
    before = model.wiring_sha256()
    model(torch.zeros(1, 9, dtype=torch.uint8))
    model(torch.zeros(1, 300, dtype=torch.uint8))
    assert model.wiring_sha256() == before == tiny().wiring_sha256()
    assert tiny(num_groups=4, group_channels=5).wiring_sha256() != before
    assert tiny(num_summary=4).wiring_sha256() != before


def test_shifts_connect_any_two_positions() -> None:
    """A change of one letter reaches every position, also the summary, through a few layers."""
    model = tiny("none", num_layers=5, num_groups=6)  # shifts to 16: five of them sum to any of 0 … 31
    codes = torch.zeros(1, 29, dtype=torch.uint8)
    changed = codes.clone()
    changed[0, 17] = 2
    assert ((model(codes) - model(changed)).abs().sum(-1) > 0).all()


def test_noise_reaches_the_nucleotide_channels_of_letters_only() -> None:
    model = tiny("none", num_layers=0)
    codes = torch.zeros(1, 6, dtype=torch.uint8)
    noise = torch.randn(1, 6, 4)
    difference = model(codes, noise_BLC=noise) - model(codes)
    torch.testing.assert_close(difference[:, 3:], noise @ model.input.weight[:, :4].T)
    assert (difference[:, :3] == 0).all()


def test_activation_checkpointing_changes_no_gradient() -> None:
    codes = torch.randint(0, 4, (2, 30), dtype=torch.uint8)
    gradients = []
    for checkpointing in (False, True):
        model = tiny()
        model.activation_checkpointing = checkpointing
        model(codes).square().sum().backward()
        gradients.append(model.layers[0].expand.weight.grad)
    torch.testing.assert_close(*gradients)


def test_heads_give_cosines_and_unit_vectors() -> None:
    x = torch.randn(7, 20)
    cosines = PrototypeHead(20, mlp_size=8, bottleneck=6, prototypes=11)(x)
    assert cosines.shape == (7, 11)
    assert cosines.abs().max() <= 1 + 1e-6
    embedded = EmbeddingHead(20, mlp_size=8, embedding=4)(x)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(7))


def test_mean_pool_leaves_padding_out() -> None:
    letters = torch.randn(2, 5, 3)
    pooled = mean_pool(letters, torch.tensor([2, 5]))
    torch.testing.assert_close(pooled[0], letters[0, :2].mean(0))
    torch.testing.assert_close(pooled[1], letters[1].mean(0))
