"""What a probe reads of an encoder: the naive numbers, whatever stands beside a row; the choice on dev."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from configs import ConfigError, validate
from data_prep import alphabet
from tests.examples.tiny_conv import TinyConv, TinyConvConfig
from tests.registered import tiny_network
from trainer.evaluation.tasks.config import Probe
from trainer.evaluation.tasks.fitting.linear import fit_probe
from trainer.evaluation.tasks.fitting.probe_features import (
    BINS,
    FEATURES,
    ProbeFeatures,
    features_of,
    probe_features,
)
from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.kinds.logistic import logistic_path
from trainer.evaluation.tasks.rows.data import Split
from trainer.inference.embedding import embed
from trainer.inference.sequences import EncodedSequences
from trainer.models.chordmixer import ChordMixer, ChordMixerConfig
from trainer.models.dilated_conv import DilatedConv, DilatedConvConfig, _norm
from trainer.models.mixer_rotation import Rotation
from trainer.models.network import Network

LENGTHS = [33, 7, 40, 1, 41, 12]
MEAN_MAX, BINNED = ProbeFeatures(), ProbeFeatures(pooling="bins", bins=9)


def dilated() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Network(DilatedConv(DilatedConvConfig(hidden_size=6, dilations=(1, 2, 4))), heads={}).eval()


NETWORKS = {"findna": tiny_network, "dilated-conv": dilated}


def rows() -> list[alphabet.Codes]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 5, n).astype(np.uint8) for n in LENGTHS]


@torch.no_grad()
def activations(network: Network, codes_L: alphabet.Codes) -> list[Tensor]:
    """[L, …] of each layer, in words of its own, and the last hidden states."""
    codes_BL, backbone, found = torch.from_numpy(codes_L.copy())[None], network.backbone, []
    if isinstance(backbone, DilatedConv):
        x_BLD = backbone.stem(nn.functional.one_hot(codes_BL.long(), alphabet.SIZE).float())
        for block in backbone.blocks:
            found.append(nn.functional.gelu(block.conv(_norm(x_BLD)))[0])
            x_BLD = x_BLD + block.contract(found[-1])
        return [*found, _norm(x_BLD)[0]]
    assert isinstance(backbone, ChordMixer)
    first = backbone.summaries
    all_BT = torch.cat([torch.full((1, first), alphabet.CLS, dtype=torch.uint8), codes_BL], 1)
    x_BTD = backbone.input(nn.functional.one_hot(all_BT.long(), alphabet.SIZE).float())
    sizes = backbone.config
    rotation = Rotation(x_BTD, num_groups=sizes.num_groups, group_channels=sizes.group_channels)
    for layer in backbone.layers:
        found.append(nn.functional.gelu(layer.expand(layer.norm(x_BTD)))[0, first:])
        x_BTD = x_BTD + rotation(layer(x_BTD))
    return [*found, x_BTD[0, first:]]


def naive(network: Network, codes_L: alphabet.Codes, wanted: ProbeFeatures) -> Tensor:
    """Of one strand."""
    *layers, last = activations(network, codes_L)
    if wanted.pooling == "bins":
        n = len(codes_L)
        edges = [(j * n // wanted.bins, -(-(j + 1) * n // wanted.bins)) for j in range(wanted.bins)]
        return torch.stack([last[start:end].mean(0) for start, end in edges])
    read = [layers[number] for number in wanted.layers] if wanted.pooling == "layers" else [last]
    return torch.cat([each for letters in read for each in (letters.mean(0), letters.amax(0))])


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_naive_ones_whatever_stands_beside_a_row(name: str) -> None:
    network = NETWORKS[name]()
    layers = ProbeFeatures(pooling="layers", layers=(0, 1))
    wanted = (layers, BINNED, MEAN_MAX)
    sequences = EncodedSequences.from_codes(rows())
    for strand in ("both", "given"):
        found = probe_features(network, sequences, wanted, strand=strand)  # type: ignore[arg-type]
        for each, read_NF in zip(wanted, found, strict=True):
            assert read_NF.shape[1] == each.size(network.backbone, strand=strand)  # type: ignore[arg-type]
            for i, codes in enumerate(rows()):
                forward = naive(network, codes, each)
                reverse = naive(network, alphabet.reverse_complement(codes), each)
                if strand == "given":
                    expected = forward.flatten()
                elif each.pooling == "bins":
                    expected = torch.cat([forward.flatten(), reverse.flip(0).flatten()])
                else:
                    expected = (forward + reverse) / 2
                torch.testing.assert_close(read_NF[i], expected, atol=1e-5, rtol=1e-5)
    assert not any(module._forward_pre_hooks for module in network.modules()), "nothing stays behind"


def test_the_strands_of_bins_stand_side_by_side() -> None:
    codes = rows()
    turned = [alphabet.reverse_complement(each) for each in codes]
    ours, theirs = (
        probe_features(dilated(), EncodedSequences.from_codes(each), [BINNED])[0].unflatten(1, (2, 9, -1))
        for each in (codes, turned)
    )
    torch.testing.assert_close(ours, theirs.flip(1, 2), atol=1e-6, rtol=1e-5)


def test_what_was_read_before_is_read_to_the_bit() -> None:
    network, sequences = dilated(), EncodedSequences.from_codes(rows())
    wanted = features_of(("layers", "bins", "mean_max"), network.backbone, strand="both")
    before = torch.cat(embed(network, sequences), 1)
    assert torch.equal(probe_features(network, sequences, [MEAN_MAX])[0], before)
    assert torch.equal(probe_features(network, sequences, wanted)[2], before), "hooks change no bit"


def test_a_large_network_gives_no_more_features() -> None:
    with torch.device("meta"):
        large = ChordMixer(ChordMixerConfig())
        small = DilatedConv(DilatedConvConfig())
    for strand in ("both", "given"):
        for backbone in (large, small):
            for each in features_of(("layers", "bins"), backbone, strand=strand):  # type: ignore[arg-type]
                assert each.size(backbone, strand=strand) <= FEATURES  # type: ignore[arg-type]
    layers, bins = features_of(("layers", "bins"), large, strand="both")
    assert (layers.layers, bins.bins) == ((9, 19, 29, 39), 6)
    layers, bins = features_of(("layers", "bins"), small, strand="given")
    assert (layers.layers, bins.bins) == ((0, 1, 2, 3, 4), BINS)


def test_an_encoder_that_names_no_activations_is_read_by_its_last_hidden_states() -> None:
    network = Network(TinyConv(TinyConvConfig()), heads={}).eval()
    found = features_of(("layers", "mean_max", "bins"), network.backbone, strand="both")
    assert [each.pooling for each in found] == ["mean_max", "bins"]
    sequences = EncodedSequences.from_codes(rows())
    assert probe_features(network, sequences, found)[0].shape == (len(LENGTHS), 24)
    with pytest.raises(ValueError, match=r"it reads layers \[0\] of an encoder that has 0"):
        probe_features(network, sequences, [ProbeFeatures(pooling="layers", layers=(0,))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": []}, "at least 1 item"),
        ({"pooling": "attention"}, "'mean_max', 'layers' or 'bins'"),
        ({"pooling": ["bins", "bins"]}, "none may be given twice"),
    ],
)
def test_what_is_no_pooling_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Probe, values, source="test")


def test_what_is_read_is_chosen_on_dev() -> None:
    rng = np.random.default_rng(0)
    train, dev = (
        Split(role, ("A",) * count, np.arange(count) % 2) for role, count in (("train", 60), ("dev", 40))
    )
    noise = {split: rng.normal(size=(len(split), 3)).astype(np.float32) for split in (train, dev)}
    signal = {split: noise[split] + 2 * split.truth_N[:, None] for split in (train, dev)}
    layers = ProbeFeatures(pooling="layers", layers=(0,))
    kind = Classification(("0", "1"))

    def chosen(*named: tuple[ProbeFeatures, dict[Split, np.ndarray]]) -> dict[str, object]:
        fitted = fit_probe(
            train,
            dev,
            features=lambda split: {each: found[split] for each, found in named},
            kind=kind,
            grid=(1.0, 0.1),
            seed=0,
        )
        assert fitted.reader.features.pooling == fitted.chosen["pooling"]  # type: ignore[union-attr]
        return fitted.chosen

    assert chosen((layers, noise), (BINNED, signal))["pooling"] == "bins"
    assert chosen((layers, signal), (BINNED, noise))["pooling"] == "layers"
    assert chosen((BINNED, signal), (layers, signal))["pooling"] == "bins", "of equals the first"
    assert chosen((layers, noise), (MEAN_MAX, signal))["pooling"] == "mean_max"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5]])
@pytest.mark.parametrize("features", [20, 150])
def test_the_path_is_that_of_scikit_learn(classes: int, weights: list[float] | None, features: int) -> None:
    """Also where the classes can be separated, as by more features than rows."""
    rng = np.random.default_rng(features)
    mixed = rng.normal(size=(120, features)) @ rng.normal(size=(features, features))
    features_NF = ((mixed - mixed.mean(0)) / mixed.std(0)).astype(np.float32)
    class_N = (features_NF[:, :classes] + rng.gumbel(size=(120, classes)) + np.arange(classes)).argmax(1)
    weights = weights and weights[:classes]
    grid = (1e-3, 1e-1, 10.0)
    path = logistic_path(features_NF, class_N, grid=grid, weights=weights)
    for c, found in zip(grid, path, strict=True):
        theirs = LogisticRegression(
            C=c,
            solver="newton-cholesky",
            tol=1e-8,
            class_weight=dict(enumerate(weights)) if weights else None,
        ).fit(features_NF.astype(np.float64), class_N)
        output_NK = found(features_NF)
        probability_NK = np.exp(output_NK) / np.exp(output_NK).sum(1, keepdims=True)
        np.testing.assert_allclose(probability_NK, theirs.predict_proba(features_NF), atol=2e-3)
