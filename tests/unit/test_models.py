"""The backbone, its wiring, its padding, and the heads."""

import math

import pytest
import torch

from data_prep import alphabet
from trainer.losses.config import Loss
from trainer.models import pretrained
from trainer.models.chordmixer import ChordMixer
from trainer.models.config import Model
from trainer.models.heads import Assigned, EmbeddingHead, ExpanderHead, PrototypeHead
from trainer.models.network import Network, Outputs, mean_pool

TINY = {"num_layers": 3, "num_groups": 5, "group_channels": 4, "intermediate_size": 16, "num_summary": 3}


def tiny(norm: str = "layer", **changes: int) -> ChordMixer:
    torch.manual_seed(0)
    return ChordMixer(**{**TINY, **changes}, norm=norm)


def embedding_head(
    *, scale: float = 10.0, max_scale: float = 100.0, learnable: bool = False
) -> EmbeddingHead:
    return EmbeddingHead(20, mlp_size=8, embedding=4, scale=scale, max_scale=max_scale, learnable=learnable)


def every_head() -> dict[str, torch.nn.Module]:
    """All heads, of 20 channels, each with its own number of prototypes or features."""
    heads: dict[str, torch.nn.Module] = {
        name: PrototypeHead(20, mlp_size=8, bottleneck=6, prototypes=prototypes)
        for name, prototypes in (("distill", 11), ("patch", 9))
    }
    return heads | {"contrastive": embedding_head(), "vicreg": ExpanderHead(20, mlp_size=8, embedding=5)}


def naive_mixer(model: ChordMixer, codes_L: torch.Tensor) -> torch.Tensor:
    """One row, position by position: every channel group reads its update from ``shift`` places further
    on."""
    codes = [alphabet.CLS] * model.num_summary + codes_L.tolist()
    x = [model.input.weight[:, code] + model.input.bias for code in codes]
    for layer in model.layers:
        update = [layer(row) for row in x]
        c = model.group_channels
        x = [
            x[t]
            + torch.cat([update[(t + s) % len(x)][g * c : (g + 1) * c] for g, s in enumerate(model.shifts)])
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
    network = Network(pretrained.build_backbone(Model()), heads={})
    assert abs(pretrained.parameter_count(network) / published - 1) < 1e-4
    assert network.backbone.shifts == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_logits_do_not_change_with_padding_or_with_the_batch(norm: str) -> None:
    network = Network(tiny(norm), heads={"contrastive": embedding_head()}).eval()
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
    head = PrototypeHead(20, mlp_size=8, bottleneck=6, prototypes=11)
    cosines_NK = head(x).cosines
    assert cosines_NK.shape == (7, 11)
    assert cosines_NK.abs().max() <= 1 + 1e-6
    split = head(x, split=True)
    assert split.cosines is None
    torch.testing.assert_close(split.bottleneck.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(split.prototypes_KC.norm(dim=1), torch.ones(11))
    torch.testing.assert_close(split.bottleneck @ split.prototypes_KC.T, cosines_NK)
    embedding_NE, scale = embedding_head()(x)
    torch.testing.assert_close(embedding_NE.norm(dim=1), torch.ones(7))
    assert scale.shape == () and float(scale) == 10
    expanded = ExpanderHead(20, mlp_size=8, embedding=5)(x)
    assert expanded.shape == (7, 5) and expanded.norm(dim=1).std() > 0.01, "free length"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_answer_in_fp32(dtype: torch.dtype) -> None:
    for name, head in every_head().items():
        said = head.to(dtype)(torch.randn(3, 20, dtype=dtype))
        parts = [part for part in (said if isinstance(said, tuple) else (said,)) if part is not None]
        assert {part.dtype for part in parts} == {torch.float32}, name


def test_a_learnable_scale_is_clamped_and_a_fixed_one_is_no_parameter() -> None:
    x = torch.randn(2, 20)
    fixed, learnable = embedding_head(), embedding_head(learnable=True)
    assert fixed.log_scale is None
    assert [name for name, _ in learnable.named_parameters() if "scale" in name] == ["log_scale"]
    assert learnable(x)[1].item() == pytest.approx(10, rel=1e-6)
    learnable(x)[1].backward()
    assert learnable.log_scale is not None and float(learnable.log_scale.grad) == pytest.approx(10, rel=1e-6)
    learnable.log_scale.data.fill_(math.log(1e6))
    assert learnable(x)[1].item() == pytest.approx(100)


def test_a_network_answers_what_it_is_asked() -> None:
    network = Network(tiny(), heads=every_head()).eval()
    codes_BL, crops_XL = (
        torch.randint(0, 4, (rows, length), dtype=torch.uint8) for rows, length in ((4, 30), (8, 12))
    )
    letters_BN = torch.randint(0, 30, (4, 6))
    said = network(codes_BL, letters_BN=letters_BN, crops_XL=crops_XL)
    shapes = {
        name: tuple(part.shape) for name, part in said._asdict().items() if isinstance(part, torch.Tensor)
    }
    assert shapes == {
        "logits_BLV": (4, 30, 4),
        "crops_XPK": (8, 3, 11),
        "embedding_BE": (4, 4),
        "expanded_BE": (4, 5),
        "scale": (),
        "pooled_BD": (4, 20),
    }
    assert said.summary.cosines.shape == (4, 3, 11)
    hidden_BTD = network.backbone(codes_BL)
    torch.testing.assert_close(said.pooled_BD, hidden_BTD[:, 3:].mean(1))
    for row, n in ((0, 0), (3, 5)):
        letter_D = hidden_BTD[row, 3 + int(letters_BN[row, n])]
        torch.testing.assert_close(said.patches.cosines[row, n], network.heads["patch"](letter_D).cosines)
    torch.testing.assert_close(said.crops_XPK, network(crops_XL).summary.cosines)

    plain = network(codes_BL, nucleotides=False)
    assert plain.logits_BLV is plain.patches is plain.crops_XPK is None
    assert plain.embedding is plain.embedding_BE and network.embedding_size == 4
    for split in ((True, False), (False, True)):
        parts = network(codes_BL, letters_BN=letters_BN, split=split)
        assert [part.cosines is None for part in (parts.summary, parts.patches)] == list(split)
    bare = Network(tiny(), heads={})
    assert bare(codes_BL).embedding is not None and bare.embedding_size == 20
    assert bare(codes_BL).summary is bare(codes_BL).embedding_BE is bare(codes_BL).scale is None


def test_crops_may_have_padding() -> None:
    network = Network(tiny(), heads=every_head()).eval()
    codes_BL, crops_XL = (torch.randint(0, 4, (2, length), dtype=torch.uint8) for length in (30, 12))
    padded_XL = torch.nn.functional.pad(crops_XL, (0, 7), value=alphabet.PAD)
    said = network(codes_BL, crops_XL=padded_XL, crop_length_X=torch.tensor([12, 12])).crops_XPK
    torch.testing.assert_close(said, network(codes_BL, crops_XL=crops_XL).crops_XPK, rtol=1e-5, atol=1e-6)


def test_chunks_of_the_outputs_are_those_of_the_rows_and_keep_their_gradients() -> None:
    network = Network(tiny(), heads=every_head())
    codes_BL = torch.randint(0, 4, (6, 30), dtype=torch.uint8)
    letters_BN = torch.randint(0, 30, (6, 5))
    said = network(codes_BL, letters_BN=letters_BN, crops_XL=codes_BL[:, :12])
    first, second = said.chunk(2)
    for number, part in enumerate((first, second)):
        rows = slice(3 * number, 3 * number + 3)
        for name in ("logits_BLV", "embedding_BE", "expanded_BE", "pooled_BD"):
            assert torch.equal(getattr(part, name), getattr(said, name)[rows]), name
        assert torch.equal(part.summary.cosines, said.summary.cosines[rows])
        assert torch.equal(part.patches.cosines, said.patches.cosines[rows])
        assert part.crops_XPK is said.crops_XPK and part.scale is said.scale
    second.summary.cosines.sum().backward()
    assert network.heads["distill"].prototypes.grad.abs().sum() > 0
    nothing = Outputs(None, None, None, None, None, None, None, torch.ones(4, 2)).chunk(2)[1]
    assert nothing[:7] == (None,) * 7 and nothing.pooled_BD.shape == (2, 2)


def test_assigned_letters_become_rows_of_one_position() -> None:
    bottleneck_BNC, prototypes_KC = torch.randn(3, 4, 6), torch.randn(9, 6)
    cosines_BNK = bottleneck_BNC @ prototypes_KC.T
    for given in (Assigned(cosines_BNK), Assigned(None, bottleneck_BNC, prototypes_KC)):
        rows = given.rows()
        for whole, part in zip(given[:2], rows[:2], strict=True):
            assert (whole is None) == (part is None)
            if whole is not None:
                assert part.shape == (12, 1, whole.shape[-1])
                assert torch.equal(part[7, 0], whole[1, 3])
        assert rows.prototypes_KC is given.prototypes_KC


def test_heads_are_those_that_the_losses_in_use_need() -> None:
    off = {name: {"weight": 0.0} for name in Loss.model_fields}
    for name, heads in (
        ("mlm", set()),
        ("koleo", set()),
        ("distill", {"distill"}),
        ("patch", {"patch"}),
        ("contrastive", {"contrastive"}),
        ("vicreg", {"vicreg"}),
    ):
        losses = Loss.model_validate(off | {name: {"weight": 0.5}})
        assert pretrained.projection_heads(losses, 20).keys() == heads
    learnable = Loss.model_validate(
        {"contrastive": {"weight": 1, "temperature": 0.5, "learnable_scale": True}}
    )
    head = pretrained.projection_heads(learnable, 20)["contrastive"]
    assert isinstance(head, EmbeddingHead) and head.log_scale is not None
    assert head.log_scale.exp().item() == pytest.approx(2)


def test_mean_pool_leaves_padding_out() -> None:
    letters = torch.randn(2, 5, 3)
    pooled = mean_pool(letters, torch.tensor([2, 5]))
    torch.testing.assert_close(pooled[0], letters[0, :2].mean(0))
    torch.testing.assert_close(pooled[1], letters[1].mean(0))
