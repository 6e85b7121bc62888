"""What every backbone promises: padding, noise, checkpointing, wiring, precision, and an export that comes
back; and the dilated convolutions against their naive loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep import alphabet
from tests.exports import SIZES
from trainer.models import pretrained
from trainer.models.backbone import Backbone
from trainer.models.dilated_conv import DilatedConv, DilatedConvConfig
from trainer.models.network import Network
from trainer.models.registry import MODELS


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def small(name: str, *, activation_checkpointing: bool = False, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    config = MODELS[name].Config.model_validate({"name": name, **SIZES[name], **changes})
    return MODELS[name](config, activation_checkpointing=activation_checkpointing)


def letters(*shape: int) -> Tensor:
    return torch.randint(0, 5, shape, dtype=torch.uint8)


def test_hidden_states_have_the_sizes_that_the_backbone_says(name: str) -> None:
    backbone = small(name)
    for length in (1, 2, 30):
        hidden = backbone(letters(3, length))
        assert hidden.summary_BPD.shape == (3, backbone.summaries, backbone.hidden_size)
        assert hidden.letters_BLD.shape == (3, length, backbone.hidden_size)
    assert backbone.export_config()["hidden_size"] == backbone.hidden_size
    assert backbone.positions(30) in (30, 30 + backbone.summaries)


def test_it_stops_after_a_layer(name: str) -> None:
    """Layers behind are not computed; all of them are what there is without the argument."""
    backbone = small(name).eval()
    layers = backbone.layers if name == "findna" else backbone.blocks
    assert backbone.layer_count == len(layers) == 3
    called: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
    codes_BL, length_B = letters(2, 30), torch.tensor([30, 17])
    whole = backbone(codes_BL, length_B=length_B)
    for layer in range(4):
        called.clear()
        hidden = backbone(codes_BL, length_B=length_B, layer=layer)
        assert called == list(range(layer))
        same = [torch.equal(a, b) for a, b in zip(hidden, whole, strict=True)]
        assert same == [layer == 3] * 2


@pytest.mark.parametrize("code", range(alphabet.SIZE))
def test_nothing_changes_with_padding_or_with_the_batch(name: str, code: int) -> None:
    """Whatever letter stands in the padding, also with noise on it."""
    network = Network(small(name), heads={}).eval()
    row_1L, other_1L = letters(1, 23), letters(1, 60)
    noise_2L4 = torch.randn(2, 60, 4)
    padded_2L = torch.cat([torch.nn.functional.pad(row_1L, (0, 37), value=code), other_1L])
    length_2 = torch.tensor([23, 60])
    together = network(padded_2L, length_B=length_2, noise_BLC=noise_2L4)
    hidden = network.backbone(padded_2L, length_B=length_2, noise_BLC=noise_2L4)
    for row, alone_1L in enumerate((row_1L, other_1L)):
        length = alone_1L.shape[1]
        noise_1L4 = noise_2L4[row : row + 1, :length]
        alone = network(alone_1L, noise_BLC=noise_1L4)
        torch.testing.assert_close(
            together.logits_BLV[row : row + 1, :length], alone.logits_BLV, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(together.pooled_BD[row : row + 1], alone.pooled_BD, rtol=1e-5, atol=1e-6)
        summary_1PD = network.backbone(alone_1L, noise_BLC=noise_1L4).summary_BPD
        torch.testing.assert_close(hidden.summary_BPD[row : row + 1], summary_1PD, rtol=1e-5, atol=1e-6)


def test_padding_has_no_part_in_the_gradient(name: str) -> None:
    gradients = []
    for padding in (0, 9):
        network = Network(small(name), heads={})
        codes_BL = torch.nn.functional.pad(
            torch.arange(24, dtype=torch.uint8).view(2, 12) % 4, (0, padding), value=alphabet.PAD
        )
        outputs = network(codes_BL, length_B=torch.tensor([12, 12]))
        (outputs.logits_BLV[:, :12].square().sum() + outputs.pooled_BD.square().sum()).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_special_letters_are_different_inputs(name: str) -> None:
    backbone = small(name).eval()
    codes_BL = torch.zeros(alphabet.SIZE, 9, dtype=torch.uint8)
    codes_BL[:, 4] = torch.arange(alphabet.SIZE)
    assert torch.pdist(backbone(codes_BL).letters_BLD[:, 4]).min() > 1e-3


def test_noise_is_added_to_the_four_letters_alone(name: str) -> None:
    """A noise that makes an A a C gives what the C does."""
    backbone = small(name)
    codes_BL, changed_BL, noise_BLC = letters(2, 9) % 4, letters(2, 9) % 4, torch.zeros(2, 9, 4)
    changed_BL[:, 1:], changed_BL[:, 0] = codes_BL[:, 1:], (codes_BL[:, 0] + 1) % 4
    for row in range(2):
        noise_BLC[row, 0, int(codes_BL[row, 0])] = -1
        noise_BLC[row, 0, int(changed_BL[row, 0])] = 1
    torch.testing.assert_close(
        backbone(codes_BL, noise_BLC=noise_BLC).letters_BLD, backbone(changed_BL).letters_BLD
    )


def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    codes_BL, length_B = letters(2, 30), torch.tensor([30, 17])
    gradients = []
    for checkpointing in (False, True):
        backbone = small(name, activation_checkpointing=checkpointing)
        hidden = backbone(codes_BL, length_B=length_B)
        (hidden.letters_BLD[:, :17].square().sum() + hidden.summary_BPD.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][parameter])


def test_the_wiring_is_hashed_and_independent_of_length(name: str) -> None:
    backbone = small(name)
    before = backbone.wiring_sha256()
    backbone(letters(1, 9))
    backbone(letters(1, 300))
    assert backbone.wiring_sha256() == before == small(name).wiring_sha256()


@pytest.mark.parametrize(
    "changes", [{"kernel": 5}, {"stem_kernel": 3}, {"dilations": [1, 2, 4]}, {"dilations": [1, 4]}], ids=str
)
def test_another_reach_is_another_wiring(changes: dict[str, Any]) -> None:
    assert small("dilated-conv", **changes).wiring_sha256() != small("dilated-conv").wiring_sha256()


def test_an_export_comes_back_and_computes_in_bf16(name: str, tmp_path: Path) -> None:
    network = Network(small(name), heads={}).eval()
    pretrained.write(str(tmp_path), network, dict(network.named_parameters()), card="card")
    loaded = pretrained.load(str(tmp_path))
    codes_BL, length_B = letters(4, 40), torch.tensor([40, 1, 17, 33])
    expected, found = (each(codes_BL, length_B=length_B) for each in (network, loaded))
    assert torch.equal(found.logits_BLV, expected.logits_BLV)
    assert loaded.backbone.config == network.backbone.config
    rounded = loaded.bfloat16()(codes_BL, length_B=length_B)
    hidden = loaded.backbone(codes_BL, length_B=length_B)
    assert hidden.letters_BLD.dtype == hidden.summary_BPD.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.logits_BLV[0], expected.logits_BLV[0], rtol=0.1, atol=0.05)


def test_norms_and_biases_do_not_decay(name: str) -> None:
    """What has one dimension has no weight decay in any optimiser here."""
    for parameter, value in small(name).named_parameters():
        vector = "norm" in parameter or parameter.split(".")[-1] in ("bias", "bias_O")
        assert (value.ndim < 2) == vector, parameter


def naive_convolution(x_LI: Tensor, weight_OKI: Tensor, bias_O: Tensor, *, dilation: int) -> Tensor:
    """Letter by letter; what stands beyond the ends counts as 0."""
    taps = weight_OKI.shape[1]
    found = []
    for place in range(len(x_LI)):
        total_O = bias_O.clone()
        for tap in range(taps):
            read = place + (tap - taps // 2) * dilation
            if 0 <= read < len(x_LI):
                total_O = total_O + weight_OKI[:, tap] @ x_LI[read]
        found.append(total_O)
    return torch.stack(found)


def naive_row(model: DilatedConv, codes_L: Tensor) -> tuple[Tensor, Tensor]:
    """(summaries, letters) of one row."""

    def norm(x_LD: Tensor) -> Tensor:
        centred_LD = x_LD - x_LD.mean(1, keepdim=True)
        return centred_LD / (centred_LD.square().mean(1, keepdim=True) + 1e-5).sqrt()

    onehot_LV = torch.eye(alphabet.SIZE)[codes_L.long()]
    x_LD = naive_convolution(onehot_LV, model.stem.weight_OKI, model.stem.bias_O, dilation=1)
    for block, dilation in zip(model.blocks, model.config.dilations, strict=True):
        conv = block.conv
        read_LE = naive_convolution(norm(x_LD), conv.weight_OKI, conv.bias_O, dilation=dilation)
        x_LD = x_LD + block.contract(torch.nn.functional.gelu(read_LE))
    letters_LD = norm(x_LD)
    return torch.stack([letters_LD.mean(0), letters_LD.amax(0)]), letters_LD


@pytest.mark.parametrize("length", [1, 3, 40])
def test_dilated_convolutions_equal_their_naive_loop(length: int) -> None:
    model = small("dilated-conv")
    assert isinstance(model, DilatedConv)
    codes_BL = letters(2, length)
    hidden = model(codes_BL)
    for row in range(2):
        summary_PD, letters_LD = naive_row(model, codes_BL[row])
        torch.testing.assert_close(hidden.letters_BLD[row], letters_LD, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hidden.summary_BPD[row], summary_PD, rtol=1e-4, atol=1e-5)


def test_states_and_weights_are_channels_last_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is convolved is a view of the states and of the weights, in the layout that is fastest."""
    model = small("dilated-conv")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    convolve = torch.nn.functional.conv2d

    def watched(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
        y = convolve(x, weight, *rest, **options)
        seen.append((x, weight, y))
        return y

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    hidden = model(letters(4, 30))
    assert len(seen) == 1 + len(model.config.dilations)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    for x, weight, y in seen:
        assert weight.data_ptr() in weights
        for tensor in (x, weight, y):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert hidden.letters_BLD.is_contiguous()


def test_the_summaries_have_the_gradient_of_mean_and_maximum() -> None:
    model = small("dilated-conv")
    codes_BL = letters(2, 11)
    for summary, pool in enumerate((lambda x_BLD: x_BLD.mean(1), lambda x_BLD: x_BLD.max(1).values)):
        gradients = []
        for of in (model(codes_BL).summary_BPD[:, summary], pool(model(codes_BL).letters_BLD)):
            gradients.append(torch.autograd.grad(of.square().sum(), list(model.parameters())))
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be odd, so that a letter stands in the middle \(given 8\)"):
        DilatedConvConfig.model_validate({"kernel": 8})


@pytest.mark.parametrize(("hidden_size", "millions"), [(32, 0.11), (64, 0.42), (128, 1.65)])
def test_sizes_are_those_of_the_docs(hidden_size: int, millions: float) -> None:
    config = DilatedConvConfig(hidden_size=hidden_size)
    assert round(pretrained.parameter_count(DilatedConv(config)) / 1e6, 2) == millions
