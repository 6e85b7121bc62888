"""cluster.process.progress: a bar on a terminal, a line a minute elsewhere, and what work reports."""

import io
import re
import shutil

import pytest

from cluster.process.progress import Progress, Stage, say, silent


def test_a_stage_reports_what_is_done_so_far() -> None:
    seen: list[tuple[str, int, int]] = []
    stage = Stage(lambda *at: seen.append(at), "write", 30)
    for units in (10, 0, 20):
        stage.advance(units)
    assert seen == [("write", 10, 30), ("write", 10, 30), ("write", 30, 30)]
    Stage(silent, "read").advance(3)


def test_a_line_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    say("trying again: s3://user:secret@host/x")
    err = capsys.readouterr().err
    assert err.startswith("trying again: s3://") and "secret" not in err


def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("cluster.process.progress.time.monotonic", lambda: now[0])
    progress = Progress()
    for seconds, done in (
        (0, 1),
        (30, 100_000_000),
        (61, 200_000_000),
        (90, 300_000_000),
        (125, 600_000_000),
    ):
        now[0] = 1000 + seconds
        progress("write", done, 1_000_000_000)
    for seconds, done in ((130, 0), (200, 700_000_000)):
        now[0] = 1000 + seconds
        progress("read x.fa.gz", done, 0)
    for seconds, done in ((210, 0), (270, 1_200_000)):
        now[0] = 1000 + seconds
        progress("embed", done, 2_400_000)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "write: 200,000,000 of 1,000,000,000 bp, 3.3 Mbp/s, 04:04 left",
        "write: 600,000,000 of 1,000,000,000 bp, 4.8 Mbp/s, 01:23 left",
        "read x.fa.gz: 700,000,000 bp so far, 10.0 Mbp/s",
        "embed: 1,200,000 of 2,400,000 bp, 20.0 kbp/s, 01:00 left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar before the first call; then the share, how much, the speed and the time left; no bar is left
    behind."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = Progress()
    try:
        assert "starting [00:00]" in terminal.getvalue()
        progress._last_call -= 10  # as if the first stage had taken 10 seconds to its first call
        progress("write", 20_000_000, 80_000_000)
        assert progress._bar is not None
        assert progress._bar.ncols == shutil.get_terminal_size().columns, (
            "also where the terminal has no known width"
        )
        drawn = terminal.getvalue().split("\r")[-1]
        assert re.search(r"write:  25%\|.*\| 20.0M/80.0M \[00:1\d<00:3\d, (2.00M|1.9\dM)bp/s\]", drawn), drawn
        say("trying again: x")
        assert "trying again: x\n" in terminal.getvalue()
    finally:
        progress.close()
    assert terminal.getvalue().split("\r")[-1].strip() == ""


def test_of_stages_shorter_than_a_minute_some_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("cluster.process.progress.time.monotonic", lambda: now[0])
    progress = Progress()
    for stage, seconds in (("read", 30), ("leakage", 40), ("write", 65), ("write", 80)):
        now[0] = 1000 + seconds
        progress(stage, 50_000_000, 100_000_000)
    now[0] = 1200
    progress("verify", 0, 100)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "write: 50,000,000 of 100,000,000 bp, 2.0 Mbp/s, 00:25 left",
        "verify: 0 of 100 bp, 0.0 Mbp/s, ? left",
    ]
