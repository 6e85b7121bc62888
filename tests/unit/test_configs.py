"""configs: every fault at once, with its key, the value given, and what is accepted."""

import copy
import gzip
import pickle
from pathlib import Path

import pytest
from pydantic import Field

from configs import ConfigError, Section, dump, flatten, load
from configs.values import Integer, Real
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


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (None, [], "does not exist"),
        ("name: [", [], "while parsing"),
        ("- 1", [], "a mapping of keys is needed, not list"),
        ("7", [], "a mapping of keys is needed, not a number"),
        ("name: x\nname: y\n", [], "line 2, column 1: key name is given twice"),
        ('name: x\n  "out:" y\n', [], "line 1, column 7: the value goes on in the next line"),
        ("name: x\ntrain: {steps: 1, steps: 2}\n", [], "line 2, column 19: key steps is given twice"),
        ("name: x\n---\nname: y\n", [], "line 2, column 1: expected a single document"),
        ("name: x\n...\nname: y\n", [], "line 3, column 1: did not find expected <document start>"),
        ("\tname: x\n", [], "line 1, column 1: .*cannot start any token"),
        ("name: ???", [], "name: Missing mandatory value: name"),
        (
            "name: true",
            [],
            r"name: input should be a valid string, in quotes if that is the text \(given True\)",
        ),
        (
            "name: x",
            ["name="],
            r"name: input should be a valid string, in quotes if that is the text \(given None\)",
        ),
        ("name: x", ["=x"], "not an override of the form dotted.key=value: =x"),
        (
            "name: x",
            ["name=[a, b] #c"],
            r"name=\[a, b\] #c: '#c' follows the end of the value; put all of it in quotes",
        ),
        ("name: x", ["name=[a #b]"], r"name=\[a #b\]: line 2, column 1: while parsing a flow sequence"),
        ("name: x", ['name="a"b'], 'name="a"b: line 1, column 4: '),
        (
            "name: x\ntrain: {steps: 12:30}",
            [],
            r"train.steps: .*unable to parse string as an integer \(given '12:30'\)",
        ),
        (
            "name: x\ntrain: {steps: yes}",
            [],
            r"train.steps: .*unable to parse string as an integer \(given 'yes'\)",
        ),
        ("name: x", ["steps"], "not an override of the form dotted.key=value: steps"),
        ("name: ${oc.env:NO_SUCH_VARIABLE}", [], "NO_SUCH_VARIABLE"),
        ("train: {steps: 2}", [], "name: missing"),
        ("name: [a]", ["name.x=1"], "invalid literal"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: str | None, overrides: list[str], message: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as fault:
        load(Model, file, overrides)
    assert str(file) in str(fault.value) or overrides


WORDS = [
    "run #2",
    "a: b",
    "@x",
    "a\tb",
    "*_alt",
    "&x",
    "!x",
    "%x",
    "`x",
    "- a",
    "|",
    "> x",
    "?",
    "#2",
    "x # y",
    "a=b",
    "x:",
    "08",
    "010",
    "1e3",
    "1.10",
    "1_000",
    "0x10",
    "12:30",
    "2020-01-01",
    "no",
    "yes",
    "on",
    "Off",
    "2",
    "-",
    "<<",
    "=x",
    "nan",
    ".inf",
    "it's",
    'the "b"',
    "a, b",
    "a]",
    "\\n",
    "é ü",
    "s3://b/x?a=b&c=d#e",
    "~/x",
    "a\nb",
    "1.2.3",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_text_of_the_command_line_stays_as_it_is_written(path: Path, word: str) -> None:
    assert load(Model, path, [f"name={word}"]).name == word
    assert load(Model, path, [f"name= {word} "]).name == word, "white space around it is none of it"


@pytest.mark.parametrize(
    "word",
    [
        "08",
        "010",
        "1e3",
        "1.10",
        "1_000",
        "0x10",
        "12:30",
        "2020-01-01",
        "no",
        "on",
        "Yes",
        "2",
        "-7",
        "+5",
        "1.",
        ".5",
        "a\tb",
        "-0",
    ],
)
def test_a_word_of_a_file_stays_as_it_is_written_where_a_text_is_wanted(tmp_path: Path, word: str) -> None:
    (tmp_path / "c.yaml").write_text(
        f"references: [{{name: a, uri: x, contigs: [{word}]}}]\noutput: {word}\n"
    )
    config = load(DataConfig, tmp_path / "c.yaml")
    assert (config.output, config.references[0].contigs) == (word, (word,))
    assert dump(config)["output"] == word


def test_numbers_and_truths_are_read_where_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "references: [{name: a, uri: x, weight: 1e-1}]\noutput: o\nblock_bp: 65_536\noverwrite: yes\nseed: "
        "-3\n"
        "split: {leakage: off, gap: 1e3}\n"
    )
    config = load(DataConfig, tmp_path / "c.yaml", ["max_n_fraction=.5", "split.min_bp=010"])
    values = (
        config.references[0].weight,
        config.block_bp,
        config.overwrite,
        config.seed,
        config.split.leakage,
        config.split.gap,
        config.max_n_fraction,
        config.split.min_bp,
    )
    assert values == (0.1, 65_536, True, -3, "off", 1000, 0.5, 10)
    assert {type(value) for value in flatten(dump(config)).values()} <= {
        str,
        int,
        float,
        bool,
        list,
        type(None),
    }
    config = load(DataConfig, tmp_path / "c.yaml", ["overwrite=false", "workers=null"])
    assert (config.overwrite, config.workers) == (False, None)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("2", ("2",)),
        ("[2]", ("2",)),
        ("[1, 2, X]", ("1", "2", "X")),
        ("[08, 1e3, no]", ("08", "1e3", "no")),
        ("1", ("1",)),
        ("chr*_alt", ("chr*_alt",)),
        ("[chr8*, 'hg38:2']", ("chr8*", "hg38:2")),
        ("[1.5]", ("1.5",)),
        ("MT", ("MT",)),
        ("[0]", ("0",)),
    ],
)
def test_contigs_called_by_numbers(tmp_path: Path, word: str, names: tuple[str, ...]) -> None:
    (tmp_path / "c.yaml").write_text(
        f"references: [{{name: a, uri: x}}]\noutput: o\nsplit: {{val: {word}}}\n"
    )
    assert load(DataConfig, tmp_path / "c.yaml").split.val == names
    assert load(DataConfig, tmp_path / "c.yaml", [f"split.test={word}", "split.val=0"]).split.test == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_of_any_encoding_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    text = "name: é  # a comment\n\ntrain:\n  steps: 3\n".replace("\n", end)
    (tmp_path / "c.yaml").write_bytes(text.encode(encoding))
    assert load(Model, tmp_path / "c.yaml") == Model(name="é", train=Inner(steps=3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "name: x\nother: é\n".encode("latin-1"),
            r"c.yaml: not text in UTF-8: line 2 has byte b'\\xe9'; save it as UTF-8",
        ),
        (gzip.compress(b"name: x\n"), "c.yaml: it is gzip, not text; unpack it"),
        (b"PK\3\4name", "c.yaml: it is a zip archive or an Excel file, not text; save it as text"),
        ("name: x\n".encode("utf-16-le"), "c.yaml: not text in UTF-8: line 1 has a NUL; save it as UTF-8"),
        ("name: x\n".encode("utf-16")[:-1], "c.yaml: not text in UTF-16-LE: line 1 has byte"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(Model, tmp_path / "c.yaml")


def test_a_number_keeps_its_text_in_a_copy() -> None:
    for number in (Real("1e3"), Integer("1_000")):
        for copied in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number)):
            assert (copied, str(copied)) == (1000, number.text)


def test_an_override_may_put_a_mapping_in_the_place_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("references: [{name: a, uri: a.fa}]\noutput: o\nsplit: {val: [IV], gap: 5}\n")
    config = load(DataConfig, file, ["split.val={bed: v.bed}"])
    assert config.split.val == BedSplit(bed=("v.bed",))
    assert load(DataConfig, file, ["split={test: 0.1}"]).split.gap == 5, "a mapping is merged into a mapping"
    assert load(DataConfig, file, ["split={}"]).split.gap == 1024, "{} takes the place of one"


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
    assert dump(config)["split"] == {
        "val": ["IV"],
        "test": 0.0,
        "by": "contigs",
        "homology": {
            "k": 19,
            "window": 11,
            "min_link": 0.003,
            "max_copies": 5,
            "max_shared": 0.1,
            "window_bp": 1000,
        },
        "gap": 1024,
        "leakage": "report",
        "min_bp": 1024,
    }
    assert data(split={"val": {"bed": "v.bed"}}).split.val == BedSplit(bed=("v.bed",))
    assert dump(data(split={"val": {"bed": "v.bed"}}))["split"]["val"] == {"bed": ["v.bed"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": []}, "at least one is needed"),
        ({"references": [{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]}, "given twice: a"),
        ({"references": [{"name": "a/b", "uri": "x"}]}, "letters, digits"),
        ({"references": [{"name": "a", "uri": []}]}, "at least one FASTA"),
        ({"references": [{"name": "a", "uri": {"b": 3}}]}, "a string or a list of strings"),
        (
            {"references": [{"name": "a", "uri": "x", "contigs": [True]}]},
            "true, false and null need quotes to be names",
        ),
        (
            {"references": [{"name": "a", "uri": "x", "contigs": [None]}]},
            "true, false and null need quotes to be names",
        ),
        ({"references": [{"name": "a", "uri": "x", "weight": 0}]}, "greater than 0"),
        ({"block_bp": 1026}, "multiple of 4"),
        ({"block_bp": 512}, "greater than or equal to 1024"),
        ({"shard_bp": 4096}, "shard_bp 4096 is less than block_bp 262144"),
        ({"max_n_fraction": 1.1}, "less than or equal to 1"),
        ({"split": {"val": 0.6, "test": 0.4}}, "val 0.6 and test 0.4 leave nothing to train on"),
        ({"split": {"val": ["I", "II"], "test": ["II"]}}, "contigs in both val and test: II"),
        ({"split": {"val": 1.5}}, r"a fraction in \[0, 1\).*a contig called 1.5 needs brackets"),
        ({"split": {"val": -1}}, r"a fraction in \[0, 1\)"),
        ({"split": {"val": True}}, r"a fraction in \[0, 1\)"),
        ({"split": {"val": {"bed": []}}}, "at least one BED file"),
        ({"split": {"val": {"bed": True}}}, "a string or a list of strings"),
        (
            {"split": {"val": {"bed": "x", "gap": 3}}},
            r"a fraction in \[0, 1\), a list of contig names, \{bed: URI\} or \{clade: NAME\}",
        ),
        ({"split": {"leakage": "maybe"}}, "'report', 'drop' or 'off'"),
        ({"shard_bp": 1 << 29}, "less than or equal to 268435456"),
        ({"workers": 0}, "greater than or equal to 1"),
        ({"output": ""}, "at least 1 character"),
    ],
)
def test_data_config_faults(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**changes)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs" / "data").glob("[!r]*.yaml")), ids=str
)  # without reference.yaml, which holds the defaults
def test_every_shipped_data_config_loads(file: Path) -> None:
    config = load(DataConfig, file)
    assert config.split.val, "a shipped config holds contigs out"
    assert config.output.startswith("datasets/")
