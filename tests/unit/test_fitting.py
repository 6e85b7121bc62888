"""The recipe of fine-tuning: its length, what a head reads of the letters, rates of the parts, strands."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs import ConfigError, validate
from data_prep import alphabet
from tests.registered import tiny_network
from trainer.core import schedules
from trainer.evaluation.tasks.fitting.finetuning import Examples, Training, train_network
from trainer.evaluation.tasks.fitting.optimisation import Optimiser, depths
from trainer.evaluation.tasks.fitting.pooling import BINS, POOLINGS
from trainer.evaluation.tasks.fitting.recipe import READINGS, Finetune, Length
from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.kinds.multilabel import MultiLabel
from trainer.inference.embedding import embed
from trainer.inference.sequences import EncodedSequences
from trainer.models.network import Network

CPU = torch.device("cpu")


def recipe(**values: object) -> Finetune:
    return validate(Finetune, values, source="test")


@pytest.mark.parametrize(
    ("values", "rows", "length"),
    [
        ({"epochs": 10, "batch": 64}, 640, Length(10, 10, 1)),  # epochs alone: just those
        ({"epochs": 10, "batch": 64, "min_steps": 100}, 640, Length(10, 10, 1)),
        ({"epochs": 10, "batch": 64, "min_steps": 101}, 640, Length(11, 10, 1)),
        ({"epochs": 10, "batch": 64, "min_steps": 2000}, 64, Length(2000, 1, 2000 // READINGS)),
        ({"epochs": 50, "batch": 64, "min_steps": 100}, 64, Length(100, 1, 2)),
        ({"epochs": 50, "batch": 64}, 65, Length(50, 2, 1)),
    ],
)
def test_the_longer_of_epochs_and_steps_counts(values: dict[str, object], rows: int, length: Length) -> None:
    assert recipe(**values).length(rows) == length
    assert length.readings <= max(READINGS, int(str(values["epochs"]))) + 1


def test_few_rows_get_as_many_steps_as_many() -> None:
    default = Finetune()
    assert default.min_steps >= 2000
    for rows in (4, 100, 6478, 50_000):
        assert default.length(rows).steps >= default.min_steps
        assert default.length(rows).readings >= 10
    assert validate(Finetune, default.model_dump(), source="test") == default


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": []}, "at least 1 item"),
        ({"pooling": "sum"}, "'mean', 'mean_max', 'bins' or 'attention'"),
        ({"pooling": ["bins", "bins"]}, "none may be given twice"),
        ({"norm": "none"}, "'batch' or 'layer'"),
        ({"dropout": 1}, "less than 1"),
        ({"label_smoothing": -0.1}, "greater than or equal to 0"),
        ({"layer_decay": 0}, "greater than 0"),
        ({"layer_decay": 1.1}, "less than or equal to 1"),
        ({"backbone_lr_factor": 0}, "greater than 0"),
        ({"frozen_steps": -1}, "greater than or equal to 0"),
        ({"min_steps": -1}, "greater than or equal to 0"),
    ],
)
def test_what_is_no_recipe_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**values)


def naive(name: str, letters_LD: np.ndarray) -> np.ndarray:
    mean, most = letters_LD.mean(0), letters_LD.max(0)
    if name == "mean":
        return mean
    if name == "mean_max":
        return np.concatenate([mean, most])
    n = len(letters_LD)
    parts = [letters_LD[i * n // BINS : math.ceil((i + 1) * n / BINS)].mean(0) for i in range(BINS)]
    return np.concatenate([mean, most, *parts])


@pytest.mark.parametrize("name", ["mean", "mean_max", "bins"])
def test_poolings_are_the_naive_ones_and_read_no_padding(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    pooling = POOLINGS[name](5, generator)  # type: ignore[index]
    lengths = [1, 3, 15, 16, 17, 40]
    letters_BLD = torch.randn(len(lengths), 40, 5, generator=generator)
    found_BF = pooling(letters_BLD, torch.tensor(lengths))
    assert found_BF.shape[1] == pooling.features
    for row, n in enumerate(lengths):
        wanted = naive(name, letters_BLD[row, :n].numpy())
        np.testing.assert_allclose(found_BF[row].numpy(), wanted, atol=1e-6)
        alone_F = pooling(letters_BLD[row : row + 1, :n], None)[0]
        torch.testing.assert_close(found_BF[row], alone_F, atol=1e-6, rtol=0)


def test_attention_reads_no_padding_and_what_its_query_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    pooling = POOLINGS["attention"](5, generator)
    letters_BLD = torch.randn(2, 12, 5, generator=generator)
    both_BF = pooling(letters_BLD, torch.tensor([7, 12]))
    torch.testing.assert_close(both_BF[:1], pooling(letters_BLD[:1, :7], None), atol=1e-6, rtol=0)
    with torch.no_grad():
        pooling.query.weight[0] *= 1e4  # the first query then finds one letter
    found_D = pooling(letters_BLD[:1], None)[0, 5:10]
    assert any(torch.allclose(found_D, letter_D, atol=1e-3) for letter_D in letters_BLD[0])


def test_smooth_labels_are_the_naive_ones() -> None:
    output_BK = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, 1.0]])
    truth_B, smoothing = torch.tensor([0, 2]), 0.3
    target_BK = nn.functional.one_hot(truth_B, 3) * (1 - smoothing) + smoothing / 3
    wanted = -(target_BK * output_BK.log_softmax(-1)).sum(-1).mean()
    kind = Classification(("a", "b", "c"))
    torch.testing.assert_close(kind.smooth_loss(output_BK, truth_B, smoothing=smoothing), wanted)
    torch.testing.assert_close(
        kind.smooth_loss(output_BK, truth_B, smoothing=0.0), kind.loss(output_BK, truth_B)
    )
    many, yes_BK = MultiLabel(("a", "b", "c")), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    soft_BK = yes_BK * (1 - smoothing) + smoothing / 2
    wanted = nn.functional.binary_cross_entropy_with_logits(output_BK, soft_BK)
    torch.testing.assert_close(many.smooth_loss(output_BK, yes_BK, smoothing=smoothing), wanted)


def test_depths_follow_the_layers_of_the_backbone() -> None:
    backbone = tiny_network().backbone
    found = dict(zip((name for name, _ in backbone.named_parameters()), depths(backbone), strict=True))
    assert {name.split(".")[0]: depth for name, (_, depth) in found.items()} == {"input": 0, "layers": 2}
    assert all(depth == 1 for name, (_, depth) in found.items() if name.startswith("layers.0."))
    flat = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert {depth for _, depth in depths(flat)} == {0}, "a backbone without a list of layers is one layer"


def moved(config: Finetune, *, steps: int, pretrained: bool = True) -> list[dict[str, float]]:
    """By how much each part moves in each step, under gradients of 1: AdamW moves by about its rate."""
    network, head = tiny_network(), nn.Linear(2, 2)
    optimiser = Optimiser(
        network.backbone, [head], config=config, peak=1e-3, steps=steps, pretrained=pretrained
    )
    parts: dict[str, nn.Module] = {"head": head, "input": network.backbone.input}
    parts |= {f"layer{i}": layer.expand for i, layer in enumerate(network.backbone.layers)}
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        for part in parts.values():
            for parameter in part.parameters():
                parameter.grad = torch.ones_like(parameter)
        if optimiser.frozen:
            for name in parts.keys() - {"head"}:
                for parameter in parts[name].parameters():
                    parameter.grad = None
        before = {name: part.bias.detach().clone() for name, part in parts.items()}
        optimiser.step()
        found.append(
            {name: float((before[name] - part.bias.detach()).mean()) for name, part in parts.items()}
        )
    return found


def test_rates_of_the_parts() -> None:
    config = recipe(warmup=0.2, backbone_lr_factor=0.5, layer_decay=0.9, grad_clip=1e9, weight_decay=0)
    for step, found in enumerate(moved(config, steps=10), 1):
        rate = schedules.learning_rate(step, peak=1e-3, total_steps=10, warmup_fraction=0.2, final_fraction=0)
        wanted = {"head": 1.0, "layer1": 0.5, "layer0": 0.45, "input": 0.405}
        assert found == pytest.approx(
            {name: rate * each for name, each in wanted.items()}, rel=1e-3, abs=1e-9
        )
    from_scratch = moved(config, steps=3, pretrained=False)[1]
    assert from_scratch == pytest.approx(dict.fromkeys(from_scratch, from_scratch["head"]), rel=1e-3)


def test_a_frozen_backbone_thaws_with_a_warm_up_of_its_own() -> None:
    config = recipe(warmup=0.2, frozen_steps=3, grad_clip=1e9, weight_decay=0)
    found = moved(config, steps=10)
    assert [step["layer0"] == 0 for step in found[:9]] == [True] * 3 + [False] * 6
    assert all(step["head"] > 0 for step in found[:9])
    shares = [step["layer0"] / step["head"] for step in found[3:6]]
    assert shares == pytest.approx([0.5, 1, 1], rel=1e-3), "two steps, as many as the warm-up has"


def examples(count: int, *, seed: int = 0) -> Examples:
    """Class 1 has more G in its first half than class 0; the other strand would mislead."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, 4, 40).astype(np.uint8) for _ in range(count)]
    for i, each in enumerate(codes):
        each[5 : 5 + 8] = alphabet.G if i % 2 else alphabet.C
    return Examples(EncodedSequences.from_codes(codes), np.arange(count) % 2)


def training(*, strand: str = "both", pretrained: bool = True, **values: object) -> Training:
    config = recipe(**{"epochs": 2, "batch": 16, "lr": 3e-3, "precision": "fp32", "patience": 0} | values)
    return Training(Classification(("0", "1")), config, "fp32", 0, strand, pretrained)  # type: ignore[arg-type]


def trained(how: Training, network: Network | None = None) -> tuple[Network, object]:
    network = network or tiny_network()
    found = train_network(examples(48), examples(24, seed=1), start=lambda: network, training=how, device=CPU)
    return network, found


def test_pooling_is_chosen_on_dev_and_the_best_head_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.2, 0.15, 0.3, 0.1, 0.4, 0.0, 0.39])
    monkeypatch.setattr(Classification, "score", lambda *_: {"mcc": next(scores)})
    how = training(lr=[1e-3, 2e-3], pooling=["mean", "attention"])
    _, found = trained(how)
    assert found.chosen == {"lr": 2e-3, "epoch": 1, "pooling": "attention"}  # type: ignore[attr-defined]
    assert found.network.head.config.pooling == "attention"  # type: ignore[attr-defined]
    dev = found.predict(examples(24, seed=1).sequences)  # type: ignore[attr-defined]
    np.testing.assert_allclose(dev, found.dev_prediction, atol=1e-6)  # type: ignore[attr-defined]


def test_what_is_frozen_stays_and_scratch_has_nothing_to_freeze() -> None:
    before = {name: value.clone() for name, value in tiny_network().backbone.state_dict().items()}

    def moves(how: Training) -> bool:
        network, _ = trained(how)
        after = network.backbone.state_dict()
        return not all(torch.equal(before[name], value) for name, value in after.items())

    assert not moves(training(frozen_steps=1000))
    assert moves(training(frozen_steps=4))
    assert moves(training(frozen_steps=1000, pretrained=False))


def test_the_given_strand_alone_is_read() -> None:
    """In training, on dev, in predictions and in embeddings; the other strand then has other ones."""
    forward = examples(24, seed=1).sequences
    reverse = EncodedSequences.from_codes([alphabet.reverse_complement(forward.codes(i)) for i in range(24)])
    for strand, same in (("both", True), ("given", False)):
        _, found = trained(training(strand=strand, pooling="mean"))
        ours, theirs = (found.predict(each) for each in (forward, reverse))  # type: ignore[attr-defined]
        assert np.allclose(ours, theirs, atol=1e-5) == same, strand
        vectors: list[Tensor] = [
            torch.cat(embed(tiny_network(), each, strand=strand), 1)  # type: ignore[arg-type]
            for each in (forward, reverse)
        ]
        assert torch.allclose(*vectors, atol=1e-5) == same, strand


def test_dropout_depends_on_the_seed_alone_and_is_off_in_predictions() -> None:
    torch.manual_seed(1)
    _, one = trained(training(dropout=0.5))
    torch.manual_seed(2)
    _, two = trained(training(dropout=0.5))
    _, none = trained(training(dropout=0))
    np.testing.assert_array_equal(one.dev_prediction, two.dev_prediction)  # type: ignore[attr-defined]
    assert not np.allclose(one.dev_prediction, none.dev_prediction)  # type: ignore[attr-defined]
    sequences = examples(24, seed=1).sequences
    np.testing.assert_array_equal(one.predict(sequences), one.predict(sequences))  # type: ignore[attr-defined]
