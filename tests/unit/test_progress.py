"""What is said while a run works: how fast it is and how long it takes, in honest numbers."""

import io
import sys

import pytest

from trainer.core import console
from trainer.core.console import Progress
from trainer.run.config import TrainConfig


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_a_minute_says_speed_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of 1,000 bp takes 10 s; the first took 50."""
    progress = Progress(20, visible=True, bp_left=20_000)
    for step in range(1, 21):
        clock.now += 50 if step == 1 else 10
        progress.advance(f"loss {step}", bp=1000)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 2/20  loss 2, 100 bp/s, 03:00 left",
        "step 8/20  loss 8, 100 bp/s, 02:00 left",
        "step 14/20  loss 14, 100 bp/s, 01:00 left",
        "step 20/20  loss 20, 100 bp/s",
    ]


def test_validation_is_in_the_time_left_and_not_in_the_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(100, visible=True, bp_left=100_000)
    for step in range(1, 12):
        clock.now += 10
        progress.advance("loss", bp=1000)
        if step in (4, 8):
            clock.now += 50
            progress.restart()
    *_, last = capsys.readouterr().err.splitlines()
    # Ten steps after the first and twice 50 s for them: 20 s a step, and 91 (of 100) steps to go at the
    # tenth.
    assert last == "step 9/100  loss, 100 bp/s, 34:07 left"
    assert 91 * (8 * 10 + 2 * 50) / 8 == 2047.5


def test_a_run_that_goes_on_counts_its_own_steps_alone(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now = 1e6
    progress = Progress(1000, visible=True, done=997, bp_left=3000)
    clock.now += 70
    progress.advance("loss", bp=1000)
    assert capsys.readouterr().err == "step 998/1000  loss\n", "of the first step nothing is known"
    clock.now += 65
    progress.advance("loss", bp=1000)
    assert capsys.readouterr().err == "step 999/1000  loss, 15 bp/s, 01:05 left\n"


def test_the_speed_is_of_the_last_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, visible=True, bp_left=1_000_000)
    for seconds in [10] * 60 + [1] * 100:
        clock.now += seconds
        progress.advance("loss", bp=1000)
    assert "1,000 bp/s" in capsys.readouterr().err.splitlines()[-1]


def test_a_terminal_shows_the_same_in_its_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(20, visible=True, done=5, bp_left=15_000)
    for _ in range(3):
        clock.now += 10
        progress.advance("loss 1.5", bp=1000)
    progress.close()
    assert "8/20 [00:00, loss 1.5, 100 bp/s, 02:00 left]" in terminal.getvalue()
    assert "step/s" not in terminal.getvalue()


def test_nothing_is_said_where_it_is_not_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = Progress(2, visible=False, bp_left=2)
    for _ in range(2):
        clock.now += 100
        hidden.advance("loss", bp=1)
    hidden.close()
    assert capsys.readouterr() == ("", "")


def test_what_steps_read_follows_the_lengths() -> None:
    config = TrainConfig.model_validate(
        {
            "run": {"dir": "r"},
            "train": {"steps": 100, "global_batch": 4},
            "data": {
                "uri": "d",
                "length": [
                    {"from_step": 0, "length": 50},
                    {"from_step": 30, "length": 100},
                    {"from_step": 500, "length": 999},
                ],
            },
        }
    )
    read = [4 * (50 if step < 30 else 100) for step in range(100)]
    for first, last in ((0, 100), (0, 10), (20, 40), (30, 30), (99, 100)):
        assert config.bp(first, last) == sum(read[first:last])
