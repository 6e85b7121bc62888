"""Model cards: what is known stands there, what is not is said to be not known, and no secret gets in."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.storage import store
from data_prep import shards
from tests.datasets import markov_sequence, write_dataset
from tests.examples.tiny_conv import TinyConv, TinyConvConfig
from tests.exports import export, network_of
from trainer.models import pretrained
from trainer.models.network import Network
from trainer.sharing import card
from trainer.sharing.card_facts import (
    CardFacts,
    ComputeFacts,
    DataFacts,
    SourceFacts,
    data_facts,
    unread_data,
)


def config() -> dict[str, Any]:
    return pretrained.shared_config(network_of("findna"))


def known(folder: Path) -> CardFacts:
    """All that may be known."""
    uri = write_dataset(
        folder, {"train": [markov_sequence(9000, seed=1)], "val": [markov_sequence(3000, seed=2)]}
    )
    build = '{"config": {"references": [{"name": "toy", "licence": "CC0-1.0"}]}}'
    store.write_bytes(store.join(uri, shards.BUILD_INFO), build.encode())
    content = store.read_bytes(store.join(uri, shards.MANIFEST))
    manifest = shards.Manifest.from_bytes(content)
    return CardFacts(
        name="yeast-small",
        config=config(),
        parameters=1234,
        uri="models:/findna/7",
        step=4000,
        settings={
            "data.length": 512,
            "train.global_batch": 64,
            "run.seed": 11,
            "data.length_by_step": "[{'from_step': 0, 'length': 128}, {'from_step': 7, 'length': 512}]",
            "loss.mlm.weight": 1.0,
            "loss.distill.weight": 0.5,
            "loss.koleo.weight": 0.0,
            "views.masking.rate": 0.3,
        },
        data=[data_facts(uri, manifest, "ab" * 32)],
        compute=ComputeFacts(131_072_000, 1.5e14, "2 × NVIDIA H200", 5400.0),
        held_out={
            "val/mlm_accuracy": 0.4123,
            "val/mlm_accuracy_majority": 0.3101,
            "val/mlm_accuracy_markov": 0.3702,
            "val/mlm_loss": 1.2345,
            "val/scored_positions": 9876,
        },
        labelled="| task | floor |\n|---|---|\n| H4 | 61.0 (kmer) |",
        licence="apache-2.0",
        code="0123abcd",
    )


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def front_matter(text: str) -> dict[str, Any]:
    parsed = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(parsed, dict)
    return parsed


def test_all_that_is_known_stands_there(tmp_path: Path) -> None:
    text = card.render(known(tmp_path))
    assert front_matter(text) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["dna", "genomics", "self-distillation", "findna"],
    }
    assert "4,000 steps" in text and "1,234 parameters" in text and "models:/findna/7" in text
    data = section(text, "Training data")
    for part in ("ab" * 32, "0" * 64, "CC0-1.0", "train 9,000, val 3,000", "val0", "| toy | 2 | 12,000 |"):
        assert part in data, part
    settings = section(text, "Settings")
    for part in (
        "mlm 1, distill 0.5 |",
        "| windows in a batch | 64 |",
        "| seed | 11 |",
        "0123abcd",
        "512 from step 7",
    ):
        assert part in settings, part
    assert "koleo" not in settings and "| num_groups | 5 |" in settings
    compute = section(text, "Compute")
    assert "131,072,000 bp" in compute and "1.50e+14" in compute and "NVIDIA H200" in compute
    assert "1.5 hours" in compute
    held_out = section(text, "Held-out figures")
    assert [held_out.index(value) for value in ("0.4123", "0.3702", "0.3101")] == sorted(
        held_out.index(value) for value in ("0.4123", "0.3702", "0.3101")
    )
    assert "9,876 masked letters" in held_out and "1.2345" in held_out
    assert "61.0 (kmer)" in section(text, card.LABELLED)
    assert "512 bp from toy" in section(text, "Limits") and "clinical" in section(text, "Limits")
    assert "Neural Networks" in section(text, "Citation")
    assert "apache-2.0" in section(text, "Licence")
    assert "not known" not in text and "not stated" not in text


def test_what_is_not_known_is_said_to_be_not_known() -> None:
    text = card.render(CardFacts("some", config(), 10))
    assert "license" not in front_matter(text)
    for heading in ("Training data", "Settings", "Compute", "Held-out figures"):
        assert re.search("not known|as far as is known", section(text, heading)), heading
    assert "Nobody has said under which licence" in section(text, "Licence")
    assert "No results were known" in section(text, card.LABELLED)
    assert card.is_card(text)
    assert not re.search(r"\bNone\b|nan", text)


def test_no_secret_gets_in(tmp_path: Path) -> None:
    facts = known(tmp_path)
    secret = "s3://user:PASSWORD@host/data?token=SECRET"
    for changed in (
        replace(facts, data=[DataFacts(secret, "")]),
        replace(facts, data=[unread_data(secret, "", f"{secret} is away")]),
        replace(facts, settings=dict(facts.settings) | {"data.length": secret}),
        replace(facts, labelled=secret, name=secret),
    ):
        text = card.render(changed)
        assert "PASSWORD" not in text and "SECRET" not in text
    assert "PASSWORD" not in card.with_labelled(card.render(facts), secret)


def test_results_and_a_licence_are_put_in_their_places(tmp_path: Path) -> None:
    before = card.render(CardFacts("some", config(), 10))
    after = card.with_licence(card.with_labelled(before, "| new |"), "mit")
    assert section(after, card.LABELLED).strip() == "| new |"
    assert front_matter(after) == front_matter(before) | {"license": "mit"}
    assert front_matter(card.with_licence(after, "cc0-1.0"))["license"] == "cc0-1.0"
    same = [h for h in re.findall(r"^## (.*)$", before, re.MULTILINE) if h not in (card.LABELLED, "Licence")]
    for heading in same:
        assert section(after, heading).strip() == section(before, heading).strip()
    assert after.index(f"## {card.LABELLED}") < after.index("## Citation")
    assert not card.is_card("---\nlibrary_name: dna-distill\n---\n# of an earlier release")


def test_many_genomes_and_contigs_are_cut_with_a_word() -> None:
    many = [SourceFacts(f"g{i}", "0" * 64, 1, 10) for i in range(70)]
    facts = DataFacts("/data", "f" * 64, sources=many, held_out=[f"chr{i}" for i in range(30)])
    text = section(card.render(CardFacts("some", config(), 10, data=[facts])), "Training data")
    assert "And 10 more, in the manifest" in text and "and 10 more." in text


def test_a_backbone_without_a_file_for_transformers_is_not_said_to_open_there() -> None:
    network = Network(TinyConv(TinyConvConfig()), heads={})
    text = card.render(CardFacts("tiny", pretrained.shared_config(network), 10))
    assert front_matter(text)["library_name"] == "dna-distill" and not card.is_card(text)
    assert "transformers does not open it" in section(text, "How to load it")
    assert "AutoModel" not in text


def test_the_code_of_the_card_runs_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = card.render(CardFacts("some", config(), 10))
    monkeypatch.chdir(export(tmp_path / "my-model", network_of("findna"), card=text))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert names["vectors"].shape == (2, 20)
