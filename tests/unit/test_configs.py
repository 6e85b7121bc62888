"""configs: every fault at once, with its key, the value given, and what is accepted."""

from pathlib import Path

import pytest
from pydantic import Field

from configs import ConfigError, Section, dump, flatten, load
from data_prep.config import BedSplit, DataConfig


class Inner(Section):
    steps: int = Field(default=1, gt=0)


class Model(Section):
    name: str
    train: Inner = Inner()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text("name: ${oc.env:CONFIG_NAME,nobody}\ntrain: {steps: 3}\n")
    return file


def test_environment_and_overrides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(Model, path) == Model(name="nobody", train=Inner(steps=3))
    monkeypatch.setenv("CONFIG_NAME", "me")
    assert load(Model, path, ["train.steps=7"]) == Model(name="me", train=Inner(steps=7))


def test_overrides_reach_into_lists_and_replace_them(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("references: [{name: a, uri: a.fa}]\noutput: o\nsplit: {val: [I]}\n")
    config = load(DataConfig, file, ["references.0.uri=b.fa", "split.val=[II,III]", "split.test=0.1"])
    assert config.references[0].uri == ("b.fa",)
    assert (config.split.val, config.split.test) == (("II", "III"), 0.1)


def test_all_faults_at_once_with_a_suggestion(path: Path) -> None:
    with pytest.raises(ConfigError) as fault:
        load(Model, path, ["train.step=7", "train.steps=0", "nam=x"])
    text = str(fault.value)
    assert text.startswith(f"{path}: 3 faults")
    assert "train.step: unknown key, did you mean 'steps'?" in text
    assert "train.steps: input should be greater than 0 (given 0)" in text
    assert "nam: unknown key, did you mean 'name'?" in text


@pytest.mark.parametrize(("content", "overrides", "message"), [
    (None, [], "does not exist"),
    ("name: [", [], "while parsing"),
    ("- 1", [], "a mapping of keys is needed, not list"),
    ("name: x", ["steps"], "not an override of the form dotted.key=value: steps"),
    ("name: ${oc.env:NO_SUCH_VARIABLE}", [], "NO_SUCH_VARIABLE"),
    ("train: {steps: 2}", [], "name: missing"),
    ("name: [a]", ["name.x=1"], "invalid literal"),
])
def test_what_cannot_be_read(tmp_path: Path, content: str | None, overrides: list[str], message: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as fault:
        load(Model, file, overrides)
    assert str(file) in str(fault.value) or overrides


def test_an_override_may_put_a_mapping_in_the_place_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("references: [{name: a, uri: a.fa}]\noutput: o\nsplit: {val: [IV], gap: 5}\n")
    config = load(DataConfig, file, ["split.val={bed: v.bed}"])
    assert config.split.val == BedSplit(bed=("v.bed",))
    assert load(DataConfig, file, ["split={test: 0.1}"]).split.gap == 5, "a mapping is merged into a mapping"


def test_dump_hides_credentials_and_flatten_gives_dotted_keys() -> None:
    values = dump(Model(name="postgresql://me:secret@host/db"))
    assert flatten(values) == {"name": "postgresql://***@host/db", "train.steps": 1}
    signed = dump(Model(name="https://host/g.fa?X-Amz-Signature=secret&x=1"))
    assert signed["name"] == "https://host/g.fa?..."


def data(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"references": [{"name": "a", "uri": "a.fa"}], "output": "o"} | changes)


def test_data_config_defaults_and_short_forms() -> None:
    config = data(split={"val": "IV"})
    assert (config.block_bp, config.split.val, config.split.test) == (262_144, ("IV",), 0.0)
    assert config.references[0].uri == ("a.fa",)
    assert dump(config)["split"] == {"val": ["IV"], "test": 0.0, "gap": 1024, "leakage": "report", "min_bp": 1024}
    assert data(split={"val": {"bed": "v.bed"}}).split.val == BedSplit(bed=("v.bed",))
    assert dump(data(split={"val": {"bed": "v.bed"}}))["split"]["val"] == {"bed": ["v.bed"]}


@pytest.mark.parametrize(("changes", "message"), [
    ({"references": []}, "at least one is needed"),
    ({"references": [{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]}, "given twice: a"),
    ({"references": [{"name": "a/b", "uri": "x"}]}, "letters, digits"),
    ({"references": [{"name": "a", "uri": []}]}, "at least one FASTA"),
    ({"references": [{"name": "a", "uri": 3}]}, "a string or a list of strings"),
    ({"references": [{"name": "a", "uri": "x", "weight": 0}]}, "greater than 0"),
    ({"block_bp": 1026}, "multiple of 4"),
    ({"block_bp": 512}, "greater than or equal to 1024"),
    ({"shard_bp": 4096}, "shard_bp 4096 is less than block_bp 262144"),
    ({"max_n_fraction": 1.1}, "less than or equal to 1"),
    ({"split": {"val": 0.6, "test": 0.4}}, "val 0.6 and test 0.4 leave nothing to train on"),
    ({"split": {"val": ["I", "II"], "test": ["II"]}}, "contigs in both val and test: II"),
    ({"split": {"val": 1}}, r"a fraction in \[0, 1\)"),
    ({"split": {"val": True}}, r"a fraction in \[0, 1\)"),
    ({"split": {"val": {"bed": []}}}, "at least one BED file"),
    ({"split": {"val": {"bed": 3}}}, "a string or a list of strings"),
    ({"split": {"val": {"bed": "x", "gap": 3}}}, r"a fraction in \[0, 1\), a list of contig names, or \{bed: URI\}"),
    ({"split": {"leakage": "maybe"}}, "'report', 'drop' or 'off'"),
    ({"shard_bp": 1 << 29}, "less than or equal to 268435456"),
    ({"workers": 0}, "greater than or equal to 1"),
    ({"output": ""}, "at least 1 character"),
])
def test_data_config_faults(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**changes)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml")), ids=str)
def test_every_shipped_data_config_loads(file: Path) -> None:
    config = load(DataConfig, file)
    assert config.split.val, "a shipped config holds contigs out"
    assert config.output.startswith("datasets/")
