"""``trainer.embed`` as a user gives it, on the tiny network as an exported folder; a naive forward beside it.

Shapes: L letters, D hidden.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep import alphabet
from tests.registered import tiny_network
from trainer.embed import main
from trainer.inference.embed import command
from trainer.models import pretrained

HIDDEN = 24  # of the tiny network


def model(factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny network; one for all tests."""
    folder, network = factory.getbasetemp() / "embedded-model", tiny_network()
    if not folder.exists():
        pretrained.write(str(folder), network, dict(network.state_dict()), card="")
    return str(folder)


def letters_of(lengths: Mapping[str, int], *, seed: int = 3) -> dict[str, str]:
    """Random records of these lengths, by name."""
    rng = np.random.default_rng(seed)
    return {
        name: alphabet.decode(rng.integers(0, 5, length).astype(np.uint8)).decode()
        for name, length in lengths.items()
    }


def write_fasta(path: Path, records: Mapping[str, str]) -> Path:
    path.write_text("".join(f">{name} a record\n{letters}\n" for name, letters in records.items()))
    return path


def embed(where: str, source: Path | str, output: Path | str, *options: str, code: int = 0) -> Path:
    """The output of the command, which ends with ``code``."""
    arguments = ["--model", where, "--input", str(source), "--output", str(output), *options]
    assert main(arguments) == code
    return Path(output)


def table(where: str, source: Path, output: Path, *options: str) -> pd.DataFrame:
    """The same as a table; ``output`` is a Parquet."""
    return pd.read_parquet(embed(where, source, output, *options))


def numbers(frame: pd.DataFrame, letter: str = "e") -> np.ndarray[Any, Any]:
    """Its columns e0, e1, …"""
    names = [name for name in frame.columns if name[0] == letter and name[1:].isdigit()]
    assert names == [f"{letter}{i}" for i in range(len(names))]
    found: np.ndarray[Any, Any] = frame[names].to_numpy()
    return found


_network = functools.cache(tiny_network)


def states(letters: str, *, strand: int = 0) -> np.ndarray[Any, Any]:
    """[L, D]: the hidden states of ``letters`` by their own forward, those of strand 1 in the order of 0."""
    codes = alphabet.encode(letters.encode())[0]
    row = alphabet.reverse_complement(codes) if strand else codes
    with torch.no_grad():
        letters_LD = _network().backbone(torch.from_numpy(row.copy())[None]).letters_BLD[0].numpy()
    return letters_LD[::-1] if strand else letters_LD


def small_chunks(monkeypatch: pytest.MonkeyPatch, letters: int) -> None:
    """From now on a chunk has about so many letters."""
    monkeypatch.setattr(command, "_CHUNK_LETTERS", {"cpu": letters})
    monkeypatch.setattr(command, "_CHUNK_BYTES", {"cpu": 4 * HIDDEN * 2 * letters})
