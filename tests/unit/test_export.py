"""An export's bytes, its round trip, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.storage import store
from tests.examples.tiny_conv import TinyConv, TinyConvConfig
from trainer.losses.contrastive import EmbeddingHead
from trainer.models import portable_files, pretrained
from trainer.models.chordmixer import ChordMixerConfig
from trainer.models.config import build_backbone
from trainer.models.network import Network
from trainer.models.registry import MODELS

MODEL = ChordMixerConfig(
    num_layers=2, num_groups=4, group_channels=4, intermediate_size=8, num_summary=2, norm="layer"
)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    head = EmbeddingHead(16, mlp_size=4, embedding=3, scale=10.0, max_scale=100.0, learnable=True)
    return Network(build_backbone(MODEL), heads={"contrastive": head})


def write(folder: Path, model: Network) -> pretrained.Exported:
    return pretrained.write(str(folder), model, model.state_dict(), card="card")


def test_round_trip_gives_the_same_logits(tmp_path: Path) -> None:
    model = network().eval()
    write(tmp_path, model)
    codes = torch.randint(0, 5, (3, 20), dtype=torch.uint8)
    assert torch.equal(pretrained.load(str(tmp_path))(codes).logits_BLV, model(codes).logits_BLV)
    assert not list(pretrained.load(str(tmp_path)).heads)
    heads = safetensors.torch.load_file(tmp_path / pretrained.HEADS)
    assert heads.keys() == {f"heads.{name}" for name in model.heads.state_dict()}
    assert float(heads["heads.contrastive.log_scale"].exp()) == pytest.approx(10)


def test_bytes_depend_on_the_weights_alone(tmp_path: Path) -> None:
    same = [write(tmp_path / name, network(0)).sha256 for name in ("a", "b")]
    assert same[0] == same[1] != write(tmp_path / "c", network(1)).sha256
    assert (tmp_path / "a" / pretrained.WEIGHTS).read_bytes() == (
        tmp_path / "b" / pretrained.WEIGHTS
    ).read_bytes()


def test_bytes_are_those_that_the_library_writes(tmp_path: Path) -> None:
    odd = {'é."weight': torch.arange(3.0), "none": torch.empty(0, 2), "zero": torch.tensor(-0.0)}
    with open(tmp_path / "odd", "wb") as file:
        shapes = {name: tensor.shape for name, tensor in sorted(odd.items())}
        pretrained._write_safetensors(file, shapes, iter(sorted(odd.items())))
    assert (tmp_path / "odd").read_bytes() == safetensors.torch.save(odd, metadata={"format": "pt"})
    model = network()
    write(tmp_path, model)
    for name, in_heads in ((pretrained.HEADS, True), (pretrained.WEIGHTS, False)):
        part = {n: t for n, t in model.state_dict().items() if n.startswith("heads.") == in_heads}
        assert (tmp_path / name).read_bytes() == safetensors.torch.save(part, metadata={"format": "pt"})


TRAVEL = {
    "configuration_dna.py",
    "modeling_dna.py",
    "modeling_findna.py",
    "tokenization_dna.py",
    "tokenizer_config.json",
}


def test_a_copy_has_the_same_files_and_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a", network())
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {*pretrained.FILES, *TRAVEL}
    (tmp_path / "a" / "checkpoints").mkdir()
    pretrained.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {path.name for path in (tmp_path / "b").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_files_that_travel_are_those_of_the_source(tmp_path: Path) -> None:
    write(tmp_path, network())
    for name in TRAVEL - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (portable_files.FOLDER / name).read_bytes()


def test_the_weights_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their presence says that all is there, also after a kill."""
    written: list[str] = []
    publish = store.publish

    def noted(uri: str) -> Any:
        written.append(Path(uri).name)
        return publish(uri)

    monkeypatch.setattr(store, "publish", noted)
    write(tmp_path / "a", network())
    pretrained.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    half = len(written) // 2
    for names in (written[:half], written[half:]):
        assert set(names) == {*pretrained.FILES, *TRAVEL} and names[-1] == pretrained.WEIGHTS


def test_a_backbone_without_a_file_of_its_own_has_none_for_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny-conv", TinyConv)
    write(tmp_path / "a", Network(TinyConv(TinyConvConfig()), heads={}))
    pretrained.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {path.name for path in (tmp_path / "b").iterdir()} == set(pretrained.FILES)
    config = pretrained.read_config(str(tmp_path / "b"))
    assert config["architectures"] == ["TinyConv"] and "auto_map" not in config


def test_exports_of_before_are_still_read_and_copied(tmp_path: Path) -> None:
    """Releases up to 0.1 wrote the four files, and config.json without what transformers needs."""
    model = network().eval()
    write(tmp_path / "a", model)
    change(tmp_path / "a", auto_map=None, pad_token_id=None, architectures=["ChordMixer"], num_labels=4)
    for name in TRAVEL:
        (tmp_path / "a" / name).unlink()
    pretrained.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {path.name for path in (tmp_path / "b").iterdir()} == set(pretrained.FILES)
    codes = torch.zeros(1, 9, dtype=torch.uint8)
    assert torch.equal(pretrained.load(str(tmp_path / "b"))(codes).logits_BLV, model(codes).logits_BLV)


def test_a_copy_without_a_file_that_is_promised_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a", network())
    (tmp_path / "a" / "modeling_dna.py").unlink()
    with pytest.raises(store.StoreError, match=r"cannot read .*modeling_dna\.py: no such file"):
        pretrained.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not (tmp_path / "b" / pretrained.WEIGHTS).exists()


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / pretrained.CONFIG).read_text())
    config |= values
    (folder / pretrained.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"format_version": 99}, "has format version 99, this code reads 1"),
        ({"model_type": "bert"}, "has model_type 'bert', known are dilated-conv, findna"),
        ({"num_groups": 5}, "its wiring [0-9a-f]{12} is not this code's"),
        ({"num_hidden_layers": 3}, "does not fit its config: .*Missing key"),
        ({"num_summary_tokens": None}, "is damaged: KeyError 'num_summary_tokens'"),
        ({"norm": "batch"}, "is damaged: ValidationError .*norm"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, values: dict[str, object], sentence: str) -> None:
    write(tmp_path, network())
    change(tmp_path, **values)
    with pytest.raises(ValueError, match=sentence):
        pretrained.load(str(tmp_path))


def test_truncated_weights_and_missing_files_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, network())
    weights = tmp_path / pretrained.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its config"):
        pretrained.load(str(tmp_path))
    (tmp_path / pretrained.CONFIG).unlink()
    with pytest.raises(store.StoreError, match=r"cannot read .*config\.json: no such file"):
        pretrained.load(str(tmp_path))
