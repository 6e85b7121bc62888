"""Validation hides every scored position: what only copies, or says nothing, is seen for what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep import alphabet
from tests.datasets import markov_sequence, write_dataset
from trainer import health
from trainer.collectives import Group
from trainer.config import TrainConfig
from trainer.data import Dataset, choose_windows
from trainer.heads import Outputs
from trainer.validate import Validator
from trainer.views import make_view, mask


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    uri = write_dataset(tmp_path_factory.mktemp("toy"), {
        "train": [markov_sequence(60_000, seed=1)],
        "val": [markov_sequence(20_000, seed=2), markov_sequence(50, seed=3), np.full(300, alphabet.N, np.uint8)],
    })
    return TrainConfig.model_validate({
        "run": {"dir": "unused"}, "data": {"uri": uri, "length": 100}, "train": {"steps": 1},
        "val": {"windows": 150, "batch": 32}})


def validator(config: TrainConfig) -> Validator:
    return Validator(config, flank=20, device=torch.device("cpu"), group=Group(0, 1))


class Fake(torch.nn.Module):
    """A network whose answer is a function of the letters that it sees."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.heads, self.embedding_size = answer, {}, 8

    def forward(self, codes_BL: torch.Tensor, **_: Any) -> Outputs:
        return Outputs(self.answer(codes_BL), None, None, torch.ones(len(codes_BL), 8))


def copying(codes_BL: torch.Tensor) -> torch.Tensor:
    """Sure of every letter that is visible; says A where none is."""
    letter_BL = torch.where(codes_BL < 4, codes_BL, 0).long()
    return torch.nn.functional.one_hot(letter_BL, 4).float() * 10


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
    constant = held_out.masked(Fake(lambda codes: torch.eye(4)[0].expand(*codes.shape, 4) * 10))["val/mlm_accuracy"]
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
    baselines = held_out.baselines(Dataset(config.data.uri, "train"))
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
    seen = validator(config).health(Fake(lambda codes: torch.zeros(*codes.shape, 4)), None)
    assert seen["health/embedding_std"] < 1e-6
    assert seen["health/effective_rank"] == pytest.approx(1, abs=1e-3)
    assert seen["health/uniformity"] == pytest.approx(0, abs=1e-6)
    assert seen["health/alignment"] == 0  # perfect alignment alone says nothing


def test_health_of_random_directions_is_full() -> None:
    unit = torch.nn.functional.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert health.embedding_std(unit) == pytest.approx(1, abs=0.05)
    assert health.effective_rank(unit) == pytest.approx(16, abs=0.1)
    assert health.uniformity(unit) < -3
    assert health.alignment(unit, -unit) == pytest.approx(4, abs=1e-4)
    assert health.entropy(torch.full((5, 8), 1 / 8)).tolist() == pytest.approx([np.log(8)] * 5, rel=1e-6)
    assert (health.entropy(torch.eye(8)) == 0).all()


def test_val_split_without_letters_says_so(tmp_path: Path, config: TrainConfig) -> None:
    contigs = {"train": [markov_sequence(500, seed=1)], "val": [np.full(300, alphabet.N, np.uint8)]}
    uri = write_dataset(tmp_path, contigs)
    empty = config.model_copy(update={"data": config.data.model_copy(update={"uri": uri})})
    with pytest.raises(ValueError, match="has no letter A, C, G or T to score"):
        validator(empty)


