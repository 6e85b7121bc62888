"""A view operation is one function and one line in VIEWS: two are added here from outside and used as the
built-in ones are."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from configs import ConfigError, validate
from tests.datasets import markov_sequence, write_dataset
from tests.dist.steps import run_steps, small_config
from tests.ranks import on_ranks
from tests.unit.test_views import Drawn, check_source_map, drawn_views, windows
from trainer.run.config import TrainConfig
from trainer.views.edits import VIEWS, Edit, uniform
from trainer.views.view import INSERTED, make_view


def cut(word_B1: Tensor, limit: int, length: int) -> Edit:
    """``limit`` letters are cut out of the middle."""
    return Edit(torch.full_like(word_B1, limit).int(), place_B1=torch.full_like(word_B1, length // 2).int())


def scramble(word_B1: Tensor, limit: int, length: int) -> Edit:
    """0 … ``limit`` letters at a random place become random letters; none moves."""
    count_B1 = uniform(word_B1, 32, limit + 1)
    return Edit(torch.zeros_like(count_B1), place_B1=uniform(word_B1, 0, length), inserted_B1=count_B1)


NEW = {"cut": cut, "scramble": scramble}
added = mock.patch.dict(VIEWS, NEW)


@settings(max_examples=100, deadline=None)
@given(drawn_views([*VIEWS, *NEW]))
def test_their_source_maps_are_what_editing_a_list_gives(drawn: Drawn) -> None:
    """By themselves, and in any order with the built-in ones."""
    with added:
        check_source_map(drawn)


def test_each_leaves_its_mark_on_the_source_map() -> None:
    source = windows()
    with added:
        cut_BL, scrambled_BL = (make_view(source, name="v", operations={new: 20}).source_BL for new in NEW)
    steps_BL = cut_BL.diff(dim=1)
    assert (steps_BL[:, 99] == 21).all()
    assert (steps_BL.sum(1) == 199 + 20).all()
    kept_BL = scrambled_BL != INSERTED
    assert 15 < (~kept_BL).sum(1).max() <= 20
    assert torch.equal(scrambled_BL[kept_BL], (60 + torch.arange(200)).expand(64, -1)[kept_BL].int())


def values(uri: str) -> dict[str, Any]:
    operations = {"cut": 5, "shift": 4, "scramble": 6}
    return small_config(uri, views__teacher__operations=operations, views__student__operations={"cut": 3})


def test_the_config_knows_an_operation_once_it_is_registered() -> None:
    with added:
        config = validate(TrainConfig, values("d"), source="test")
    assert config.views.flank == 15
    assert config.views.teacher.operations == {"cut": 5, "shift": 4, "scramble": 6}
    with pytest.raises(ConfigError, match=r"unknown cut, scramble; must be of deletion, insertion, neighb"):
        validate(TrainConfig, values("d"), source="test")


def train_with_both(uri: str) -> dict[str, Any]:
    with added:
        return run_steps(values(uri), 5)


@pytest.mark.timeout(300)
def test_five_steps_train_with_them_and_two_ranks_read_the_views_of_one(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {"train": [markov_sequence(9_000, seed=1)]}, block_bp=512)
    (alone,) = on_ranks(1, train_with_both, uri)
    both = on_ranks(2, train_with_both, uri)
    assert len(alone["losses"]) == 5
    assert alone["losses"][0].keys() == {"mlm", "distill", "patch", "contrastive", "total"}
    assert alone["mismatches"] == 0
    assert alone["moved"] > 0
    assert both[0]["samples"] | both[1]["samples"] == alone["samples"]
    for one, other in zip(alone["losses"], both[0]["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
