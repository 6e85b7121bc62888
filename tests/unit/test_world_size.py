"""How many processes a config allows, as the supervisor asks it."""

from pathlib import Path

import pytest

from trainer.run.world_size import main

DEMO = str(Path(__file__).parents[2] / "configs/train/demo.yaml")


@pytest.mark.parametrize(
    ("at_most", "overrides", "largest"),
    [
        (7, [], 6),
        (48, [], 48),
        (1000, [], 48),
        (5, ["train.global_batch=64"], 4),
        (40, ["train.micro_batch=8"], 6),
        (3, ["train.zero_stage=0", "train.precision=bf16"], 3),
    ],
)
def test_the_largest_number_that_fits(
    capsys: pytest.CaptureFixture[str], at_most: int, overrides: list[str], largest: int
) -> None:
    assert main(["--at-most", str(at_most), "--config", DEMO, *overrides]) == 0
    assert capsys.readouterr().out == f"{largest}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--at-most", "0", "--config", DEMO], "--at-most: 0 must be at least 1"),
        (
            ["--at-most", "9", "--config", DEMO, "train.micro_batch=7"],
            "no number of processes up to 9 fits: train.micro_b",
        ),
        (
            ["--at-most", "9", "--config", DEMO, "train.stesp=1"],
            "train.stesp: unknown key, did you mean 'steps'?",
        ),
    ],
)
def test_what_is_wrong_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
