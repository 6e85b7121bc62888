"""The backbone, its wiring, its padding, and the heads."""

import math
from typing import Any

import pytest
import torch

from data_prep import alphabet
from trainer.losses.config import loss_section, projection_heads
from trainer.losses.contrastive import EmbeddingHead
from trainer.losses.dino import SummaryHead
from trainer.losses.patch import LetterHead, Letters
from trainer.losses.prototype_head import PrototypeOutput
from trainer.losses.registry import LOSSES
from trainer.losses.vicreg import ExpanderHead
from trainer.models import pretrained
from trainer.models.backbone import Hidden
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.config import build_backbone, default_model
from trainer.models.network import Crops, Network, Outputs, Reading, mean_pool

TINY = {"num_layers": 3, "num_groups": 5, "group_channels": 4, "intermediate_size": 16, "num_summary": 3}


def tiny(norm: str = "layer", **changes: int) -> ChordMixer:
    torch.manual_seed(0)
    return ChordMixer(ChordMixerConfig(**{**TINY, **changes}, norm=norm))


def positions(hidden: Hidden) -> torch.Tensor:
    """[B, T, D]: the circle that the mixer reads, summaries first."""
    return torch.cat(hidden, 1)


def reading(rows: int, *, dtype: torch.dtype = torch.float32) -> Reading:
    """Hidden states of 20 channels: 3 summaries and 9 letters a row."""
    return Reading(
        torch.randn(rows, 3, 20, dtype=dtype), torch.randn(rows, 9, 20, dtype=dtype), torch.randn(rows, 20)
    )


def embedding_head(
    *, scale: float = 10.0, max_scale: float = 100.0, learnable: bool = False
) -> EmbeddingHead:
    return EmbeddingHead(20, mlp_size=8, embedding=4, scale=scale, max_scale=max_scale, learnable=learnable)


def every_head() -> dict[str, torch.nn.Module]:
    """All heads, of 20 channels, each with its own number of prototypes or features."""
    heads: dict[str, torch.nn.Module] = {
        "distill": SummaryHead(20, mlp_size=8, bottleneck=6, prototypes=11),
        "patch": LetterHead(20, mlp_size=8, bottleneck=6, prototypes=9),
    }
    return heads | {"contrastive": embedding_head(), "vicreg": ExpanderHead(20, mlp_size=8, embedding=5)}


def naive_mixer(model: ChordMixer, codes_L: torch.Tensor) -> torch.Tensor:
    """One row, position by position: every channel group reads its update from ``shift`` places further
    on."""
    codes = [alphabet.CLS] * model.summaries + codes_L.tolist()
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
    out_BTD = positions(model(codes_BL))
    for row in range(2):
        torch.testing.assert_close(out_BTD[row], naive_mixer(model, codes_BL[row]), rtol=1e-4, atol=1e-5)


def test_findna_has_the_published_size() -> None:
    """12.65 M: linear 5→308, 40 layers 308→512→308, linear head of 5; ours reads 8 codes and predicts 4."""
    published = (5 * 308 + 308) + 40 * (308 * 512 + 512 + 512 * 308 + 308) + (308 * 5 + 5)
    network = Network(build_backbone(default_model()), heads={})
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
    torch.testing.assert_close(together.embedding[:1], alone.embedding, rtol=1e-5, atol=1e-6)
    assert alone.embedding is alone.heads["contrastive"].embedding_BE
    torch.testing.assert_close(together.logits_BLV[1:], network(other).logits_BLV, rtol=1e-5, atol=1e-6)


def test_special_tokens_are_four_distinct_inputs() -> None:
    """In the published code MASK, CLS, PAD and unknown letters are the same zero vector."""
    model = tiny("none")
    special = torch.tensor([alphabet.N, alphabet.MASK, alphabet.CLS, alphabet.PAD])
    inputs = model.input.weight[:, special].T
    assert torch.pdist(inputs).min() > 1e-3
    positions(model(torch.zeros(1, 4, dtype=torch.uint8))).sum().backward()
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
    # Shifts to 16: five of them sum to any of 0 … 31.
    model = tiny("none", num_layers=5, num_groups=6)
    codes = torch.zeros(1, 29, dtype=torch.uint8)
    changed = codes.clone()
    changed[0, 17] = 2
    assert ((positions(model(codes)) - positions(model(changed))).abs().sum(-1) > 0).all()


def test_noise_reaches_the_nucleotide_channels_of_letters_only() -> None:
    model = tiny("none")
    model.layers = torch.nn.ModuleList()
    codes = torch.zeros(1, 6, dtype=torch.uint8)
    noise = torch.randn(1, 6, 4)
    difference = positions(model(codes, noise_BLC=noise)) - positions(model(codes))
    torch.testing.assert_close(difference[:, 3:], noise @ model.input.weight[:, :4].T)
    assert (difference[:, :3] == 0).all()


def test_activation_checkpointing_changes_no_gradient() -> None:
    codes = torch.randint(0, 4, (2, 30), dtype=torch.uint8)
    gradients = []
    for checkpointing in (False, True):
        model = tiny()
        model.activation_checkpointing = checkpointing
        positions(model(codes)).square().sum().backward()
        gradients.append(model.layers[0].expand.weight.grad)
    torch.testing.assert_close(*gradients)


def test_heads_give_cosines_and_unit_vectors() -> None:
    x = reading(7)
    heads = every_head()
    letters = Letters(torch.tensor([[0, 8]] * 7))
    for name, request, split, shape in (
        ("distill", None, True, (7, 3, 11)),
        ("patch", letters, letters._replace(split=True), (7, 2, 9)),
    ):
        cosines = heads[name](x, request).cosines
        assert cosines.shape == shape
        assert cosines.abs().max() <= 1 + 1e-6
        parts = heads[name](x, split)
        assert parts.cosines is None
        torch.testing.assert_close(parts.bottleneck.norm(dim=-1), torch.ones(shape[:2]))
        torch.testing.assert_close(parts.prototypes_KC.norm(dim=1), torch.ones(shape[2]))
        torch.testing.assert_close(parts.bottleneck @ parts.prototypes_KC.T, cosines)
    assert heads["patch"](x) is None, "no letters were asked for"
    embedding_NE, scale = embedding_head()(x)
    torch.testing.assert_close(embedding_NE.norm(dim=1), torch.ones(7))
    assert scale.shape == () and float(scale) == 10
    (expanded,) = ExpanderHead(20, mlp_size=8, embedding=5)(x)
    assert expanded.shape == (7, 5) and expanded.norm(dim=1).std() > 0.01, "free length"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_answer_in_fp32(dtype: torch.dtype) -> None:
    for name, head in every_head().items():
        request = Letters(torch.zeros(3, 2, dtype=torch.int64)) if name == "patch" else None
        output = head.to(dtype)(reading(3, dtype=dtype), request)
        parts = [part for part in output if part is not None]
        assert {part.dtype for part in parts} == {torch.float32}, name


def test_a_learnable_scale_is_clamped_and_a_fixed_one_is_no_parameter() -> None:
    x = reading(2)
    fixed, learnable = embedding_head(), embedding_head(learnable=True)
    assert fixed.log_scale is None
    assert [name for name, _ in learnable.named_parameters() if "scale" in name] == ["log_scale"]
    assert learnable(x)[1].item() == pytest.approx(10, rel=1e-6)
    learnable(x)[1].backward()
    assert learnable.log_scale is not None and float(learnable.log_scale.grad) == pytest.approx(10, rel=1e-6)
    learnable.log_scale.data.fill_(math.log(1e6))
    assert learnable(x)[1].item() == pytest.approx(100)


ALL = ("distill", "patch", "contrastive", "vicreg")


def ask(letters_BN: torch.Tensor, *names: str) -> dict[str, Any]:
    """What the heads are asked for."""
    return {name: Letters(letters_BN) if name == "patch" else None for name in names or ALL}


def crops_of(codes_XL: torch.Tensor, length_X: torch.Tensor | None = None) -> Crops:
    return Crops(codes_XL, length_X, ("distill",))


def test_a_network_answers_what_it_is_asked() -> None:
    network = Network(tiny(), heads=every_head()).eval()
    codes_BL, crops_XL = (
        torch.randint(0, 4, (rows, length), dtype=torch.uint8) for rows, length in ((4, 30), (8, 12))
    )
    letters_BN = torch.randint(0, 30, (4, 6))
    outputs = network(codes_BL, requests=ask(letters_BN), crops=crops_of(crops_XL))
    assert outputs.logits_BLV.shape == (4, 30, 4) and outputs.pooled_BD.shape == (4, 20)
    shapes = {
        f"{name} {field}": tuple(part.shape)
        for name, output in outputs.heads.items()
        for field, part in output._asdict().items()
        if part is not None
    }
    assert shapes == {
        "distill cosines": (4, 3, 11),
        "patch cosines": (4, 6, 9),
        "contrastive embedding_BE": (4, 4),
        "contrastive scale": (),
        "vicreg expanded_BE": (4, 5),
    }
    hidden = network.backbone(codes_BL)
    torch.testing.assert_close(outputs.pooled_BD, hidden.letters_BLD.mean(1))
    for row, n in ((0, 0), (3, 5)):
        letter_D = hidden.letters_BLD[row, int(letters_BN[row, n])]
        expected = network.heads["patch"].outputs(letter_D).cosines
        torch.testing.assert_close(outputs.heads["patch"].cosines[row, n], expected)
    assert outputs.crops.keys() == {"distill"}
    alone = network(crops_XL).heads["distill"].cosines
    torch.testing.assert_close(outputs.crops["distill"].cosines, alone)

    plain = network(codes_BL, nucleotides=False)
    assert plain.logits_BLV is plain.heads["patch"] is None and plain.crops == {}
    assert plain.heads.keys() == set(ALL), "without requests all heads answer"
    assert plain.embedding is plain.heads["contrastive"].embedding_BE and network.embedding_size == 4
    assert network(codes_BL, requests={"vicreg": None}).heads.keys() == {"vicreg"}
    bare = Network(tiny(), heads={})
    outputs = bare(codes_BL)
    assert outputs.heads == {} and outputs.embedding is outputs.pooled_BD and bare.embedding_size == 20


def test_crops_may_have_padding() -> None:
    network = Network(tiny(), heads=every_head()).eval()
    codes_BL, crops_XL = (torch.randint(0, 4, (2, length), dtype=torch.uint8) for length in (30, 12))
    padded_XL = torch.nn.functional.pad(crops_XL, (0, 7), value=alphabet.PAD)
    padded, plain = (
        network(codes_BL, requests={}, crops=crops).crops["distill"].cosines
        for crops in (crops_of(padded_XL, torch.tensor([12, 12])), crops_of(crops_XL))
    )
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)


def test_chunks_of_the_outputs_are_those_of_the_rows_and_keep_their_gradients() -> None:
    network = Network(tiny(), heads=every_head())
    codes_BL = torch.randint(0, 4, (6, 30), dtype=torch.uint8)
    letters_BN = torch.randint(0, 30, (6, 5))
    outputs = network(codes_BL, requests=ask(letters_BN), crops=crops_of(codes_BL[:, :12]))
    first, second = outputs.chunk(2)
    for number, part in enumerate((first, second)):
        rows = slice(3 * number, 3 * number + 3)
        for name in ("logits_BLV", "pooled_BD"):
            assert torch.equal(getattr(part, name), getattr(outputs, name)[rows]), name
        assert part.heads.keys() == set(ALL)
        for name, whole in outputs.heads.items():
            for of_part, of_whole in zip(part.heads[name], whole, strict=True):
                if of_whole is None or not of_whole.ndim:
                    assert of_part is of_whole, name
                else:
                    assert torch.equal(of_part, of_whole[rows]), name
        assert part.crops is outputs.crops
    second.heads["distill"].cosines.sum().backward()
    assert network.heads["distill"].prototypes.grad.abs().sum() > 0
    nothing = Outputs(None, torch.ones(4, 2), {"patch": None}).chunk(2)[1]
    assert nothing.logits_BLV is nothing.heads["patch"] is None and nothing.pooled_BD.shape == (2, 2)


def test_an_output_that_knows_its_rows_is_cut_as_it_says() -> None:
    """Prototypes that travel beside a bottleneck have no rows of samples, and are every part's."""
    bottleneck_BPC, prototypes_KC = torch.randn(6, 2, 4), torch.randn(8, 4)
    whole = PrototypeOutput(None, bottleneck_BPC, prototypes_KC)
    parts = Outputs(None, torch.ones(6, 2), {"distill": whole}).chunk(2)
    for number, part in enumerate(parts):
        found = part.heads["distill"]
        assert found.cosines is None and found.prototypes_KC is prototypes_KC
        assert torch.equal(found.bottleneck, bottleneck_BPC[3 * number : 3 * number + 3])


def test_outputs_of_letters_become_rows_of_one_position() -> None:
    bottleneck_BNC, prototypes_KC = torch.randn(3, 4, 6), torch.randn(9, 6)
    cosines_BNK = bottleneck_BNC @ prototypes_KC.T
    for given in (PrototypeOutput(cosines_BNK), PrototypeOutput(None, bottleneck_BNC, prototypes_KC)):
        rows = given.rows()
        for whole, part in zip(given[:2], rows[:2], strict=True):
            assert (whole is None) == (part is None)
            if whole is not None:
                assert part.shape == (12, 1, whole.shape[-1])
                assert torch.equal(part[7, 0], whole[1, 3])
        assert rows.prototypes_KC is given.prototypes_KC


def test_heads_are_those_that_the_losses_in_use_need() -> None:
    off = {name: {"weight": 0.0} for name in LOSSES}
    for name in LOSSES:
        terms = loss_section(off | {name: {"weight": 0.5}}).terms()
        expected = set() if name in ("mlm", "koleo") else {name}
        assert projection_heads(terms, 20).keys() == expected
    learnable = loss_section({"contrastive": {"weight": 1, "temperature": 0.5, "learnable_scale": True}})
    head = projection_heads(learnable.terms(), 20)["contrastive"]
    assert isinstance(head, EmbeddingHead) and head.log_scale is not None
    assert head.log_scale.exp().item() == pytest.approx(2)


def test_mean_pool_leaves_padding_out() -> None:
    letters = torch.randn(2, 5, 3)
    pooled = mean_pool(letters, torch.tensor([2, 5]))
    torch.testing.assert_close(pooled[0], letters[0, :2].mean(0))
    torch.testing.assert_close(pooled[1], letters[1].mean(0))
