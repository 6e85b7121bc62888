"""The public API: light to import, the same numbers on one rank and two, one sentence for bad input."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import trainer
from cluster.storage import store
from cluster.storage.retry import StoreError
from data_prep import alphabet
from tests.ranks import on_ranks
from tests.registered import CANDIDATE, registered, tiny_network
from trainer import (
    embed_sequences,
    info_nce,
    koleo,
    load_model,
    make_view,
    make_windows,
    sinkhorn,
    symmetric_info_nce,
    to_strings,
)
from trainer.models import pretrained

ROOT = Path(__file__).parents[2]
HEAVY = [
    "boto3",
    "deepspeed",
    "matplotlib",
    "mlflow",
    "pandas",
    "psutil",
    "py2bit",
    "pyarrow",
    "pyfaidx",
    "ray",
    "s3fs",
    "scipy",
    "sklearn",
    "tqdm",
    "webdataset",
]


def test_all_of_it_imports_and_works_without_the_heavy_libraries(tmp_path: Path) -> None:
    network = tiny_network()
    pretrained.write(str(tmp_path / "model"), network, dict(network.state_dict()), card="a toy")
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it fails
import trainer
assert "torch" not in sys.modules
from trainer import *
assert set(trainer.__all__) <= set(globals()), trainer.__all__
import torch
model = load_model({str(tmp_path / "model")!r})
assert embed_sequences(model, ["ACGTACGT", "GATTACA"]).shape == (2, model.backbone.hidden_size)
windows = make_windows(["ACGTACGTGATTACA"], seed=1)
view = make_view(windows, name="v", operations={{"shift": 2}})
mask(view, windows, name="v", rate=0.3, mask_share=0.8, random_share=0.1)
ShardedEMA.of(torch.nn.Linear(2, 2)).update(0.9)
rows = torch.eye(4)
info_nce(rows, rows), symmetric_info_nce(rows, rows), koleo(rows), sinkhorn(rows, rows)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_a_model_needs_safetensors_and_a_store() -> None:
    code = f"""
import sys
for name in {[*HEAVY, "safetensors", "fsspec"]!r}:
    sys.modules[name] = None
import trainer
for name in set(trainer.__all__) - {{"load_model", "load_task_model", "embed_sequences", "score_variants"}}:
    getattr(trainer, name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trainer' has no attribute 'load_modle'; it has Edit, "):
        trainer.load_modle  # noqa: B018
    assert set(trainer.__all__) <= set(dir(trainer))


# --- models and embeddings


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_model_loads_from_a_folder_a_uri_and_the_registry(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = tiny_network()
    for uri in (str(tmp_path / "model"), "memory://api-model"):
        pretrained.write(uri, network, dict(network.state_dict()), card="a toy")
        loaded = load_model(uri)
        assert same_weights(loaded, network)
        assert not loaded.training
    store.remove("memory://api-model")
    where = registered(tmp_path_factory)
    assert same_weights(load_model(CANDIDATE, track_uri=where.uri), network)
    with pytest.raises(RuntimeError, match="registered model models:/toy@nobody"):
        load_model("models:/toy@nobody", track_uri=where.uri)
    with pytest.raises(ValueError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        load_model("models:toy", track_uri=where.uri)
    with pytest.raises(StoreError, match=r"nothing/config\.json"):
        load_model(str(tmp_path / "nothing"))


def test_embeddings_are_the_mean_over_letters_and_strands() -> None:
    network, strings = tiny_network(), ["ACGTTGCATTAGC", "gattaca"]
    for pooling, pool in (("mean", lambda x: x.mean(0)), ("max", lambda x: x.amax(0))):
        found_ND = embed_sequences(network, strings, pooling=pooling)
        assert found_ND.dtype == np.float32
        for row, string in zip(found_ND, strings, strict=True):
            codes = alphabet.encode(string.encode())[0]
            strands = []
            for read in (codes, alphabet.reverse_complement(codes)):
                with torch.no_grad():
                    hidden = network.backbone(torch.from_numpy(read.copy())[None])
                strands.append(pool(hidden.letters_BLD[0]))
            torch.testing.assert_close(torch.from_numpy(row), (strands[0] + strands[1]) / 2)


def test_embeddings_of_letters_summaries_layers_and_strands() -> None:
    network, strings = tiny_network(), ["ACGTTGCATTAGC", "gattaca"]
    letters = embed_sequences(network, strings, pooling="letters", strands="separate", layer=1)
    mean_ND = embed_sequences(network, strings, layer=1, strands="forward")
    assert [rows.shape for rows in letters] == [(13, 48), (7, 48)]
    for rows, mean_D in zip(letters, mean_ND, strict=True):
        np.testing.assert_allclose(rows[:, :24].mean(0), mean_D, atol=1e-6)
    assert embed_sequences(network, strings, pooling="summary").shape == (2, 2 * 24)
    with pytest.raises(ValueError, match="layer 7 is not there: the model has 2 layers"):
        embed_sequences(network, strings, layer=7)
    with pytest.raises(ValueError, match="strands 'reverse' is not both, forward or separate"):
        embed_sequences(network, strings, strands="reverse")


@pytest.mark.parametrize(
    ("sequences", "pooling", "sentence"),
    [
        ([], "mean", "there is no sequence"),
        (["ACGT", ""], "mean", "sequence 2 is empty"),
        (["ACGT", "AC-T"], "mean", "sequence 2: byte b'-' at position 2 is no nucleotide letter"),
        (["ACGT"], "first", "pooling 'first' is not mean, max, summary or letters"),
    ],
)
def test_what_cannot_be_embedded_is_refused(sequences: list[str], pooling: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        embed_sequences(tiny_network(), sequences, pooling=pooling)


# --- windows of strings


def test_windows_of_strings_are_their_letters() -> None:
    windows = make_windows(["ACGTNacgt", "RUG"], seed=3, flank=2)
    assert to_strings(windows.codes_BS) == ["ACGTNACGT", "NTG"]
    assert windows.soft_BS is not None
    assert windows.soft_BS[0].tolist() == [0] * 5 + [1] * 4
    assert (windows.length, windows.high_B.tolist()) == (5, [9, 3])
    plain = make_view(windows, name="v", operations={})
    assert to_strings(plain.codes_BL) == ["GTNAC", "NTG"]  # a short one moves back into its letters
    assert not torch.equal(windows.key_B, make_windows(["ACGTNacgt", "RUG"], seed=4, flank=2).key_B)


@pytest.mark.parametrize(
    ("sequences", "flank", "sentence"),
    [
        ([], 0, "give a list of at least one sequence"),
        ("ACGT", 0, "give a list of at least one sequence"),
        (["ACGT", "A?"], 0, r"sequence 2: byte b'\?' at position 1 is no nucleotide letter"),
        (["ACGT"], 2, "the longest sequence has 4 letters, no more than two flanks of 2"),
    ],
)
def test_what_is_no_window_is_refused(sequences: Any, flank: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_windows(sequences, flank=flank)


# --- losses

G, E, K = 12, 5, 4


def rows(seed: int) -> Tensor:
    return torch.randn(G, E, generator=torch.Generator().manual_seed(seed))


def contrast(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    return info_nce(one_BE, other_BE, temperature=0.3)


def symmetric(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    return symmetric_info_nce(one_BE, other_BE, temperature=0.3)


def spread(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    return koleo(one_BE)


def balanced(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Not the targets' own gradient, but that of a loss that they are the targets of."""
    target_BK = sinkhorn(other_BE, rows(9)[:K], temperature=0.2)
    return -(target_BK * (one_BE @ rows(9)[:K].T).log_softmax(1)).sum() / G


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce": contrast,
    "symmetric_info_nce": symmetric,
    "koleo": spread,
    "sinkhorn": balanced,
}


def share(name: str) -> tuple[float, list[Tensor | None]]:
    """This rank's share, and the gradients of its rows of both inputs."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    mine = slice(rank * G // world, (rank + 1) * G // world)
    leaves = [rows(seed)[mine].clone().requires_grad_() for seed in (0, 1)]
    value = FUNCTIONS[name](*leaves)
    value.backward()
    return value.item(), [leaf.grad for leaf in leaves]


def shares() -> dict[str, tuple[float, list[Tensor | None]]]:
    return {name: share(name) for name in FUNCTIONS}


def naive(name: str) -> tuple[float, list[Tensor]]:
    leaves = [rows(seed).requires_grad_() for seed in (0, 1)]
    one, other = (F.normalize(leaf, dim=-1) for leaf in leaves)
    own = torch.arange(G)
    if name == "info_nce":
        value = F.cross_entropy(one @ other.detach().T / 0.3, own)
    elif name == "symmetric_info_nce":
        value = (F.cross_entropy(one @ other.T / 0.3, own) + F.cross_entropy(other @ one.T / 0.3, own)) / 2
    elif name == "koleo":
        distance = torch.cdist(one, one) + torch.eye(G) * 9
        value = -(distance.amin(1) + torch.finfo(torch.float32).eps).log().mean()
    else:
        prototypes = F.normalize(rows(9)[:K], dim=-1)
        target = (other.detach() @ prototypes.T / 0.2).exp()
        for _ in range(3):
            target = target / target.sum(0)
            target = target / target.sum(1, keepdim=True)
        value = -(target * (leaves[0] @ rows(9)[:K].T).log_softmax(1)).sum() / G
    return value.item(), list(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))


def test_losses_are_the_naive_ones_and_ranks_share_them() -> None:
    alone, both = shares(), on_ranks(2, shares)
    for name in FUNCTIONS:
        value, gradients = naive(name)
        assert alone[name][0] == pytest.approx(value, rel=1e-5), name
        assert sum(rank[name][0] for rank in both) == pytest.approx(value, rel=1e-5), name
        for i, gradient in enumerate(gradients):
            parts = [rank[name][1][i] for rank in both]
            for found in (alone[name][1][i], None if parts[0] is None else torch.cat(parts)):
                if found is None:
                    assert not gradient.any(), f"{name} has no gradient of input {i}"
                else:
                    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_temperature_may_learn() -> None:
    temperature = torch.tensor([0.3], requires_grad=True)
    symmetric_info_nce(rows(0), rows(1), temperature=temperature).backward()
    assert temperature.grad is not None
    assert float(temperature.grad) != 0


def test_rows_of_weight_0_get_targets_and_move_no_other() -> None:
    weight_B = torch.tensor([1.0] * (G - 2) + [0.0] * 2)
    part_BK = sinkhorn(rows(1)[: G - 2], rows(9)[:K])
    whole_BK = sinkhorn(rows(1), rows(9)[:K], weight_B=weight_B)
    torch.testing.assert_close(whole_BK[: G - 2], part_BK)
    torch.testing.assert_close(whole_BK.sum(1), torch.ones(G))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: info_nce(rows(0), rows(1)[:3]),
            r"rows \(12, 5\) and \(3, 5\) must be of one shape \[B, E\]",
        ),
        (lambda: symmetric_info_nce(rows(0)[:0], rows(1)[:0]), r"rows \(0, 5\) and \(0, 5\) must be of one"),
        (lambda: info_nce(rows(0), rows(1), temperature=0.0), "temperature 0.0 must be above 0"),
        (lambda: sinkhorn(rows(0), rows(1)[:, :2]), r"vectors \(12, 5\) and prototypes \(12, 2\) must be"),
        (
            lambda: sinkhorn(rows(0), rows(1), temperature=-1),
            "temperature -1 and iterations 3 must be above 0",
        ),
        (lambda: sinkhorn(rows(0), rows(1), weight_B=torch.ones(2)), r"weights \(2,\) must be one for each"),
        (lambda: koleo(rows(0)[:1]), r"KoLeo needs a neighbour for each row, and the global batch has 1 row"),
    ],
)
def test_bad_input_gets_one_sentence(call: Callable[[], Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
