"""trainer.embed that is killed, told to stop, or spread over workers: the same bytes in the end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import embedded
from tests.embedded import embed, letters_of, small_chunks, write_fasta
from tests.ranks import forkserver
from trainer.inference.parts import Parts
from trainer.workers import embedding

RECORDS = letters_of({"long": 330, "a": 60, "b": 40, "c": 200})
CHUNK = 160
RECORD = ("--length", "64", "--overlap", "16")
LETTER = ("--length", "64", "--pooling", "letters")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> str:
    return embedded.model(tmp_path_factory)


def kill_at(part: int, before: bool, arguments: tuple[Any, ...]) -> None:
    """In a process of its own: the command is killed before or after it writes its part ``part``."""
    write = Parts.write

    def killed(parts: Parts, number: int, found: Any) -> None:
        if not (before and number == part):
            write(parts, number, found)
        if number == part:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, CHUNK)
        patch.setattr(Parts, "write", killed)
        embed(*arguments)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_killed_at_any_part_it_goes_on_and_gives_the_same_bytes(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_fasta(tmp_path / "x.fa", {name: RECORDS[name] for name in ("long", "a")})
    small_chunks(monkeypatch, CHUNK)
    wanted = contents(embed(where, source, tmp_path / "whole.parquet", *RECORD))
    output = tmp_path / "e.parquet"
    for part in range(3):
        before = part == 1
        process = forkserver().Process(
            target=kill_at, args=(part, before, (where, source, output, *RECORD)), daemon=True
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        there = sorted(path.name for path in (tmp_path / "e.parquet.parts").glob("part-*"))
        assert there == [f"part-{number:08d}.arrow" for number in range(part + (not before))]
    assert contents(embed(where, source, output, *RECORD)) == wanted
    assert "3 of 4 parts are there from before" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "whole.parquet", "x.fa"]


def test_told_to_stop_it_goes_on_from_its_parts(
    where: str,
    tmp_path: Path,
    signal_handlers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    small_chunks(monkeypatch, CHUNK)
    wanted = contents(embed(where, source, tmp_path / "whole.npy", *RECORD))
    write = Parts.write

    def stopped(parts: Parts, number: int, found: Any) -> None:
        write(parts, number, found)
        if number == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", stopped)
        embed(where, source, tmp_path / "e.npy", *RECORD, code=75)
    assert "told to stop; no half of an output is left; the same command goes on" in capsys.readouterr().err
    assert contents(embed(where, source, tmp_path / "e.npy", *RECORD)) == wanted
    assert "2 of 7 parts are there from before" in capsys.readouterr().err

    # Other numbers are asked for: the parts are not taken.
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", stopped)
        embed(where, source, tmp_path / "e.npy", *RECORD, code=75)
    capsys.readouterr()
    embed(where, source, tmp_path / "e.npy", *RECORD, "--layer", "1")
    assert "from before" not in capsys.readouterr().err
    assert np.load(tmp_path / "e.npy").tobytes() != np.load(tmp_path / "whole.npy").tobytes()


# On Ray.


@pytest.mark.parametrize(("options", "name"), [(RECORD, "e.parquet"), (LETTER, "e.zarr")])
def test_workers_give_the_bytes_of_one_process(
    where: str,
    tmp_path: Path,
    local_ray: int,
    options: tuple[str, ...],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    small_chunks(monkeypatch, CHUNK)
    wanted = contents(embed(where, source, tmp_path / f"one-{name}", *options))
    assert contents(embed(where, source, tmp_path / name, *options, "--workers", "2")) == wanted


def test_a_driver_of_workers_that_is_stopped_goes_on(
    where: str,
    tmp_path: Path,
    local_ray: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also with one process; and where all parts are there, without Ray."""
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    small_chunks(monkeypatch, CHUNK)
    wanted = contents(embed(where, source, tmp_path / "one.npy", *RECORD))
    output, write, written = tmp_path / "e.npy", Parts.write, []

    def stopped(parts: Parts, number: int, found: Any) -> None:
        write(parts, number, found)
        written.append(number)
        if len(written) == 3:
            raise OSError("the driver is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", stopped)
        embed(where, source, output, *RECORD, "--workers", "2", code=1)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", lambda parts: None)
        assert contents(embed(where, source, output, *RECORD)) == wanted
    assert "3 of 7 parts are there from before" in capsys.readouterr().err
    monkeypatch.setattr(embedding, "session", never)
    assert contents(embed(where, source, output, *RECORD, "--workers", "2")) == wanted


def never(workers: int) -> Callable[[], None]:
    raise AssertionError("Ray is not needed")


def test_what_a_worker_meets_is_one_sentence(
    where: str,
    tmp_path: Path,
    local_ray: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_fasta(tmp_path / "x.fa", RECORDS)
    damaged = lambda files: embedding.SharedModel({**files, "model.safetensors": b"none"}, "0")  # noqa: E731
    monkeypatch.setattr(embedding.SharedModel, "of", damaged)
    embed(where, source, tmp_path / "e.npy", *RECORD, "--workers", "1", code=1)
    said = capsys.readouterr().err
    assert "model.safetensors does not fit its config" in said and said.count("\n") == 1
