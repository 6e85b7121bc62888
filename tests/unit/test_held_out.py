"""Validation hides every scored position: what only copies, or says nothing, is seen for what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.process.heartbeat import heartbeat
from data_prep import alphabet
from data_prep.shards import FormatError
from tests.datasets import markov_sequence, write_dataset
from trainer.core.collectives import Group
from trainer.data.config import Data
from trainer.data.dataset import Dataset, open_datasets
from trainer.data.windows import choose_windows
from trainer.distill import representation_metrics
from trainer.evaluation.held_out import Validator
from trainer.evaluation.held_out_windows import choose_places, masked_batch, share_out
from trainer.evaluation.markov import mix_counts
from trainer.losses import prototype_metrics
from trainer.models.network import Outputs
from trainer.run.config import TrainConfig
from trainer.views.masking import mask
from trainer.views.view import make_view


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    uri = write_dataset(
        tmp_path_factory.mktemp("toy"),
        {
            "train": [markov_sequence(60_000, seed=1)],
            "val": [
                markov_sequence(20_000, seed=2),
                markov_sequence(50, seed=3),
                np.full(300, alphabet.N, np.uint8),
            ],
        },
    )
    return TrainConfig.model_validate(
        {
            "run": {"dir": "unused"},
            "data": {"uri": uri, "length": 100},
            "train": {"steps": 1},
            "val": {"windows": 150, "batch": 32},
        }
    )


def validator(config: TrainConfig) -> Validator:
    return Validator(config.data, config.val, config.views, device=torch.device("cpu"), group=Group(0, 1))


class Fake(torch.nn.Module):
    """A network whose answer is a function of the letters that it sees."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.embedding_size = answer, 8

    def forward(self, codes_BL: torch.Tensor, **_: Any) -> Outputs:
        return Outputs(self.answer(codes_BL), torch.ones(len(codes_BL), 8))


def copying(codes_BL: torch.Tensor) -> torch.Tensor:
    """Sure of every letter that is visible; says A where none is."""
    letter_BL = torch.where(codes_BL < 4, codes_BL, 0).long()
    return torch.nn.functional.one_hot(letter_BL, 4).float() * 10


def test_each_batch_is_progress(config: TrainConfig) -> None:
    """Validation of many windows is no hang."""
    ours, before = validator(config), heartbeat.read().moves
    ours.masked(Fake(copying))  # type: ignore[arg-type]
    assert heartbeat.read().moves == before + len(ours._batches) == before + 5


def test_every_scored_position_is_hidden_and_no_n_is_scored(config: TrainConfig) -> None:
    for rows in validator(config)._batches:
        assert (rows.visible_BL[rows.scored_BL] == alphabet.MASK).all()
        assert (rows.codes_BL[rows.scored_BL] < 4).all()
        kept = ~rows.scored_BL
        assert torch.equal(rows.visible_BL[kept], rows.codes_BL[kept])
        share = rows.scored_BL.sum() / (rows.codes_BL < 4).sum().clamp(min=1)
        assert abs(share - 0.3) < 0.05


def test_copying_visible_letters_scores_no_more_than_a_constant(config: TrainConfig) -> None:
    """Scored like training (10 % kept, 10 % random), the copier would look like a model that has learned."""
    held_out = validator(config)
    constant = held_out.masked(Fake(lambda codes: torch.eye(4)[0].expand(*codes.shape, 4) * 10))[
        "val/mlm_accuracy"
    ]
    assert held_out.masked(Fake(copying))["val/mlm_accuracy"] == constant
    rows = held_out._batches[0]
    view = make_view(rows.windows, name="v", operations={})
    trained = mask(view, rows.windows, name="v", rate=0.3, mask_share=0.8, random_share=0.1)
    guess = copying(trained.codes_BL).argmax(-1)[trained.target_BL]
    naive_accuracy = (guess == trained.labels_BL[trained.target_BL]).double().mean()
    assert naive_accuracy > constant + 0.05


def test_loss_and_accuracy_equal_a_naive_loop(config: TrainConfig) -> None:
    held_out = validator(config)
    torch.manual_seed(0)
    table = torch.randn(8, 4)
    network = Fake(lambda codes: table[codes.long()])
    loss, right, count = 0.0, 0, 0
    for rows in held_out._batches:
        for b, place in rows.scored_BL.nonzero().tolist():
            truth = int(rows.codes_BL[b, place])
            loss -= float(torch.log_softmax(table[alphabet.MASK], 0)[truth])
            right += int(table[alphabet.MASK].argmax() == truth)
            count += 1
    measured = held_out.masked(network)
    assert measured["val/mlm_loss"] == pytest.approx(loss / count, rel=1e-5)
    assert measured["val/mlm_accuracy"] == pytest.approx(right / count)
    assert held_out.scored == count


def test_baselines_stand_on_the_same_positions(config: TrainConfig) -> None:
    held_out = validator(config)
    baselines = held_out.baselines([Dataset(config.data.uri[0].uri, "train")])
    assert baselines["val/scored_positions"] == held_out.scored
    assert 0.2 < baselines["val/mlm_accuracy_majority"] < 0.32
    assert baselines["val/mlm_accuracy_markov"] > 0.6  # the planted dependence is on the neighbours


def test_windows_and_masks_are_the_same_in_every_run(config: TrainConfig) -> None:
    other_seed = config.model_copy(update={"run": config.run.model_copy(update={"seed": 99})})
    for first, second in zip(validator(config)._batches, validator(other_seed)._batches, strict=True):
        assert torch.equal(first.visible_BL, second.visible_BL)


def test_windows_are_spread_over_the_blocks_and_never_leave_them() -> None:
    places = choose_windows([1000, 50, 300, 104], 100, 5, margin=4)
    assert places == [(0, 4, 104), (0, 304, 404), (0, 604, 704), (1, 0, 50), (3, 0, 100)]
    for block, start, end in choose_windows([1000, 50, 300, 104], 100, 99, margin=4):
        assert 0 <= start < end <= [1000, 50, 300, 104][block]


def test_a_constant_teacher_is_caught(config: TrainConfig) -> None:
    seen = validator(config).health(Fake(lambda codes: torch.zeros(*codes.shape, 4)), lambda _: {})
    assert seen["health/embedding_std"] < 1e-6
    assert seen["health/effective_rank"] == pytest.approx(1, abs=1e-3)
    assert seen["health/uniformity"] == pytest.approx(0, abs=1e-6)
    assert seen["health/alignment"] == 0  # perfect alignment alone says nothing


def test_health_of_random_directions_is_full() -> None:
    unit = torch.nn.functional.normalize(
        torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1
    )
    assert representation_metrics.embedding_std(unit) == pytest.approx(1, abs=0.05)
    assert representation_metrics.effective_rank(unit) == pytest.approx(16, abs=0.1)
    assert representation_metrics.uniformity(unit) < -3
    assert representation_metrics.alignment(unit, -unit) == pytest.approx(4, abs=1e-4)
    assert prototype_metrics.entropy(torch.full((5, 8), 1 / 8)).tolist() == pytest.approx(
        [np.log(8)] * 5, rel=1e-6
    )
    assert (prototype_metrics.entropy(torch.eye(8)) == 0).all()


def test_readings_of_rows_are_means_over_both_views_of_the_windows_that_count(config: TrainConfig) -> None:
    val = config.val.model_copy(update={"windows": 300, "batch": 48})
    data = Data(uri=config.data.uri[0].uri, length=50)
    held_out, rows = validator(config.model_copy(update={"val": val, "data": data})), []

    def share_of_a(outputs: Outputs) -> dict[str, torch.Tensor]:
        rows.append(outputs.logits_BLV[:, :, 0].mean(1))
        return {"health/share_of_a": rows[-1]}

    network = Fake(lambda codes: (codes == alphabet.A).float()[..., None].expand(*codes.shape, 4))
    seen = held_out.health(network, share_of_a)
    assert sum(len(part) for part in rows[::2]) == 6 * 48, "more than the windows that count"
    firsts, seconds = (torch.cat(rows[view::2])[:256] for view in (0, 1))
    assert seen["health/share_of_a"] == pytest.approx(float(torch.cat([firsts, seconds]).mean()), rel=1e-5)
    assert seen["health/share_of_a"] > 0


def test_val_split_without_letters_says_so(tmp_path: Path, config: TrainConfig) -> None:
    contigs = {"train": [markov_sequence(500, seed=1)], "val": [np.full(300, alphabet.N, np.uint8)]}
    uri = write_dataset(tmp_path, contigs)
    empty = config.model_copy(update={"data": Data(uri=uri, length=100)})
    with pytest.raises(ValueError, match="has no letter A, C, G or T to score"):
        validator(empty)


def mixture(tmp_path: Path, **data: Any) -> TrainConfig:
    """Two datasets by 3 : 1, in the second of which T is the most frequent letter, and one without a val
    split."""
    rng = np.random.default_rng(0)
    rich_in_t = [
        np.where(rng.random(bases) < 0.9, alphabet.T, markov_sequence(bases, seed=5)).astype(np.uint8)
        for bases in (3_000, 20_000)
    ]
    uris = [
        write_dataset(
            tmp_path / "one",
            {"train": [markov_sequence(60_000, seed=1)], "val": [markov_sequence(20_000, seed=2)]},
        ),
        write_dataset(tmp_path / "two", {"train": rich_in_t[:1], "val": rich_in_t[1:]}),
        write_dataset(tmp_path / "three", {"train": [markov_sequence(500, seed=4)]}),
    ]
    weights = (3.0, 1.0, 1e-6)
    return TrainConfig.model_validate(
        {
            "run": {"dir": "unused"},
            "train": {"steps": 1},
            "val": {"windows": 100, "batch": 20},
            "data": {
                "uri": [{"uri": uri, "weight": weight} for uri, weight in zip(uris, weights, strict=True)],
                "length": 100,
            }
            | data,
        }
    )


def test_a_mixture_is_validated_by_weight_and_its_baselines_mirror_it(tmp_path: Path) -> None:
    config = mixture(tmp_path)
    held_out = validator(config)
    assert held_out.left_out == [config.data.uri[2].uri]
    train = [Dataset(part.uri, "train") for part in config.data.uri]
    rich = [(rows.codes_BL == alphabet.T).float().mean(1) > 0.7 for rows in held_out._batches]
    assert int(torch.cat(rich).sum()) == 25
    assert [int(part.sum()) for part in rich] == [5] * 5, "any first part mirrors the mixture too"
    letters, kmers = mix_counts(
        [held_out._count(dataset) for dataset in train], [3 / 60_000, 1 / 3_000, 1e-6 / 500]
    )
    share = letters / letters.sum()
    expected = 0.75 * np.bincount(markov_sequence(60_000, seed=1), minlength=4) / 60_000
    expected += 0.25 * np.bincount(train[1].codes(0), minlength=4) / 3_000
    assert share == pytest.approx(expected, abs=1e-5)
    assert share.argmax() == alphabet.T != np.bincount(markov_sequence(60_000, seed=1)).argmax()
    truth = torch.cat([rows.codes_BL[rows.scored_BL] for rows in held_out._batches])
    found = held_out.baselines(train)
    assert found["val/mlm_accuracy_majority"] == float((truth == alphabet.T).double().mean())
    assert found["val/mlm_accuracy_markov"] > 0.7
    assert (kmers > 0).sum() == (sum(held_out._count(dataset)[1] for dataset in train) > 0).sum(), (
        "none is rounded off"
    )


def test_datasets_have_masks_of_their_own(tmp_path: Path) -> None:
    held_out = validator(mixture(tmp_path))
    keys = torch.cat([rows.windows.key_B for rows in held_out._batches])
    assert len(keys.unique()) == len(keys) == 100


def test_ranks_share_the_windows_of_a_mixture(tmp_path: Path) -> None:
    config = mixture(tmp_path)
    whole = torch.cat([rows.visible_BL for rows in validator(config)._batches])
    for size in (2, 3):
        for rank in range(size):
            datasets = open_datasets(config.data, "val", some_empty=True)
            places = choose_places(datasets, config.data, windows=config.val.windows)[rank::size]
            batch = masked_batch(datasets, places, length=100, views=config.views, spare=places[0])
            assert torch.equal(batch.visible_BL, whole[rank::size])


def test_validation_has_the_length_that_the_run_ends_with(config: TrainConfig) -> None:
    lengths = [{"from_step": 0, "length": 64}, {"from_step": 7, "length": 160}]
    data = Data.model_validate(config.data.model_dump() | {"length": lengths})
    held_out = validator(config.model_copy(update={"data": data}))
    assert {rows.codes_BL.shape[1] for rows in held_out._batches} == {160}


def test_a_damaged_training_block_is_not_counted_with_skip_and_fatal_without(tmp_path: Path) -> None:
    for on_corrupt in ("fail", "skip"):
        config = mixture(tmp_path / on_corrupt, on_corrupt=on_corrupt)
        held_out, train = validator(config), [Dataset(part.uri, "train") for part in config.data.uri]
        sound = held_out._count(train[0])[0]
        shard, entry = train[0].blocks[3]
        path = Path(train[0].uri, shard.name)
        damaged = bytearray(path.read_bytes())
        damaged[entry.offset + 100] ^= 1
        lost = np.bincount(train[0].codes(3), minlength=4)
        path.write_bytes(damaged)
        if on_corrupt == "fail":
            with pytest.raises(FormatError, match=r"train-000000\.tar, block train0:.*crc32"):
                held_out.baselines(train)
        else:
            assert (held_out._count(train[0])[0] == sound - lost).all()
            assert held_out.baselines(train)["val/mlm_accuracy_markov"] > 0.7


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (512, [1.0], [512]),
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [3, 1], [8, 2]),
        (7, [5, 1e-9], [7, 1]),
        (1, [1, 1], [1, 1]),
    ],
)
def test_windows_are_shared_out_by_weight(total: int, weights: list[float], shares: list[int]) -> None:
    assert share_out(total, weights) == shares
