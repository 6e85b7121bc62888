"""trainer.embed: vectors that do not change with padding, batch or strand, and a table that comes back whole."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep import alphabet
from tests.registered import CANDIDATE, registered, tiny_network
from trainer.embed import Rows, embed, embed_fasta, main, read_fasta, resolve_precision

CPU = torch.device("cpu")


def sequences(lengths: list[int]) -> list[alphabet.Codes]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 4, n).astype(np.uint8) for n in lengths]


def test_neither_padding_nor_the_other_rows_change_a_vector() -> None:
    network, codes = tiny_network(), sequences([40, 7, 25, 40, 1])
    together = embed(network, Rows.of(codes), device=CPU)
    for i, row in enumerate(codes):
        for ours, alone in zip(together, embed(network, Rows.of([row]), device=CPU), strict=True):
            torch.testing.assert_close(ours[i], alone[0], atol=1e-5, rtol=1e-5)


def test_vectors_are_the_naive_ones_and_the_same_for_either_strand() -> None:
    network, (codes,) = tiny_network(), sequences([33])
    other = alphabet.reverse_complement(codes)
    with torch.no_grad():
        hidden = [network.backbone(torch.from_numpy(row.copy())[None])[0, 2:] for row in (codes, other)]
    mean, most = embed(network, Rows.of([codes, other]), device=CPU)
    torch.testing.assert_close(mean[0], (hidden[0].mean(0) + hidden[1].mean(0)) / 2)
    torch.testing.assert_close(most[0], (hidden[0].amax(0) + hidden[1].amax(0)) / 2)
    torch.testing.assert_close(mean[0], mean[1])
    torch.testing.assert_close(most[0], most[1])


def test_batches_hold_similar_lengths_and_every_row_once() -> None:
    rows = Rows.of(sequences([5000, 3, 5000, 9000, 4, 3000]))
    batches = [batch.tolist() for batch in rows.by_length()]
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches[-1] == [3]


def test_precision() -> None:
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")


@pytest.mark.parametrize(("text", "message"), [
    ("ACGT\n", "line 1 comes before any '>' header"),
    (">a\nACGT\n>b\n>c\nA\n", "record 'b' has no letters"),
    (">a\nACGT\nAC*T\n", r"record 'a': byte b'\*' at position 6"),
    ("", "holds no FASTA record"),
])  # fmt: skip
def test_what_is_no_fasta(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.fa").write_text(text)
    with pytest.raises(ValueError, match=message):
        embed_fasta(tiny_network(), str(tmp_path / "x.fa"), length=16, device=CPU)


def test_a_cut_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a\n" + b"ACGTTGCA" * 500)[:-12])
    with pytest.raises(ValueError, match=r"x.fa.gz is a damaged gzip file"):
        list(read_fasta(str(tmp_path / "x.fa.gz")))


def test_table_round_trip_through_the_registry(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    where = registered(tmp_path_factory)
    long, short = sequences([150, 20])
    text = f">long one\n{alphabet.decode(long).decode()}\n\n>short\n{alphabet.decode(short).decode().lower()}\n"
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(text.encode()))
    out = tmp_path / "out" / "e.parquet"
    arguments = ["--model", CANDIDATE, "--input", str(tmp_path / "x.fa.gz"), "--output", str(out)]
    assert main([*arguments, "--track-uri", where.uri]) == 0
    assert "windows of 64 bp" in capsys.readouterr().out, "the pretraining length"
    table = pd.read_parquet(out)
    assert list(table.columns) == ["name", "length", *(f"e{i}" for i in range(24))]
    assert table["name"].tolist() == ["long", "short"]
    assert table["length"].tolist() == [150, 20]
    windows, _ = embed(tiny_network(), Rows.of([long[:64], long[64:128], long[128:], short]), device=CPU)
    expected = (windows[0] * 64 + windows[1] * 64 + windows[2] * 22) / 150
    np.testing.assert_allclose(table.iloc[0, 2:].to_numpy(dtype=float), expected, atol=1e-5)
    np.testing.assert_allclose(table.iloc[1, 2:].to_numpy(dtype=float), windows[3], atol=1e-5)

    arguments[3] = str(tmp_path / "none.fa")
    out.unlink()
    assert main([*arguments, "--track-uri", where.uri]) == 1
    assert "none.fa: no such file" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [], "nothing half-written"
