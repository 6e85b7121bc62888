"""trainer.evaluation.tasks.fitting.modes, linear and finetuning: what is chosen is chosen on dev."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from configs import validate
from data_prep import alphabet
from tests.registered import tiny_network
from trainer.evaluation.tasks.config import MODES, Finetune, TaskConfig
from trainer.evaluation.tasks.fitting import modes, variant_modes
from trainer.evaluation.tasks.fitting.finetuning import Examples, Training, train_network
from trainer.evaluation.tasks.fitting.linear import fit_linear, kmer_counts, onehot_letters
from trainer.evaluation.tasks.fitting.modes import compute_unit, fit_mode
from trainer.evaluation.tasks.fitting.prepared import Precisions, PreparedTask, prepare, settings_digest
from trainer.evaluation.tasks.kinds.classification import Classification
from trainer.evaluation.tasks.kinds.variants import Variants
from trainer.evaluation.tasks.results.results import Unit
from trainer.evaluation.tasks.rows.data import Split, TaskData
from trainer.inference.sequences import EncodedSequences

ROWS = {"train": 41, "dev": 30, "test": 25}


def random_letters(count: int, *, seed: int, length: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join("ACGT"[i] for i in row) for row in rng.integers(0, 4, (count, length))]


def task(**values: object) -> TaskConfig:
    return validate(TaskConfig, {"name": "t"} | values, source="test")


def test_kmer_counts_are_the_naive_ones() -> None:
    counts = kmer_counts(["ACGTAC", "NNACN"], k=2)
    assert counts.shape == (2, 16)
    assert counts.sum(1).ravel().tolist() == [[5, 1]]  # a k-mer with N is none
    assert counts[0, 4 * alphabet.A + alphabet.C] == 2


def make_split(role: str, count: int, *, seed: int) -> Split:
    letters = random_letters(count, seed=seed, length=30)
    return Split(role, tuple(letters), np.array([int("GC" in s[:12]) for s in letters]))


def test_linear_selection_takes_the_penalty_that_is_best_on_dev() -> None:
    train, dev = make_split("train", 80, seed=0), make_split("dev", 60, seed=1)
    kind, grid = Classification(("0", "1")), (1e-4, 1e-2, 1.0, 100.0)

    def features(split: Split) -> object:
        return kmer_counts(split.letters, k=2)

    scores = {}
    for c in grid:
        model = kind.fit_linear(features(train), train.truth_N, c=c, seed=0)
        prediction = kind.predict(torch.from_numpy(model(features(dev))))
        scores[c] = kind.score(dev.truth_N, prediction)["mcc"]
    fitted = fit_linear(train, dev, features=features, kind=kind, grid=grid, seed=5)
    assert scores[fitted.chosen["C"]] == max(scores.values())
    assert len(set(scores.values())) > 1
    np.testing.assert_allclose(fitted.predict(dev), fitted.dev_prediction)


def prepared_task(*, lr: tuple[float, ...] = (3e-3,), **values: object) -> PreparedTask:
    train, dev, test = (make_split(role, rows, seed=i) for i, (role, rows) in enumerate(ROWS.items()))
    finetune = {"epochs": 2, "batch": 20, "lr": lr, "precision": "fp32", "pooling": "mean_max", "patience": 0}
    config = task(**{"test": "x", "labels": ["0", "1"], "finetune": finetune} | values)
    network = tiny_network()
    export_config = {"model_type": "findna", **network.backbone.export_config()}
    data = TaskData(train, dev, test, {})
    return prepare(network, export_config, task=config, data=data, device=torch.device("cpu"))


def fit(seed: int, *, lr: tuple[float, ...] = (3e-3,), mode: str = "finetune") -> tuple[object, np.ndarray]:
    prepared = prepared_task(lr=lr)
    before = {name: value.clone() for name, value in prepared.network.state_dict().items()}
    fitted = fit_mode(prepared, mode, seed=seed)
    after = prepared.network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items()), "the teacher moved"
    np.testing.assert_allclose(fitted.predict(prepared.data.dev), fitted.dev_prediction, atol=1e-6)
    return fitted.chosen, fitted.dev_prediction


def test_a_unit_of_work_is_computed_without_mlflow_and_its_result_travels_between_processes() -> None:
    prepared = prepared_task()
    unit = Unit("m", "1", "t", "kmer", 0)
    result = compute_unit(prepared, unit).result
    assert pickle.loads(pickle.dumps(result)) == result
    assert (result.unit, result.rows, result.settings) == (unit, ROWS, prepared.settings)
    fitted = fit_mode(prepared, "kmer", seed=0)
    assert result.test == prepared.kind.score(prepared.data.test.truth_N, fitted.predict(prepared.data.test))
    assert result.val == prepared.kind.score(prepared.data.dev.truth_N, fitted.dev_prediction)
    assert result.chosen == f"C {fitted.chosen['C']:g}"


def test_every_mode_of_a_config_can_be_fitted() -> None:
    assert set(modes._MODES) == set(Classification.modes)
    assert set(variant_modes.MODES) == set(Variants.modes)
    assert set(modes._MODES) | set(variant_modes.MODES) == set(MODES)


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_training_is_a_function_of_the_seed_alone(mode: str) -> None:
    torch.manual_seed(1)
    one = fit(0, mode=mode)
    torch.manual_seed(2)
    two = fit(0, mode=mode)
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.allclose(one[1], fit(1, mode=mode)[1])


def test_the_grid_and_the_epoch_are_chosen_on_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[float] = []
    wanted = iter([0.1, 0.5, 0.9, 0.3])

    def score(self: Classification, truth_N: object, prediction_N: object) -> dict[str, float]:
        scores.append(next(wanted))
        return {"mcc": scores[-1]}

    monkeypatch.setattr(Classification, "score", score)
    chosen, _ = fit(0, lr=(1e-3, 2e-3))
    assert chosen == {"lr": 2e-3, "epoch": 1}
    assert len(scores) == 4


@pytest.mark.parametrize(
    ("patience", "scores", "chosen"),
    [
        (0, [0.5, 0.1, 0.2, 0.3, 0.6], {"lr": 1e-3, "epoch": 5}),
        (2, [0.5, 0.1, 0.2], {"lr": 1e-3, "epoch": 1, "epochs_run": 3}),
        (2, [0.5, 0.1, 0.6, 0.2, 0.2], {"lr": 1e-3, "epoch": 3, "epochs_run": 5}),
        (1, [0.5, 0.5], {"lr": 1e-3, "epoch": 1, "epochs_run": 2}),
        (1, [0.5, 0.1, 0.6, 0.1], {"lr": 2e-3, "epoch": 1, "epochs_run": 2}),
    ],
)
def test_patience_ends_the_training_of_one_learning_rate(
    monkeypatch: pytest.MonkeyPatch, patience: int, scores: list[float], chosen: dict[str, float]
) -> None:
    wanted = iter(scores)
    monkeypatch.setattr(Classification, "score", lambda *_: {"mcc": next(wanted)})
    rates = [1e-3, 2e-3] if chosen["lr"] == 2e-3 else [1e-3]
    finetune = {"epochs": 5, "batch": 20, "lr": rates, "precision": "fp32", "patience": patience}
    finetune["pooling"] = "mean"
    assert fit_mode(prepared_task(finetune=finetune), "finetune", seed=0).chosen == chosen
    assert next(wanted, None) is None, "dev was not scored as often as it should be"


def test_letters_by_position_are_the_naive_ones() -> None:
    found = onehot_letters(["ACNT", "T", "GGGGGG"], length=5).toarray()
    naive = np.zeros((3, 5, 4))
    for row, letters in enumerate(["ACNT", "T", "GGGGG"]):
        for place, letter in enumerate(letters):
            if letter != "N":
                naive[row, place, "ACGT".index(letter)] = 1
    np.testing.assert_array_equal(found, naive.reshape(3, 20))


def test_where_position_decides_onehot_is_above_kmers() -> None:
    def planted(role: str, rows: int, *, seed: int) -> Split:
        """Both classes have AC and CA; which of them stands at 10 is the class."""
        pairs = (("AC", "CA"), ("CA", "AC"))
        letters = tuple(
            s[:10] + pairs[i % 2][0] + s[12:20] + pairs[i % 2][1] + s[22:]
            for i, s in enumerate(random_letters(rows, seed=seed, length=30))
        )
        return Split(role, letters, np.arange(rows) % 2)

    train, dev = planted("train", 400, seed=0), planted("dev", 200, seed=1)
    kind, scores = Classification(("0", "1")), {}
    for name, features in {
        "kmer": lambda split: kmer_counts(split.letters, k=2),
        "onehot": lambda split: onehot_letters(split.letters, length=30),
    }.items():
        fitted = fit_linear(train, dev, features=features, kind=kind, grid=(0.01, 1), seed=0)
        scores[name] = kind.main_score(dev.truth_N, fitted.dev_prediction)
    assert scores["onehot"] == 1
    assert abs(scores["kmer"]) < 0.3


@pytest.mark.parametrize(
    ("kind", "labels", "truth"),
    [
        ("regression", (), lambda letters: float(letters.count("G"))),
        ("multilabel", ("g", "c"), lambda letters: [letters.count(each) > 7 for each in "GC"]),
    ],
)
def test_every_mode_fits_every_kind(
    kind: str, labels: tuple[str, ...], truth: Callable[[str], object]
) -> None:
    splits = []
    for seed, role in enumerate(ROWS):
        letters = random_letters(80, seed=seed, length=30)
        splits.append(Split(role, tuple(letters), np.array([truth(each) for each in letters], np.float32)))
    network = tiny_network()
    prepared = prepare(
        network,
        {"model_type": "findna", **network.backbone.export_config()},
        task=task(
            test="x",
            kind=kind,
            finetune={"epochs": 1, "precision": "fp32"},
            kmer={"k": 1},
            **labels_of(labels),
        ),
        data=TaskData(*splits, {}),
        device=torch.device("cpu"),
    )
    for mode in prepared.kind.modes:
        result = compute_unit(prepared, Unit("m", "1", "t", mode, 0)).result
        assert result.test.keys() == result.val.keys() == {each.name for each in prepared.kind.metrics}
        assert np.isfinite(list(result.test.values())).all()
        if mode == "kmer":
            assert result.test[prepared.kind.metrics[0].name] > 0.8, "letters that are counted are in k-mers"


def labels_of(labels: tuple[str, ...]) -> dict[str, object]:
    return {"labels": labels} if labels else {}


def test_class_weights_change_every_mode() -> None:
    even, balanced = prepared_task(), prepared_task(class_weights="balanced")
    truth = even.data.train.truth_N
    weights = [len(truth) / (2 * (truth == number).sum()) for number in (0, 1)]
    assert balanced.kind.state["class_weights"] == pytest.approx(weights)
    for mode in Classification.modes:
        ours, theirs = (fit_mode(prepared, mode, seed=0).dev_prediction for prepared in (even, balanced))
        assert not np.allclose(ours, theirs), mode


def test_settings_of_before_have_the_digest_of_before() -> None:
    """So results that MLflow has from before are compared with those of now."""

    before = {
        "epochs": 5,
        "batch": 32,
        "lr": [1e-4, 3e-4],
        "warmup": 0.1,
        "pooling": "mean",
        "norm": "batch",
        "dropout": 0,
        "label_smoothing": 0,
        "patience": 0,
    }

    probe = {"pooling": "mean_max", "C": [0.001, 0.01, 0.1, 1.0]}

    def digest(*, finetune: dict[str, object] | None = None, **more: object) -> str:
        given = {"finetune": before | (finetune or {}), "probe": probe} | more
        config = task(test="x", labels=["0", "1"], **given)
        return settings_digest(config, precisions=Precisions("fp32", "fp32"), data_sha256="d")

    assert digest() == "ce63abbcc722"
    assert digest(max_train_rows=5, modes=["kmer"], seeds=[3]) == digest(), "the rows are in data_sha256"
    changed = [{"class_weights": "balanced"}, {"onehot": {"C": [1]}}, {"strand": "given"}]
    changed += [
        {"finetune": {key: value}}
        for key, value in {
            "patience": 1,
            "min_steps": 500,
            "pooling": ["mean", "bins"],
            "norm": "layer",
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "backbone_lr_factor": 0.5,
            "layer_decay": 0.9,
            "frozen_steps": 3,
        }.items()
    ]
    changed += [{"probe": probe | {"pooling": each}} for each in ("layers", "bins", ["bins", "mean_max"])]
    assert len({digest(**values) for values in changed} | {digest()}) == len(changed) + 1


def test_divergence_is_one_sentence() -> None:
    split = make_split("train", 20, seed=0)
    examples = Examples(EncodedSequences.from_codes(split.codes()), split.truth_N)
    broken = tiny_network()
    torch.nn.init.constant_(broken.backbone.input.weight, torch.nan)
    training = Training(Classification(("0", "1")), Finetune(), "fp32", seed=0)
    with pytest.raises(RuntimeError, match="diverged at every learning rate"):
        train_network(examples, examples, start=lambda: broken, training=training, device=torch.device("cpu"))
